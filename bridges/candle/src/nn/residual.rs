//! The sum of a residual stream and a layer's output.

use crate::node::{self, Value};
use candle_core::{Result, Tensor};

/// x + h. candle's sum would keep h to the end of the backward pass; this one frees its memory,
/// so nothing may read h any more: neither the caller nor the backward pass of what made it.
pub(crate) fn residual(x: &Tensor, h: Tensor) -> Result<Tensor> {
    let y = (x.detach() + h.detach())?;
    if h.track_op() {
        drop(Value::take(&h)?);
    }
    node::two("residual", [x, &h], Value::take(&y)?, |step| {
        Ok([Some(step.dy.clone()), Some(step.dy.clone())])
    })
}
