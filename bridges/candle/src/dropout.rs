//! Dropout of the adapters' input in training.

use crate::memory::err;
use candle_core::Result;
use lora_kernels::{Dropout, MAX_PROJECTIONS};
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows of the mask between layers that have one seed and a mask each: more than a run has tokens.
pub(crate) const ROWS_EACH: u64 = 1 << 48;

/// The same between groups.
pub(crate) const ROWS_OF_GROUP: u64 = MAX_PROJECTIONS as u64 * ROWS_EACH;

/// Dropout of the forward passes from now on.
#[derive(Debug)]
pub(crate) struct Training {
    p: f32,
    seed: u64,
    /// The row of the mask that the next pass begins with.
    row: AtomicU64,
}

impl Training {
    /// `None` if p is 0.
    pub(crate) fn new(p: f32, seed: u64, offset: u64) -> Result<Option<Self>> {
        let p = Dropout::new(p, seed, offset).map_err(err)?.p();
        Ok((p > 0.0).then_some(Training { p, seed, row: AtomicU64::new(offset) }))
    }

    /// The dropout of the next pass.
    pub(crate) fn dropout(&self) -> Dropout<'static> {
        self.at(self.row.load(Ordering::Relaxed))
    }

    /// The dropout of a pass of T rows, which the pass after it does not have.
    pub(crate) fn next(&self, t: usize) -> Dropout<'static> {
        self.at(self.row.fetch_add(t as u64, Ordering::Relaxed))
    }

    fn at(&self, row: u64) -> Dropout<'static> {
        Dropout::new(self.p, self.seed, row).expect("checked to be a probability")
    }
}

/// Whether two layers have the same mask.
pub(crate) fn same(a: &Option<Dropout<'_>>, b: &Option<Dropout<'_>>) -> bool {
    let of = |dropout: &Option<Dropout<'_>>| dropout.map(|d| (d.p(), d.seed_and_offset()));
    of(a) == of(b)
}
