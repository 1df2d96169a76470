//! How `kernels/hopper_linear.cu` is launched: its tile, where S comes from, and in which order.

use super::Footprint;

/// Where the projection of a forward product, S, comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projection {
    /// From a launch before, or there is none: S is an input.
    Before,
    /// From pairs of blocks that do nothing else, in the same launch.
    Beside {
        /// How many.
        pairs: usize,
    },
    /// From the tiles of the product, of which some make a slice of S each.
    Within,
}

/// A launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Columns of the output in a tile; a pair of blocks has 256 rows.
    pub(crate) tile_n: usize,
    pub(crate) projection: Projection,
    /// Rows of pairs of tiles that are worked on column by column.
    pub(crate) group: usize,
    /// The grid, in blocks.
    pub(crate) blocks: usize,
}

/// The tiles that the kernel is there for.
pub(crate) const TILES_N: [usize; 3] = [128, 176, 256];

/// Rows of pairs of tiles that may go together. With more, the L2 cache no longer holds what they
/// share.
const GROUPS: [usize; 3] = [8, 16, 32];

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
            _ => 1 + m.div_ceil(128),
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
        let beside = (1..=8.min(pairs / 2)).filter_map(move |projecting| model.beside(projecting));
        let within = GROUPS.into_iter().filter_map(move |group| model.within(group));
        beside.chain([model.before()]).chain(within)
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
    /// Rounding and storing a tile.
    const TILE_END: f64 = 1.0;
    /// A step for 128 rows of S, of one block that makes nothing else.
    const PROJECT_STEP: f64 = 0.18;
    /// From the end of a slice of S to its use by others.
    const HANDOVER: f64 = 4.5;
    /// When S comes before: what another launch costs, and the bytes of X that it reads a µs.
    const LAUNCH: f64 = 9.0;
    const PROJECT_BYTES: f64 = 2.9e6;

    fn new(sizes: [usize; 4], tile_n: usize, pairs: usize) -> Self {
        let [m, n, k, _] = sizes;
        let (rows, cols) = (m.div_ceil(PAIR_M), n.div_ceil(tile_n));
        Model { sizes, tile_n, pairs, rows, cols, steps: k.div_ceil(64) as f64 }
    }

    fn schedule(&self, projection: Projection, group: usize) -> Schedule {
        let projecting = match projection {
            Projection::Beside { pairs } => pairs,
            _ => 0,
        };
        let blocks = 2 * (self.rows * self.cols + projecting).min(self.pairs);
        Schedule { tile_n: self.tile_n, projection, group, blocks }
    }

    fn tile(&self) -> f64 {
        let steps = self.steps + slices(self.sizes[3]) as f64 / 4.0;
        steps * (Self::STEP + Self::STEP_COLUMN * self.tile_n as f64) + Self::TILE_END
    }

    /// The product alone, by so many pairs.
    fn product(&self, pairs: usize) -> f64 {
        (self.rows * self.cols).div_ceil(pairs) as f64 * self.tile()
    }

    fn before(&self) -> (f64, Schedule) {
        let [m, _, k, r] = self.sizes;
        let projection = match r {
            0 => 0.0,
            _ => (m * k * 2) as f64 / Self::PROJECT_BYTES + Self::LAUNCH,
        };
        (self.product(self.pairs) + projection, self.schedule(Projection::Before, 8))
    }

    fn beside(&self, projecting: usize) -> Option<(f64, Schedule)> {
        // Their sums are of one slice.
        if slices(self.sizes[3]) != 1 || projecting >= self.pairs {
            return None;
        }
        const GROUP: usize = 8;
        let (pairs, tile) = (self.pairs - projecting, self.tile());
        let item = self.steps * Self::PROJECT_STEP;
        let items = |rows: usize| rows.div_ceil(projecting) as f64 * item;
        // A tile wants its rows of S at its end. Both sides advance steadily, so the first group of
        // tiles waits longest, or the last.
        let rows_before_last = self.rows.saturating_sub(GROUP);
        let last_starts = (rows_before_last * self.cols) as f64 / pairs as f64 * tile;
        let first = items(self.rows.min(GROUP)) - tile;
        let last = items(self.rows) - last_starts - tile;
        let us = self.product(pairs) + first.max(last).max(0.0) + Self::HANDOVER;
        Some((us, self.schedule(Projection::Beside { pairs: projecting }, GROUP)))
    }

    fn within(&self, group: usize) -> Option<(f64, Schedule)> {
        let slices = slices(self.sizes[3]);
        // One slice a tile; and all slices of a row of tiles are made at the same time.
        if slices == 0 || slices > self.cols || slices > self.pairs {
            return None;
        }
        // While tiles make slices, all others wait for them.
        let waits = |rows: usize| (rows * slices).div_ceil(self.pairs);
        let waits = self.rows / group * waits(group) + waits(self.rows % group);
        let slice = self.steps * Self::STEP_COLUMN * SLICE as f64;
        let us = self.product(self.pairs) + waits as f64 * (slice + Self::HANDOVER);
        Some((us, self.schedule(Projection::Within, group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::shapes;

    /// The order of the kernel's `for_each_tile`: row and column of every pair of tiles, and whether
    /// it makes a slice.
    fn tiles(schedule: &Schedule, [m, n, _, r]: [usize; 4]) -> Vec<(usize, usize, bool)> {
        let &Schedule { tile_n, group, projection, .. } = schedule;
        let (rows, cols) = (m.div_ceil(PAIR_M), n.div_ceil(tile_n));
        let slices = if projection == Projection::Within { slices(r) } else { 0 };
        let tile = |i: usize| {
            let row0 = i / (group * cols) * group;
            let group_rows = group.min(rows - row0);
            let in_group = i - row0 * cols;
            match in_group.checked_sub(group_rows * slices) {
                None => (row0 + in_group / slices, in_group % slices, true),
                Some(rest) => (row0 + rest % group_rows, slices + rest / group_rows, false),
            }
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
    fn every_tile_and_every_slice_once() {
        for (sizes, pairs) in cases() {
            for schedule in candidates(sizes, pairs).map(|(_, schedule)| schedule) {
                let context = format!("{sizes:?} on {pairs}: {schedule:?}");
                let [m, n, _, r] = sizes;
                let mut tiles = tiles(&schedule, sizes);
                let made = tiles.iter().filter(|tile| tile.2).count();
                let within = schedule.projection == Projection::Within;
                let rows = m.div_ceil(PAIR_M);
                assert_eq!(made, if within { rows * slices(r) } else { 0 }, "{context}");
                let count = rows * n.div_ceil(schedule.tile_n);
                tiles.sort_unstable();
                tiles.dedup_by_key(|&mut (row, col, _)| (row, col));
                assert_eq!(tiles.len(), count, "{context}");
                assert!(schedule.blocks >= 2 && schedule.blocks <= 2 * pairs, "{context}");
                assert_eq!(schedule.flags(m) > 0, schedule.projection != Projection::Before);
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
        let (beside, within) = (Projection::Beside { pairs: 2 }, Projection::Within);
        assert_eq!(chosen(8192, 4096, 4096, 16), (256, beside));
        assert_eq!(chosen(8192, 4096, 4096, 64), (256, within));
        assert_eq!(chosen(2048, 4096, 4096, 16), (256, beside));
        assert_eq!(chosen(2048, 4096, 4096, 64), (256, within));
        assert_eq!(chosen(8192, 1024, 4096, 16), (256, within));
        assert_eq!(chosen(8192, 1024, 4096, 64), (256, within));
        assert_eq!(chosen(8192, 14336, 4096, 64), (256, within));
        assert_eq!(chosen(8191, 2112, 7168, 8), (176, within));
        assert_eq!(chosen(8191, 2112, 7168, 128), (176, within));
        assert_eq!(chosen(8191, 3584, 18944, 128), (256, within));
        assert_eq!(chosen(2048, 1024, 4096, 16), (128, within));
        assert_eq!(product([8191, 2112, 7168, 8], 66).tile_n, 176);
        assert_eq!(product([8192, 4096, 4096, 0], 66).tile_n, 256);
    }

    #[test]
    fn every_kernel_is_sanitized() {
        let cases: [([usize; 4], usize); 9] = include!("../../tests/common/hopper_shapes.in");
        let cases = cases.map(|(sizes, sms)| (sizes, sms / 2));
        for tile_n in TILES_N {
            let made = |of: fn(Projection) -> bool| {
                let forward = cases.map(|(sizes, pairs)| forward(sizes, pairs));
                forward.iter().any(|s| s.tile_n == tile_n && of(s.projection))
            };
            assert!(made(|projection| projection == Projection::Before), "{tile_n}");
            assert!(made(|projection| matches!(projection, Projection::Beside { .. })), "{tile_n}");
            assert!(made(|projection| projection == Projection::Within), "{tile_n}");
            let input_grad = cases.map(|([m, n, k, r], pairs)| product([m, k, n, r], pairs));
            assert!(input_grad.iter().any(|schedule| schedule.tile_n == tile_n), "{tile_n}");
        }
    }

    /// All pairs of blocks run at once, each through its tiles in order; where a tile makes a slice,
    /// it does so before it waits for those of its row.
    #[test]
    fn nobody_waits_forever() {
        let is_within = |schedule: &Schedule| schedule.projection == Projection::Within;
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
                        let Some(&(row, _, makes_slice)) = tiles.get(at[pair]) else { continue };
                        if makes_slice && !told[pair] {
                            told[pair] = true;
                            made[row] += 1;
                            moved = true;
                        }
                        if made[row] == wanted {
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
