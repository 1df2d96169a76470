//! Rotary position embeddings.

use crate::nn::check_alike;
use crate::node::{self, Value};
use candle_core::{Result, Tensor, bail};

/// Rotates x [batch, heads, T, n] by the angles of its positions: elements i and i + n/2 are a
/// pair, as in Hugging Face's `rotate_half`. The cosines and sines are [T or more, n/2].
///
/// # Errors
/// If the shapes, types or devices do not fit each other, or candle's.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let fits = |table: &Tensor| match (x.dims(), table.dims()) {
        (&[_, _, t, n], &[rows, half]) => t <= rows && n == 2 * half,
        _ => false,
    };
    if !fits(cos) || !fits(sin) {
        let (x, cos, sin) = (x.shape(), cos.shape(), sin.shape());
        bail!(
            "rope of x {x:?} with {cos:?}, {sin:?}: expected [batch, heads, T, n], [T, n/2] twice"
        )
    }
    check_alike("rope", &[x, cos, sin])?;
    let (x, cos, sin) = (x.contiguous()?, cos.detach().contiguous()?, sin.detach().contiguous()?);
    let y = candle_nn::rotary_emb::rope(&x.detach(), &cos, &sin)?;
    node::one("rope", &x, Value::take(&y)?, move |step| {
        candle_nn::rotary_emb::rope(&step.dy.contiguous()?, &cos, &sin.neg()?)
    })
}

/// The angles per position of rotary embeddings of a head of n elements: θ^(−2i/n).
pub fn rope_frequencies(head_dim: usize, theta: f64) -> Vec<f32> {
    let exponent = |i: usize| -((2 * i) as f64) / head_dim as f64;
    (0..head_dim / 2).map(|i| theta.powf(exponent(i)) as f32).collect()
}
