//! How `kernels/hopper_linear.cu` is launched: its tile, where S comes from, and in which order.

use super::{hopper_grads, Footprint};

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
    /// Pairs of blocks that make dA and dB meanwhile, only with dX.
    pub(crate) streamers: usize,
}

/// The tiles that the kernel is there for.
pub(crate) const TILES_N: [usize; 3] = [128, 176, 256];

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

/// The columns of S that a tile may make. Sixty-four are for one tile to make all of S.
pub(crate) const SLICES: [usize; 2] = [16, 64];

impl Schedule {
    /// Whether blocks wait for one another.
    pub(crate) fn waits(&self, m: usize, n: usize) -> bool {
        self.projection != Projection::Before || self.shares(m, n)
    }

    /// Whether all blocks must run at the same time: they wait for others than the first of the grid.
    pub(crate) fn is_cooperative(&self, m: usize, n: usize) -> bool {
        matches!(self.projection, Projection::Within { .. }) || self.shares(m, n)
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

    fn shares(&self, m: usize, n: usize) -> bool {
        self.whole < m.div_ceil(PAIR_M) * n.div_ceil(self.tile_n)
    }

    /// The words by which blocks tell each other what they have made for an output of m×n: a count, one
    /// for every 128 rows of S, and one for every warp whose tile another finishes.
    pub(crate) fn flags(&self, m: usize, n: usize) -> usize {
        match self.waits(m, n) {
            true => {
                1 + m.div_ceil(128) + if self.shares(m, n) { self.pairs * 2 * WARPS } else { 0 }
            }
            false => 0,
        }
    }

    /// The f32 elements by which they hand over what they have made of a tile.
    pub(crate) fn partials(&self, m: usize, n: usize) -> usize {
        if self.shares(m, n) {
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
    fastest(TILES_N.map(|tile_n| Model::new([m, n, k, 0], tile_n, pairs).product())).1
}

/// For H (m×n) over k with S (m×r) to be made.
pub(crate) fn forward(sizes: [usize; 4], pairs: usize) -> Schedule {
    fastest(forward_candidates(sizes, pairs)).1
}

/// For dX (m×n) over k with dS (m×r) to be made.
pub(crate) fn input_grad(sizes: [usize; 4], pairs: usize) -> Schedule {
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
fn forward_candidates(sizes: [usize; 4], pairs: usize) -> impl Iterator<Item = (f64, Schedule)> {
    let slices: &[usize] = match sizes[3] {
        17..=64 => &[16, 64],
        _ => &[16],
    };
    let beside = (1..=MAX_PROJECTORS.min(pairs - 1)).flat_map(move |projectors| {
        TILES_N.map(|tile_n| Model::new(sizes, tile_n, pairs - projectors).beside(projectors))
    });
    candidates(sizes, slices, pairs).chain(beside)
}

/// How many of so many pairs may make dA and dB.
fn streamers(pairs: usize) -> impl Iterator<Item = usize> {
    0..=MAX_STREAMERS.min(pairs - 1)
}

/// The ways to make dS, dX, dA and dB, with the time they take.
fn input_grad_candidates(
    sizes: [usize; 4],
    pairs: usize,
    streamers: usize,
) -> impl Iterator<Item = (f64, Schedule)> {
    let slices: &[usize] = match sizes[3] {
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

fn candidates(
    sizes: [usize; 4],
    slices: &'static [usize],
    pairs: usize,
) -> impl Iterator<Item = (f64, Schedule)> {
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

/// How long a launch takes, in µs: a model of an H100 with settled clocks, whose constants were
/// fitted to whole runs. Those that are shared by all candidates matter little.
#[derive(Debug, Clone, Copy)]
struct Model {
    sizes: [usize; 4],
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
    const HANDOVER: f64 = 2.8;
    /// When others make S: from the start to the first of it, and the bytes of X that a block reads a µs.
    const BESIDE: f64 = 4.0;
    const BESIDE_BYTES: f64 = 90e3;
    /// What a launch takes longer where all blocks must run at the same time, and may not start early.
    const COOPERATIVE: f64 = 1.0;
    /// When S comes before: what another launch costs, and the bytes of X that it reads a µs.
    const LAUNCH: f64 = 9.0;
    const PROJECT_BYTES: f64 = 2.9e6;

    fn new(sizes: [usize; 4], tile_n: usize, pairs: usize) -> Self {
        let [m, n, k, _] = sizes;
        let (rows, cols) = (m.div_ceil(PAIR_M), n.div_ceil(tile_n));
        Model { sizes, tile_n, pairs, rows, cols, steps: k.div_ceil(64) as f64 }
    }

    /// A tile, with S given.
    fn tile(&self) -> f64 {
        let steps = self.steps + self.sizes[3].div_ceil(16) as f64 / 4.0;
        steps * (Self::STEP + Self::STEP_COLUMN * self.tile_n as f64) + Self::TILE_END
    }

    /// Less than any schedule takes.
    fn least(&self) -> f64 {
        (self.rows * self.cols) as f64 / self.pairs as f64 * self.tile()
    }

    /// The product alone, of whole tiles.
    fn product(&self) -> (f64, Schedule) {
        let whole = self.rows * self.cols;
        let pairs = whole.min(self.pairs);
        let &Model { tile_n, .. } = self;
        let projection = Projection::Before;
        let schedule = Schedule { tile_n, projection, whole, pairs, streamers: 0 };
        (whole.div_ceil(self.pairs) as f64 * self.tile(), schedule)
    }

    /// The tiles that make slices, one after the other.
    fn slice_waves(&self, projection: Projection) -> usize {
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
        let shared = possible.then_some((shared_us, Schedule { whole, ..schedule }));
        [(us, schedule)]
            .into_iter()
            .chain(shared)
            .map(move |(us, schedule)| (us, Schedule { projection, ..schedule }))
    }

    fn before(self) -> impl Iterator<Item = (f64, Schedule)> {
        let [m, _, k, _] = self.sizes;
        let projection = (m * k * 2) as f64 / Self::PROJECT_BYTES + Self::LAUNCH;
        self.products(Projection::Before).map(move |(us, schedule)| (us + projection, schedule))
    }

    /// With S from other pairs, ahead of these.
    fn beside(self, projectors: usize) -> (f64, Schedule) {
        let [_, _, k, r] = self.sizes;
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
    fn within(self, slice: usize) -> impl Iterator<Item = (f64, Schedule)> {
        let slices = self.sizes[3].div_ceil(slice);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::hopper_decode;
    use crate::plan::tests::shapes;
    use std::collections::HashSet;

    /// A pair of tiles: its row and column, the slice that it makes, and whether it waits for others'.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Tile {
        row: usize,
        col: usize,
        slice: Option<usize>,
        waits: bool,
        /// The steps along k: so many from the first on, and after the last of all, step 0.
        first: usize,
        steps: usize,
        /// What others have made of the tile is added; or it is they who add.
        finishes: bool,
        leaves: bool,
    }

    /// The kernel's `Tiles`, of every pair of blocks.
    fn tiles(schedule: &Schedule, [m, n, k, r]: [usize; 4]) -> Vec<Vec<Tile>> {
        let (rows, cols) = (m.div_ceil(PAIR_M), n.div_ceil(schedule.tile_n));
        let (slice_cols, makers) = match schedule.projection {
            Projection::Before | Projection::Beside { .. } => (0, 0),
            Projection::Within { slice_cols, makers, .. } => (slice_cols, makers),
        };
        let slices = schedule.slices(r);
        let all_slices = rows * slice_cols;
        let (first, steps) = (0, k.div_ceil(64));
        let made = Tile {
            row: 0,
            col: 0,
            slice: None,
            waits: false,
            first,
            steps,
            finishes: false,
            leaves: false,
        };
        let slice_tile = |i: usize| {
            let (row, col) = (i / slice_cols, i % slice_cols);
            let slice = Some(if slices == 1 { 0 } else { col });
            Tile { row, col, slice, waits: slices > 1, ..made }
        };
        let tile = |rest: usize| {
            let rest_cols = cols - slice_cols;
            let group0 = rest / (GROUP * rest_cols) * GROUP;
            let group_rows = GROUP.min(rows - group0);
            let in_group = rest - group0 * rest_cols;
            let (row, col) = (group0 + in_group % group_rows, slice_cols + in_group / group_rows);
            Tile { row, col, waits: slice_cols > 0, ..made }
        };
        let (pairs, steps, whole) = (schedule.pairs, k.div_ceil(64), schedule.whole);
        let shared = (rows * cols - whole) * steps;
        let (span, longer) = (shared / pairs, shared % pairs);
        let of_pair = |pair: usize| {
            let of_wave = |(wave, i): (usize, usize)| {
                let before = all_slices.min(wave * makers + pair.min(makers));
                match pair < makers && before < all_slices {
                    true => slice_tile(before),
                    false => tile(i - before),
                }
            };
            let mut tiles: Vec<Tile> =
                (pair..whole).step_by(pairs).enumerate().map(of_wave).collect();
            let begin = pair * span + pair.min(longer);
            let end = begin + span + usize::from(pair < longer);
            let mut at = begin;
            while at < end {
                let before = at % steps;
                let mut tile = tile(whole - all_slices + at / steps);
                tile.leaves = before > 0;
                tile.finishes = at + steps - before > end;
                if tile.leaves {
                    // Whoever finishes a tile takes S.
                    (tile.steps, tile.waits) = (steps - before, false);
                } else if tile.finishes {
                    (tile.steps, tile.first) = (end - at, steps - (end - at));
                } else {
                    tile.first = (at - begin) % steps;
                }
                at += tile.steps;
                tiles.push(tile);
            }
            tiles
        };
        (0..pairs).map(of_pair).collect()
    }

    /// Shapes small enough to go through all their tiles.
    fn cases() -> impl Iterator<Item = ([usize; 4], usize)> {
        let small = shapes().filter(|&[t, _, d, _]| t.div_ceil(256) * d.div_ceil(128) < 4000);
        let sizes = small.step_by(7).map(|[t, k, d, r]| [t, d, k, r]);
        sizes.flat_map(|sizes| [1, 2, 3, 10, 66].map(|pairs| (sizes, pairs)))
    }

    /// All that a model chooses from.
    fn schedules(sizes: [usize; 4], pairs: usize) -> impl Iterator<Item = Schedule> {
        let forward = forward_candidates(sizes, pairs);
        let input_grad = streamers(pairs).flat_map(move |n| input_grad_candidates(sizes, pairs, n));
        forward.chain(input_grad).map(|(_, schedule)| schedule)
    }

    #[test]
    fn every_step_once_and_every_slice_told_once() {
        for (sizes, pairs) in cases() {
            for schedule in schedules(sizes, pairs) {
                let context = format!("{sizes:?} on {pairs}: {schedule:?}");
                let [m, n, k, r] = sizes;
                let mut tiles = tiles(&schedule, sizes).concat();
                let within = matches!(schedule.projection, Projection::Within { .. });
                let (rows, wanted) =
                    (m.div_ceil(PAIR_M), if within { schedule.slices(r) } else { 0 });
                let told = tiles.iter().filter(|tile| tile.col < wanted);
                assert!(told.clone().all(|tile| tile.slice == Some(tile.col)), "{context}");
                assert_eq!(told.count(), rows * wanted, "{context}");
                let (cols, steps) = (n.div_ceil(schedule.tile_n), k.div_ceil(64));
                // Every tile is made by one that has all of its steps, or by two that have the first
                // and the last; who makes a slice has all.
                tiles.sort_unstable_by_key(|tile| (tile.row, tile.col, tile.first));
                let mut tiles = tiles.into_iter();
                for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                    let tile = tiles.next().expect(&context);
                    assert_eq!((tile.row, tile.col), (row, col), "{context}");
                    let is_whole = tile.steps == steps && !tile.leaves && !tile.finishes;
                    if !is_whole {
                        let rest = tiles.next().expect(&context);
                        assert_eq!((rest.row, rest.col), (row, col), "{context}");
                        assert!(tile.leaves && rest.finishes, "{context}");
                        assert_eq!((tile.first, rest.first), (0, tile.steps), "{context}");
                        assert!(tile.steps > 0 && rest.steps > 0, "{context}");
                        assert_eq!(tile.steps + rest.steps, steps, "{context}");
                    }
                    assert!(is_whole || tile.slice.is_none(), "{context}");
                }
                assert_eq!(tiles.next(), None, "{context}");
                assert!(schedule.pairs >= 1, "{context}");
                assert!(schedule.pairs + schedule.streamers <= pairs, "{context}");
                assert_eq!(schedule.flags(m, n) > 0, schedule.waits(m, n));
                assert!(within <= schedule.waits(m, n));
            }
        }
    }

    /// In the kernel, only the last tile of a pair may be one to finish, and what it takes is what the
    /// next pair leaves, which is no more than one tile.
    #[test]
    fn what_a_pair_leaves_the_one_before_finishes() {
        let mut checked = 0;
        for (sizes, pairs) in cases() {
            for schedule in schedules(sizes, pairs) {
                let context = format!("{sizes:?} on {pairs}: {schedule:?}");
                let mut wanted = None;
                for of_pair in tiles(&schedule, sizes) {
                    let mut left = of_pair.iter().filter(|tile| tile.leaves);
                    assert_eq!(left.next().map(|tile| (tile.row, tile.col)), wanted, "{context}");
                    assert_eq!(left.next(), None, "{context}");
                    let (last, others) = of_pair.split_last().expect("a tile for every pair");
                    assert!(others.iter().all(|tile| !tile.finishes), "{context}");
                    assert!(!(last.leaves && last.finishes), "{context}");
                    wanted = last.finishes.then_some((last.row, last.col));
                    checked += usize::from(last.finishes);
                }
                assert_eq!(wanted, None, "{context}");
            }
        }
        assert!(checked > 1000, "{checked} tiles are shared");
    }

    /// What was measured to be fastest on an H100.
    #[test]
    fn the_model_finds_the_fastest() {
        let chosen = |m, n, k, r| {
            let Schedule { tile_n, projection, .. } = forward([m, n, k, r], 66);
            (tile_n, projection)
        };
        let within = |slice, slice_cols, makers| Projection::Within { slice, slice_cols, makers };
        assert_eq!(chosen(8192, 4096, 4096, 16), (256, within(16, 2, 66)));
        assert_eq!(chosen(16384, 4096, 4096, 16), (256, within(16, 1, 66)));
        assert_eq!(chosen(16384, 4096, 4096, 64), (256, within(64, 1, 66)));
        assert_eq!(chosen(8192, 4096, 4096, 64), (256, within(16, 4, 64)));
        let beside = |projectors| Projection::Beside { projectors };
        assert_eq!(chosen(2048, 4096, 4096, 16), (256, beside(2)));
        assert_eq!(chosen(1024, 4096, 4096, 64), (256, beside(2)));
        assert_eq!(chosen(512, 4096, 4096, 16), (128, beside(2)));
        assert_eq!(chosen(512, 8192, 8192, 16), (256, beside(1)));
        assert_eq!(chosen(2048, 4096, 4096, 64), (256, within(16, 4, 64)));
        assert_eq!(chosen(8192, 1024, 4096, 16), (256, within(16, 2, 66)));
        assert_eq!(chosen(8192, 1024, 4096, 64), (256, within(16, 4, 66)));
        assert_eq!(chosen(8191, 2112, 7168, 8), (176, within(16, 2, 66)));
        // T, k, d and r; the columns of a slice, and the pairs that make dA and dB.
        let chosen = |t, k, d, r| {
            let schedule = input_grad([t, k, d, r], 66);
            (schedule.slice(), schedule.streamers)
        };
        assert_eq!(chosen(8192, 4096, 4096, 16), (16, 2));
        assert_eq!(chosen(8192, 4096, 4096, 64), (64, 3));
        assert_eq!(chosen(2048, 4096, 4096, 16), (16, 2));
        assert_eq!(chosen(2048, 4096, 4096, 64), (16, 3));
        assert_eq!(chosen(8192, 4096, 1024, 64), (64, 8));
        assert_eq!(chosen(8192, 4096, 14336, 16), (16, 2));
        assert_eq!(chosen(8192, 8192, 8192, 64), (16, 2));
        assert!(!forward([2048, 4096, 4096, 16], 66).shares(2048, 4096));
        assert!(forward([8192, 4096, 4096, 16], 66).shares(8192, 4096));
        assert!(forward([8192, 14336, 4096, 64], 66).shares(8192, 14336));
        assert!(input_grad([8192, 8192, 8192, 16], 66).shares(8192, 8192));
        // tests/gpu_exact.rs counts on these.
        assert!([16, 72].iter().all(|&r| forward([4095, 2304, 3072, r], 66).shares(4095, 2304)));
        assert!(input_grad([4095, 3072, 2304, 16], 66).shares(4095, 3072));
        assert_eq!(input_grad([8191, 2112, 7168, 8], 66).tile_n, 176);
        assert_eq!(input_grad([8192, 4096, 4096, 16], 66).tile_n, 256);
    }

    /// What of the kernel a launch comes to: its tile with its slices, whether they are several, whether a
    /// pair makes some more than once, whether tiles are shared, and how gradients are made, if at all.
    fn comes_to(schedule: &Schedule, [m, n, _, r]: [usize; 4]) -> Vec<String> {
        let slice = schedule.slice();
        let again = match schedule.projection {
            Projection::Before | Projection::Beside { .. } => false,
            Projection::Within { slice_cols, makers, .. } => {
                m.div_ceil(PAIR_M) * slice_cols > makers
            }
        };
        let several = if slice > 0 && schedule.slices(r) > 1 { " several" } else { "" };
        let kernel = format!("{} with {slice}{several}", schedule.tile_n);
        let again = again.then(|| format!("{slice}{several} again"));
        let shared = schedule.shares(m, n).then(|| format!("{slice} and shared"));
        let rank_tile = hopper_grads::rank_tile(r);
        let s = (schedule.projectors() > 0).then(|| format!("S of {rank_tile} beside"));
        let grads = match schedule.streamers {
            0 => format!("{rank_tile} after"),
            _ => format!("{rank_tile} beside {slice}"),
        };
        [Some(kernel), again, shared, s, Some(grads)].into_iter().flatten().collect()
    }

    #[test]
    fn everything_is_sanitized() {
        let cases: [([usize; 4], usize); 14] = include!("../../tests/common/hopper_shapes.in");
        let mut seen = [HashSet::new(), HashSet::new()];
        for ([t, d, k, r], sms) in cases {
            let (of_h, of_dx) = ([t, d, k, r], [t, k, d, r]);
            // Fewer tokens go another way in the forward.
            if t > hopper_decode::MOST_TOKENS {
                seen[0].extend(comes_to(&forward(of_h, sms / 2), of_h));
            }
            seen[1].extend(comes_to(&input_grad(of_dx, sms / 2), of_dx));
        }
        let kernels = |slices| TILES_N.map(|tile_n| format!("{tile_n} with {slices}"));
        let mut wanted = ["0", "16", "16 several", "64"].map(kernels).concat();
        let others = ["16 again", "16 several again", "64 again"];
        let others = others.into_iter().chain(["0 and shared", "16 and shared", "64 and shared"]);
        wanted.extend(others.map(String::from));
        let grads = ["16 after", "64 after", "128 after"];
        let grads = grads.into_iter().chain(["16 beside 16", "64 beside 16", "64 beside 64"]);
        let grads = grads.chain(["128 beside 0"]).map(String::from).collect::<Vec<_>>();
        let s = [16, 64, 128].map(|rank| format!("S of {rank} beside")).to_vec();
        let wanted = [[wanted.clone(), s].concat(), [wanted, grads].concat()];
        for (seen, wanted) in seen.iter().zip(wanted) {
            let missing: Vec<_> = wanted.iter().filter(|&what| !seen.contains(what)).collect();
            assert_eq!(missing, Vec::<&String>::new());
        }
    }

    /// What is not looked at is not faster.
    #[test]
    fn the_fastest_input_grad_is_found() {
        for (sizes, pairs) in cases() {
            let all = streamers(pairs).flat_map(|n| input_grad_candidates(sizes, pairs, n));
            assert_eq!(input_grad(sizes, pairs), fastest(all).1, "{sizes:?} on {pairs}");
        }
    }

    /// All pairs of blocks run at once, each through its tiles in order; where a tile makes a slice,
    /// it does so before it waits for those of its row.
    #[test]
    fn nobody_waits_forever() {
        let is_within =
            |schedule: &Schedule| matches!(schedule.projection, Projection::Within { .. });
        let mut checked = 0;
        for (sizes, pairs) in cases() {
            for schedule in schedules(sizes, pairs).filter(is_within) {
                let (tiles, wanted) = (tiles(&schedule, sizes), schedule.slices(sizes[3]));
                let mut made = vec![0; sizes[0].div_ceil(PAIR_M)];
                // The tile of a pair, and whether it has told its slice or left its part.
                let mut at = vec![0; tiles.len()];
                let mut told = vec![false; tiles.len()];
                let mut left = vec![false; tiles.len() + 1];
                let mut moved = true;
                while moved {
                    moved = false;
                    for pair in 0..tiles.len() {
                        let Some(tile) = tiles[pair].get(at[pair]) else { continue };
                        if tile.col < wanted && !told[pair] {
                            told[pair] = true;
                            made[tile.row] += 1;
                            moved = true;
                        }
                        left[pair] |= tile.leaves;
                        let has_slices = !tile.waits || made[tile.row] == wanted;
                        if has_slices && (!tile.finishes || left[pair + 1]) {
                            at[pair] += 1;
                            told[pair] = false;
                            moved = true;
                        }
                    }
                }
                let context = format!("{sizes:?} on {pairs}: {schedule:?}");
                assert!(at.iter().zip(&tiles).all(|(&at, tiles)| at == tiles.len()), "{context}");
                checked += 1;
            }
        }
        assert!(checked > 1000, "{checked} schedules make S within");
    }
}
