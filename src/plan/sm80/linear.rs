//! How the kernels for many tokens are launched, and the elementwise ones.

use crate::manifest::sm80::linear::{TILES, WARP_K, WIDE_TILE_N};
use crate::manifest::sm80::{grad, merge, project, round, tile::RANK_TILES};
use crate::plan::profile::DeviceProfile;
use crate::plan::rates::HOPPER_MMA_RATE;
use crate::problem::MAX_PROJECTIONS;
use std::fmt;

/// The clocks that a tile of kernels/sm80/linear.cu takes on an SM of an H200 by itself, in the
/// order of `TILES`: for 64 of k, and for the rest, which is the start of the pipeline and the
/// epilogue.
///
/// Fitted at k = 4096 and 8192 and up to 8 waves of tiles. Two CTAs with tiles of 64×64 fit on one
/// of its SMs, which takes their time one after the other.
const TILE_CLOCKS: [[f64; 2]; TILES.len()] =
    [[1811.0, 7000.0], [1015.0, 4400.0], [617.0, 3100.0], [400.0, 2500.0]];

/// Clocks for 64 of k that a tile takes longer than on an H200, on an SM that does `mma_rate` FMAs
/// in a clock. A heuristic: no other card has been measured.
///
/// The first column of `TILE_CLOCKS` is the time of a tile's FMAs at an H200's rate, and 198 to 214
/// clocks for barriers and latencies. Only the FMAs scale.
///
/// Two other bounds do not choose a tile. To fill shared memory, at 64 bytes a clock, takes no
/// longer than the FMAs. All tiles read about as much memory, because CTAs of a wave share in the
/// L2 what they read.
fn clocks_of_mma([m, n]: [usize; 2], mma_rate: usize) -> f64 {
    (m * n * 64) as f64 * (1.0 / mma_rate as f64 - 1.0 / HOPPER_MMA_RATE as f64)
}

/// A tile of an output of kernels/sm80/linear.cu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinearTile {
    pub(crate) m: usize,
    pub(crate) n: usize,
}

impl LinearTile {
    /// The one that takes the least time for an output of m×n, a sum over segments of these k:
    /// waves of a tile for each SM.
    fn of(
        output: [usize; 2],
        ks: impl Iterator<Item = usize> + Clone,
        profile: &DeviceProfile,
    ) -> Self {
        let clocks = |tile: LinearTile, [k64, rest]: [f64; 2]| {
            let ctas = tile.ctas(output);
            // The limit of a grid: outputs of many terabytes have wide tiles.
            if i32::try_from(ctas).is_err() {
                return f64::INFINITY;
            }
            let k: usize = ks.clone().map(|k| k.next_multiple_of(tile.step())).sum();
            let k64 = k64 + clocks_of_mma([tile.m, tile.n], profile.mma_rate());
            ctas.div_ceil(profile.sms()) as f64 * (k as f64 / 64.0 * k64 + rest)
        };
        let tiles = TILES.map(|[m, n]| LinearTile { m, n });
        let all = tiles.into_iter().zip(TILE_CLOCKS);
        let timed = all.map(|(tile, each)| (clocks(tile, each), tile));
        // The widest of equals, which is first.
        let best = timed.min_by(|(a, _), (b, _)| a.total_cmp(b));
        best.expect("there are tiles").1
    }

    /// Columns of a step along k.
    fn step(self) -> usize {
        if self.n == WIDE_TILE_N {
            WARP_K
        } else {
            2 * WARP_K
        }
    }

    /// The grid for an output of m×n.
    pub(crate) fn ctas(self, [m, n]: [usize; 2]) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }
}

impl fmt::Display for LinearTile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{} tiles", self.m, self.n)
    }
}

/// The tiles of a pass: of H for every layer, or of dX. Unused entries are `None`.
pub(crate) type LinearTiles = [Option<LinearTile>; MAX_PROJECTIONS];

/// The tiles of H of layers of these (d, r). The ranks have no say: with an adapter the frozen layer
/// is summed as without.
pub(crate) fn forward_tiles(
    [t, k]: [usize; 2],
    layers: &[(usize, usize)],
    profile: &DeviceProfile,
) -> LinearTiles {
    let mut tiles = LinearTiles::default();
    for (tile, &(d, _)) in tiles.iter_mut().zip(layers) {
        *tile = Some(LinearTile::of([t, d], std::iter::once(k), profile));
    }
    tiles
}

/// The tiles of dX of layers of these (d, r).
pub(crate) fn input_grad_tile(
    [t, k]: [usize; 2],
    layers: &[(usize, usize)],
    profile: &DeviceProfile,
) -> LinearTile {
    LinearTile::of([t, k], layers.iter().map(|&(d, _)| d), profile)
}

/// The grid of kernels/sm80/project.cu for an output of m×r.
pub(crate) fn project_blocks(m: usize, r: usize) -> usize {
    m.div_ceil(project::TILE_M) * r.div_ceil(rank_tile(r))
}

/// The grid of kernels/sm80/round.cu for segments of so many elements: a CTA for every chunk of
/// each, and no more than run at the same time.
pub(crate) fn round_blocks(elements: impl Iterator<Item = usize>, sms: usize) -> usize {
    let chunks = elements.map(|elements| elements.div_ceil(round::CHUNK)).sum::<usize>();
    chunks.min(8 * sms)
}

/// The grid of kernels/sm80/merge.cu for a weight of d×k.
pub(crate) fn merge_blocks([d, k]: [usize; 2]) -> usize {
    d.div_ceil(merge::TILE_D) * k.div_ceil(merge::TILE_K)
}

/// The tile along r of the kernels that serve this rank.
pub(crate) fn rank_tile(r: usize) -> usize {
    let [narrow, wide] = RANK_TILES;
    if r <= narrow {
        narrow
    } else {
        wide
    }
}

/// How `kernels/sm80/grad.cu` cuts Lᵀ Y (r×n, a sum over T rows) into blocks.
///
/// The cut depends on the shape alone: the same partial sums, added in the same order, on every run
/// and on any number of SMs. An empty batch has no splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GradSplit {
    pub(crate) r: usize,
    pub(crate) n: usize,
    /// Rows of L and Y that a block sums over. All splits but the last have exactly this many.
    pub(crate) rows_per_split: usize,
    pub(crate) splits: usize,
    pub(crate) rank_tiles: usize,
    pub(crate) column_tiles: usize,
}

impl GradSplit {
    /// Blocks to aim for: two for every SM of the large GPUs.
    const BLOCKS: usize = 264;
    /// A shorter split costs more in partial sums than it brings.
    const MIN_ROWS: usize = 512;

    pub(crate) fn new(t: usize, r: usize, n: usize) -> Self {
        let rank_tiles = r.div_ceil(rank_tile(r));
        let column_tiles = n.div_ceil(grad::TILE_N);
        let wanted = Self::BLOCKS / (rank_tiles * column_tiles);
        let wanted = wanted.min(t.div_ceil(Self::MIN_ROWS)).max(1);
        let rows_per_split = t.div_ceil(wanted).next_multiple_of(grad::TILE_K).max(grad::TILE_K);
        let splits = t.div_ceil(rows_per_split);
        GradSplit { r, n, rows_per_split, splits, rank_tiles, column_tiles }
    }

    /// f32 elements of partial sums: splits × r × n.
    pub(crate) fn partials(&self) -> usize {
        self.splits * self.r * self.n
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::sm80::linear;
    use crate::plan::testing::shapes;
    use crate::problem::{MAX_RANK, MAX_SIZE};

    #[test]
    fn linear_tiles_cover_the_output_and_fit_the_grid() {
        let presets = DeviceProfile::presets().into_iter();
        let cards = presets.chain([2, 60, 132].map(|sms| DeviceProfile::h200().with_sm_limit(sms)));
        let cards: Vec<_> = cards.collect();
        for ([t, k, d, r], card) in shapes().zip(cards.iter().cycle()) {
            let [of_h, ..] = forward_tiles([t, k], &[(d, r)], card);
            let of_dx = input_grad_tile([t, k], &[(d, r), (k, r)], card);
            for (tile, output) in [(of_h.unwrap(), [t, d]), (of_dx, [t, k])] {
                let context = format!("{output:?} on {card:?}: {tile:?}");
                assert!(TILES.contains(&[tile.m, tile.n]), "{context}");
                let [m, n] = output;
                let [tiles_m, tiles_n] = [m.div_ceil(tile.m), n.div_ceil(tile.n)];
                assert!(tiles_m * tile.m >= m && tiles_n * tile.n >= n, "{context}");
                assert_eq!(tile.ctas(output), tiles_m * tiles_n, "{context}");
                assert!(i32::try_from(tile.ctas(output)).is_ok(), "{context}");
            }
        }
        // No tile makes the grid fit.
        let [tile, ..] = forward_tiles([MAX_SIZE, 1], &[(MAX_SIZE, 1)], &DeviceProfile::h200());
        assert_eq!(tile, Some(LinearTile { m: 128, n: 256 }));
    }

    /// With the stages of every tile one CTA fits on an SM of 8.6, which has 100 KiB of which each
    /// CTA takes one, and warps that sum apart find room for their sums.
    #[test]
    fn linear_tiles_fit_shared_memory() {
        for [m, n] in TILES {
            let stage = (m + n) * LinearTile { m, n }.step() * 2;
            assert_eq!(linear::STAGES_BYTES % stage, 0);
            assert!(linear::STAGES_BYTES / stage >= 3);
            assert!(n == WIDE_TILE_N || m * n * 4 <= linear::STAGES_BYTES);
        }
        const { assert!(linear::STAGES_BYTES <= 99 << 10) };
    }

    /// The µs of each tile on an H200, X W0ᵀ at k = 4096 alone, with compute_80's code.
    #[test]
    fn the_fastest_linear_tile_is_chosen() {
        for (t, d, us) in [
            (1024, 4096, [80.0, 85.2, 103.3, 126.3]),
            (512, 4096, [70.6, 43.4, 52.2, 65.1]),
            (256, 4096, [70.6, 40.9, 26.1, 32.7]),
            (128, 4096, [70.6, 40.6, 25.6, 18.2]),
        ] {
            let [tile, ..] = forward_tiles([t, 4096], &[(d, 16)], &DeviceProfile::h200());
            let fastest = (0..4).min_by(|&a, &b| f64::total_cmp(&us[a], &us[b])).unwrap();
            let [m, n] = TILES[fastest];
            assert_eq!(tile, Some(LinearTile { m, n }), "T={t} d={d}");
        }
        for [t, k, d] in [[8192, 4096, 4096], [8192, 8192, 8192], [512, 4096, 14336]] {
            let [tile, ..] = forward_tiles([t, k], &[(d, 16)], &DeviceProfile::h200());
            assert_eq!(tile, Some(LinearTile { m: 128, n: 256 }), "T={t} d={d}");
        }
    }

    #[test]
    fn ranks_do_not_change_tiles() {
        let a100 = DeviceProfile::a100_sxm();
        for [t, k, d, r] in shapes() {
            let of_r = |r| {
                let layers = [(d, r)];
                (forward_tiles([t, k], &layers, &a100), input_grad_tile([t, k], &layers, &a100))
            };
            assert_eq!(of_r(r), of_r(0));
        }
    }

    /// In the kernel, split i has the rows from i · rows_per_split to the next split or to T.
    #[test]
    fn every_row_is_in_one_split() {
        for [t, n, _, r] in shapes() {
            let split = GradSplit::new(t, r, n);
            let context = format!("T={t} r={r} n={n}: {split:?}");
            assert!(split.splits >= 1, "{context}");
            assert!((split.splits - 1) * split.rows_per_split < t, "last is empty: {context}");
            assert!(split.splits * split.rows_per_split >= t, "rows left over: {context}");
            assert_eq!(split.rows_per_split % grad::TILE_K, 0, "{context}");
            // A split starts at a multiple of 8 rows, so 16-byte rows stay aligned, and its rows
            // fit the kernel's i32.
            assert!(i32::try_from(split.rows_per_split).is_ok(), "{context}");
        }
    }

    #[test]
    fn tiles_cover_the_output_and_fit_the_grid() {
        for [t, n, _, r] in shapes() {
            let split = GradSplit::new(t, r, n);
            let context = format!("T={t} r={r} n={n}: {split:?}");
            let covered = |tiles: usize, tile, all| tiles * tile >= all && (tiles - 1) * tile < all;
            assert!(covered(split.rank_tiles, rank_tile(r), r), "{context}");
            assert!(covered(split.column_tiles, grad::TILE_N, n), "{context}");
            // The limit of grid.y, and the blocks aimed for unless the tiles alone are more.
            assert!(split.splits <= 65_535, "{context}");
            let tiles = split.rank_tiles * split.column_tiles;
            assert!(split.splits == 1 || split.splits * tiles <= GradSplit::BLOCKS, "{context}");
            // Splits are long enough to be worth their partial sums.
            assert!(split.splits == 1 || split.rows_per_split >= GradSplit::MIN_ROWS / 2);
        }
    }

    #[test]
    fn an_empty_batch_has_no_splits() {
        for (r, n) in [(1, 1), (16, 4096), (MAX_RANK * MAX_PROJECTIONS, 30_000)] {
            let split = GradSplit::new(0, r, n);
            assert_eq!((split.splits, split.partials()), (0, 0));
        }
    }

    #[test]
    fn rank_tiles_hold_every_rank() {
        for r in 1..=MAX_RANK {
            let tile = rank_tile(r);
            assert!(RANK_TILES.contains(&tile), "no kernel for a tile of {tile}");
            assert!(r.next_multiple_of(tile) < r + tile);
            assert!(tile == 64 || r <= 16, "rank {r} would need {} passes", r.div_ceil(16));
        }
    }
}
