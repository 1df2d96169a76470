//! Where the CUDA paths keep what they need between launches.

use super::sm80::GradSplit;
use crate::problem::Problem;

/// f32 elements of S or dS, T×R in the element type of the problem, at the start of the scratch:
/// whole lines of 128 bytes, so that what follows starts aligned.
pub(crate) fn projection_elements(problem: &Problem) -> usize {
    (problem.t() * problem.rank() * problem.dtype().bytes()).div_ceil(128) * 32
}

/// The scratch of a backward pass, in f32 elements.
///
/// dS, T×R, is at offset 0. Behind it are partial sums: of dX's product, of dA, then of every dB,
/// each dead before the next is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackwardWorkspace {
    ds_end: usize,
    partials: usize,
}

impl BackwardWorkspace {
    /// For a product of dX with `product_partials` elements of partial tiles.
    pub(crate) fn new(problem: &Problem, product_partials: usize) -> Self {
        let (t, k) = (problem.t(), problem.k());
        let da = GradSplit::new(t, problem.rank(), k).partials();
        let db = problem.projections().iter().map(|&(d, r)| GradSplit::new(t, r, d).partials());
        let partials = db.fold(product_partials.max(da), usize::max);
        BackwardWorkspace { ds_end: projection_elements(problem), partials }
    }

    pub(crate) fn partials_offset(&self) -> usize {
        self.ds_end
    }

    pub(crate) fn elements(&self) -> usize {
        self.ds_end + self.partials
    }
}
