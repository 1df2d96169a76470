//! A frozen bias. candle's `broadcast_add` would compute a gradient of it, and two copies of dH.

use crate::node::{self, Value};
use candle_core::{Result, Tensor, bail};

/// h [..., d] + bias `[d]`. The gradient passes through. The memory of h is freed: nothing may read
/// it any more, neither the caller nor the backward pass of what made it.
pub(crate) fn add(h: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let Some(bias) = bias else { return Ok(h) };
    let y = h.detach().broadcast_add(bias)?;
    drop(Value::take(&h)?);
    node::one("frozen-bias", &h, Value::take(&y)?, |step| Ok(step.dy.clone()))
}

/// Refuses a bias that is not `[d]` in the type and on the device of W0 [d, k].
pub(crate) fn check(bias: &Tensor, w0: &Tensor) -> Result<()> {
    let d = w0.dim(0)?;
    if bias.dims() != [d] || bias.dtype() != w0.dtype() {
        bail!("bias is {:?} {:?}: expected [{d}] {:?}", bias.dtype(), bias.shape(), w0.dtype())
    }
    if !bias.device().same_device(w0.device()) {
        bail!("the bias and W0 are on different devices")
    }
    Ok(())
}
