//! Where tensors live and calls run.

use crate::driver::{Gpu, Stream};
use crate::error::{Error, Result};
use crate::plan::DeviceProfile;
use cudarc::driver::{CudaContext, CudaStream, sys};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The CPU reference, or one stream of a CUDA device with the kernels loaded.
///
/// A `Device` is cheap to clone; clones share the stream. Work on a CUDA device is asynchronous
/// and ordered by its stream; reading a tensor back to the host waits for it.
///
/// # Threads and streams
/// Every call may come from any thread. It leaves the context that is current there as it was.
///
/// A [`Tensor`](crate::Tensor) and a [`Workspace`](crate::Workspace) remember the streams that use
/// them: a call on another stream waits for the last write, and if it writes, for all reads since.
/// So does the release of the memory, also when the streams' owners have dropped them. The
/// per-thread default stream is another stream in every thread. What a call waits for is all that
/// the other stream has by then.
///
/// Memory that is lent to the crate ([`TensorView::from_cuda`](crate::TensorView::from_cuda),
/// [`from_raw`](crate::TensorView::from_raw)) is the lender's to order: cudarc does so for its own
/// slices with one event for the last read and one for the last write, while its context tracks
/// events, and for raw addresses nobody does.
///
/// # CUDA graphs
/// The operations in [`ops`](crate::ops) can be captured. The kernels stay loaded for the rest of
/// the process, and a graph keeps the tensors and the workspace that it uses.
///
/// * Make operations, tensors and workspaces before the capture, and call each operation once
///   before. To allocate, to copy from or to the host and to synchronise are refused with
///   [`Error::Capture`] while the stream captures, and so is a call that would have to wait for
///   another stream.
/// * A tensor that is dropped while a stream that has used it captures is freed later: with the
///   next tensor that is made or dropped, or the next [`Device::synchronize`].
/// * The crate does not see a replay. Replay on the stream that captured, or order it yourself
///   against other uses of the same tensors. A workspace that a graph uses is refused on any other
///   stream.
#[derive(Clone)]
pub struct Device {
    pub(crate) backend: Backend,
}

#[derive(Clone)]
pub(crate) enum Backend {
    Cpu,
    Cuda(Gpu),
}

impl Device {
    /// The CPU reference: every operation in f64, straight from the formulas, rounded once.
    pub fn cpu() -> Self {
        Device { backend: Backend::Cpu }
    }

    /// The CUDA device with this ordinal: its primary context and default stream.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoDevice`], [`Error::KernelsNotBuilt`] or
    /// [`Error::UnsupportedDevice`], each with what is missing. Never panics.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Device { backend: Backend::Cuda(Gpu::new(ordinal)?) })
    }

    /// A caller's stream, in the context that the stream belongs to.
    ///
    /// The kernels are loaded once per context, by the first device made there, and stay. So does
    /// the context. After the first, a device costs little: make one wherever a stream comes from.
    /// No stream is created, now or later.
    ///
    /// # Errors
    /// As for [`Device::cuda`].
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Device { backend: Backend::Cuda(Gpu::from_stream(stream)?) })
    }

    /// As [`Device::from_stream`], for callers without cudarc's types: PyTorch's
    /// `torch.cuda.current_stream().cuda_stream`, for one.
    ///
    /// The handles 0, 1 and 2 stand for the default streams of the context that is current on this
    /// thread.
    ///
    /// # Errors
    /// As for [`Device::cuda`]; [`Error::Driver`] if there is no such stream.
    ///
    /// # Safety
    /// `stream` must be a stream of a context of this process. Both must stay alive as long as the
    /// device, its clones, and the tensors and workspaces made on them.
    #[allow(unsafe_code)]
    pub unsafe fn from_raw_stream(stream: sys::CUstream) -> Result<Self> {
        // SAFETY: the caller's promise.
        Ok(Device { backend: Backend::Cuda(unsafe { Gpu::from_raw_stream(stream)? }) })
    }

    /// The same device, held to the kernels that serve every GPU
    /// ([`Path::Mma`](crate::ops::Path::Mma), [`Path::MmaDecode`](crate::ops::Path::MmaDecode))
    /// instead of what its generation has of its own.
    #[doc(hidden)]
    pub fn generic(&self) -> Self {
        self.with_profile(DeviceProfile::without_hopper)
    }

    /// The same device, with at most `sms` SMs for the persistent kernels of
    /// [`Path::Hopper`](crate::ops::Path::Hopper): leave the others to somebody else's work. On
    /// [`Path::Mma`](crate::ops::Path::Mma) it chooses tiles alone.
    ///
    /// What a call computes may then be divided differently, and S, H or dX have other bits, the
    /// same on every run.
    pub fn with_sm_limit(&self, sms: usize) -> Self {
        self.with_profile(|profile| profile.with_sm_limit(sms))
    }

    /// The same device, with at most `bytes` of shared memory for a CTA where plans can tell: as on
    /// cards with less.
    #[doc(hidden)]
    pub fn with_shared_limit(&self, bytes: usize) -> Self {
        self.with_profile(|profile| profile.with_shared_limit(bytes))
    }

    /// The same device, with plans for this card: the kernels that serve every GPU, in tiles for
    /// the card's SMs and tensor cores, within the shared memory of both. To test plans for cards
    /// that are not at hand.
    #[doc(hidden)]
    pub fn with_plans_of(&self, card: &DeviceProfile) -> Self {
        self.with_profile(|present| {
            card.clone().without_hopper().with_shared_limit(present.shared_bytes())
        })
    }

    fn with_profile(&self, change: impl Fn(DeviceProfile) -> DeviceProfile) -> Self {
        let backend = match &self.backend {
            Backend::Cpu => Backend::Cpu,
            Backend::Cuda(gpu) => {
                let profile = DeviceProfile::clone(&gpu.profile);
                Backend::Cuda(gpu.with_profile(change(profile)))
            }
        };
        Device { backend }
    }

    /// Whether this is a CUDA device.
    pub fn is_cuda(&self) -> bool {
        self.profile().is_some()
    }

    /// What plans know of the device; `None` for the CPU.
    pub fn profile(&self) -> Option<&DeviceProfile> {
        match &self.backend {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(&gpu.profile),
        }
    }

    /// The stream that calls on this device are enqueued on; `None` for the CPU.
    pub fn stream(&self) -> Option<&Arc<CudaStream>> {
        self.queue().map(Stream::inner)
    }

    /// The same, as the crate uses it.
    pub(crate) fn queue(&self) -> Option<&Stream> {
        match &self.backend {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(&gpu.stream),
        }
    }

    /// The CUDA context; `None` for the CPU.
    pub fn context(&self) -> Option<&Arc<CudaContext>> {
        self.stream().map(|stream| stream.context())
    }

    /// Whether tensors of one may be used by calls on the other: both are the CPU, or streams of
    /// the same CUDA context.
    pub(crate) fn shares_memory_with(&self, other: &Device) -> bool {
        let raw = |device: &Device| device.context().map(|context| context.cu_ctx());
        raw(self) == raw(other)
    }

    /// This device on the stream of another of the same CUDA context.
    pub(crate) fn on(&self, other: &Device) -> Result<Device> {
        if !self.shares_memory_with(other) {
            let (expected, got) = (self.to_string(), other.to_string());
            return Err(Error::Device { argument: "device", expected, got });
        }
        let backend = match (&self.backend, other.queue()) {
            (Backend::Cuda(gpu), Some(stream)) => Backend::Cuda(gpu.on(stream)),
            _ => Backend::Cpu,
        };
        Ok(Device { backend })
    }

    /// Waits until all work enqueued on this device's stream is done.
    ///
    /// # Errors
    /// [`Error::Driver`] if any of that work failed; [`Error::Capture`] while the stream captures.
    pub fn synchronize(&self) -> Result<()> {
        self.queue().map_or(Ok(()), Stream::synchronize)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Backend::Cpu => f.write_str("cpu"),
            Backend::Cuda(gpu) => {
                write!(f, "cuda:{} ({})", gpu.stream.context().ordinal(), gpu.profile.name())
            }
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda` for the first CUDA device, or `cuda:1`.
    ///
    /// # Errors
    /// [`Error::Parse`], and as for [`Device::cuda`].
    fn from_str(name: &str) -> Result<Self> {
        let unknown =
            || Error::Parse { expected: "a device: cpu, cuda or cuda:1", got: name.into() };
        match name.split_once(':') {
            None if name == "cpu" => Ok(Device::cpu()),
            None if name == "cuda" => Device::cuda(0),
            Some(("cuda", ordinal)) => Device::cuda(ordinal.parse().map_err(|_| unknown())?),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        assert!(!"cpu".parse::<Device>().unwrap().is_cuda());
        for name in ["", "gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1"] {
            assert!(matches!(name.parse::<Device>(), Err(Error::Parse { .. })), "{name}");
        }
    }
}
