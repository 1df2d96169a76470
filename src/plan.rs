//! Which kernel serves a call, and how it is cut into tiles: pure functions of the problem and
//! the device.

mod apart;
pub(crate) mod hopper;
pub(crate) mod hopper_decode;
pub(crate) mod hopper_grads;
pub(crate) mod hopper_short;
mod shared;

pub(crate) use apart::{Alone, Apart};
pub(crate) use shared::check_count;
pub use shared::{backward_shared, forward_shared, SharedProblem, MAX_PROJECTIONS};

use crate::{DType, Error, Result, Shape};

/// The largest rank an adapter may have.
pub const MAX_RANK: usize = 256;

/// The sizes that decide how a call is served, in the paper's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Problem {
    /// Tokens: the product of all leading dimensions of x.
    pub t: usize,
    /// Inputs of the layer: W0 is d×k.
    pub k: usize,
    /// Outputs of the layer.
    pub d: usize,
    /// Rank of the adapter.
    pub r: usize,
    /// Element type of x, W0, A, B, S and h.
    pub dtype: DType,
}

impl Problem {
    /// A problem within the limits of the crate.
    ///
    /// # Errors
    /// [`Error::Rank`] unless `1 <= r <= 256`; [`Error::Shape`] if a dimension is zero;
    /// [`Error::TooLarge`] if one does not fit in 31 bits less a tile.
    pub fn new(t: usize, k: usize, d: usize, r: usize, dtype: DType) -> Result<Self> {
        check_rank(r)?;
        check_dims("x", [t, k])?;
        check_dims("w0", [d, k])?;
        Ok(Problem { t, k, d, r, dtype })
    }
}

fn check_rank(r: usize) -> Result<()> {
    if r == 0 || r > MAX_RANK {
        return Err(Error::Rank { r });
    }
    Ok(())
}

fn check_dims(argument: &'static str, dims: [usize; 2]) -> Result<()> {
    if dims.contains(&0) {
        let expected = "at least one row and one column".to_string();
        return Err(Error::Shape { argument, expected, got: Shape::new(&dims)? });
    }
    // Kernels index rows and columns by i32 and round them up to whole tiles.
    if dims.iter().any(|&dim| dim > i32::MAX as usize - 1024) {
        return Err(Error::TooLarge { what: format!("{argument} of shape {dims:?}") });
    }
    Ok(())
}

/// What plans need to know of a CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceProfile {
    /// The name the driver gives.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: usize,
    /// Pairs of them that blocks of [`Path::Hopper`] run on at once, at most.
    pub pairs: usize,
    /// Whether [`Path::Hopper`] is there: compute capability 9.0, and a build with its kernels.
    pub hopper: bool,
}

/// The code that serves a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Path {
    /// The CPU reference.
    Reference,
    /// `mma.sync` kernels for compute capability 8.0 and newer, any shape and alignment.
    Mma,
    /// Both passes for up to 64 tokens, and the forward for up to 128 for some layers, by wgmma and TMA:
    /// bound by reading W0. Where it is there, and which buffers it takes, is as for [`Path::Hopper`].
    /// Projections that share their input come here in the forward.
    HopperDecode,
    /// Both passes for more than 64 tokens, up to 1024 or as many as make no more tiles than there are
    /// multiprocessors, by wgmma and TMA. Where it is there, and which buffers it takes, is as for
    /// [`Path::Hopper`]. Projections that share their input come here in the forward of up to 128 tokens.
    HopperShort,
    /// The products with W0, and the gradients of A and B, by wgmma and TMA; the rest as [`Path::Mma`].
    /// For compute capability 9.0, and for k, d and r that are multiples of 8, so that rows start at
    /// multiples of 16 bytes. Where a buffer of a call does not, which a plan cannot know, `Mma` serves
    /// the call.
    Hopper,
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Path::Reference => "reference",
            Path::Mma => "mma",
            Path::HopperDecode => "hopper-decode",
            Path::HopperShort => "hopper-short",
            Path::Hopper => "hopper",
        })
    }
}

/// How a call will be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The code that serves it.
    pub path: Path,
    /// The f32 elements of scratch that its workspace must have; may be zero.
    pub scratch: usize,
    /// The flags, of 32 bits, that its workspace must have; may be zero.
    pub flags: usize,
    /// How [`Path::Hopper`] runs the product with W0, if it does.
    pub(crate) hopper: Option<hopper::Schedule>,
    /// How [`Path::HopperDecode`] or [`Path::HopperShort`] does, if one does.
    pub(crate) apart: Option<Apart>,
}

impl Plan {
    /// On the CPU.
    const REFERENCE: Plan =
        Plan { path: Path::Reference, scratch: 0, flags: 0, hopper: None, apart: None };

    /// By kernels for every GPU.
    fn mma(scratch: usize) -> Plan {
        Plan { path: Path::Mma, scratch, ..Plan::REFERENCE }
    }

    /// By a schedule with the flags and the scratch that it takes.
    fn on_hopper(schedule: hopper::Schedule, flags: usize, scratch: usize) -> Plan {
        Plan { path: Path::Hopper, scratch, flags, hopper: Some(schedule), apart: None }
    }
}

/// The plan of a forward pass; `profile` is `None` on the CPU.
pub fn forward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    forward_shared(&(*problem).into(), profile)
}

/// The plan of the frozen layer alone; `profile` is `None` on the CPU. The rank of the problem does
/// not matter.
pub fn frozen(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    let &Problem { t, k, d, .. } = problem;
    let Some(profile) = profile else { return Plan::REFERENCE };
    let alone = Problem { r: 0, ..*problem }.into();
    let Some(pairs) = shared::pairs(&alone, profile) else { return Plan::mma(0) };
    match apart::plan(&alone, pairs, 0) {
        Some(plan) => Plan { flags: 0, ..plan },
        None => Plan::on_hopper(hopper::frozen([t, d, k], pairs), 0, 0),
    }
}

/// The plan of a backward pass, with dX or without; `profile` is `None` on the CPU.
pub fn backward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    backward_shared(&(*problem).into(), profile)
}

/// Where S or dS, T×R in the element type of the problem, ends in a scratch that it begins: in f32
/// elements, whole lines of 128 bytes, so that what follows starts aligned.
pub(crate) fn projection_elements(problem: &SharedProblem) -> usize {
    (problem.t * problem.rank() * problem.dtype.bytes()).div_ceil(128) * 32
}

/// Where the CUDA paths keep what they need between launches, in f32 elements from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackwardWorkspace {
    /// dS, T×R in the element type of the problem, at offset 0; this is where it ends.
    ds_end: usize,
    /// The partial sums of dX's product, of dA, then of every dB, each used before the next are
    /// written.
    partials: usize,
}

impl BackwardWorkspace {
    pub(crate) fn new(problem: &SharedProblem, hopper: Option<&hopper::Schedule>) -> Self {
        let &SharedProblem { t, k, .. } = problem;
        let ds_end = projection_elements(problem);
        let product = hopper.map_or(0, |schedule| schedule.partials());
        let da = GradSplit::new(t, problem.rank(), k).partials();
        let db = problem.projections().iter().map(|&(d, r)| GradSplit::new(t, r, d).partials());
        BackwardWorkspace { ds_end, partials: db.fold(product.max(da), usize::max) }
    }

    pub(crate) fn partials_offset(&self) -> usize {
        self.ds_end
    }

    pub(crate) fn elements(&self) -> usize {
        self.ds_end + self.partials
    }
}

/// How `kernels/grad.cu` cuts Lᵀ Y (r×n, a sum over T rows) into blocks.
///
/// The cut depends on the shape alone, so the partial sums are the same ones, added in the same
/// order, on every run and however many multiprocessors there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GradSplit {
    pub(crate) r: usize,
    pub(crate) n: usize,
    /// Rows of L and Y that one block sums over; all but the last split have exactly this many.
    pub(crate) rows_per_split: usize,
    pub(crate) splits: usize,
    pub(crate) rank_tiles: usize,
    pub(crate) column_tiles: usize,
}

impl GradSplit {
    /// Columns of Y in a tile, and rows in one step of the sum.
    pub(crate) const COLUMNS: usize = 128;
    pub(crate) const STEP: usize = 64;
    /// Blocks to aim for: two for every multiprocessor of the large GPUs.
    const BLOCKS: usize = 264;
    /// A split shorter than this costs more in partial sums than it brings.
    const MIN_ROWS: usize = 512;

    pub(crate) fn new(t: usize, r: usize, n: usize) -> Self {
        let rank_tiles = r.div_ceil(rank_tile(r));
        let column_tiles = n.div_ceil(Self::COLUMNS);
        let wanted = (Self::BLOCKS / (rank_tiles * column_tiles)).max(1);
        let wanted = wanted.min(t.div_ceil(Self::MIN_ROWS));
        let rows_per_split = t.div_ceil(wanted).next_multiple_of(Self::STEP);
        let splits = t.div_ceil(rows_per_split);
        GradSplit { r, n, rows_per_split, splits, rank_tiles, column_tiles }
    }

    /// f32 elements of partial sums: splits × r × n.
    pub(crate) fn partials(&self) -> usize {
        self.splits * self.r * self.n
    }
}

/// The tile along r that the rank-r kernels are instantiated for and that serves this rank.
pub(crate) fn rank_tile(r: usize) -> usize {
    if r <= 16 {
        16
    } else {
        64
    }
}

/// What a block of a kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) threads: [u32; 2],
    pub(crate) shared_bytes: u32,
}

impl Footprint {
    /// kernels/reduce.cu, whose tile in shared memory is not dynamic.
    pub(crate) const REDUCE: Footprint = Footprint { threads: [32, 8], shared_bytes: 0 };

    /// A pipeline of `stages` buffers for m×k and n×k elements of 16 bits.
    const fn of_tiles(threads: usize, stages: usize, [m, n, k]: [usize; 3]) -> Self {
        let shared_bytes = (stages * (m + n) * k * 2) as u32;
        Footprint { threads: [threads as u32, 1], shared_bytes }
    }
}

// The tiles below are those of the kernel files named.

/// kernels/linear.cu.
pub(crate) fn linear_kernel() -> Footprint {
    Footprint::of_tiles(256, 4, [128, 256, 32])
}

/// The grid of kernels/linear.cu for an output of m×n.
pub(crate) fn linear_blocks(m: usize, n: usize) -> usize {
    m.div_ceil(128) * n.div_ceil(256)
}

/// kernels/project.cu.
pub(crate) fn project_kernel(rank_tile: usize) -> Footprint {
    Footprint::of_tiles(256, 4, [32, rank_tile, 128])
}

/// The grid of kernels/project.cu for an output of m×r.
pub(crate) fn project_blocks(m: usize, r: usize) -> usize {
    m.div_ceil(32) * r.div_ceil(rank_tile(r))
}

/// kernels/grad.cu, whose grid is a [`GradSplit`].
pub(crate) fn grad_kernel(rank_tile: usize) -> Footprint {
    Footprint::of_tiles(128, 4, [rank_tile, GradSplit::COLUMNS, GradSplit::STEP])
}

/// kernels/merge.cu.
pub(crate) fn merge_kernel() -> Footprint {
    Footprint::of_tiles(128, 2, [64, 128, 32])
}

/// The grid of kernels/merge.cu.
pub(crate) fn merge_blocks(problem: &Problem) -> usize {
    problem.d.div_ceil(64) * problem.k.div_ceil(128)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// SplitMix64, to draw shapes from.
    struct Rng(u64);

    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        /// 1 to `most`, small numbers as likely as large ones: uniform in the number of bits.
        fn size(&mut self, most: usize) -> usize {
            let bits = self.next() % u64::from(most.ilog2() + 1);
            let low = 1 << bits;
            (low + self.next() as usize % low).min(most)
        }
    }

    const MOST_T: usize = 262_144 * 8;

    /// T, k, d and r: the ends of their ranges, the borders of tiles and splits, then at random.
    pub(crate) fn shapes() -> impl Iterator<Item = [usize; 4]> {
        let edges_t = [1, 63, 64, 65, 511, 512, 513, 1024, 262_144, MOST_T];
        let edges_n = [1, 127, 128, 129, 30_000];
        let edges_r = [1, 16, 17, 64, 65, 256];
        let edges = edges_t.into_iter().flat_map(move |t| {
            let both = move |n| edges_r.map(|r| [t, n, 30_001 - n, r]);
            edges_n.into_iter().flat_map(both)
        });
        let mut rng = Rng(1);
        let mut random =
            move || [rng.size(MOST_T), rng.size(30_000), rng.size(30_000), rng.size(MAX_RANK)];
        edges.chain((0..5000).map(move |_| random()))
    }

    fn problems() -> impl Iterator<Item = Problem> {
        shapes().map(|[t, k, d, r]| Problem::new(t, k, d, r, DType::Bf16).unwrap())
    }

    /// In the kernel, split i takes the rows from i · rows_per_split on, up to the next or to T.
    #[test]
    fn every_row_is_in_one_split() {
        for [t, n, _, r] in shapes() {
            let split = GradSplit::new(t, r, n);
            let context = format!("T={t} r={r} n={n}: {split:?}");
            assert!(split.splits >= 1, "{context}");
            assert!((split.splits - 1) * split.rows_per_split < t, "last is empty: {context}");
            assert!(split.splits * split.rows_per_split >= t, "rows left over: {context}");
            assert_eq!(split.rows_per_split % GradSplit::STEP, 0, "{context}");
            // A split starts at a row that is a multiple of 8, so 16-byte rows stay aligned, and
            // its rows fit the kernel's i32.
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
            assert!(covered(split.column_tiles, GradSplit::COLUMNS, n), "{context}");
            // The limit of grid.y, and the blocks aimed for unless the tiles alone are more.
            assert!(split.splits <= 65_535, "{context}");
            let tiles = split.rank_tiles * split.column_tiles;
            assert!(split.splits == 1 || split.splits * tiles <= GradSplit::BLOCKS, "{context}");
            // Splits are long enough to be worth their partial sums.
            assert!(split.splits == 1 || split.rows_per_split >= GradSplit::MIN_ROWS / 2);
        }
    }

    #[test]
    fn rank_tiles_hold_every_rank() {
        for r in 1..=MAX_RANK {
            let tile = rank_tile(r);
            assert!(tile == 16 || tile == 64, "no kernel for a tile of {tile}");
            assert!(r.next_multiple_of(tile) < r + tile);
            assert!(tile == 64 || r <= 16, "rank {r} would take {} passes", r.div_ceil(16));
        }
    }

    #[test]
    fn scratch_holds_ds_and_any_partial_sums() {
        for problem in problems() {
            let Problem { t, k, d, r, dtype } = problem;
            let workspace = BackwardWorkspace::new(&problem.into(), None);
            let context = format!("{problem:?}: {workspace:?}");
            let (offset, elements) = (workspace.partials_offset(), workspace.elements());
            assert!(t * r * dtype.bytes() <= 4 * offset, "dS runs into the sums: {context}");
            assert_eq!(4 * offset % 128, 0, "{context}");
            for n in [k, d] {
                let split = GradSplit::new(t, r, n);
                assert_eq!(split.partials(), split.splits * r * n, "{context}");
                assert!(offset + split.partials() <= elements, "{context}");
            }
            let schedule = hopper::input_grad(&hopper::Sizes::of_layer([t, k, d, r]), 66);
            let with_shared = BackwardWorkspace::new(&problem.into(), Some(&schedule)).elements();
            assert_eq!(with_shared, elements.max(offset + schedule.partials()), "{context}");
            // No more than that, a line apart.
            let most = GradSplit::new(t, r, k).partials().max(GradSplit::new(t, r, d).partials());
            assert!(
                elements <= t * r * dtype.bytes() / 4 + 32 + most + t.div_ceil(128),
                "{context}"
            );
        }
    }

    #[test]
    fn plans_agree_with_what_the_launches_use() {
        let [mma, on_hopper] = [false, true].map(|hopper| {
            let (name, compute_capability) = ("a GPU".to_string(), (9, 0));
            DeviceProfile { name, compute_capability, sms: 132, pairs: 66, hopper }
        });
        for problem in problems() {
            let scratch = BackwardWorkspace::new(&problem.into(), None).elements();
            let s = (problem.t * problem.r * 2).div_ceil(128) * 32;
            let generic = Plan { path: Path::Mma, scratch, flags: 0, hopper: None, apart: None };
            assert_eq!(backward(&problem, Some(&mma)), generic);
            assert_eq!(forward(&problem, Some(&mma)), Plan { scratch: s, ..generic });
            assert_eq!(frozen(&problem, Some(&mma)), Plan { scratch: 0, ..generic });
            let Problem { t, k, d, r, .. } = problem;
            let aligned = k % 8 == 0 && d % 8 == 0 && r % 8 == 0;
            let path = if aligned { Path::Hopper } else { Path::Mma };
            let [of_h, of_dx] = [[t, d, k, r], [t, k, d, r]].map(hopper::Sizes::of_layer);
            let of_alone = |alone| match alone {
                None => (path, 0),
                Some(Alone::Decode(_)) => (Path::HopperDecode, 2),
                Some(Alone::Short(schedule)) => (Path::HopperShort, schedule.flags(t)),
            };
            let alone = Alone::input_grad([t, k, d, r], 66).filter(|_| aligned);
            let hopper = (aligned && alone.is_none()).then(|| hopper::input_grad(&of_dx, 66));
            let scratch = BackwardWorkspace::new(&problem.into(), hopper.as_ref()).elements();
            let (path, flags) = of_alone(alone);
            let flags = hopper.map_or(flags, |schedule| schedule.flags(t).max(1 + t.div_ceil(128)));
            let apart = alone.map(|alone| [Some(alone), None, None, None]);
            let plan = Plan { path, scratch, flags, hopper, apart };
            assert_eq!(backward(&problem, Some(&on_hopper)), plan);
            let alone = Alone::forward([t, d, k, r], 66).filter(|_| aligned);
            let hopper = (aligned && alone.is_none()).then(|| hopper::forward(&of_h, 66));
            let scratch = s + hopper.map_or(0, |schedule| schedule.partials());
            let (path, flags) = of_alone(alone);
            let flags = hopper.map_or(flags, |schedule| schedule.flags(t));
            let apart = alone.map(|alone| [Some(alone), None, None, None]);
            let plan = Plan { path, scratch, flags, hopper, apart };
            assert_eq!(forward(&problem, Some(&on_hopper)), plan);
            let reference =
                Plan { path: Path::Reference, scratch: 0, flags: 0, hopper: None, apart: None };
            assert_eq!(backward(&problem, None), reference);
            assert_eq!(forward(&problem, None), reference);
        }
    }

    #[test]
    fn problems_outside_the_limits_are_refused() {
        let most = i32::MAX as usize - 1024;
        let new = |t, k, d, r| Problem::new(t, k, d, r, DType::F16);
        assert!(new(most, most, most, MAX_RANK).is_ok());
        assert_eq!(new(1, 1, 1, 0), Err(Error::Rank { r: 0 }));
        assert_eq!(new(1, 1, 1, 257), Err(Error::Rank { r: 257 }));
        for [t, k, d] in [[0, 1, 1], [1, 0, 1], [1, 1, 0]] {
            assert!(matches!(new(t, k, d, 1), Err(Error::Shape { .. })));
        }
        for [t, k, d] in [[most + 1, 1, 1], [1, most + 1, 1], [1, 1, most + 1]] {
            assert!(matches!(new(t, k, d, 1), Err(Error::TooLarge { .. })));
        }
    }
}
