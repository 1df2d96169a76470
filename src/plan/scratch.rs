//! Where the CUDA paths keep what they need between launches.

use crate::problem::Problem;

/// f32 elements of S or dS, T×R in the element type of the problem, at the start of the scratch:
/// whole lines of 128 bytes, so that what follows starts aligned.
pub(crate) fn projection_elements(problem: &Problem) -> usize {
    (problem.t() * problem.rank() * problem.dtype().bytes()).div_ceil(128) * 32
}

/// f32 elements of partial tiles, and of copies of operands; and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    pub(crate) partials: usize,
    pub(crate) flags: usize,
}

impl Needs {
    /// Enough for either.
    pub(crate) fn or(self, other: Needs) -> Needs {
        let Needs { partials, flags } = self;
        Needs { partials: partials.max(other.partials), flags: flags.max(other.flags) }
    }

    /// Enough for both at once.
    pub(crate) fn and(self, other: Needs) -> Needs {
        let Needs { partials, flags } = self;
        Needs { partials: partials + other.partials, flags: flags + other.flags }
    }

    /// The same where there may be no other.
    pub(crate) fn and_if(self, is_needed: bool, other: Needs) -> Needs {
        if is_needed { self.and(other) } else { self }
    }
}
