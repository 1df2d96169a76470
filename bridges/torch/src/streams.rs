//! The streams that Python calls on, each with the flags of its calls.

use lora_kernels::{Device, Result, Workspace, WorkspaceSize};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// The ordinal that stands for the CPU.
pub(crate) const CPU: i32 = -1;

/// A stream of a device, or the CPU.
pub(crate) struct Stream {
    pub(crate) device: Device,
    /// The flags of the stream's calls, which run one after the other and each leave them zero.
    /// The scratch is lent by each call.
    ///
    /// NOTES: the flags are not PyTorch's memory. PyTorch's allocator may serve a call from the
    /// pool of a CUDA graph before anything is captured, and then expects it back.
    flags: Mutex<Option<Workspace>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By the ordinal of the device and the handle.
type Streams = HashMap<(i32, u64), Arc<Stream>>;

/// The stream with this handle on the device with this ordinal. Handle 0 is the default stream.
///
/// Streams stay for the rest of the process: a handle that was destroyed is not used until the
/// driver gives it to another stream.
pub(crate) fn get(device: i32, handle: u64) -> Result<Arc<Stream>> {
    static STREAMS: LazyLock<Mutex<Streams>> = LazyLock::new(Mutex::default);
    let mut streams = lock(&STREAMS);
    if let Some(stream) = streams.get(&(device, handle)) {
        return Ok(stream.clone());
    }
    let own = match (usize::try_from(device), handle) {
        (Err(_), _) => Device::cpu(),
        // By its ordinal: the context need not be current on a thread that autograd has made.
        (Ok(ordinal), 0) => Device::cuda(ordinal)?,
        // SAFETY: PyTorch's streams are never destroyed, nor is the primary context. A stream of
        // another library is alive when it is PyTorch's current stream, as it is now, and the
        // handle is used only when it is so again.
        (Ok(_), handle) => unsafe { Device::from_raw_stream(handle as *mut _)? },
    };
    let stream = Arc::new(Stream { device: own, flags: Mutex::default() });
    streams.insert((device, handle), stream.clone());
    Ok(stream)
}

impl Stream {
    /// Calls `run` with a workspace of this size. `flags` is 0, for the stream's own, or the
    /// address of zeros.
    ///
    /// # Safety
    /// `scratch` and `flags`, unless 0, point to memory as `Workspace::from_raw` asks for.
    pub(crate) unsafe fn with_workspace(
        &self,
        size: WorkspaceSize,
        [scratch, flags]: [u64; 2],
        run: impl FnOnce(&mut Workspace) -> Result<()>,
    ) -> Result<()> {
        let device = &self.device;
        if !device.is_cuda() {
            return run(&mut Workspace::new(device, size)?);
        }
        if flags != 0 || size.flag_bytes() == 0 {
            // SAFETY: the caller's promise.
            return run(&mut unsafe { Workspace::from_raw(device, size, scratch, flags)? });
        }
        let mut own = lock(&self.flags);
        let own = match &mut *own {
            Some(own) if own.size().flag_bytes() >= size.flag_bytes() => own,
            other => other.insert(Workspace::new(device, size.without_scratch())?),
        };
        // SAFETY: the caller's promise.
        unsafe { own.lend_scratch(device, size, scratch)? };
        run(own)
    }
}
