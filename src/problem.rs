//! The sizes of a call.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::manifest;
use crate::shape::Shape;
use std::fmt;

/// The largest rank of an adapter.
pub const MAX_RANK: usize = 256;

/// The most projections of one x that a call serves.
pub const MAX_PROJECTIONS: usize = manifest::common::limits::MAX_PROJECTIONS;

/// The largest T, k and d.
///
/// Kernels index rows and columns with `int`, and run past the end of a matrix before they stop.
/// The largest overruns, in elements:
///
/// | kernel | index | overrun |
/// |---|---|---|
/// | kernels/sm90a/decode.cu, `row0 + round * row_stride` | rows of W0 | a round: 2 × 128 per cluster |
/// | kernels/sm90a/linear.cuh, `i * kTileM`, 32 lanes | rows of X | 32 × 128 |
/// | kernels/sm90a/grads.cuh, `t0 += kChainRows` | rows of X | 2048 |
/// | kernels/sm90a/linear_tiles.cuh, `m0` behind the last tile | rows of X | 2 × 256 |
/// | all, the last tile and the last step | any | 256 |
///
/// 2¹⁶ covers a round of 255 clusters. A GPU that runs sm_90a code has 72 at most.
pub(crate) const MAX_SIZE: usize = i32::MAX as usize - (1 << 16);

/// What errors call W0: of the only projection, then of one of several.
const W0: &str = "w0";
const W0_OF: [&str; MAX_PROJECTIONS] =
    ["projections[0].w0", "projections[1].w0", "projections[2].w0", "projections[3].w0"];

/// The sizes and the element type of a call, in the paper's letters: T tokens of k inputs, and 1 to
/// [`MAX_PROJECTIONS`] projections that share them, each with d outputs and an adapter of rank r.
///
/// A single layer is a group of one. Every value is within the limits of the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    t: usize,
    k: usize,
    dtype: DType,
    /// (d, r) of the first `count`. The rest are zeros.
    projections: [(usize, usize); MAX_PROJECTIONS],
    count: usize,
    dropout: bool,
}

/// One of the projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) d: usize,
    pub(crate) r: usize,
    /// The first of its columns of S, and of its rows of A.
    pub(crate) start: usize,
}

impl Problem {
    /// The problem of projections that share x. `projections` are (d, r) of each, in the order of
    /// their rows of A. T may be 0: an empty batch.
    ///
    /// # Errors
    /// [`Error::Count`] unless there are 1 to [`MAX_PROJECTIONS`] projections; [`Error::Rank`]
    /// unless every rank is 1 to [`MAX_RANK`]; [`Error::Shape`] if k or a d is 0;
    /// [`Error::TooLarge`] if T, k or a d is more than 2³¹ − 1 − 2¹⁶.
    pub fn new(t: usize, k: usize, projections: &[(usize, usize)], dtype: DType) -> Result<Self> {
        let count = projections.len();
        check_count(count)?;
        projections.iter().try_for_each(|&(_, r)| check_rank(r))?;
        check_x([t, k])?;
        let names = if count == 1 { [W0; MAX_PROJECTIONS] } else { W0_OF };
        let mut weights = projections.iter().zip(names);
        weights.try_for_each(|(&(d, _), w0)| check_w0(w0, [d, k]))?;
        let mut all = [(0, 0); MAX_PROJECTIONS];
        all[..count].copy_from_slice(projections);
        Ok(Problem { t, k, dtype, projections: all, count, dropout: false })
    }

    /// The problem of a single layer: a group of one.
    ///
    /// # Errors
    /// As [`Problem::new`].
    pub fn single(t: usize, k: usize, d: usize, r: usize, dtype: DType) -> Result<Self> {
        Problem::new(t, k, &[(d, r)], dtype)
    }

    /// The same layers with T = `t` tokens.
    ///
    /// # Errors
    /// [`Error::TooLarge`], as [`Problem::new`].
    pub fn with_tokens(&self, t: usize) -> Result<Self> {
        check_x([t, self.k])?;
        Ok(Problem { t, ..*self })
    }

    /// The same with dropout of the adapters' input, or without: whether a call is given a
    /// [`Dropout`](crate::Dropout).
    #[must_use]
    pub fn with_dropout(&self, dropout: bool) -> Self {
        Problem { dropout, ..*self }
    }

    /// Whether the adapters' input has dropout.
    pub fn dropout(&self) -> bool {
        self.dropout
    }

    /// T, the tokens: the product of all leading dimensions of x.
    pub fn t(&self) -> usize {
        self.t
    }

    /// Inputs of every projection: its W0 is d×k.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Element type of x, A, S and every W0, B and h.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// (d, r) of every projection: its outputs and the rank of its adapter.
    pub fn projections(&self) -> &[(usize, usize)] {
        &self.projections[..self.count]
    }

    /// R, the sum of the ranks: the rows of A, and the columns of S.
    pub fn rank(&self) -> usize {
        self.projections().iter().map(|&(_, r)| r).sum()
    }

    /// The same with k and every d rounded up to a multiple, which may be above the limits of the
    /// crate.
    pub(crate) fn padded_to(&self, multiple: usize) -> Self {
        let mut padded = Problem { k: self.k.next_multiple_of(multiple), ..*self };
        padded.projections.iter_mut().for_each(|(d, _)| *d = d.next_multiple_of(multiple));
        padded
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.projections().iter().scan(0, |end, &(d, r)| {
            let start = *end;
            *end += r;
            Some(Part { d, r, start })
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { t, k, dtype, .. } = self;
        match self.projections() {
            [(d, r)] => write!(f, "T={t} k={k} d={d} r={r} {dtype}")?,
            several => write!(f, "T={t} k={k} (d, r)={several:?} {dtype}")?,
        }
        f.write_str(if self.dropout { " dropout" } else { "" })
    }
}

/// A problem as `8192×4096→4096 r16`: T, k, d and r, of several projections each d and, where they
/// differ, each r.
pub(crate) struct Brief<'p>(pub(crate) &'p Problem);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join =
            |sizes: Vec<usize>| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("+");
        let (d, mut r): (Vec<_>, Vec<_>) = self.0.projections().iter().copied().unzip();
        if r.iter().all(|&one| one == r[0]) {
            r.truncate(1);
        }
        write!(f, "{}×{}→{} r{}", self.0.t, self.0.k, join(d), join(r))
    }
}

/// Refuses a number of projections that no call serves.
pub(crate) fn check_count(got: usize) -> Result<()> {
    if (1..=MAX_PROJECTIONS).contains(&got) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_PROJECTIONS}");
    Err(Error::Count { argument: "projections", expected, got })
}

fn check_rank(r: usize) -> Result<()> {
    if (1..=MAX_RANK).contains(&r) {
        return Ok(());
    }
    Err(Error::Rank { r })
}

fn check_x(dims: [usize; 2]) -> Result<()> {
    if dims[1] == 0 {
        return Err(empty("x", "at least one column", dims)?);
    }
    check_sizes("x", dims)
}

fn check_w0(argument: &'static str, dims: [usize; 2]) -> Result<()> {
    if dims.contains(&0) {
        return Err(empty(argument, "at least one row and one column", dims)?);
    }
    check_sizes(argument, dims)
}

fn empty(argument: &'static str, expected: &str, dims: [usize; 2]) -> Result<Error> {
    Ok(Error::Shape { argument, expected: expected.to_string(), got: Shape::new(&dims)? })
}

fn check_sizes(argument: &'static str, dims: [usize; 2]) -> Result<()> {
    if dims.iter().any(|&dim| dim > MAX_SIZE) {
        return Err(Error::TooLarge { what: format!("{argument} of shape {dims:?}") });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(t: usize, k: usize, d: usize, r: usize) -> Result<Problem> {
        Problem::single(t, k, d, r, DType::F16)
    }

    #[test]
    fn problems_outside_the_limits_are_refused() {
        assert!(single(MAX_SIZE, MAX_SIZE, MAX_SIZE, MAX_RANK).is_ok());
        assert_eq!(single(1, 1, 1, 0), Err(Error::Rank { r: 0 }));
        assert_eq!(single(1, 1, 1, 257), Err(Error::Rank { r: 257 }));
        for [t, k, d] in [[1, 0, 1], [1, 1, 0], [0, 0, 1], [usize::MAX, 0, 1]] {
            assert!(matches!(single(t, k, d, 1), Err(Error::Shape { .. })));
        }
        for size in [MAX_SIZE + 1, usize::MAX] {
            for [t, k, d] in [[size, 1, 1], [1, size, 1], [1, 1, size]] {
                assert!(matches!(single(t, k, d, 1), Err(Error::TooLarge { .. })));
            }
        }
        let of = |projections: &[_]| Problem::new(1, 1, projections, DType::F16);
        for count in [0, 5] {
            let refused = Error::Count {
                argument: "projections",
                expected: "1 to 4".to_string(),
                got: count,
            };
            assert_eq!(of(&vec![(1, 1); count]), Err(refused));
        }
        assert_eq!(of(&[(1, 1), (1, 300)]), Err(Error::Rank { r: 300 }));
    }

    #[test]
    fn errors_name_the_weight() {
        let name = |result| match result {
            Err(Error::Shape { argument, .. }) => argument,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(single(1, 0, 1, 1)), "x");
        assert_eq!(name(single(1, 1, 0, 1)), "w0");
        let several = Problem::new(1, 1, &[(1, 1), (0, 1)], DType::F16);
        assert_eq!(name(several), "projections[1].w0");
    }

    #[test]
    fn brief_names() {
        let of = |projections: &[_]| {
            let problem = Problem::new(8192, 4096, projections, DType::Bf16).unwrap();
            Brief(&problem).to_string()
        };
        assert_eq!(of(&[(1024, 16)]), "8192×4096→1024 r16");
        assert_eq!(of(&[(4096, 8), (1024, 8)]), "8192×4096→4096+1024 r8");
        assert_eq!(of(&[(4096, 8), (1024, 16)]), "8192×4096→4096+1024 r8+16");
    }

    #[test]
    fn an_empty_batch_is_a_problem() {
        let problem = single(0, 8, 16, 4).unwrap();
        assert_eq!(problem.t(), 0);
        assert_eq!(problem.with_tokens(3), single(3, 8, 16, 4));
        assert_eq!(problem.with_tokens(3).unwrap().with_tokens(0), Ok(problem));
        let too_many = problem.with_tokens(MAX_SIZE + 1);
        assert!(matches!(too_many, Err(Error::TooLarge { .. })));
    }

    #[test]
    fn parts_are_the_columns_of_s() {
        let all = [(40, 8), (24, 16), (8, 1), (16, 3)];
        for count in 1..=MAX_PROJECTIONS {
            let problem = Problem::new(7, 64, &all[..count], DType::Bf16).unwrap();
            assert_eq!(problem.projections(), &all[..count]);
            let mut end = 0;
            for (part, &(d, r)) in problem.parts().zip(problem.projections()) {
                assert_eq!(part, Part { d, r, start: end }, "{problem}");
                end += r;
            }
            assert_eq!(problem.parts().count(), count);
            assert_eq!(end, problem.rank(), "{problem}");
        }
    }

    #[test]
    fn a_problem_prints_its_sizes() {
        let problem = Problem::single(8192, 4096, 1024, 16, DType::Bf16).unwrap();
        assert_eq!(problem.to_string(), "T=8192 k=4096 d=1024 r=16 bf16");
        let problem = Problem::new(0, 64, &[(4096, 16), (1024, 16)], DType::F16).unwrap();
        assert_eq!(problem.to_string(), "T=0 k=64 (d, r)=[(4096, 16), (1024, 16)] f16");
    }
}
