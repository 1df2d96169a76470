//! Where tensors live and calls run.

use crate::driver::{Gpu, Stream};
use crate::error::{Error, Result};
use crate::plan::DeviceProfile;
use cudarc::driver::{CudaContext, CudaStream, sys};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where tensors live and calls run: the CPU, or one stream of a CUDA device.
///
/// A `Device` is cheap to clone; clones share the stream. Work on a CUDA device is asynchronous
/// and ordered by its stream. A copy to the host waits for it.
///
/// # Threads and streams
/// Any thread may call. A call leaves the thread's current context as it was.
///
/// A [`Tensor`](crate::Tensor) and a [`Workspace`](crate::Workspace) remember the streams that use
/// them. A call on another stream waits for the last write, and if it writes, for all reads since.
/// The release of the memory waits likewise, even if the streams' owners have dropped them. A wait
/// covers all work that the other stream holds at that moment. The per-thread default stream is a
/// stream of its own in every thread.
///
/// The crate does not order the caller's memory. For a cudarc slice
/// ([`TensorView::from_cuda`](crate::TensorView::from_cuda)) cudarc does, by one event for the last
/// read and one for the last write, if its context tracks events. For a raw address
/// ([`TensorView::from_raw`](crate::TensorView::from_raw)) the caller must.
///
/// # CUDA graphs
/// The operations in [`ops`](crate::ops) can be captured. The kernels stay loaded for the rest of
/// the process, and a graph holds references to the tensors and the workspace that it uses.
///
/// * Make operations, tensors and workspaces before the capture, and call each operation once
///   before. While the stream captures, these return [`Error::Capture`]: an allocation, a copy from
///   or to the host, a synchronisation, and a call that would wait for another stream.
/// * A tensor may be dropped while a stream that has used it captures. It is freed with the next
///   tensor that is made or dropped, or at the next [`Device::synchronize`].
/// * The crate does not see a replay. Replay on the stream that captured, or order the replay
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
    /// The CPU reference: every operation in f64 by the formulas of the [crate](crate), and each
    /// result rounded once. It needs no GPU.
    pub fn cpu() -> Self {
        Device { backend: Backend::Cpu }
    }

    /// The CUDA device with this ordinal: its primary context and default stream.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoDevice`], [`Error::KernelsNotBuilt`] or
    /// [`Error::UnsupportedDevice`], each with what is missing; [`Error::Driver`].
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Device { backend: Backend::Cuda(Gpu::new(ordinal)?) })
    }

    /// A caller's stream, in the context that the stream belongs to.
    ///
    /// The first device of a context loads the kernels, which stay loaded, and so does the context.
    /// Every further device costs microseconds: make one wherever a stream comes from. The crate
    /// never creates a stream.
    ///
    /// # Errors
    /// As for [`Device::cuda`].
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Device { backend: Backend::Cuda(Gpu::from_stream(stream)?) })
    }

    /// As [`Device::from_stream`], for callers without cudarc's types, such as PyTorch's
    /// `torch.cuda.current_stream().cuda_stream`.
    ///
    /// The handles 0, 1 and 2 are the default streams of the thread's current context.
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

    /// The same device, with at most `sms` SMs (2 at least) for the persistent kernels of
    /// [`Path::Hopper`](crate::ops::Path::Hopper), so that other work has the rest. On
    /// [`Path::Mma`](crate::ops::Path::Mma) it only affects the choice of tiles.
    ///
    /// Sums may be split differently then: S, H and dX may have other bits than without a limit.
    /// They are still the same on every run. The CPU ignores the limit.
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

    /// The figures that plans are made from; `None` for the CPU.
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

    /// Whether this device's stream captures a CUDA graph.
    ///
    /// # Errors
    /// [`Error::Capture`] if the capture was invalidated, or if this is the default stream while a
    /// blocking stream captures; [`Error::Driver`].
    pub fn is_capturing(&self) -> Result<bool> {
        self.queue().map_or(Ok(false), |stream| Ok(stream.enter()?.graph().is_some()))
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
