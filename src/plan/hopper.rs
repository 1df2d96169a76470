//! How `kernels/hopper_linear.cuh` is launched: its tile, where S comes from, and in which order.

mod model;
#[cfg(test)]
mod tests;

use super::{hopper_grads, Footprint, MAX_PROJECTIONS};
use model::Model;

/// A product: out (m×n) over k, with S or dS (m×r). If several layers share X, n is of each of them in the
/// forward, k in the input gradient, and r in both; of those that there are not, it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) n: [usize; MAX_PROJECTIONS],
    pub(crate) k: [usize; MAX_PROJECTIONS],
    pub(crate) r: [usize; MAX_PROJECTIONS],
}

impl Sizes {
    /// Of one layer: m, n, k and r.
    pub(crate) fn of_layer([m, n, k, r]: [usize; 4]) -> Self {
        let one = |size| [size, 0, 0, 0];
        Sizes { m, n: one(n), k: one(k), r: one(r) }
    }

    /// Of every H, for layers of so many outputs and ranks.
    pub(crate) fn of_forward(
        t: usize,
        k: usize,
        layers: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let mut sizes = Sizes::of_layer([t, 0, k, 0]);
        layers.enumerate().for_each(|(i, (d, r))| (sizes.n[i], sizes.r[i]) = (d, r));
        sizes
    }

    /// The same of dX.
    pub(crate) fn of_input_grad(
        t: usize,
        k: usize,
        layers: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let mut sizes = Sizes::of_layer([t, k, 0, 0]);
        layers.enumerate().for_each(|(i, (d, r))| (sizes.k[i], sizes.r[i]) = (d, r));
        sizes
    }

    /// Columns of S, of all layers.
    pub(crate) fn rank(&self) -> usize {
        self.r.iter().sum()
    }

    /// Columns of tiles, each of one layer.
    fn tile_cols(&self, tile_n: usize) -> usize {
        self.n.iter().map(|n| n.div_ceil(tile_n)).sum()
    }

    /// Steps along k, each of one layer.
    fn steps(&self) -> usize {
        self.k.iter().map(|k| k.div_ceil(STEP_K)).sum()
    }

    /// Columns of S that a tile is multiplied with at its end.
    fn tile_rank(&self) -> usize {
        match self.n[1] {
            0 => self.rank(),
            _ => self.r.into_iter().fold(0, usize::max),
        }
    }

    /// Bytes of lhs.
    fn lhs_bytes(&self) -> usize {
        self.m * self.k.iter().sum::<usize>() * 2
    }
}

/// Where the projection of a product comes from: S of the forward, dS of the input gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projection {
    /// From a launch before, or there is none: S is an input.
    Before,
    /// From so many pairs of blocks that make nothing else, ahead of the others; in the forward only.
    Beside {
        /// The pairs.
        projectors: usize,
    },
    /// From the tiles of the product, of which some make a slice of S beside their own columns.
    Within {
        /// The columns of S in a slice, one of [`SLICES`].
        slice: usize,
        /// The columns of tiles that make slices, before all other tiles. Where they are more than the
        /// slices, which is only if S is one slice, all of them make it, each for itself, and the first
        /// for the others.
        slice_cols: usize,
        /// The pairs of blocks that make them, so that those of a row are made at the same time.
        makers: usize,
    },
}

/// A launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Columns of the output in a tile; a pair of blocks has 256 rows.
    pub(crate) tile_n: usize,
    pub(crate) projection: Projection,
    /// Pairs of tiles that one pair of blocks makes from beginning to end: all of them, or so many for
    /// every pair of blocks, which then share what is left equally.
    pub(crate) whole: usize,
    /// The pairs of blocks that work on tiles.
    pub(crate) pairs: usize,
    /// Whether tiles are left that are shared.
    pub(crate) shares: bool,
    /// Pairs of blocks that make dA and dB meanwhile, only with dX.
    pub(crate) streamers: usize,
}

/// The tiles that the kernel is there for.
pub(crate) const TILES_N: [usize; 3] = [128, 176, 256];

/// In the forward without slices, for one more: 14336 columns are 64 of them.
pub(crate) const FORWARD_TILES_N: [usize; 4] = [128, 176, 224, 256];

/// Rows of pairs of tiles that are worked on column by column. With more, the L2 cache no longer holds
/// what they share.
pub(crate) const GROUP: usize = 8;

/// Pairs of blocks that may make dA and dB, at most.
const MAX_STREAMERS: usize = 12;

/// Pairs of blocks that may make S and nothing else, at most.
const MAX_PROJECTORS: usize = 4;

/// Warps of a block that multiply.
const WARPS: usize = 8;

/// Rows of a pair of tiles.
const PAIR_M: usize = 256;

/// Columns of lhs in a step.
pub(crate) const STEP_K: usize = 64;

/// The columns of S that a tile may make. Sixty-four are for one tile to make all of S.
pub(crate) const SLICES: [usize; 2] = [16, 64];

impl Schedule {
    /// Whether blocks wait for one another.
    fn waits(&self) -> bool {
        self.projection != Projection::Before || self.shares
    }

    /// Whether all blocks must run at the same time: they wait for others than the first of the grid.
    pub(crate) fn is_cooperative(&self) -> bool {
        matches!(self.projection, Projection::Within { .. }) || self.shares
    }

    /// The grid.
    pub(crate) fn blocks(&self) -> usize {
        2 * (self.projectors() + self.pairs + self.streamers)
    }

    /// Pairs of blocks that make S and nothing else.
    pub(crate) fn projectors(&self) -> usize {
        match self.projection {
            Projection::Beside { projectors } => projectors,
            Projection::Before | Projection::Within { .. } => 0,
        }
    }

    /// The columns of a slice of S that tiles make, or 0.
    pub(crate) fn slice(&self) -> usize {
        match self.projection {
            Projection::Before | Projection::Beside { .. } => 0,
            Projection::Within { slice, .. } => slice,
        }
    }

    /// The parts of a row of S (m×r) that this launch makes.
    pub(crate) fn slices(&self, r: usize) -> usize {
        match self.projection {
            Projection::Before => 0,
            Projection::Beside { .. } => r.div_ceil(hopper_grads::rank_tile(r)),
            Projection::Within { slice, .. } => r.div_ceil(slice),
        }
    }

    /// The words by which blocks tell each other what they have made for m rows: a count, one for every
    /// 128 rows of S, and one for every warp whose tile another finishes.
    pub(crate) fn flags(&self, m: usize) -> usize {
        match self.waits() {
            true => 1 + m.div_ceil(128) + if self.shares { self.pairs * 2 * WARPS } else { 0 },
            false => 0,
        }
    }

    /// The f32 elements by which they hand over what they have made of a tile.
    pub(crate) fn partials(&self) -> usize {
        if self.shares {
            self.pairs * 2 * WARPS * 32 * self.tile_n / 2
        } else {
            0
        }
    }
}

/// What a block takes, with any tile: 224 KiB, its barriers, and what aligning to 1024 bytes may take.
pub(crate) const FOOTPRINT: Footprint =
    Footprint { threads: [384, 1], shared_bytes: (224 << 10) + 128 + 1024 };

/// For out (m×n) over k alone, where blocks have nothing to tell each other by.
pub(crate) fn frozen([m, n, k]: [usize; 3], pairs: usize) -> Schedule {
    let sizes = Sizes::of_layer([m, n, k, 0]);
    fastest(TILES_N.map(|tile_n| Model::new(&sizes, tile_n, pairs).product())).1
}

/// For H (m×n) over k with S (m×r) to be made.
pub(crate) fn forward(sizes: &Sizes, pairs: usize) -> Schedule {
    fastest(forward_candidates(sizes, pairs)).1
}

/// For dX (m×n) over k with dS (m×r) to be made.
pub(crate) fn input_grad(sizes: &Sizes, pairs: usize) -> Schedule {
    let mut best = fastest(input_grad_candidates(sizes, pairs, 0));
    for streamers in streamers(pairs).skip(1) {
        // The more pairs make dA and dB, the longer the others take for dX, whatever the schedule.
        let least = TILES_N.map(|tile_n| Model::new(sizes, tile_n, pairs - streamers).least());
        if least.into_iter().all(|us| us > best.0) {
            break;
        }
        best = fastest([best].into_iter().chain(input_grad_candidates(sizes, pairs, streamers)));
    }
    best.1
}

/// The ways to make S and H, with the time they take.
fn forward_candidates(sizes: &Sizes, pairs: usize) -> impl Iterator<Item = (f64, Schedule)> + '_ {
    let slices: &[usize] = match sizes.rank() {
        17..=64 => &[16, 64],
        _ => &[16],
    };
    let beside = (1..=MAX_PROJECTORS.min(pairs - 1)).flat_map(move |projectors| {
        FORWARD_TILES_N
            .map(|tile_n| Model::new(sizes, tile_n, pairs - projectors).beside(projectors))
    });
    candidates(sizes, slices, pairs).chain(beside)
}

/// How many of so many pairs may make dA and dB.
fn streamers(pairs: usize) -> impl Iterator<Item = usize> {
    0..=MAX_STREAMERS.min(pairs - 1)
}

/// The ways to make dS, dX, dA and dB, with the time they take.
fn input_grad_candidates(
    sizes: &Sizes,
    pairs: usize,
    streamers: usize,
) -> impl Iterator<Item = (f64, Schedule)> + '_ {
    let slices: &[usize] = match sizes.rank() {
        ..=16 => &[16],
        17..=64 => &[16, 64],
        _ => &[],
    };
    let grads = move |us, schedule: &Schedule| match streamers {
        0 => us + hopper_grads::alone_us(sizes),
        _ => {
            let model = Model::new(sizes, schedule.tile_n, schedule.pairs);
            let ds_us =
                model.slice_waves(schedule.projection) as f64 * model.tile() + Model::HANDOVER;
            let grads_us = hopper_grads::beside_us(sizes, streamers, ds_us);
            // Narrow tiles read their operands more often, from the L2 where dH and X come from too. And
            // what takes less time is not for nothing.
            let us = us * (1.0 + (256 - schedule.tile_n) as f64 * 6e-4);
            f64::max(us, grads_us) + 0.01 * f64::min(us, grads_us)
        }
    };
    // A kernel that makes slices makes gradients of their ranks, and one that does not, of others.
    candidates(sizes, slices, pairs - streamers)
        .filter(move |(_, s)| streamers == 0 || (s.slice() == 0) == slices.is_empty())
        .map(move |(us, s)| (grads(us, &s), Schedule { streamers, ..s }))
}

fn candidates<'a>(
    sizes: &'a Sizes,
    slices: &'static [usize],
    pairs: usize,
) -> impl Iterator<Item = (f64, Schedule)> + 'a {
    TILES_N.into_iter().flat_map(move |tile_n| {
        let model = Model::new(sizes, tile_n, pairs);
        let within = slices.iter().flat_map(move |&slice| model.within(slice));
        model.before().chain(within)
    })
}

/// The first of the fastest, with its time.
fn fastest(candidates: impl IntoIterator<Item = (f64, Schedule)>) -> (f64, Schedule) {
    let fastest = candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    fastest.expect("a projection that comes before is always possible")
}
