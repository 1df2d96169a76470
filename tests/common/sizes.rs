//! The sizes of a layer.

use lora_kernels::MAX_PROJECTIONS;
use std::fmt;

/// T, k, and the (d, r) of 1 to 4 projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    pub t: usize,
    pub k: usize,
    /// The first `count` are used.
    of: [(usize, usize); MAX_PROJECTIONS],
    count: usize,
}

impl Sizes {
    /// A single layer.
    pub const fn new(t: usize, k: usize, d: usize, r: usize) -> Self {
        Sizes::group(t, k, &[(d, r)])
    }

    /// A group of projections of these (d, r).
    pub const fn group(t: usize, k: usize, of: &[(usize, usize)]) -> Self {
        let (mut all, mut i) = ([(0, 0); MAX_PROJECTIONS], 0);
        while i < of.len() {
            all[i] = of[i];
            i += 1;
        }
        Sizes { t, k, of: all, count: of.len() }
    }

    /// d and r of every projection.
    pub fn of(&self) -> &[(usize, usize)] {
        &self.of[..self.count]
    }

    /// T, k, d and r of a single layer.
    pub fn single(&self) -> [usize; 4] {
        let &[(d, r)] = self.of() else { panic!("{self} is no single layer") };
        [self.t, self.k, d, r]
    }

    /// The sum of the ranks.
    pub fn rank(&self) -> usize {
        self.start(self.count)
    }

    /// The column of S at which a projection begins.
    pub fn start(&self, projection: usize) -> usize {
        self.of[..projection].iter().map(|&(_, r)| r).sum()
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { t, k, .. } = self;
        match self.of() {
            [(d, r)] => write!(f, "T={t} k={k} d={d} r={r}"),
            of => write!(f, "T={t} k={k} (d, r)={of:?}"),
        }
    }
}
