//! The native module of the Python package `lora_kernels`: passes of lora-kernels on memory and
//! streams that Python names by their addresses. It knows nothing of PyTorch.

mod addresses;
mod memory;
mod plan;
mod streams;

use lora_kernels::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// The exception for an error: `ValueError` for what the caller can change, else `RuntimeError`.
/// `of` says what the call was about.
fn exception(error: &Error, of: &dyn std::fmt::Display) -> PyErr {
    let message = format!("{error} ({of})");
    match error {
        Error::Shape { .. }
        | Error::RowStride { .. }
        | Error::Length { .. }
        | Error::Count { .. }
        | Error::DType { .. }
        | Error::Device { .. }
        | Error::Misaligned { .. }
        | Error::Overlap { .. }
        | Error::Rank { .. }
        | Error::Dropout { .. }
        | Error::NotFinite { .. }
        | Error::TooLarge { .. } => PyValueError::new_err(message),
        _ => PyRuntimeError::new_err(message),
    }
}

/// The native part of `lora_kernels`.
#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::plan::Plan;

    /// Why calls on this CUDA device are not possible, or `None`.
    #[pyfunction]
    fn missing(py: Python<'_>, device: i32) -> Option<String> {
        py.detach(|| crate::streams::get(device, 0)).err().map(|error| error.to_string())
    }

    /// Which elements of x [t, k] dropout keeps: a byte each, 1 or 0.
    #[pyfunction]
    fn kept(p: f32, seed: u64, offset: u64, t: usize, k: usize) -> PyResult<Vec<u8>> {
        let kept = lora_kernels::Dropout::new(p, seed, offset).and_then(|mask| mask.kept([t, k]));
        let kept = kept.map_err(|error| crate::exception(&error, &format_args!("T={t} k={k}")))?;
        Ok(kept.into_iter().map(u8::from).collect())
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
