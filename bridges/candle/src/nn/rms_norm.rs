//! RMSNorm.

use crate::nn::check_alike;
use crate::node::{self, Value};
use candle_core::{D, DType, Result, Tensor, bail};

/// y = x / √(mean(x²) + ε) · w, of x [..., n] and a frozen w `[n]`.
///
/// # Errors
/// If the shapes, types or devices do not fit each other, or candle's.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.rank() != 1 || x.dims().last() != Some(&weight.elem_count()) {
        let (x, weight) = (x.shape(), weight.shape());
        bail!("rms_norm of x {x:?} with a weight {weight:?}: expected [..., n] and [n]")
    }
    check_alike("rms_norm", &[x, weight])?;
    let (x, weight) = (x.contiguous()?, weight.detach().contiguous()?);
    let y = candle_nn::ops::rms_norm(&x.detach(), &weight, eps as f32)?;
    node::one("rms-norm", &x, Value::take(&y)?, move |step| {
        backward(&step.args[0], &weight, eps, step.dy)
    })
}

/// With v = mean(x²) + ε and g = dy · w: dx = (g − x · mean(x · g) / v) / √v. In f32: a row's
/// factors in 16 bits would shift all of its elements alike.
fn backward(x: &Tensor, weight: &Tensor, eps: f64, dy: &Tensor) -> Result<Tensor> {
    let (dtype, mean) = (x.dtype(), 1.0 / weight.elem_count() as f64);
    let x = x.to_dtype(DType::F32)?;
    let g = dy.to_dtype(DType::F32)?.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    let v = x.sqr()?.sum_keepdim(D::Minus1)?.affine(mean, eps)?;
    let c = ((&x * &g)?.sum_keepdim(D::Minus1)?.affine(mean, 0.0)? / &v)?;
    (g - x.broadcast_mul(&c)?)?.broadcast_mul(&v.powf(-0.5)?)?.to_dtype(dtype)
}
