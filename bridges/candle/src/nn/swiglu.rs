//! The gate of a Llama's MLP.

use crate::nn::check_alike;
use crate::node::{self, Value};
use candle_core::{Result, Tensor, bail};

/// silu(gate) · up.
///
/// # Errors
/// If the shapes, types or devices differ, or candle's.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        bail!("swiglu of {:?} and {:?}: expected one shape", gate.shape(), up.shape())
    }
    check_alike("swiglu", &[gate, up])?;
    let y = (gate.detach().silu()? * up.detach())?;
    node::two("swiglu", [gate, up], Value::take(&y)?, |step| {
        let ([gate, up], dy) = (&step.args, step.dy);
        let silu = gate.silu()?;
        let d_up = (dy * &silu)?;
        // silu' = silu + σ · (1 − silu).
        let slope = (candle_nn::ops::sigmoid(gate)? * silu.affine(-1.0, 1.0)?)?.add(&silu)?;
        drop(silu);
        Ok([Some((slope * (dy * up)?)?), Some(d_up)])
    })
}
