//! Whether there is a driver, and its errors in the crate's words.

use crate::{Error, Result};
use cudarc::driver::{sys, DriverError};
use std::ffi::CStr;

/// The names the driver library goes by.
#[cfg(windows)]
const LIBRARIES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Looks for the driver library before anything else touches it: cudarc panics if it is not there.
pub(super) fn probe() -> Result<()> {
    let mut reason = String::new();
    for name in LIBRARIES {
        // SAFETY: loading the driver runs its initialisers, which every CUDA program does.
        match unsafe { libloading::Library::new(name) } {
            // Left loaded, as cudarc is about to load it too.
            Ok(library) => {
                std::mem::forget(library);
                return Ok(());
            }
            Err(error) if reason.is_empty() => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                reason = cause.unwrap_or_else(|| format!("{name}: {error}"));
            }
            Err(_) => {}
        }
    }
    Err(Error::NoDriver { reason })
}

/// The version of CUDA that the driver is for, such as 13000.
pub(super) fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: writes the version, and needs no context.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) };
    result.result().map_err(during("cuDriverGetVersion"))?;
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
