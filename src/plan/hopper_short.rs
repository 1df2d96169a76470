//! How `kernels/hopper_short.cu` is launched: its tiles, and who makes S.

use super::{rank_tile, Footprint};

/// The most tokens that it serves.
pub(crate) const MOST_TOKENS: usize = 1024;

/// The rows that a tile may have of which the kernel is there.
pub(crate) const TILES_M: [usize; 2] = [64, 128];

/// Its columns: of H, and of dX.
pub(crate) const FORWARD_TILES_N: [usize; 4] = [32, 64, 128, 224];
pub(crate) const INPUT_GRAD_TILES_N: [usize; 3] = [64, 128, 256];

/// What a block takes: 224 KiB, its barriers, and what aligning to 1024 bytes may take.
pub(crate) const FOOTPRINT: Footprint =
    Footprint { threads: [384, 1], shared_bytes: (224 << 10) + 512 + 1024 };

/// A launch. A pair of blocks makes two tiles of H or dX, of the same columns, or tiles of S or dS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The rows that there is room for in a tile, one of [`TILES_M`].
    pub(crate) tile_m: usize,
    /// Those that it has: as few as make no more tiles.
    pub(crate) rows: usize,
    /// Columns of a tile of H or dX.
    pub(crate) tile_n: usize,
    /// Pairs of blocks that make H or dX.
    pub(crate) pairs: usize,
    /// Pairs of blocks that make S or dS.
    pub(crate) down_pairs: usize,
}

impl Schedule {
    /// For H (T×d) over any k, with S (T×r) unless r is 0, on so many pairs of multiprocessors. `None`
    /// where tiles are more than can be made at once, or S would come late.
    pub(crate) fn forward([t, d, r]: [usize; 3], pairs: usize) -> Option<Self> {
        Schedule::of_tiles([t, d, r], pairs, &FORWARD_TILES_N)
    }

    /// The same for dX (T×k) and dS.
    pub(crate) fn input_grad([t, k, r]: [usize; 3], pairs: usize) -> Option<Self> {
        Schedule::of_tiles([t, k, r], pairs, &INPUT_GRAD_TILES_N)
    }

    fn of_tiles([m, n, r]: [usize; 3], pairs: usize, tiles_n: &[usize]) -> Option<Self> {
        if m > MOST_TOKENS {
            return None;
        }
        let tile_m = if m <= 2 * TILES_M[0] { TILES_M[0] } else { TILES_M[1] };
        let rows = match m.div_ceil(tile_m) {
            1 => m,
            tiles => m.div_ceil(tiles).next_multiple_of(8),
        };
        let rank_tile = rank_tile(r);
        let ext_tiles = m.div_ceil(rows) * r.div_ceil(rank_tile);
        // The narrowest tiles are on most multiprocessors.
        tiles_n.iter().find_map(|&tile_n| {
            let of_out = m.div_ceil(2 * rows) * n.div_ceil(tile_n);
            let down_pairs = pairs.checked_sub(of_out)?.min(ext_tiles);
            let schedule = Schedule { tile_m, rows, tile_n, pairs: of_out, down_pairs };
            // All blocks read about as fast. Those that make S have half of k each.
            let in_time = |down_pairs| {
                ext_tiles.div_ceil(down_pairs) * (tile_m + rank_tile) <= 2 * (tile_m + tile_n)
            };
            (r == 0 || down_pairs > 0 && in_time(down_pairs)).then_some(schedule)
        })
    }

    /// For the same S or dS (T×r) alone.
    pub(crate) fn without_out(&self, [t, r]: [usize; 2], pairs: usize) -> Self {
        let down_pairs = (t.div_ceil(self.rows) * r.div_ceil(rank_tile(r))).min(pairs);
        Schedule { pairs: 0, down_pairs, ..*self }
    }

    /// Whether a block has a warpgroup left to make dA and dB beside dX.
    pub(crate) fn makes_grads(&self) -> bool {
        self.tile_m == TILES_M[0] && self.pairs > 0
    }

    /// Words by which blocks tell each other of S.
    pub(crate) fn flags(&self, t: usize) -> usize {
        match self.down_pairs {
            0 => 0,
            _ => 1 + t.div_ceil(self.rows),
        }
    }

    /// The grid.
    pub(crate) fn blocks(&self) -> usize {
        2 * (self.down_pairs + self.pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::shapes;
    use crate::plan::{hopper_grads, Alone};
    use std::collections::HashSet;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Linear {
        Forward,
        InputGrad,
    }

    /// T, d or k, and r, on so many pairs.
    fn schedules() -> impl Iterator<Item = ([usize; 3], usize, Schedule)> {
        let sizes = shapes().flat_map(|[t, n, _, r]| {
            let t = (t - 1) % MOST_TOKENS + 1;
            [1, 2, 8, 66]
                .into_iter()
                .flat_map(move |pairs| [([t, n, r], pairs), ([t, n, 0], pairs)])
        });
        sizes.flat_map(|(sizes, pairs)| {
            let both = [Schedule::forward(sizes, pairs), Schedule::input_grad(sizes, pairs)];
            both.into_iter().flatten().map(move |schedule| (sizes, pairs, schedule))
        })
    }

    /// The tiles of the kernel, of every block that makes H or dX.
    #[test]
    fn every_tile_is_made_once() {
        let mut checked = 0;
        for ([t, n, r], pairs, schedule) in schedules() {
            let context = format!("T={t} n={n} r={r} on {pairs}: {schedule:?}");
            let Schedule { tile_m, rows, tile_n, pairs: of_out, .. } = schedule;
            let pairs_of_rows = t.div_ceil(2 * rows);
            let mut tiles: Vec<_> = (0..2 * of_out)
                .map(|block| {
                    let (tile, rank) = (block / 2, block % 2);
                    ((2 * (tile % pairs_of_rows) + rank) * rows, tile / pairs_of_rows * tile_n)
                })
                .collect();
            tiles.sort_unstable();
            let of_row = |m0| (0..n).step_by(tile_n).map(move |n0| (m0, n0));
            let m0s = (0..2 * pairs_of_rows).map(|row| row * rows);
            assert_eq!(tiles, m0s.flat_map(of_row).collect::<Vec<_>>(), "{context}");
            assert!(2 * pairs_of_rows * rows >= t, "rows left over: {context}");
            // Boxes of several tiles have whole eights, as the swizzle has.
            assert!(rows <= tile_m && (rows == t || rows % 8 == 0), "{context}");
            assert!(t.div_ceil(rows) <= t.div_ceil(tile_m), "{context}");
            assert!(schedule.blocks() <= 2 * pairs, "more than run at once: {context}");
            checked += 1;
        }
        assert!(checked > 5000, "{checked}");
    }

    #[test]
    fn somebody_makes_s_and_there_are_flags_for_it() {
        for ([t, n, r], pairs, schedule) in schedules() {
            let context = format!("T={t} n={n} r={r} on {pairs}: {schedule:?}");
            assert_eq!(schedule.down_pairs > 0, r > 0, "{context}");
            // The last block without rows does not look at its flag.
            let flags = if r > 0 { 1 + t.div_ceil(schedule.rows) } else { 0 };
            assert_eq!(schedule.flags(t), flags, "{context}");
            let s_tiles = t.div_ceil(schedule.rows) * r.div_ceil(rank_tile(r));
            assert!(schedule.down_pairs <= s_tiles, "pairs with nothing to do: {context}");
        }
    }

    /// The shapes that compute-sanitizer runs on come to every kernel and every way of its blocks.
    #[test]
    fn everything_is_sanitized() {
        let shapes: [([usize; 4], usize); 11] =
            include!("../../tests/common/hopper_short_shapes.in");
        let (mut tiles, mut kinds) = (HashSet::new(), HashSet::new());
        let mut items_of_blocks = HashSet::new();
        for ([t, d, k, r], sms) in shapes {
            let forward = (Linear::Forward, Alone::forward([t, d, k, r], sms / 2), d, k);
            let input_grad = (Linear::InputGrad, Alone::input_grad([t, k, d, r], sms / 2), k, d);
            for (linear, alone, n, inner) in [forward, input_grad] {
                let Some(Alone::Short(schedule)) = alone else { continue };
                let Schedule { tile_m, rows, tile_n, pairs, down_pairs } = schedule;
                tiles.insert((linear, tile_m, tile_n));
                let rank_tile = rank_tile(r);
                let in_part = rows < tile_m && t > rows;
                let rows = t.div_ceil(rows);
                let one_by_one = rows * r.div_ceil(rank_tile) > down_pairs;
                let of_s = [
                    ("S", true),
                    ("tiles of S one after another", one_by_one),
                    ("several tiles of S in a row", r > rank_tile),
                ];
                let of_s = of_s.map(|(kind, is)| (rank_tile, kind, is));
                let of_out = [
                    ("a block without rows", rows % 2 == 1),
                    ("part of a tile", n % tile_n > 0),
                    ("several tiles with fewer rows than there is room for", in_part),
                    ("several rows of tiles", rows > 2),
                    ("no steps for the second that makes S", inner <= 64),
                    ("stages again and again", inner > 16 * 64),
                ];
                if linear == Linear::InputGrad && schedule.makes_grads() {
                    let [_, ranks] = hopper_grads::box_beside(t, r);
                    let items = (k.div_ceil(64) + d.div_ceil(64)) * r.div_ceil(ranks);
                    items_of_blocks.insert((ranks, items > 2 * pairs));
                }
                let all = of_s.into_iter().chain(of_out.map(|(kind, is)| (0, kind, is)));
                kinds.extend(all.filter(|kind| kind.2).map(|kind| (linear, tile_m, kind)));
            }
        }
        assert_eq!(tiles.len(), TILES_M.len() * (FORWARD_TILES_N.len() + INPUT_GRAD_TILES_N.len()));
        // Tiles of 64 rows are always two; and of 16 ranks none is beside another.
        assert_eq!(kinds.len(), 4 * (2 + 3 + 6) - 4, "{kinds:?}");
        assert_eq!(items_of_blocks.len(), 4, "one or several: {items_of_blocks:?}");
    }

    /// What was measured to be best on an H100.
    #[test]
    fn known_layers_are_on_most_multiprocessors() {
        let of = |t, d, r| {
            let schedule = Schedule::forward([t, d, r], 66);
            schedule.map(|s| (s.tile_m, s.tile_n, s.pairs, s.down_pairs))
        };
        assert_eq!(of(128, 4096, 16), Some((64, 64, 64, 2)));
        assert_eq!(of(128, 14336, 64), Some((64, 224, 64, 2)));
        assert_eq!(of(256, 4096, 64), Some((128, 64, 64, 2)));
        assert_eq!(of(256, 8192, 16), Some((128, 128, 64, 2)));
        assert_eq!(of(512, 4096, 64), Some((128, 128, 64, 2)));
        assert_eq!(of(512, 8192, 16), None);
        assert_eq!(of(1024, 1024, 0), Some((128, 64, 64, 0)));
        // S of so many rows or ranks takes more pairs.
        assert_eq!(of(1024, 1024, 16), Some((128, 128, 32, 8)));
        assert_eq!(of(256, 4096, 256), Some((128, 128, 32, 8)));
    }
}
