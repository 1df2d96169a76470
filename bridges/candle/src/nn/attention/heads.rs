//! The passes, on KV groups.

use super::Sizes;
use super::tables::{SUM_COLUMNS, Tables};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::rotary_emb::rope;

/// q [KV groups, rows, n], rotated and scaled, k [KV groups, T, n], rotated, and v.
pub(super) struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Heads {
    pub(super) fn new(
        [q, k, v]: &[Tensor; 3],
        sizes: Sizes,
        tables: &Tables,
        scale: f64,
    ) -> Result<Self> {
        let (q, k) = (sizes.split(q, sizes.heads)?, sizes.split(k, sizes.kv_heads)?);
        let (q, k) = match &tables.rotary {
            Some(tables) => {
                (rope(&q, &tables.q[0], &tables.q[1])?, rope(&k, &tables.k[0], &tables.k[1])?)
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
    fn probabilities(&self, tables: &Tables) -> Result<Tensor> {
        let ((groups, rows, _), t) = (self.q.dims3()?, self.k.dim(1)?);
        let heads = groups * rows / t;
        let scores = self.q.matmul(&self.k.t()?)?.reshape((heads, t, t))?;
        softmax((scores + tables.mask(heads)?)?)?.reshape((groups, rows, t))
    }

    /// H, [KV groups, rows, n].
    pub(super) fn forward(&self, sizes: Sizes, tables: &Tables) -> Result<Tensor> {
        let parts = sizes.slices().map(|(start, len)| {
            let heads = self.narrow(start, len)?;
            heads.probabilities(tables)?.matmul(&heads.v)
        });
        join(parts.collect::<Result<_>>()?)
    }

    /// The gradients of q, k and v as this has them, of dH [KV groups, rows, n] and its [`sums`].
    ///
    /// With the probabilities P and dP = dH Vᵀ, dS = P · (dP − sums). The difference is one matmul
    /// of longer rows, [dH | sums] [V | −1/8 …]ᵀ: it is rounded once, and a pass over the scores
    /// less.
    pub(super) fn backward(
        &self,
        sizes: Sizes,
        tables: &Tables,
        dh: &Tensor,
        sums: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let mut parts: [Vec<Tensor>; 3] = Default::default();
        for (start, len) in sizes.slices() {
            let heads = self.narrow(start, len)?;
            let (dh, sums) = (dh.narrow(0, start, len)?, sums.narrow(0, start, len)?);
            let p = heads.probabilities(tables)?;
            let dv = p.t()?.matmul(&dh)?;
            let longer = Tensor::cat(&[&heads.v, &tables.minus(len)?], 2)?;
            let ds = (p * Tensor::cat(&[dh, sums], 2)?.matmul(&longer.t()?)?)?;
            let grads = [ds.matmul(&heads.k)?, ds.t()?.matmul(&heads.q)?, dv];
            parts.iter_mut().zip(grads).for_each(|(parts, grad)| parts.push(grad));
        }
        let [dq, dk, dv] = parts;
        Ok([join(dq)?, join(dk)?, join(dv)?])
    }
}

/// The row sums of dH · H of every head, [KV groups, rows, SUM_COLUMNS], all columns alike.
pub(super) fn sums(dh: &Tensor, h: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let Sizes { batch, t, heads, head_dim, .. } = sizes;
    let sums = (dh * h)?.reshape((batch, t, heads, head_dim))?.sum_keepdim(D::Minus1)?;
    let sums = sums.transpose(1, 2)?.broadcast_as((batch, heads, t, SUM_COLUMNS))?;
    sums.contiguous()?.reshape((sizes.groups(), sizes.rows(), SUM_COLUMNS))
}

/// Over the last dimension. On a GPU candle sums in f32 whatever the type, on the CPU it does not.
fn softmax(x: Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() != DType::F32 {
        return candle_nn::ops::softmax_last_dim(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype());
    }
    candle_nn::ops::softmax_last_dim(&x)
}

/// The parts of the slices as one tensor.
fn join(mut parts: Vec<Tensor>) -> Result<Tensor> {
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 0) }
}
