//! Whether there is a driver, and its errors in the crate's words.

use crate::error::{Error, Result};
use cudarc::driver::{DriverError, sys};
use libloading::Library;
use std::ffi::CStr;
use std::sync::OnceLock;

/// The names the driver library goes by.
#[cfg(windows)]
const LIBRARIES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// The driver library, opened before anything else touches it: cudarc panics where there is none.
/// It stays open, as cudarc opens it too.
fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let mut reason = String::new();
        for name in LIBRARIES {
            // SAFETY: loading the driver runs its initialisers, which every CUDA program does.
            match unsafe { Library::new(name) } {
                Ok(library) => return Ok(library),
                Err(error) if reason.is_empty() => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    reason = cause.unwrap_or_else(|| format!("{name}: {error}"));
                }
                Err(_) => {}
            }
        }
        Err(reason)
    });
    library.as_ref().map_err(|reason| Error::NoDriver { reason: reason.clone() })
}

/// Refuses a machine without the driver library.
pub(crate) fn probe() -> Result<()> {
    library().map(|_| ())
}

/// A function of the driver that cudarc binds under other names in other versions of CUDA, or
/// only in newer ones; `None` where the driver is older.
///
/// # Safety
/// `F` must be the function's type.
pub(super) unsafe fn function<F: Copy>(name: &CStr) -> Option<F> {
    let library = library().ok()?;
    // SAFETY: the caller's promise.
    unsafe { library.get::<F>(name.to_bytes_with_nul()) }.ok().map(|symbol| *symbol)
}

/// The version of CUDA that the driver is for, such as 13000.
pub(super) fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: writes the version, and needs no context.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) };
    check("cuDriverGetVersion", result)?;
    Ok(version)
}

/// What `call` returned, with the name the driver gives it. Not to be used without a driver.
pub(super) fn error(call: &'static str, error: DriverError) -> Error {
    let name = error.error_name().map_or_else(|_| "unknown error".into(), CStr::to_string_lossy);
    Error::Driver { call, code: error.0 as u32, name: name.into_owned() }
}

/// [`error`], for `map_err`.
pub(super) fn during(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |driver_error| error(call, driver_error)
}

/// The result of a call of the driver.
pub(super) fn check(call: &'static str, result: sys::CUresult) -> Result<()> {
    result.result().map_err(during(call))
}
