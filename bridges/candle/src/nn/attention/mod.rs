//! Causal attention.

mod heads;
mod sizes;
mod tables;

use crate::kernels::lock;
use crate::nn::check_alike;
use crate::node::{self, Value};
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::rotary_emb::rope;
use heads::Heads;
use sizes::Sizes;
use std::sync::{Arc, Mutex};
use tables::Tables;

/// Scores computed at a time, if one KV head of one sequence has no more: 64 MiB in 16 bits. The
/// backward pass has three such tensors at its peak, and the mask is one.
const MAX_SCORES: usize = 1 << 25;

/// Causal attention with rotary embeddings and grouped KV heads:
/// H = softmax(scale · rope(Q) rope(K)ᵀ + mask) V for every head.
///
/// The layers of a model share one: it keeps the mask and the tables of the rotary embeddings. The
/// graph keeps q, k, v and H; the backward pass computes the probabilities again. The heads of a KV
/// group are rows of one matmul, so K and V are not repeated.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lora_kernels_candle::nn::{Attention, rope_frequencies};
///
/// # fn main() -> candle_core::Result<()> {
/// let attention = Attention::new(16).with_rope(rope_frequencies(16, 10_000.0));
/// let q = Tensor::ones((1, 5, 4 * 16), DType::F32, &Device::Cpu)?;
/// let k = Tensor::ones((1, 5, 2 * 16), DType::F32, &Device::Cpu)?;
/// assert_eq!(attention.forward(&q, &k, &k)?.dims(), [1, 5, 4 * 16]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Attention {
    head_dim: usize,
    scale: f64,
    frequencies: Option<Vec<f32>>,
    max_scores: usize,
    kept: Mutex<Option<Arc<Tables>>>,
}

impl Attention {
    /// Attention of heads of this size, with the scale 1/√head_dim and without rotary embeddings.
    pub fn new(head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f64).sqrt();
        let max_scores = MAX_SCORES;
        Attention { head_dim, scale, frequencies: None, max_scores, kept: Mutex::new(None) }
    }

    /// The same with another scale of the scores.
    pub fn with_scale(self, scale: f64) -> Self {
        Attention { scale, kept: Mutex::new(None), ..self }
    }

    /// The same with rotary embeddings, as [`rope`](super::rope) computes them. The frequencies
    /// are head_dim / 2, as [`rope_frequencies`](super::rope_frequencies) returns them.
    pub fn with_rope(self, frequencies: Vec<f32>) -> Self {
        Attention { frequencies: Some(frequencies), kept: Mutex::new(None), ..self }
    }

    /// H [batch, T, heads · head_dim] of q of that shape and of k and v
    /// [batch, T, KV heads · head_dim], as linear layers return them.
    ///
    /// # Errors
    /// If the shapes, types or devices do not fit each other, or candle's.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let sizes = self.sizes(q, k, v)?;
        let tables = self.tables(sizes, q.dtype(), q.device())?;
        let (scale, args) = (self.scale, [q.detach(), k.detach(), v.detach()]);
        let y = Heads::new(&args, sizes, &tables, scale)?.forward(sizes, &tables)?;
        let y = Value::take(&sizes.join(&y, sizes.heads)?)?;
        node::three("attention", [q, k, v], y, move |step| {
            let heads = Heads::new(&step.args, sizes, &tables, scale)?;
            let sums = heads::sums(step.dy, &step.y, sizes)?;
            let dh = sizes.split(step.dy, sizes.heads)?;
            let dh = dh.reshape((sizes.groups(), sizes.rows(), sizes.head_dim))?;
            let [dq, dk, dv] = heads.backward(sizes, &tables, &dh, &sums)?;
            drop((heads, dh, sums));
            let [dq, dk] = match &tables.rotary {
                Some(tables) => {
                    let (dq, dk) =
                        (sizes.by_head(&dq, sizes.heads)?, sizes.by_head(&dk, sizes.kv_heads)?);
                    [rope(&dq, &tables.q[0], &tables.q[2])?, rope(&dk, &tables.k[0], &tables.k[2])?]
                }
                None => [(dq * scale)?, dk],
            };
            let join = |x: &Tensor, heads| sizes.join(x, heads).map(Some);
            Ok([join(&dq, sizes.heads)?, join(&dk, sizes.kv_heads)?, join(&dv, sizes.kv_heads)?])
        })
    }

    fn sizes(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Sizes> {
        let head_dim = self.head_dim;
        if let Some(frequencies) = &self.frequencies
            && 2 * frequencies.len() != head_dim
        {
            let n = frequencies.len();
            bail!("{n} frequencies of rotary embeddings for heads of {head_dim} elements")
        }
        let fits = match (q.dims(), k.dims()) {
            (&[b, t, n], &[of_b, of_t, m]) => {
                (b, t) == (of_b, of_t)
                    && [b, t, m, head_dim].iter().all(|&size| size > 0)
                    && [n, m].iter().all(|n| n % head_dim == 0)
                    && n % m == 0
            }
            _ => false,
        };
        if !fits || k.shape() != v.shape() {
            let (q, k, v) = (q.shape(), k.shape(), v.shape());
            bail!(
                "attention of {q:?}, {k:?}, {v:?}: expected [batch, T, heads · {head_dim}], and \
                 [batch, T, KV heads · {head_dim}] twice"
            )
        }
        check_alike("attention", &[q, k, v])?;
        let ((batch, t, n), m) = (q.dims3()?, k.dim(2)?);
        let (heads, kv_heads, max_scores) = (n / head_dim, m / head_dim, self.max_scores);
        Ok(Sizes { batch, t, heads, kv_heads, head_dim, max_scores })
    }

    /// The tables, kept for the next call.
    fn tables(&self, sizes: Sizes, dtype: DType, device: &Device) -> Result<Arc<Tables>> {
        let mut kept = lock(&self.kept);
        match &*kept {
            Some(tables) if tables.fit(sizes, dtype, device) => Ok(tables.clone()),
            _ => {
                let frequencies = self.frequencies.as_deref();
                // The old ones go first: the mask is large.
                *kept = None;
                let tables = Tables::new(sizes, frequencies, self.scale, dtype, device)?;
                Ok(kept.insert(Arc::new(tables)).clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn slices_are_the_whole() -> Result<()> {
        let [q, k, v] = [8, 4, 4].map(|n| Var::randn(0f32, 1.0, (3, 5, n), &Device::Cpu).unwrap());
        let run = |max_scores| -> Result<Vec<f32>> {
            let attention = Attention { max_scores, ..Attention::new(2) };
            let h = attention.forward(&q, &k, &v)?;
            let gradients = (&h * &h)?.sum_all()?.backward()?;
            let mut all = vec![h.flatten_all()?];
            for var in [&q, &k, &v] {
                all.push(gradients.get(var).unwrap().flatten_all()?);
            }
            Tensor::cat(&all, 0)?.to_vec1()
        };
        let whole = run(MAX_SCORES)?;
        // 2 heads · 5² scores of each of 6 groups: four groups, one, and less than one.
        for max_scores in [4 * 50 + 1, 50, 1] {
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
            assert!(run(max_scores)?.iter().zip(&whole).all(close), "{max_scores}");
        }
        Ok(())
    }
}
