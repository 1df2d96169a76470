//! The time of a schedule.

use super::schedule::{CLUSTER_M, GROUP, Projection, Schedule};
use crate::manifest::sm90a::linear_tiles::TILE_M;
use crate::plan::cost::CostModel;
use crate::plan::sizes::Sizes;
use crate::plan::sm90a::grads;

/// A schedule and its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) us: f64,
    /// µs until S is complete, if tiles compute it.
    pub(super) s_us: f64,
    pub(super) schedule: Schedule,
}

/// Predicts the µs of a launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model<'a> {
    pub(super) cost: &'a CostModel,
    pub(super) tile_n: usize,
    /// Tiles along m, along n, and both.
    rows: usize,
    cols: usize,
    tiles: usize,
    /// Steps of 64 along k.
    steps: f64,
    /// A tile, with S given.
    tile_us: f64,
    /// What of it drops elements.
    drop_us: f64,
    /// A separate projection.
    project_us: f64,
    /// Columns of S, and of lhs of the first layer.
    rank: usize,
    k: usize,
    /// Clusters that run at once and compute tiles: full waves of them, and the tiles of a tail
    /// wave.
    clusters: usize,
    waves: usize,
    tail: usize,
    /// The product with S given, of full tiles, and with a stream-K tail.
    full_tiles_us: f64,
    stream_k_us: f64,
}

impl<'a> Model<'a> {
    pub(super) fn new(sizes: &Sizes, tile_n: usize, clusters: usize, cost: &'a CostModel) -> Self {
        let (rows, cols) = (sizes.m.div_ceil(CLUSTER_M), sizes.tile_cols(tile_n));
        let steps = sizes.steps() as f64;
        let with_ranks = steps + sizes.tile_rank().div_ceil(16) as f64 / 4.0;
        let step_us = cost.step_us + cost.step_column_us * tile_n as f64;
        let drop_us = match sizes.dropout {
            false => 0.0,
            true => (TILE_M * tile_n * 2) as f64 / cost.drop_tile_bytes,
        };
        let model = Model {
            cost,
            tile_n,
            rows,
            cols,
            tiles: rows * cols,
            steps,
            tile_us: with_ranks * step_us + drop_us + cost.tile_end_us,
            drop_us,
            project_us: sizes.lhs_bytes() as f64 / cost.separate_bytes + cost.separate_launch_us,
            rank: sizes.rank(),
            k: sizes.k[0],
            clusters: 0,
            waves: 0,
            tail: 0,
            full_tiles_us: 0.0,
            stream_k_us: 0.0,
        };
        model.on(clusters)
    }

    /// The same tiles on this number of clusters.
    pub(super) fn on(&self, clusters: usize) -> Self {
        let &Model { cost, tiles, tile_us, drop_us, steps, .. } = self;
        let (waves, tail) = (tiles / clusters, tiles % clusters);
        let full_tiles_us = (waves + usize::from(tail > 0)) as f64 * tile_us;
        // The last sums of two tiles, of which elements are dropped behind all steps.
        let stream_k_us = cost.stream_k_us + cost.stream_k_step_us * steps + 2.0 * drop_us;
        let stream_k_us = tiles as f64 / clusters as f64 * tile_us + stream_k_us;
        Model { clusters, waves, tail, full_tiles_us, stream_k_us, ..*self }
    }

    /// The product with S given: a lower bound of full tiles and of a stream-K tail. Candidates add
    /// to it, and rounding is monotonic, so bounds hold in floats too.
    fn least(&self) -> f64 {
        f64::min(self.full_tiles_us, self.stream_k_us)
    }

    /// A lower bound of [`Model::separate`].
    pub(super) fn least_separate(&self) -> f64 {
        self.least() + self.project_us
    }

    /// A lower bound of [`Model::dedicated`].
    pub(super) fn least_dedicated(&self) -> f64 {
        self.full_tiles_us - self.cost.cooperative_us
    }

    /// A lower bound of [`Model::fused`] for all of these slices, and of the µs until S is
    /// complete: one wave of tiles computes slices, and waits for each other's if they are several.
    pub(super) fn least_fused(&self, slices: &[usize]) -> [f64; 2] {
        let more_us = |&slice: &usize| {
            let waits = f64::from(self.rank > slice);
            self.slice_us(slice) + waits * self.cost.slice_handover_us
        };
        let more_us = slices.iter().map(more_us).fold(f64::INFINITY, f64::min);
        [self.least() + more_us, self.s_us(1)]
    }

    /// What a slice adds to a tile.
    fn slice_us(&self, slice: usize) -> f64 {
        self.steps * self.cost.step_column_us * slice as f64
    }

    /// Until S is complete, after `slice_waves` waves of tiles that compute slices.
    pub(super) fn s_us(&self, slice_waves: usize) -> f64 {
        slice_waves as f64 * self.tile_us + self.cost.slice_handover_us
    }

    /// The product with S given, of full tiles.
    pub(super) fn product(&self) -> Candidate {
        let &Model { tile_n, tiles, .. } = self;
        let schedule = Schedule {
            tile_n,
            projection: Projection::Separate,
            full_tiles: tiles,
            clusters: tiles.min(self.clusters),
            stream_k: false,
            grad_clusters: 0,
        };
        Candidate { us: self.full_tiles_us, s_us: self.s_us(0), schedule }
    }

    /// The product, of full tiles, then with a stream-K tail. `more_us` is the cost of the
    /// projection, of which `slice_waves` waves of tiles compute slices.
    fn products(
        &self,
        projection: Projection,
        slice_waves: usize,
        more_us: f64,
    ) -> impl Iterator<Item = Candidate> {
        let Candidate { us, schedule, .. } = self.product();
        // A cluster ends with more than a tile's steps, so at most two compute a tile.
        let waves = self.waves.saturating_sub(1);
        let full_tiles = waves * self.clusters;
        let possible = self.waves > 0 && self.tail > 0 && slice_waves <= waves;
        // The kernel counts the steps of the tail in floats.
        let steps = (self.tiles - full_tiles) as f64 * self.steps;
        let possible = possible && steps < (1 << 24) as f64;
        let stream_k = Schedule { full_tiles, stream_k: true, ..schedule };
        let stream_k = possible.then_some((self.stream_k_us, stream_k));
        let s_us = self.s_us(slice_waves);
        [(us, schedule)].into_iter().chain(stream_k).map(move |(us, schedule)| {
            let schedule = Schedule { projection, ..schedule };
            Candidate { us: us + more_us, s_us, schedule }
        })
    }

    /// The first candidate of [`Model::separate`].
    pub(super) fn product_after_projection(&self) -> Candidate {
        let product = self.product();
        Candidate { us: product.us + self.project_us, ..product }
    }

    /// With a separate projection.
    pub(super) fn separate(&self) -> impl Iterator<Item = Candidate> {
        self.products(Projection::Separate, 0, self.project_us)
    }

    /// With a dedicated projection, by other clusters than these.
    pub(super) fn dedicated(&self, proj_clusters: usize) -> Candidate {
        let Candidate { us, schedule, .. } = self.product();
        let rank_tile = grads::rank_tile(self.rank);
        let passes = self.rank.div_ceil(rank_tile) as f64;
        // Wider tiles of the rank are bound by wgmma as well as by reading.
        let wide = if rank_tile == 16 { 1.0 } else { self.cost.dedicated_wide };
        let bytes = self.cost.dedicated_bytes * wide;
        let row_us = (CLUSTER_M * self.k * 2) as f64 * passes / (2 * proj_clusters) as f64 / bytes;
        // The tiles of the first wave need the first rows of S at their end, the others later.
        let first = self.rows.min(GROUP) as f64 * row_us + self.cost.dedicated_start_us;
        let all = self.rows as f64 * row_us + self.cost.dedicated_start_us;
        let late = f64::max(first - self.tile_us, all - us).max(0.0);
        let schedule = Schedule { projection: Projection::Dedicated { proj_clusters }, ..schedule };
        Candidate { us: us + late - self.cost.cooperative_us, s_us: 0.0, schedule }
    }

    /// With a projection fused in slices of this many columns.
    pub(super) fn fused(&self, slice: usize) -> impl Iterator<Item = Candidate> + '_ {
        let slices = self.rank.div_ceil(slice);
        let (least, most) = match slices {
            // Enough for all clusters to start with a tile that needs only its own slice, or
            // nearly.
            1 => {
                let enough = (self.clusters / self.rows).clamp(1, self.cols);
                (enough, (enough + 1).min(self.cols))
            }
            // A tile computes one slice, and all slices of a row of tiles are computed at once.
            2.. if slices <= self.cols.min(self.clusters) => (slices, slices),
            _ => (1, 0),
        };
        let all_slice_clusters = self.clusters.min(self.tiles);
        (least..=most).flat_map(move |slice_cols| {
            let tiles = self.rows * slice_cols;
            let whole_rows = all_slice_clusters / slices * slices;
            // Clusters that compute no slice need other tiles meanwhile.
            let others = || tiles.div_ceil(whole_rows) * (all_slice_clusters - whole_rows);
            let possible = slices > 1 && tiles + others() <= self.tiles;
            let slice_clusters = if possible { whole_rows } else { all_slice_clusters };
            let slice_waves = tiles.div_ceil(slice_clusters);
            let waves = slice_waves as f64;
            // While tiles compute one of several slices, every other tile waits. With one slice,
            // only clusters that start with another tile wait. A few may: they have a tile less, or
            // time to catch up.
            let few = self.clusters / 8;
            let waits = if slices > 1 { waves } else { f64::from(tiles + few < self.clusters) };
            let more_us = waves * self.slice_us(slice) + waits * self.cost.slice_handover_us;
            let alone = slices == 1 && slice_cols == self.cols;
            let projection = Projection::Fused { slice, slice_cols, slice_clusters, alone };
            self.products(projection, slice_waves, more_us)
        })
    }
}
