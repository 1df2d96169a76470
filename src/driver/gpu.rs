//! A stream of a CUDA device, with the kernels loaded.

use super::kernels::Kernels;
use super::probe::{self, check};
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::plan::DeviceProfile;
use cudarc::driver::{CudaContext, CudaStream, sys};
use std::ptr;
use std::sync::Arc;

/// A stream of a CUDA device, the kernels of its context, and what plans may count on.
#[derive(Clone)]
pub(crate) struct Gpu {
    pub(crate) stream: Stream,
    pub(crate) kernels: &'static Kernels,
    pub(crate) profile: Arc<DeviceProfile>,
}

impl Gpu {
    /// The default stream of the device with this ordinal, in its primary context.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        Gpu::from_stream(context(ordinal)?.default_stream())
    }

    pub(crate) fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let kernels = Kernels::of_context(stream.context())?;
        Ok(Gpu { stream: Stream::new(stream), kernels, profile: kernels.profile.clone() })
    }

    /// # Safety
    /// The stream must be alive, and it and its context stay so while anything made from this is
    /// used. One of the handles for default streams stands for that of the current context.
    pub(crate) unsafe fn from_raw_stream(stream: sys::CUstream) -> Result<Self> {
        probe::probe()?;
        let mut context = ptr::null_mut();
        // SAFETY: the caller's promise.
        unsafe {
            check("cuInit", sys::cuInit(0))?;
            check("cuStreamGetCtx", sys::cuStreamGetCtx(stream, &mut context))?;
        }
        let owner = match Kernels::loaded_context(context) {
            Some(owner) => owner.clone(),
            // SAFETY: the caller's promise.
            None => unsafe { Gpu::adopt(context)? },
        };
        // SAFETY: the caller's promise.
        Gpu::from_stream(unsafe { owner.wrap_borrowed_stream(stream) })
    }

    /// A context that somebody else has made.
    ///
    /// # Safety
    /// It must be alive, and stay so.
    unsafe fn adopt(context: sys::CUcontext) -> Result<Arc<CudaContext>> {
        let (mut device, mut popped) = (0, ptr::null_mut());
        // SAFETY: the caller's promise; the rest writes handles, and leaves the same context
        // current as before.
        let ordinal = unsafe {
            check("cuCtxPushCurrent", sys::cuCtxPushCurrent_v2(context))?;
            let got = sys::cuCtxGetDevice(&mut device);
            check("cuCtxPopCurrent", sys::cuCtxPopCurrent_v2(&mut popped))?;
            check("cuCtxGetDevice", got)?;
            ordinal_of(device)?
        };
        let primary = self::context(ordinal)?;
        if primary.cu_ctx() == context {
            return Ok(primary);
        }
        leave_current(|| {
            // SAFETY: the context is alive and of this device. The last reference would destroy
            // it, which is not ours to do: one is never dropped.
            let foreign = unsafe { CudaContext::from_raw_context(ordinal, device, context) };
            let foreign = foreign.map_err(probe::during("cuCtxSetCurrent"))?;
            std::mem::forget(foreign.clone());
            Ok(foreign)
        })
    }

    /// The same with another profile.
    pub(crate) fn with_profile(&self, profile: DeviceProfile) -> Self {
        Gpu { profile: Arc::new(profile), ..self.clone() }
    }

    /// The same on another stream of the context.
    pub(crate) fn on(&self, stream: &Stream) -> Self {
        Gpu { stream: stream.clone(), ..self.clone() }
    }
}

/// The primary context of the device with this ordinal. Leaves the current context as it was.
fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    probe::probe()?;
    let count = match CudaContext::device_count() {
        Ok(count) => count.max(0) as usize,
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => 0,
        Err(error) => return Err(probe::error("cuDeviceGetCount", error)),
    };
    if ordinal >= count {
        return Err(Error::NoDevice { ordinal, count });
    }
    leave_current(|| {
        let context = CudaContext::new(ordinal);
        let context = context.map_err(probe::during("cuDevicePrimaryCtxRetain"))?;
        // One object for all devices: the last reference to another makes its context current
        // where it is dropped, on whatever thread.
        Ok(Kernels::loaded_context(context.cu_ctx()).cloned().unwrap_or(context))
    })
}

/// Makes the context current again that is so now: cudarc makes another one so.
fn leave_current<R>(call: impl FnOnce() -> Result<R>) -> Result<R> {
    let mut current = ptr::null_mut();
    // SAFETY: writes the handle.
    check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut current) })?;
    let result = call();
    // SAFETY: it was current before.
    check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(current) })?;
    result
}

fn ordinal_of(device: sys::CUdevice) -> Result<usize> {
    let count = CudaContext::device_count().map_err(probe::during("cuDeviceGetCount"))?;
    for ordinal in 0..count {
        let mut found = 0;
        // SAFETY: writes the handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut found, ordinal) })?;
        if found == device {
            return Ok(ordinal as usize);
        }
    }
    Err(Error::NoDevice { ordinal: device.max(0) as usize, count: count.max(0) as usize })
}
