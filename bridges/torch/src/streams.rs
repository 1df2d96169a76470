//! The streams that Python calls on, each with scratch and flags of its own.

use lora_kernels::{Device, Result, Workspace, WorkspaceSize};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// The ordinal that stands for the CPU.
pub(crate) const CPU: i32 = -1;

/// A stream of a device, or the CPU.
pub(crate) struct Stream {
    pub(crate) device: Device,
    /// Of calls that lend their scratch, and of calls that do not. Calls run one after the other,
    /// and each leaves the flags zero.
    ///
    /// NOTES: this is not PyTorch's memory. PyTorch's allocator may serve a call from the pool of a
    /// CUDA graph before anything is captured, and then expects it back.
    own: [Mutex<Option<Workspace>>; 2],
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
    let stream = Arc::new(Stream { device: own, own: Default::default() });
    streams.insert((device, handle), stream.clone());
    Ok(stream)
}

impl Stream {
    /// Calls `run` with a workspace of this size. `scratch` and `flags` are addresses, of zeros for
    /// the flags, or 0 for the stream's own. `false` if the stream captures and would have to give
    /// its own: a graph's replays are not ordered against its calls.
    ///
    /// # Safety
    /// `scratch` and `flags`, unless 0, point to memory as `Workspace::from_raw` asks for.
    pub(crate) unsafe fn with_workspace(
        &self,
        size: WorkspaceSize,
        [scratch, flags]: [u64; 2],
        run: impl FnOnce(&mut Workspace) -> Result<()>,
    ) -> Result<bool> {
        let device = &self.device;
        let is_lent = |address, bytes| address != 0 || bytes == 0;
        if !device.is_cuda() {
            run(&mut Workspace::new(device, size)?)?;
        } else if is_lent(scratch, size.scratch_bytes()) && is_lent(flags, size.flag_bytes()) {
            // SAFETY: the caller's promise.
            run(&mut unsafe { Workspace::from_raw(device, size, scratch, flags)? })?;
        } else if device.is_capturing()? {
            return Ok(false);
        } else {
            let own_part = |of: WorkspaceSize| if scratch == 0 { of } else { of.without_scratch() };
            let mut own = lock(&self.own[usize::from(scratch == 0)]);
            let needed = own.as_ref().map_or(size, |own| own.size().max(size));
            let own = match &mut *own {
                Some(own) if own_part(own.size()) == own_part(needed) => own,
                other => other.insert(Workspace::new(device, own_part(needed))?),
            };
            if scratch != 0 {
                // SAFETY: the caller's promise.
                unsafe { own.lend_scratch(device, size, scratch)? };
            }
            run(own)?;
        }
        Ok(true)
    }
}
