//! A launch of `kernels/sm90a/linear.cuh`.

use crate::manifest::sm90a::linear_tiles::{CONSUMER_WARPS, TILE_M};
use crate::manifest::sm90a::projection::FLAG_ROWS;
use crate::plan::sm90a::grads;

/// Where the projection of a product comes from: S of the forward, dS of the input gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projection {
    /// Separate: from a launch before. With r = 0 there is none.
    Separate,
    /// Dedicated: the first clusters of the grid compute it and nothing else. Forward only.
    Dedicated {
        /// The projection clusters.
        proj_clusters: usize,
    },
    /// Fused: some tiles of the product compute a slice of S beside their own columns.
    Fused {
        /// Columns of S in a slice, one of the SLICES of the manifest.
        slice: usize,
        /// Columns of tiles that compute slices, before all other tiles. There are more of them
        /// than slices only if S is one slice: each tile then computes it for itself, and the first
        /// also publishes it.
        slice_cols: usize,
        /// Clusters that compute slices, a multiple of the slices of a row if possible: the slices
        /// of a row are then computed at the same time.
        slice_clusters: usize,
        /// Every tile computes all of S for itself: none waits for another.
        alone: bool,
    },
}

/// A launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Columns of an output tile. The tile of a cluster has 256 rows.
    pub(crate) tile_n: usize,
    pub(crate) projection: Projection,
    /// Full tiles, each computed by one cluster: all tiles, or the same number for every cluster.
    /// The rest, the tail wave, is stream-K.
    pub(crate) full_tiles: usize,
    /// Clusters that compute output tiles.
    pub(crate) clusters: usize,
    /// Whether the tail wave is stream-K.
    pub(crate) stream_k: bool,
    /// Clusters of grad CTAs, which compute dA and dB; with dX only.
    pub(crate) grad_clusters: usize,
}

/// Rows of tiles in a group of the tile order, which goes through it column by column. The L2 does
/// not hold what more rows share.
pub(crate) const GROUP: usize = 8;

/// Rows of the tile of a cluster.
pub(crate) const CLUSTER_M: usize = 2 * TILE_M;

/// Consumer warps of a cluster.
const CLUSTER_WARPS: usize = 2 * CONSUMER_WARPS;

impl Schedule {
    /// Whether CTAs wait on flags.
    pub(super) fn waits(&self) -> bool {
        self.projection != Projection::Separate || self.stream_k
    }

    /// Whether CTAs wait on others that do not come before them in the grid, so that all must run at
    /// once.
    pub(crate) fn is_cooperative(&self) -> bool {
        matches!(self.projection, Projection::Fused { alone: false, .. })
    }

    /// CTAs of the grid.
    pub(crate) fn blocks(&self) -> usize {
        2 * (self.proj_clusters() + self.clusters + self.grad_clusters)
    }

    /// Projection clusters.
    pub(crate) fn proj_clusters(&self) -> usize {
        match self.projection {
            Projection::Dedicated { proj_clusters } => proj_clusters,
            Projection::Separate | Projection::Fused { .. } => 0,
        }
    }

    /// Columns of a slice of S that tiles compute, or 0.
    pub(crate) fn slice(&self) -> usize {
        match self.projection {
            Projection::Separate | Projection::Dedicated { .. } => 0,
            Projection::Fused { slice, .. } => slice,
        }
    }

    /// The parts of a row of S (m×r) that this launch computes.
    pub(crate) fn slices(&self, r: usize) -> usize {
        match self.projection {
            Projection::Separate => 0,
            Projection::Dedicated { .. } => r.div_ceil(grads::rank_tile(r)),
            Projection::Fused { slice, .. } => r.div_ceil(slice),
        }
    }

    /// Flags for m rows: a counter, one flag for every 128 rows of S, and one for every consumer
    /// warp that writes a partial tile.
    pub(crate) fn flags(&self, m: usize) -> usize {
        match self.waits() {
            true => {
                1 + m.div_ceil(FLAG_ROWS)
                    + if self.stream_k { self.clusters * CLUSTER_WARPS } else { 0 }
            }
            false => 0,
        }
    }

    /// f32 elements of the partial tiles of stream-K.
    pub(crate) fn partials(&self) -> usize {
        if self.stream_k { self.clusters * CLUSTER_WARPS * 32 * self.tile_n / 2 } else { 0 }
    }
}
