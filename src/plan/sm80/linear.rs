//! How the kernels for many tokens are launched, and the elementwise ones.

use crate::manifest::sm80::{grad, linear, merge, project, round, tile::RANK_TILES};

/// The grid of kernels/sm80/linear.cu for an output of m×n.
pub(crate) fn linear_blocks(m: usize, n: usize) -> usize {
    m.div_ceil(linear::TILE_M) * n.div_ceil(linear::TILE_N)
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
    use crate::plan::testing::shapes;
    use crate::problem::{MAX_PROJECTIONS, MAX_RANK};

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
