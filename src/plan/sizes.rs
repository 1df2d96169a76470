//! The sizes of a product, of one layer or of several that share X.

use crate::manifest::sm90a::linear_tiles::TILE_K;
use crate::problem::MAX_PROJECTIONS;

/// A product: out (m×n) over k, with S or dS (m×r).
///
/// Of several layers that share X, n is of each in the forward, k of each in the input gradient,
/// and r of each in both. Unused entries are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) n: [usize; MAX_PROJECTIONS],
    pub(crate) k: [usize; MAX_PROJECTIONS],
    pub(crate) r: [usize; MAX_PROJECTIONS],
    /// Whether X has dropout.
    pub(crate) dropout: bool,
}

impl Sizes {
    /// Of one layer: m, n, k and r.
    pub(crate) fn of_layer([m, n, k, r]: [usize; 4]) -> Self {
        let one = |size| [size, 0, 0, 0];
        Sizes { m, n: one(n), k: one(k), r: one(r), dropout: false }
    }

    /// Of H, for layers of these outputs and ranks.
    pub(crate) fn of_forward(
        t: usize,
        k: usize,
        layers: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let mut sizes = Sizes::of_layer([t, 0, k, 0]);
        layers.enumerate().for_each(|(i, (d, r))| (sizes.n[i], sizes.r[i]) = (d, r));
        sizes
    }

    /// Of dX, for layers of these outputs and ranks.
    pub(crate) fn of_input_grad(
        t: usize,
        k: usize,
        layers: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let mut sizes = Sizes::of_layer([t, k, 0, 0]);
        layers.enumerate().for_each(|(i, (d, r))| (sizes.k[i], sizes.r[i]) = (d, r));
        sizes
    }

    /// The same where X has dropout.
    pub(crate) fn with_dropout(self, dropout: bool) -> Self {
        Sizes { dropout, ..self }
    }

    /// Columns of S, of all layers.
    pub(crate) fn rank(&self) -> usize {
        self.r.iter().sum()
    }

    /// Columns of tiles. A tile is of one layer.
    pub(super) fn tile_cols(&self, tile_n: usize) -> usize {
        self.n.iter().map(|n| n.div_ceil(tile_n)).sum()
    }

    /// Steps along k. A step is of one layer.
    pub(super) fn steps(&self) -> usize {
        self.k.iter().map(|k| k.div_ceil(TILE_K)).sum()
    }

    /// Columns of S that the end of a tile multiplies.
    pub(super) fn tile_rank(&self) -> usize {
        match self.n[1] {
            0 => self.rank(),
            _ => self.r.into_iter().fold(0, usize::max),
        }
    }

    /// Bytes of lhs.
    pub(super) fn lhs_bytes(&self) -> usize {
        self.m * self.k.iter().sum::<usize>() * 2
    }
}
