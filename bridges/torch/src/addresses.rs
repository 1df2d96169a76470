//! Addresses from Python, in the order of a call's operands.

use lora_kernels::MAX_PROJECTIONS;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// The most addresses of a call: of a backward pass, 4 for all projections and 4 for each.
const MOST: usize = 4 + 4 * MAX_PROJECTIONS;

/// The addresses of a call.
pub(crate) struct Addresses([u64; MOST]);

impl Addresses {
    /// # Errors
    /// `ValueError` unless there are as many as expected, 20 at most.
    pub(crate) fn new(list: &Bound<'_, PyList>, expected: usize) -> PyResult<Self> {
        let got = list.len();
        if got != expected {
            let message = format!("a list of {got} addresses, expected {expected}");
            return Err(PyValueError::new_err(message));
        }
        let mut all = [0; MOST];
        for (address, item) in all.iter_mut().zip(list) {
            *address = item.extract()?;
        }
        Ok(Addresses(all))
    }

    /// The first of them, then these numbers of them.
    pub(crate) fn split<const F: usize, const N: usize>(
        &self,
        counts: [usize; N],
    ) -> ([u64; F], [&[u64]; N]) {
        let (first, mut rest) = self.0.split_first_chunk::<F>().expect("fewer than the most");
        let parts = counts.map(|count| {
            let (part, others) = rest.split_at(count);
            rest = others;
            part
        });
        (*first, parts)
    }
}
