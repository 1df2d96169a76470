//! How long a schedule takes.

use super::{Projection, Schedule, Sizes, GROUP, PAIR_M};
use crate::plan::hopper_grads;

/// How long a launch takes, in µs: a model of an H100 with settled clocks, whose constants were
/// fitted to whole runs. Those that are shared by all candidates matter little.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model {
    sizes: Sizes,
    tile_n: usize,
    /// Pairs of blocks that run at once.
    pairs: usize,
    /// Pairs of tiles along m and n.
    rows: usize,
    cols: usize,
    /// Steps of 64 along k.
    steps: f64,
}

impl Model {
    /// A step of a pair of tiles, and what each of their columns adds to it.
    const STEP: f64 = 0.045;
    const STEP_COLUMN: f64 = 0.00276;
    /// What the end of a tile takes of the tensor cores' time.
    const TILE_END: f64 = 0.1;
    /// Handing over and taking over a part of a tile, and what each of its steps adds to that, since
    /// not all blocks go along k together then.
    const SHARE: f64 = 7.0;
    const SHARE_STEP: f64 = 0.045;
    /// From the end of a slice of S to its use by others.
    pub(super) const HANDOVER: f64 = 2.8;
    /// When others make S: from the start to the first of it, and the bytes of X that a block reads a µs.
    const BESIDE: f64 = 4.0;
    const BESIDE_BYTES: f64 = 90e3;
    /// What a launch takes longer where all blocks must run at the same time, and may not start early.
    const COOPERATIVE: f64 = 1.0;
    /// When S comes before: what another launch costs, and the bytes of X that it reads a µs.
    const LAUNCH: f64 = 9.0;
    const PROJECT_BYTES: f64 = 2.9e6;

    pub(super) fn new(sizes: &Sizes, tile_n: usize, pairs: usize) -> Self {
        let (rows, cols) = (sizes.m.div_ceil(PAIR_M), sizes.tile_cols(tile_n));
        Model { sizes: *sizes, tile_n, pairs, rows, cols, steps: sizes.steps() as f64 }
    }

    /// A tile, with S given.
    pub(super) fn tile(&self) -> f64 {
        let steps = self.steps + self.sizes.tile_rank().div_ceil(16) as f64 / 4.0;
        steps * (Self::STEP + Self::STEP_COLUMN * self.tile_n as f64) + Self::TILE_END
    }

    /// Less than any schedule takes.
    pub(super) fn least(&self) -> f64 {
        (self.rows * self.cols) as f64 / self.pairs as f64 * self.tile()
    }

    /// The product alone, of whole tiles.
    pub(super) fn product(&self) -> (f64, Schedule) {
        let whole = self.rows * self.cols;
        let pairs = whole.min(self.pairs);
        let &Model { tile_n, .. } = self;
        let projection = Projection::Before;
        let (shares, streamers) = (false, 0);
        let schedule = Schedule { tile_n, projection, whole, pairs, shares, streamers };
        (whole.div_ceil(self.pairs) as f64 * self.tile(), schedule)
    }

    /// The tiles that make slices, one after the other.
    pub(super) fn slice_waves(&self, projection: Projection) -> usize {
        match projection {
            Projection::Before | Projection::Beside { .. } => 0,
            Projection::Within { slice_cols, makers, .. } => {
                (self.rows * slice_cols).div_ceil(makers)
            }
        }
    }

    /// The product with S made so, or given, of whole tiles or not.
    fn products(self, projection: Projection) -> impl Iterator<Item = (f64, Schedule)> {
        let (us, schedule) = self.product();
        let (tiles, pairs) = (schedule.whole, self.pairs);
        let slice_waves = self.slice_waves(projection);
        // Every pair of blocks ends with more than a tile's steps, so no more than two make a tile.
        let waves = (tiles / pairs).saturating_sub(1);
        let whole = waves * pairs;
        let possible = tiles > pairs && tiles % pairs > 0 && slice_waves <= waves;
        // The kernel counts the steps of the others in floats.
        let possible = possible && ((tiles - whole) as f64 * self.steps) < (1 << 24) as f64;
        let share = Self::SHARE + Self::SHARE_STEP * self.steps;
        let shared_us = tiles as f64 / pairs as f64 * self.tile() + share;
        let shared = possible.then_some((shared_us, Schedule { whole, shares: true, ..schedule }));
        [(us, schedule)]
            .into_iter()
            .chain(shared)
            .map(move |(us, schedule)| (us, Schedule { projection, ..schedule }))
    }

    pub(super) fn before(self) -> impl Iterator<Item = (f64, Schedule)> {
        let projection = self.sizes.lhs_bytes() as f64 / Self::PROJECT_BYTES + Self::LAUNCH;
        self.products(Projection::Before).map(move |(us, schedule)| (us + projection, schedule))
    }

    /// With S from other pairs, ahead of these.
    pub(super) fn beside(self, projectors: usize) -> (f64, Schedule) {
        let (k, r) = (self.sizes.k[0], self.sizes.rank());
        let (us, schedule) = self.product();
        let rank_tile = hopper_grads::rank_tile(r);
        let passes = r.div_ceil(rank_tile) as f64;
        // The ranks are bound by wgmma as well as by reading.
        let bytes = if rank_tile == 16 { Self::BESIDE_BYTES } else { Self::BESIDE_BYTES * 0.7 };
        let row_us = (PAIR_M * k * 2) as f64 * passes / (2 * projectors) as f64 / bytes;
        // The tiles that are worked on first need so many rows of S at their end, the others later.
        let first = self.rows.min(GROUP) as f64 * row_us + Self::BESIDE;
        let all = self.rows as f64 * row_us + Self::BESIDE;
        let late = f64::max(first - self.tile(), all - us).max(0.0);
        let projection = Projection::Beside { projectors };
        (us + late - Self::COOPERATIVE, Schedule { projection, ..schedule })
    }

    /// With slices of so many columns.
    pub(super) fn within(self, slice: usize) -> impl Iterator<Item = (f64, Schedule)> {
        let slices = self.sizes.rank().div_ceil(slice);
        let (least, most) = match slices {
            // Enough for all pairs to start with a tile that needs nobody else's slice, or nearly.
            1 => {
                let enough = (self.pairs / self.rows).clamp(1, self.cols);
                (enough, (enough + 1).min(self.cols))
            }
            // One slice a tile; and all slices of a row of tiles are made at the same time.
            2.. if slices <= self.cols.min(self.pairs) => (slices, slices),
            _ => (1, 0),
        };
        (least..=most).flat_map(move |slice_cols| {
            let tiles = self.rows * slice_cols;
            let all_makers = self.pairs.min(self.rows * self.cols);
            // The other pairs need other tiles, meanwhile.
            let whole_rows = all_makers / slices * slices;
            let others = tiles.div_ceil(whole_rows) * (all_makers - whole_rows);
            let possible = slices > 1 && tiles + others <= self.rows * self.cols;
            let makers = if possible { whole_rows } else { all_makers };
            let waves = tiles.div_ceil(makers) as f64;
            // While tiles make several slices, all others wait for them; if one, those that start with
            // another tile. Few may, since they have one tile less then, or time to catch up.
            let few = self.pairs / 8;
            let waits = if slices > 1 { waves } else { f64::from(tiles + few < self.pairs) };
            let slice_us = self.steps * Self::STEP_COLUMN * slice as f64;
            let more = waves * slice_us + waits * Self::HANDOVER;
            let products = self.products(Projection::Within { slice, slice_cols, makers });
            products.map(move |(us, schedule)| (us + more, schedule))
        })
    }
}
