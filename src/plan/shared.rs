//! The sizes of projections that share their input.

use super::{check_dims, check_rank, Problem};
use crate::{DType, Error, Result};

/// The most projections that one call takes.
pub const MAX_PROJECTIONS: usize = 4;

/// The sizes that decide how a call for projections of the same input is served, in the paper's
/// letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SharedProblem {
    /// Tokens: the product of all leading dimensions of x.
    pub t: usize,
    /// Inputs of every projection: W0 of projection i is d×k, with a d of its own.
    pub k: usize,
    /// Element type of x, A, S and every W0, B and h.
    pub dtype: DType,
    /// The first `count` are d and r of a projection, the others are zeros.
    projections: [(usize, usize); MAX_PROJECTIONS],
    count: usize,
}

/// One of the projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) d: usize,
    pub(crate) r: usize,
    /// Where its rows of A, and its columns of S, begin.
    pub(crate) start: usize,
}

impl SharedProblem {
    /// A problem within the limits of the crate. `projections` are d and r of each, in the order of
    /// their rows of A.
    ///
    /// # Errors
    /// [`Error::Count`] unless there are 1 to [`MAX_PROJECTIONS`] of them; for each, as
    /// [`Problem::new`].
    pub fn new(t: usize, k: usize, projections: &[(usize, usize)], dtype: DType) -> Result<Self> {
        /// What errors call their weights.
        const W0: [&str; MAX_PROJECTIONS] =
            ["projections[0].w0", "projections[1].w0", "projections[2].w0", "projections[3].w0"];
        let count = projections.len();
        check_count(count)?;
        projections.iter().try_for_each(|&(_, r)| check_rank(r))?;
        check_dims("x", [t, k])?;
        let mut weights = projections.iter().zip(W0);
        weights.try_for_each(|(&(d, _), w0)| check_dims(w0, [d, k]))?;
        let mut all = [(0, 0); MAX_PROJECTIONS];
        all[..count].copy_from_slice(projections);
        Ok(SharedProblem { t, k, dtype, projections: all, count })
    }

    /// d and r of every projection.
    pub fn projections(&self) -> &[(usize, usize)] {
        &self.projections[..self.count]
    }

    /// R, the sum of the ranks: the rows of A, and the columns of S.
    pub fn rank(&self) -> usize {
        self.projections().iter().map(|&(_, r)| r).sum()
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.projections().iter().scan(0, |end, &(d, r)| {
            let start = *end;
            *end += r;
            Some(Part { d, r, start })
        })
    }

    /// The projection, if it shares its input with no other.
    pub(crate) fn alone(&self) -> Option<Problem> {
        let &SharedProblem { t, k, dtype, .. } = self;
        match *self.projections() {
            [(d, r)] => Some(Problem { t, k, d, r, dtype }),
            _ => None,
        }
    }
}

impl From<Problem> for SharedProblem {
    fn from(Problem { t, k, d, r, dtype }: Problem) -> Self {
        let mut projections = [(0, 0); MAX_PROJECTIONS];
        projections[0] = (d, r);
        SharedProblem { t, k, dtype, projections, count: 1 }
    }
}

/// Refuses what is no number of projections.
pub(crate) fn check_count(got: usize) -> Result<()> {
    if (1..=MAX_PROJECTIONS).contains(&got) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_PROJECTIONS}");
    Err(Error::Count { argument: "projections", expected, got })
}
