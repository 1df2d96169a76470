//! How `kernels/sm90a/short.cu` is launched: its tiles, and which clusters compute S.

use crate::manifest::sm90a::short::{FORWARD_TILES_N, INPUT_GRAD_TILES_N, TILES_M};
use crate::plan::sm80::linear::rank_tile;

/// The most tokens the kernel serves.
pub(crate) const MOST_TOKENS: usize = 1024;

/// A launch. A cluster computes two tiles of H or dX, of the same columns, or tiles of S or dS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The height of the tile, one of [`TILES_M`].
    pub(crate) tile_m: usize,
    /// The rows used of it: as few as need no more tiles.
    pub(crate) rows: usize,
    /// Columns of a tile of H or dX.
    pub(crate) tile_n: usize,
    /// Clusters that compute H or dX.
    pub(crate) clusters: usize,
    /// Clusters that compute S or dS.
    pub(crate) proj_clusters: usize,
}

impl Schedule {
    /// For H (T×d) over any k, with S (T×r) unless r is 0, on `clusters` clusters. `None` if
    /// the tiles need more than one wave, or S would be late.
    pub(crate) fn forward(sizes: [usize; 3], clusters: usize) -> Option<Self> {
        // The narrowest tiles use the most SMs.
        Schedule::all_forward(sizes, clusters).next()
    }

    /// For dX (T×k) and dS.
    pub(crate) fn input_grad(sizes: [usize; 3], clusters: usize) -> Option<Self> {
        Schedule::all_input_grad(sizes, clusters).next()
    }

    /// All for [`Schedule::forward`], the narrowest tiles first.
    pub(crate) fn all_forward(
        sizes: [usize; 3],
        clusters: usize,
    ) -> impl Iterator<Item = Schedule> {
        Schedule::all(sizes, clusters, &FORWARD_TILES_N)
    }

    /// All for [`Schedule::input_grad`], the narrowest tiles first.
    pub(crate) fn all_input_grad(
        sizes: [usize; 3],
        clusters: usize,
    ) -> impl Iterator<Item = Schedule> {
        Schedule::all(sizes, clusters, &INPUT_GRAD_TILES_N)
    }

    fn all(
        [m, n, r]: [usize; 3],
        clusters: usize,
        tiles_n: &'static [usize],
    ) -> impl Iterator<Item = Schedule> {
        let tiles_n = if m > MOST_TOKENS { &[] } else { tiles_n };
        let tile_m = if m <= 2 * TILES_M[0] { TILES_M[0] } else { TILES_M[1] };
        let rows = rows(m, tile_m);
        let rank_tile = rank_tile(r);
        let ext_tiles = m.div_ceil(rows) * r.div_ceil(rank_tile);
        tiles_n.iter().filter_map(move |&tile_n| {
            let of_out = m.div_ceil(2 * rows) * n.div_ceil(tile_n);
            let proj_clusters = clusters.checked_sub(of_out)?.min(ext_tiles);
            let schedule = Schedule { tile_m, rows, tile_n, clusters: of_out, proj_clusters };
            // All CTAs read about as fast. The CTAs that make S split k.
            let in_time = |proj_clusters| {
                ext_tiles.div_ceil(proj_clusters) * (tile_m + rank_tile) <= 2 * (tile_m + tile_n)
            };
            (r == 0 || proj_clusters > 0 && in_time(proj_clusters)).then_some(schedule)
        })
    }

    /// For the same S or dS (T×r) without an output, by as many clusters as possible.
    pub(crate) fn without_out(&self, [t, r]: [usize; 2], clusters: usize) -> Self {
        let tile_m = TILES_M[0];
        let rows = rows(t, tile_m);
        let proj_clusters = (t.div_ceil(rows) * r.div_ceil(rank_tile(r))).min(clusters);
        Schedule { tile_m, rows, clusters: 0, proj_clusters, ..*self }
    }

    /// Whether a CTA has a warpgroup left for dA and dB beside dX.
    pub(crate) fn makes_grads(&self) -> bool {
        self.tile_m == TILES_M[0] && self.clusters > 0
    }

    /// Flags for S.
    pub(crate) fn flags(&self, t: usize) -> usize {
        match self.proj_clusters {
            0 => 0,
            _ => 1 + t.div_ceil(self.rows),
        }
    }

    /// CTAs of the grid.
    pub(crate) fn blocks(&self) -> usize {
        2 * (self.proj_clusters + self.clusters)
    }
}

/// The rows used of tiles of m rows, two at least.
fn rows(m: usize, tile_m: usize) -> usize {
    m.div_ceil(m.div_ceil(tile_m).max(2)).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::shapes;

    /// T, d or k, and r, and the clusters.
    fn schedules() -> impl Iterator<Item = ([usize; 3], usize, Schedule)> {
        let sizes = shapes().flat_map(|[t, n, _, r]| {
            let t = (t - 1) % MOST_TOKENS + 1;
            [1, 2, 8, 66]
                .into_iter()
                .flat_map(move |clusters| [([t, n, r], clusters), ([t, n, 0], clusters)])
        });
        sizes.flat_map(|(sizes, clusters)| {
            let both = [Schedule::forward(sizes, clusters), Schedule::input_grad(sizes, clusters)];
            both.into_iter().flatten().map(move |schedule| (sizes, clusters, schedule))
        })
    }

    /// The tiles of the kernel, of every CTA that computes H or dX.
    #[test]
    fn every_tile_is_computed_once() {
        let mut checked = 0;
        for ([t, n, r], clusters, schedule) in schedules() {
            let context = format!("T={t} n={n} r={r} on {clusters}: {schedule:?}");
            let Schedule { tile_m, rows, tile_n, clusters: of_out, .. } = schedule;
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
            assert!(t.div_ceil(rows) <= t.div_ceil(tile_m).max(2), "{context}");
            assert!(schedule.blocks() <= 2 * clusters, "more than one wave: {context}");
            checked += 1;
        }
        assert!(checked > 5000, "{checked}");
    }

    #[test]
    fn s_is_computed_and_has_flags() {
        for ([t, n, r], clusters, schedule) in schedules() {
            let context = format!("T={t} n={n} r={r} on {clusters}: {schedule:?}");
            assert_eq!(schedule.proj_clusters > 0, r > 0, "{context}");
            // A CTA without rows has no flag.
            let flags = if r > 0 { 1 + t.div_ceil(schedule.rows) } else { 0 };
            assert_eq!(schedule.flags(t), flags, "{context}");
            let alone = schedule.without_out([t, r], clusters);
            assert!(alone.proj_clusters >= schedule.proj_clusters, "{context}: {alone:?}");
            let s_tiles = t.div_ceil(schedule.rows) * r.div_ceil(rank_tile(r));
            assert!(schedule.proj_clusters <= s_tiles, "idle clusters: {context}");
        }
    }

    /// Winners measured on an H100.
    #[test]
    fn known_layers_use_the_most_sms() {
        let of = |t, d, r| {
            let schedule = Schedule::forward([t, d, r], 66);
            schedule.map(|s| (s.tile_m, s.tile_n, s.clusters, s.proj_clusters))
        };
        assert_eq!(of(128, 4096, 16), Some((64, 64, 64, 2)));
        assert_eq!(of(128, 14336, 64), Some((64, 224, 64, 2)));
        assert_eq!(of(256, 4096, 64), Some((128, 64, 64, 2)));
        assert_eq!(of(256, 8192, 16), Some((128, 128, 64, 2)));
        assert_eq!(of(512, 4096, 64), Some((128, 128, 64, 2)));
        assert_eq!(of(512, 8192, 16), None);
        assert_eq!(of(1024, 1024, 0), Some((128, 64, 64, 0)));
        // S of many rows or ranks needs more clusters.
        assert_eq!(of(1024, 1024, 16), Some((128, 128, 32, 8)));
        assert_eq!(of(256, 4096, 256), Some((128, 128, 32, 8)));
    }
}
