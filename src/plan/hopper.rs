//! How `kernels/hopper_linear.cu` is launched: its tile, where S comes from, and in which order.

use super::Footprint;

/// Where the projection of a forward product, S, comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projection {
    /// From a launch before, or there is none: S is an input.
    Before,
    /// From the tiles of the product, of which some make a slice of S beside their own columns.
    Within {
        /// The columns of tiles that make slices, before all other tiles. Where they are more than the
        /// slices, which is only if S is one slice, all of them make it, each for itself, and the first
        /// for the others.
        slice_cols: usize,
    },
}

/// A launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Columns of the output in a tile; a pair of blocks has 256 rows.
    pub(crate) tile_n: usize,
    pub(crate) projection: Projection,
    /// The grid, in blocks.
    pub(crate) blocks: usize,
}

/// The tiles that the kernel is there for.
pub(crate) const TILES_N: [usize; 3] = [128, 176, 256];

/// Rows of pairs of tiles that are worked on column by column. With more, the L2 cache no longer holds
/// what they share.
pub(crate) const GROUP: usize = 8;

/// Rows of a pair of tiles.
const PAIR_M: usize = 256;

/// Columns of S in a slice.
const SLICE: usize = 16;

/// The slices of S that tiles make.
pub(crate) fn slices(r: usize) -> usize {
    r.div_ceil(SLICE)
}

impl Schedule {
    /// The words by which blocks tell each other what they have made of S for m rows: a count, then
    /// one for every 128 rows.
    pub(crate) fn flags(&self, m: usize) -> usize {
        match self.projection {
            Projection::Before => 0,
            Projection::Within { .. } => 1 + m.div_ceil(128),
        }
    }
}

/// What a block takes, with any tile: 224 KiB, its barriers, and what aligning to 1024 bytes may take.
pub(crate) const FOOTPRINT: Footprint =
    Footprint { threads: [384, 1], shared_bytes: (224 << 10) + 104 + 1024 };

/// For out (m×n) over k with S (m×r) given, or none.
pub(crate) fn product([m, n, k, _]: [usize; 4], pairs: usize) -> Schedule {
    let candidates = TILES_N.map(|tile_n| Model::new([m, n, k, 0], tile_n, pairs).before());
    fastest(candidates)
}

/// For out (m×n) over k with S (m×r) to be made.
pub(crate) fn forward(sizes: [usize; 4], pairs: usize) -> Schedule {
    fastest(candidates(sizes, pairs))
}

/// The ways to make S and out, with the time they take.
fn candidates(sizes: [usize; 4], pairs: usize) -> impl Iterator<Item = (f64, Schedule)> {
    TILES_N.into_iter().flat_map(move |tile_n| {
        let model = Model::new(sizes, tile_n, pairs);
        [model.before()].into_iter().chain(model.within())
    })
}

fn fastest(candidates: impl IntoIterator<Item = (f64, Schedule)>) -> Schedule {
    let fastest = candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    fastest.expect("a projection that comes before is always possible").1
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
    /// From the end of a slice of S to its use by others.
    const HANDOVER: f64 = 2.8;
    /// When S comes before: what another launch costs, and the bytes of X that it reads a µs.
    const LAUNCH: f64 = 9.0;
    const PROJECT_BYTES: f64 = 2.9e6;

    fn new(sizes: [usize; 4], tile_n: usize, pairs: usize) -> Self {
        let [m, n, k, _] = sizes;
        let (rows, cols) = (m.div_ceil(PAIR_M), n.div_ceil(tile_n));
        Model { sizes, tile_n, pairs, rows, cols, steps: k.div_ceil(64) as f64 }
    }

    fn schedule(&self, projection: Projection) -> Schedule {
        let blocks = 2 * (self.rows * self.cols).min(self.pairs);
        Schedule { tile_n: self.tile_n, projection, blocks }
    }

    /// The product, with S given.
    fn product(&self) -> f64 {
        let steps = self.steps + slices(self.sizes[3]) as f64 / 4.0;
        let step = Self::STEP + Self::STEP_COLUMN * self.tile_n as f64;
        let waves = (self.rows * self.cols).div_ceil(self.pairs) as f64;
        waves * (steps * step + Self::TILE_END)
    }

    /// What a slice adds to a tile.
    fn slice(&self) -> f64 {
        self.steps * Self::STEP_COLUMN * SLICE as f64
    }

    fn before(&self) -> (f64, Schedule) {
        let [m, _, k, r] = self.sizes;
        let projection = match r {
            0 => 0.0,
            _ => (m * k * 2) as f64 / Self::PROJECT_BYTES + Self::LAUNCH,
        };
        (self.product() + projection, self.schedule(Projection::Before))
    }

    fn within(self) -> impl Iterator<Item = (f64, Schedule)> {
        let slices = slices(self.sizes[3]);
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
        (least..=most).map(move |slice_cols| {
            let tiles = self.rows * slice_cols;
            let waves = tiles.div_ceil(self.pairs) as f64;
            let us = if slices > 1 {
                // While tiles make slices, all others wait for them.
                waves * (self.slice() + Self::HANDOVER)
            } else {
                // Pairs that start with another tile wait, unless they have one tile less anyway.
                let last = self.rows * self.cols % self.pairs;
                let idle = if last == 0 { 0 } else { self.pairs - last };
                let waits = self.pairs.saturating_sub(tiles) > idle;
                waves * self.slice() + if waits { Self::HANDOVER } else { 0.0 }
            };
            (self.product() + us, self.schedule(Projection::Within { slice_cols }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::shapes;

    /// A pair of tiles: its row and column, the slice that it makes, and whether it waits for others'.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    struct Tile {
        row: usize,
        col: usize,
        slice: Option<usize>,
        waits: bool,
    }

    /// The order of the kernel's `Tiles`.
    fn tiles(schedule: &Schedule, [m, n, _, r]: [usize; 4]) -> Vec<Tile> {
        let (rows, cols) = (m.div_ceil(PAIR_M), n.div_ceil(schedule.tile_n));
        let slice_cols = match schedule.projection {
            Projection::Before => 0,
            Projection::Within { slice_cols } => slice_cols,
        };
        let tile = |i: usize| {
            let (row, col) = match i.checked_sub(rows * slice_cols) {
                None => (i / slice_cols, i % slice_cols),
                Some(rest) => {
                    let rest_cols = cols - slice_cols;
                    let group0 = rest / (GROUP * rest_cols) * GROUP;
                    let group_rows = GROUP.min(rows - group0);
                    let in_group = rest - group0 * rest_cols;
                    (group0 + in_group % group_rows, slice_cols + in_group / group_rows)
                }
            };
            let slice = (col < slice_cols).then_some(if slices(r) == 1 { 0 } else { col });
            let waits = slice_cols > 0 && !(slices(r) == 1 && slice.is_some());
            Tile { row, col, slice, waits }
        };
        (0..rows * cols).map(tile).collect()
    }

    /// Shapes small enough to go through all their tiles.
    fn cases() -> impl Iterator<Item = ([usize; 4], usize)> {
        let small = shapes().filter(|&[t, _, d, _]| t.div_ceil(256) * d.div_ceil(128) < 4000);
        let sizes = small.step_by(7).map(|[t, k, d, r]| [t, d, k, r]);
        sizes.flat_map(|sizes| [1, 2, 3, 10, 66].map(|pairs| (sizes, pairs)))
    }

    #[test]
    fn every_tile_once_and_every_slice_told_once() {
        for (sizes, pairs) in cases() {
            for schedule in candidates(sizes, pairs).map(|(_, schedule)| schedule) {
                let context = format!("{sizes:?} on {pairs}: {schedule:?}");
                let [m, n, _, r] = sizes;
                let mut tiles = tiles(&schedule, sizes);
                let within = schedule.projection != Projection::Before;
                let (rows, wanted) = (m.div_ceil(PAIR_M), if within { slices(r) } else { 0 });
                let told = tiles.iter().filter(|tile| tile.col < wanted);
                assert!(told.clone().all(|tile| tile.slice == Some(tile.col)), "{context}");
                assert_eq!(told.count(), rows * wanted, "{context}");
                let count = rows * n.div_ceil(schedule.tile_n);
                tiles.sort_unstable();
                tiles.dedup_by_key(|&mut Tile { row, col, .. }| (row, col));
                assert_eq!(tiles.len(), count, "{context}");
                assert!(schedule.blocks >= 2 && schedule.blocks <= 2 * pairs, "{context}");
                assert_eq!(schedule.flags(m) > 0, within);
            }
        }
    }

    /// What was measured to be fastest on an H100.
    #[test]
    fn the_model_finds_the_fastest() {
        let chosen = |m, n, k, r| {
            let Schedule { tile_n, projection, .. } = forward([m, n, k, r], 66);
            (tile_n, projection)
        };
        let within = |slice_cols| Projection::Within { slice_cols };
        assert_eq!(chosen(8192, 4096, 4096, 16), (256, within(2)));
        assert_eq!(chosen(16384, 4096, 4096, 16), (256, within(1)));
        assert_eq!(chosen(8192, 4096, 4096, 64), (256, within(4)));
        assert_eq!(chosen(2048, 4096, 4096, 16), (256, within(8)));
        assert_eq!(chosen(2048, 4096, 4096, 64), (256, within(4)));
        assert_eq!(chosen(8192, 1024, 4096, 16), (256, within(2)));
        assert_eq!(chosen(8192, 1024, 4096, 64), (256, within(4)));
        assert_eq!(chosen(8191, 2112, 7168, 8), (176, within(2)));
        assert_eq!(product([8191, 2112, 7168, 8], 66).tile_n, 176);
        assert_eq!(product([8192, 4096, 4096, 0], 66).tile_n, 256);
    }

    #[test]
    fn every_kernel_is_sanitized() {
        let cases: [([usize; 4], usize); 9] = include!("../../tests/common/hopper_shapes.in");
        let cases = cases.map(|(sizes, sms)| (sizes, sms / 2));
        for tile_n in TILES_N {
            let made = |of: &dyn Fn(Projection, usize) -> bool| {
                let mut forward =
                    cases.iter().map(|&(sizes, pairs)| (forward(sizes, pairs), slices(sizes[3])));
                forward.any(|(s, slices)| s.tile_n == tile_n && of(s.projection, slices))
            };
            let within = |projection| projection != Projection::Before;
            assert!(made(&|projection, _| !within(projection)), "{tile_n}");
            assert!(made(&|projection, slices| within(projection) && slices == 1), "{tile_n}");
            assert!(made(&|projection, slices| within(projection) && slices > 1), "{tile_n}");
            let input_grad = cases.map(|([m, n, k, r], pairs)| product([m, k, n, r], pairs));
            assert!(input_grad.iter().any(|schedule| schedule.tile_n == tile_n), "{tile_n}");
        }
    }

    /// All pairs of blocks run at once, each through its tiles in order; where a tile makes a slice,
    /// it does so before it waits for those of its row.
    #[test]
    fn nobody_waits_forever() {
        let is_within = |schedule: &Schedule| schedule.projection != Projection::Before;
        let mut checked = 0;
        for (sizes, pairs) in cases() {
            let schedules = candidates(sizes, pairs).map(|(_, schedule)| schedule);
            for schedule in schedules.filter(is_within) {
                let (tiles, wanted) = (tiles(&schedule, sizes), slices(sizes[3]));
                let multiplying = schedule.blocks / 2;
                let mut made = vec![0; sizes[0].div_ceil(PAIR_M)];
                let mut at: Vec<usize> = (0..multiplying).collect();
                let mut told = vec![false; multiplying];
                let mut moved = true;
                while moved {
                    moved = false;
                    for pair in 0..multiplying {
                        let Some(&Tile { row, col, waits, .. }) = tiles.get(at[pair]) else {
                            continue;
                        };
                        if col < wanted && !told[pair] {
                            told[pair] = true;
                            made[row] += 1;
                            moved = true;
                        }
                        if !waits || made[row] == wanted {
                            at[pair] += multiplying;
                            told[pair] = false;
                            moved = true;
                        }
                    }
                }
                let context = format!("{sizes:?} on {pairs}: {schedule:?}");
                assert!(at.iter().all(|&tile| tile >= tiles.len()), "{context}");
                checked += 1;
            }
        }
        assert!(checked > 1000, "{checked} schedules make S within");
    }
}
