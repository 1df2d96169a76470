//! The sizes of a call, and its two layouts.

use candle_core::{Result, Tensor};

#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) t: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_scores: usize,
}

impl Sizes {
    /// Heads of a KV group.
    pub(super) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// KV groups of the batch, the batch of every matmul.
    pub(super) fn groups(self) -> usize {
        self.batch * self.kv_heads
    }

    /// Queries of a KV group.
    pub(super) fn rows(self) -> usize {
        self.group() * self.t
    }

    /// KV groups of a slice: at most `max_scores` scores, or one group.
    pub(super) fn slice(self) -> usize {
        (self.max_scores / (self.rows() * self.t)).clamp(1, self.groups())
    }

    /// Starts and lengths of the slices.
    pub(super) fn slices(self) -> impl Iterator<Item = (usize, usize)> {
        let (groups, step) = (self.groups(), self.slice());
        (0..groups).step_by(step).map(move |start| (start, step.min(groups - start)))
    }

    /// [batch, T, heads · n] as [batch, heads, T, n].
    pub(super) fn split(self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let x = x.reshape((self.batch, self.t, heads, self.head_dim))?;
        x.transpose(1, 2)?.contiguous()
    }

    /// [KV groups, rows, n] as [batch, heads, T, n].
    pub(super) fn by_head(self, x: &Tensor, heads: usize) -> Result<Tensor> {
        x.reshape((self.batch, heads, self.t, self.head_dim))
    }

    /// The reverse of `split`, also of [KV groups, rows, n].
    pub(super) fn join(self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let x = self.by_head(x, heads)?.transpose(1, 2)?.contiguous()?;
        x.reshape((self.batch, self.t, heads * self.head_dim))
    }
}
