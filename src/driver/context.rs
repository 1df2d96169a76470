//! The context that is current on a thread, and what a thread may do while others capture graphs.

use super::probe::check;
use crate::error::Result;
use cudarc::driver::{CudaContext, sys};
use std::marker::PhantomData;
use std::ptr;

/// Makes a context current on this thread until it is dropped, then the one before it again.
///
/// cudarc makes its context current and leaves it so, which is a trap beside code that relies on
/// the current device. It also returns errors there that earlier calls, of anybody, have stored in
/// the context, so nothing here goes through `CudaContext::bind_to_thread`.
pub(super) struct Current {
    pushed: bool,
    /// Not `Send`: it is about the thread.
    thread: PhantomData<*const ()>,
}

impl Current {
    pub(super) fn new(context: &CudaContext) -> Result<Self> {
        let mut current = ptr::null_mut();
        // SAFETY: writes the handle.
        check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut current) })?;
        let pushed = current != context.cu_ctx();
        if pushed {
            // SAFETY: the context lives as long as the `CudaContext`.
            check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(context.cu_ctx()) })?;
        }
        Ok(Current { pushed, thread: PhantomData })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.pushed {
            // SAFETY: pops what `new` pushed. Nothing is left to do if that fails.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut ptr::null_mut()) };
        }
    }
}

/// Lets this thread allocate, free, load and synchronise until it is dropped, though another
/// thread captures a graph in the global mode: these calls would invalidate that capture.
pub(super) struct Relaxed {
    mode: sys::CUstreamCaptureMode,
    thread: PhantomData<*const ()>,
}

impl Relaxed {
    pub(super) fn new() -> Self {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the thread's mode. It cannot fail for a valid mode.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Relaxed { mode, thread: PhantomData }
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.mode) };
    }
}

/// The SMs that work in this context may use: fewer than the device has in a green context. `None`
/// where the driver is older than the call (CUDA 12.4).
pub(super) fn sms(context: &CudaContext) -> Option<usize> {
    /// `CUdevResource`: its type, 92 bytes of padding, and the number of SMs first of what
    /// follows. cudarc has the type only in bindings for newer versions of CUDA.
    #[repr(C, align(8))]
    struct Resource {
        kind: u32,
        padding: [u8; 92],
        sm_count: u32,
        rest: [u8; 256],
    }
    type Get = unsafe extern "C" fn(sys::CUcontext, *mut Resource, u32) -> sys::CUresult;
    const SM: u32 = 1;
    // SAFETY: the type of the function.
    let get = unsafe { super::probe::function::<Get>(c"cuCtxGetDevResource") }?;
    let mut resource = Resource { kind: 0, padding: [0; 92], sm_count: 0, rest: [0; 256] };
    // SAFETY: the structure has at least the size of the driver's.
    let result = unsafe { get(context.cu_ctx(), &mut resource, SM) };
    let sms = resource.sm_count as usize;
    (result == sys::CUresult::CUDA_SUCCESS && resource.kind == SM && sms > 0).then_some(sms)
}
