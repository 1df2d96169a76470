//! Where the CUDA paths keep what they need between launches.

use crate::problem::Problem;

/// f32 elements of S or dS, T×R in the element type of the problem, at the start of the scratch:
/// whole lines of 128 bytes, so that what follows starts aligned.
pub(crate) fn projection_elements(problem: &Problem) -> usize {
    (problem.t() * problem.rank() * problem.dtype().bytes()).div_ceil(128) * 32
}
