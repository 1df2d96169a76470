//! Causal attention.

use crate::kernels::lock;
use crate::nn::check_alike;
use crate::node::{self, Value};
use candle_core::{D, DType, Device, Result, Tensor, bail};
use std::sync::{Arc, Mutex};

/// Scores computed at a time, if one KV head of one sequence has no more: 128 MiB in 16 bits. The
/// backward pass has four such tensors at its peak, the forward pass three.
const MAX_SCORES: usize = 1 << 26;

/// Tables are made for a multiple of so many positions: lengths of batches change.
const POSITIONS: usize = 256;

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

/// What depends on the number of positions, the type and the device.
#[derive(Debug)]
struct Tables {
    positions: usize,
    /// [positions, positions]: 0 up to the diagonal, −∞ above.
    mask: Tensor,
    /// Cosines, sines and negated sines, [positions, head_dim / 2]; those of q have the scale.
    rotary: Option<[[Tensor; 3]; 2]>,
}

/// The sizes of a call.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    t: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    max_scores: usize,
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
        let tables = self.tables(sizes.t, q.dtype(), q.device())?;
        let (scale, args) = (self.scale, [q.detach(), k.detach(), v.detach()]);
        let y = forward(&Heads::new(&args, sizes, &tables, scale)?, sizes, &tables.mask)?;
        node::three("attention", [q, k, v], Value::take(&sizes.back(&y)?)?, move |step| {
            let heads = Heads::new(&step.args, sizes, &tables, scale)?;
            let dots = (step.dy * &step.y)?.reshape(sizes.by_head(sizes.heads))?;
            let dots = dots.sum_keepdim(D::Minus1)?.transpose(1, 2)?.contiguous()?;
            let dots = dots.reshape((sizes.groups(), sizes.rows(), 1))?;
            let dy = sizes.split(step.dy, sizes.heads)?.reshape(heads.q.shape())?;
            let [dq, dk, dv] = backward(&heads, sizes, &tables.mask, &dy, &dots)?;
            drop((heads, dy));
            let [dq, dk] = match &tables.rotary {
                Some([of_q, of_k]) => [
                    rotate(&sizes.by(&dq, sizes.heads)?, &of_q[0], &of_q[2])?,
                    rotate(&sizes.by(&dk, sizes.kv_heads)?, &of_k[0], &of_k[2])?,
                ],
                None => [(dq * scale)?, dk],
            };
            Ok([Some(sizes.back(&dq)?), Some(sizes.back(&dk)?), Some(sizes.back(&dv)?)])
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
                    && m > 0
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

    /// Tables for t positions, kept for the next call.
    fn tables(&self, t: usize, dtype: DType, device: &Device) -> Result<Arc<Tables>> {
        let mut kept = lock(&self.kept);
        if let Some(tables) = &*kept
            && tables.positions >= t
            && tables.mask.dtype() == dtype
            && tables.mask.device().same_device(device)
        {
            return Ok(tables.clone());
        }
        let positions = t.next_multiple_of(POSITIONS);
        let at = Tensor::arange(0u32, positions as u32, device)?;
        let shape = (positions, positions);
        let above = at.unsqueeze(0)?.broadcast_gt(&at.unsqueeze(1)?)?;
        let zeros = Tensor::zeros(shape, DType::F32, device)?;
        let infinite = Tensor::full(f32::NEG_INFINITY, shape, device)?;
        let mask = above.where_cond(&infinite, &zeros)?.to_dtype(dtype)?;
        let rotary = match &self.frequencies {
            Some(frequencies) => {
                let n = frequencies.len();
                let frequencies = Tensor::from_slice(frequencies, (1, n), device)?;
                let at = at.to_dtype(DType::F32)?.reshape((positions, 1))?;
                let angles = at.broadcast_mul(&frequencies)?;
                let (cos, sin) = (angles.cos()?, angles.sin()?);
                let scaled = |scale: f64| -> Result<_> {
                    let table = |of: &Tensor, by| of.affine(by, 0.0)?.to_dtype(dtype);
                    Ok([table(&cos, scale)?, table(&sin, scale)?, table(&sin, -scale)?])
                };
                Some([scaled(self.scale)?, scaled(1.0)?])
            }
            None => None,
        };
        let tables = Arc::new(Tables { positions, mask, rotary });
        *kept = Some(tables.clone());
        Ok(tables)
    }
}

impl Sizes {
    /// Heads of a KV group.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// KV groups of the batch, the batch of every matmul.
    fn groups(self) -> usize {
        self.batch * self.kv_heads
    }

    /// Queries of a KV group.
    fn rows(self) -> usize {
        self.group() * self.t
    }

    fn by_head(self, heads: usize) -> (usize, usize, usize, usize) {
        (self.batch, self.t, heads, self.head_dim)
    }

    /// [batch, T, heads · n] as [batch, heads, T, n].
    fn split(self, x: &Tensor, heads: usize) -> Result<Tensor> {
        x.reshape(self.by_head(heads))?.transpose(1, 2)?.contiguous()
    }

    /// [KV groups, rows, n] as [batch, heads, T, n].
    fn by(self, x: &Tensor, heads: usize) -> Result<Tensor> {
        x.reshape((self.batch, heads, self.t, self.head_dim))
    }

    /// The reverse of `split`, also of [KV groups, rows, n].
    fn back(self, x: &Tensor) -> Result<Tensor> {
        let heads = x.elem_count() / (self.batch * self.t * self.head_dim);
        let x = self.by(x, heads)?.transpose(1, 2)?.contiguous()?;
        x.reshape((self.batch, self.t, heads * self.head_dim))
    }
}

/// q [KV groups, rows, n], rotated and scaled, k [KV groups, T, n], rotated, and v.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Heads {
    fn new([q, k, v]: &[Tensor; 3], sizes: Sizes, tables: &Tables, scale: f64) -> Result<Self> {
        let (q, k) = (sizes.split(q, sizes.heads)?, sizes.split(k, sizes.kv_heads)?);
        let (q, k) = match &tables.rotary {
            Some([of_q, of_k]) => {
                (rotate(&q, &of_q[0], &of_q[1])?, rotate(&k, &of_k[0], &of_k[1])?)
            }
            None => ((q * scale)?, k),
        };
        let (groups, rows, n) = (sizes.groups(), sizes.rows(), sizes.head_dim);
        let kv = (groups, sizes.t, n);
        let v = sizes.split(v, sizes.kv_heads)?.reshape(kv)?;
        Ok(Heads { q: q.reshape((groups, rows, n))?, k: k.reshape(kv)?, v })
    }

    /// Those of some KV groups.
    fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        let narrow = |x: &Tensor| x.narrow(0, start, len);
        Ok(Heads { q: narrow(&self.q)?, k: narrow(&self.k)?, v: narrow(&self.v)? })
    }

    /// [KV groups, rows, T].
    fn probabilities(&self, mask: &Tensor) -> Result<Tensor> {
        let (groups, rows, _) = self.q.dims3()?;
        let t = self.k.dim(1)?;
        let mask = mask.narrow(0, 0, t)?.narrow(1, 0, t)?;
        let scores = self.q.matmul(&self.k.t()?)?.reshape((groups * rows / t, t, t))?;
        softmax(scores.broadcast_add(&mask)?)?.reshape((groups, rows, t))
    }
}

/// candle's rotation, which wants tables that are contiguous and as long or longer.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    candle_nn::rotary_emb::rope(x, cos, sin)
}

/// Over the last dimension. On a GPU candle sums in f32 whatever the type, on the CPU it does not.
fn softmax(x: Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() != DType::F32 {
        return candle_nn::ops::softmax_last_dim(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype());
    }
    candle_nn::ops::softmax_last_dim(&x)
}

/// Ranges of KV groups with at most `max_scores` scores, or one.
fn slices(sizes: Sizes) -> impl Iterator<Item = (usize, usize)> {
    let (groups, scores) = (sizes.groups(), sizes.rows() * sizes.t);
    let step = (sizes.max_scores / scores.max(1)).clamp(1, groups.max(1));
    (0..groups).step_by(step).map(move |start| (start, step.min(groups - start)))
}

/// The parts of the slices as one tensor.
fn join(mut parts: Vec<Tensor>) -> Result<Tensor> {
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 0) }
}

/// H, [KV groups, rows, n].
fn forward(heads: &Heads, sizes: Sizes, mask: &Tensor) -> Result<Tensor> {
    let parts = slices(sizes).map(|(start, len)| {
        let heads = heads.narrow(start, len)?;
        heads.probabilities(mask)?.matmul(&heads.v)
    });
    join(parts.collect::<Result<_>>()?)
}

/// The gradients of `heads`, of dH and the row sums of dH · H.
fn backward(
    heads: &Heads,
    sizes: Sizes,
    mask: &Tensor,
    dy: &Tensor,
    dots: &Tensor,
) -> Result<[Tensor; 3]> {
    let mut parts: [Vec<Tensor>; 3] = Default::default();
    for (start, len) in slices(sizes) {
        let heads = heads.narrow(start, len)?;
        let (dy, dots) = (dy.narrow(0, start, len)?, dots.narrow(0, start, len)?);
        let p = heads.probabilities(mask)?;
        let dv = p.t()?.matmul(&dy)?;
        let dp = dy.matmul(&heads.v.t()?)?.broadcast_sub(&dots)?;
        let ds = (p * dp)?;
        let grads = [ds.matmul(&heads.k)?, ds.t()?.matmul(&heads.q)?, dv];
        parts.iter_mut().zip(grads).for_each(|(parts, grad)| parts.push(grad));
    }
    let [dq, dk, dv] = parts;
    Ok([join(dq)?, join(dk)?, join(dv)?])
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
