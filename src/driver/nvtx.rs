//! NVTX ranges, by which a profile names what the host enqueues. Without the feature `nvtx` they are
//! nothing.

use std::fmt::Display;
use std::marker::PhantomData;

/// The name of an operation, made when the operation is.
pub(crate) struct RangeName(#[cfg(feature = "nvtx")] std::ffi::CString);

/// From when it is made until it is dropped, on the thread where both happen.
#[must_use]
pub(crate) struct Range(PhantomData<*const ()>);

impl RangeName {
    #[cfg(feature = "nvtx")]
    pub(crate) fn new(words: impl Display) -> Self {
        RangeName(std::ffi::CString::new(words.to_string()).unwrap_or_default())
    }

    #[cfg(not(feature = "nvtx"))]
    pub(crate) fn new(_: impl Display) -> Self {
        RangeName()
    }

    pub(crate) fn enter(&self) -> Range {
        #[cfg(feature = "nvtx")]
        if let Some(library) = library::get() {
            // SAFETY: the name ends in a NUL, and NVTX copies it.
            unsafe { (library.push)(self.0.as_ptr()) };
        }
        Range(PhantomData)
    }
}

#[cfg(feature = "nvtx")]
impl Drop for Range {
    fn drop(&mut self) {
        if let Some(library) = library::get() {
            // SAFETY: takes nothing. The range was pushed on this thread, as it cannot leave it.
            unsafe { (library.pop)() };
        }
    }
}

#[cfg(feature = "nvtx")]
mod library {
    use libloading::Library;
    use std::ffi::{c_char, c_int};
    use std::sync::OnceLock;

    /// The names it goes by in CUDA 13 and 12.9, then in older versions.
    #[cfg(windows)]
    const NAMES: [&str; 1] = ["nvToolsExt64_1.dll"];
    #[cfg(not(windows))]
    const NAMES: [&str; 2] = ["libnvtx3interop.so.1", "libnvToolsExt.so.1"];

    pub struct Nvtx {
        pub push: unsafe extern "C" fn(*const c_char) -> c_int,
        pub pop: unsafe extern "C" fn() -> c_int,
        /// What the functions are in.
        _library: Library,
    }

    /// The library of NVTX, which hands ranges to the profiler that the process runs under; `None`
    /// where there is no such library.
    pub fn get() -> Option<&'static Nvtx> {
        static NVTX: OnceLock<Option<Nvtx>> = OnceLock::new();
        NVTX.get_or_init(|| NAMES.into_iter().find_map(open)).as_ref()
    }

    fn open(name: &str) -> Option<Nvtx> {
        // SAFETY: its initialisers set the library up, no more. The types are NVTX's C API.
        unsafe {
            let library = Library::new(name).ok()?;
            let push = *library.get(c"nvtxRangePushA".to_bytes_with_nul()).ok()?;
            let pop = *library.get(c"nvtxRangePop".to_bytes_with_nul()).ok()?;
            Some(Nvtx { push, pop, _library: library })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_nest_with_and_without_a_library() {
        let (outer, inner) = (RangeName::new("outer"), RangeName::new("inner"));
        let range = outer.enter();
        drop(inner.enter());
        drop(range);
    }
}
