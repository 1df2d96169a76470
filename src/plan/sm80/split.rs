//! How kernels/sm80/linear.cuh cuts S, dS, dA and dB into CTAs, as decode.cu S and dS, and the
//! memory that takes.

use super::linear::{LinearSchedule, LinearTile, rank_tile};
use crate::manifest::sm80::linear::{FLAG_ROWS, GRAD_COLS};
use crate::manifest::sm80::projection::{PROJ_ROWS, PROJ_SPLIT};
use crate::manifest::sm80::tile::RANK_TILES;
use crate::plan::profile::DeviceProfile;
use crate::plan::scratch::Needs;
use crate::problem::Problem;

/// Flags at the start: the waiters that are done, and the rows of S.
pub(crate) fn s_flags(t: usize) -> usize {
    1 + t.div_ceil(FLAG_ROWS)
}

/// S or dS of a layer (T×r), a sum over k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProjSplit {
    /// Tiles in the same rows.
    pub(crate) rank_tiles: usize,
    pub(crate) tiles: usize,
    /// CTAs of each tile.
    pub(crate) splits: usize,
    partials: usize,
}

impl ProjSplit {
    pub(crate) fn new([t, k, r]: [usize; 3]) -> Self {
        let (rank_tiles, splits) = (r.div_ceil(rank_tile(r)), k.div_ceil(PROJ_SPLIT));
        let tiles = rank_tiles * t.div_ceil(PROJ_ROWS);
        let partials = tiles * splits * PROJ_ROWS * rank_tile(r);
        ProjSplit { rank_tiles, tiles, splits, partials }
    }

    /// The same with a CTA for each tile, which leaves the memory unused.
    pub(crate) fn whole(self) -> Self {
        ProjSplit { splits: 1, ..self }
    }

    pub(crate) fn ctas(&self) -> usize {
        self.tiles * self.splits
    }

    pub(crate) fn needs(&self) -> Needs {
        Needs { partials: self.partials, flags: self.tiles }
    }
}

/// The clocks that a CTA takes for a whole tile of S: for 64 of k, and for the rest. An estimate,
/// not a measurement: 84 KiB of stages are on their way for about 1 µs, 48 bytes a clock.
const WHOLE_CLOCKS: [f64; 2] = [128.0, 2000.0];
/// S is there after this part of the time of a tile of H, at most: a tile waits for it at its end.
const WHOLE_SHARE: f64 = 0.7;

/// CTAs that compute S for these ranks, each one or more whole tiles of it, on the SMs that the
/// first layer's H (T×d) leaves idle, and the tile of that.
///
/// With them and the tiles of H, the grid is one wave, so that no tile starts late. Splits of S are
/// more CTAs: where one CTA fits on an SM, tiles wait for them; where two fit, tiles share with
/// them. `None` where splits serve S: where all CTAs start at once anyway, where no SM is idle, and
/// where S would be late.
pub(crate) fn whole_s(
    schedule: &LinearSchedule,
    [t, d, k]: [usize; 3],
    mut ranks: impl Iterator<Item = usize> + Clone,
    profile: &DeviceProfile,
) -> Option<(LinearTile, usize)> {
    let tile = schedule.tiles[0]?;
    let splits = ranks.clone().map(|r| ProjSplit::new([t, k, r]));
    let (tiles, ctas) =
        splits.fold((0, 0), |(tiles, ctas), split| (tiles + split.tiles, ctas + split.ctas()));
    let idle = profile.sms().saturating_sub(tile.ctas([t, d]));
    if idle == 0 || ctas <= idle || ranks.any(|r| rank_tile(r) > RANK_TILES[0]) {
        return None;
    }
    let clocks = |[k64, rest]: [f64; 2]| k as f64 / 64.0 * k64 + rest;
    let s_clocks = tiles.div_ceil(idle) as f64 * clocks(WHOLE_CLOCKS);
    let in_time = s_clocks <= WHOLE_SHARE * clocks(tile.tile_clocks(profile));
    in_time.then_some((tile, idle.min(tiles)))
}

/// dA (r×n), or dB's transpose: a sum over T.
///
/// The cut depends on the shape alone: the same partial sums, added in the same order, on every run
/// and on any number of SMs. An empty batch has no splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GradSplit {
    pub(crate) r: usize,
    pub(crate) n: usize,
    pub(crate) tiles: usize,
    /// CTAs of each tile.
    pub(crate) splits: usize,
    /// Rows that a CTA sums over. All splits but the last have exactly this many.
    pub(crate) rows_per_split: usize,
}

impl GradSplit {
    /// CTAs to aim for: one for every SM of the large GPUs.
    const CTAS: usize = 132;
    /// A shorter split costs more in partial sums than it brings.
    const MIN_ROWS: usize = 512;

    pub(crate) fn new(t: usize, r: usize, n: usize) -> Self {
        let tiles = r.div_ceil(rank_tile(r)) * n.div_ceil(GRAD_COLS);
        let wanted = (Self::CTAS / tiles).min(t.div_ceil(Self::MIN_ROWS)).max(1);
        // Whole flags, so that a split waits for no more of dS than it reads.
        let rows_per_split = t.div_ceil(wanted).next_multiple_of(FLAG_ROWS).max(FLAG_ROWS);
        let splits = t.div_ceil(rows_per_split);
        GradSplit { r, n, tiles, splits, rows_per_split }
    }

    pub(crate) fn ctas(&self) -> usize {
        self.tiles * self.splits
    }

    pub(crate) fn needs(&self) -> Needs {
        match self.splits {
            0 | 1 => Needs::default(),
            splits => {
                let tile = rank_tile(self.r) * GRAD_COLS;
                Needs { partials: self.tiles * splits * tile, flags: self.tiles }
            }
        }
    }
}

/// What a forward pass in tiles needs: S of all layers, if its first launch computes it.
pub(crate) fn forward_needs(problem: &Problem, with_s: bool) -> Needs {
    let (t, k) = (problem.t(), problem.k());
    if !with_s {
        return Needs::default();
    }
    let each = problem.projections().iter().map(|&(_, r)| ProjSplit::new([t, k, r]).needs());
    each.fold(Needs { partials: 0, flags: s_flags(t) }, Needs::and)
}

/// What a backward pass in tiles needs, with dS in its launch or before it.
pub(crate) fn backward_needs(problem: &Problem, with_ds: bool) -> Needs {
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let ds = layers.iter().filter(|_| with_ds);
    let ds = ds.map(|&(d, r)| ProjSplit::new([t, d, r]).needs());
    let da = GradSplit::new(t, problem.rank(), k).needs();
    let db = layers.iter().map(|&(d, r)| GradSplit::new(t, r, d).needs());
    ds.chain(db).chain([da]).fold(Needs { partials: 0, flags: s_flags(t) }, Needs::and)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::plan::Strategy;
    use crate::plan::sm80::backward_copies;
    use crate::plan::testing::{problems, shapes};
    use crate::problem::{MAX_PROJECTIONS, MAX_RANK, MAX_SIZE};

    /// In the kernel, split i has the rows from i · rows_per_split to the next split or to T.
    #[test]
    fn every_row_is_in_one_split() {
        for [t, n, _, r] in shapes() {
            let split = GradSplit::new(t, r, n);
            let context = format!("T={t} r={r} n={n}: {split:?}");
            assert!(split.splits >= 1, "{context}");
            assert!((split.splits - 1) * split.rows_per_split < t, "last is empty: {context}");
            assert!(split.splits * split.rows_per_split >= t, "rows left over: {context}");
            // The flags of dS, and 16-byte rows.
            assert_eq!(split.rows_per_split % FLAG_ROWS, 0, "{context}");
            assert!(i32::try_from(split.rows_per_split).is_ok(), "{context}");
        }
    }

    #[test]
    fn splits_are_no_more_than_pay() {
        for [t, n, _, r] in shapes() {
            let split = GradSplit::new(t, r, n);
            let context = format!("T={t} r={r} n={n}: {split:?}");
            assert_eq!(split.tiles, r.div_ceil(rank_tile(r)) * n.div_ceil(64), "{context}");
            assert!(split.splits == 1 || split.ctas() <= GradSplit::CTAS, "{context}");
            assert!(split.splits == 1 || split.rows_per_split >= GradSplit::MIN_ROWS / 2);
        }
    }

    #[test]
    fn an_empty_batch_has_no_splits() {
        for (r, n) in [(1, 1), (16, 4096), (MAX_RANK * MAX_PROJECTIONS, 30_000)] {
            let split = GradSplit::new(0, r, n);
            assert_eq!((split.splits, split.needs()), (0, Needs::default()));
        }
    }

    /// In the kernel, split i of S has the columns from 512 · i on, whatever T is.
    #[test]
    fn projections_are_cut_by_k_alone() {
        for [t, k, _, r] in shapes() {
            let split = ProjSplit::new([t, k, r]);
            let context = format!("T={t} k={k} r={r}: {split:?}");
            assert!((split.splits - 1) * PROJ_SPLIT < k && split.splits * PROJ_SPLIT >= k);
            assert_eq!(split.tiles, t.div_ceil(PROJ_ROWS) * split.rank_tiles, "{context}");
            let covered = split.rank_tiles * rank_tile(r);
            assert!(covered >= r && covered < r + rank_tile(r), "{context}");
            let tile = PROJ_ROWS * rank_tile(r);
            assert_eq!(split.needs().partials, split.ctas() * tile, "{context}");
        }
    }

    fn whole_s(problem: &Problem, card: &DeviceProfile) -> Option<(LinearTile, usize)> {
        let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
        let schedule = LinearSchedule::forward([t, k], layers, card);
        let ranks = layers.iter().map(|&(_, r)| r);
        super::whole_s(&schedule, [t, layers[0].0, k], ranks, card).filter(|_| schedule.short)
    }

    /// CTAs of whole tiles of S and of H are one wave, and in the kernel's order each tile of S is
    /// computed once.
    #[test]
    fn whole_tiles_of_s_are_beside_the_tiles_of_h() {
        let cards = DeviceProfile::presets().into_iter().chain([DeviceProfile::h200()]);
        for card in cards {
            let mut serves = 0;
            for problem in problems() {
                let (k, layers) = (problem.k(), problem.projections());
                let ranks: Vec<_> = layers.iter().map(|&(d, r)| (d, 1 + r % 20)).collect();
                let t = 1 + problem.t() % LinearSchedule::SHORT_TOKENS;
                let problem = Problem::new(t, k, &ranks, problem.dtype()).unwrap();
                let Some((tile, ctas)) = whole_s(&problem, &card) else { continue };
                let context = format!("{problem} on {}: {ctas} beside {tile}", card.name());
                let tiles = tile.ctas([t, ranks[0].0]);
                assert!(ctas >= 1 && ctas + tiles <= card.sms(), "{context}");
                let splits = ranks.iter().map(|&(_, r)| ProjSplit::new([t, k, r]));
                let in_splits = splits.clone().map(|split| split.ctas()).sum::<usize>();
                assert!(in_splits + tiles > card.sms(), "all start at once: {context}");
                assert!(splits.clone().all(|split| split.rank_tiles == 1), "{context}");
                let s_tiles = splits.map(|split| split.whole().ctas()).sum::<usize>();
                assert_eq!(s_tiles, ranks.len() * t.div_ceil(PROJ_ROWS), "{context}");
                let mut computed = vec![0; s_tiles];
                let each = (0..ctas).flat_map(|cta| (cta..s_tiles).step_by(ctas));
                each.for_each(|tile| computed[tile] += 1);
                assert_eq!(computed, vec![1; s_tiles], "{context}");
                serves += 1;
            }
            assert!(serves > 0, "never on {}", card.name());
        }
    }

    #[test]
    fn whole_tiles_of_s_serve_what_they_are_for() {
        let h200 = DeviceProfile::h200();
        let ctas = |[t, k, d, r]: [usize; 4]| {
            let problem = Problem::single(t, k, d, r, DType::Bf16).unwrap();
            whole_s(&problem, &h200).map(|(_, ctas)| ctas)
        };
        let of_t = [64, 128, 256, 512, 1024].map(|t| ctas([t, 4096, 4096, 16]));
        assert_eq!(of_t, [Some(2), Some(4), Some(4), Some(4), None]);
        // Batches of tests/gpu/mma.rs, which compares whole S with S in splits.
        let compared = [33, 65, 129, 1000].map(|t| ctas([t, 2568, 4096, 16]));
        assert_eq!(compared, [Some(2), Some(3), Some(4), None]);
        // Many ranks, no idle SM, and splits that start at once with all tiles.
        let others = [[256, 4096, 4096, 64], [256, 4096, 14_336, 16], [64, 4096, 1024, 16]];
        assert_eq!(others.map(ctas), [None; 3]);
    }

    #[test]
    fn bytes_of_the_largest_sizes_are_a_usize() {
        let most = MAX_SIZE / 8 * 8 - 1;
        let layers = [(most, MAX_RANK); MAX_PROJECTIONS];
        // S is in the first launch of short batches alone.
        for (t, with_s) in [(most, false), (LinearSchedule::SHORT_TOKENS, true)] {
            let problem = Problem::new(t, most, &layers, DType::Bf16).unwrap();
            for needs in [forward_needs(&problem, with_s), backward_needs(&problem, with_s)] {
                let strategy = Strategy::MmaDecode([None; MAX_PROJECTIONS]);
                let needs = needs.and(backward_copies(&problem, &strategy));
                assert!(needs.partials.checked_mul(4).is_some(), "T={t}: {needs:?}");
            }
        }
    }

    /// All that a launch hands out is counted.
    #[test]
    fn needs_are_sums() {
        for problem in problems() {
            let (t, layers) = (problem.t(), problem.projections());
            let without = backward_needs(&problem, false);
            let with = backward_needs(&problem, true);
            let of_ds = layers.iter().map(|&(d, r)| ProjSplit::new([t, d, r]).needs());
            let [partials, flags] = of_ds.fold([0, 0], |[partials, flags], needs| {
                [partials + needs.partials, flags + needs.flags]
            });
            assert_eq!(with.partials - without.partials, partials, "{problem}");
            assert_eq!(with.flags - without.flags, flags, "{problem}");
            assert!(without.flags >= s_flags(t), "{problem}");
            let [without, with] = [false, true].map(|with_s| forward_needs(&problem, with_s));
            assert_eq!(without, Needs::default(), "{problem}");
            assert!(with.flags > s_flags(t), "{problem}");
            let of_s = layers.iter().map(|&(_, r)| ProjSplit::new([t, problem.k(), r]).needs());
            let partials = of_s.map(|needs| needs.partials).sum::<usize>();
            assert_eq!(with.partials, partials, "{problem}");
        }
    }
}
