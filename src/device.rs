//! Where tensors live and calls run.

use crate::cuda::Cuda;
use crate::plan::DeviceProfile;
use crate::Result;
use cudarc::driver::{CudaContext, CudaStream};
use std::fmt;
use std::sync::Arc;

/// The CPU reference, or one stream of a CUDA device with the kernels loaded.
///
/// A `Device` is cheap to clone; clones share the stream. Work on a CUDA device is asynchronous
/// and ordered by its stream; reading a tensor back to the host waits for it.
#[derive(Clone)]
pub struct Device {
    pub(crate) backend: Backend,
}

#[derive(Clone)]
pub(crate) enum Backend {
    Cpu,
    Cuda(Arc<Cuda>),
}

impl Device {
    /// The CPU reference: every operation in f64, straight from the formulas, rounded once.
    pub fn cpu() -> Self {
        Device { backend: Backend::Cpu }
    }

    /// The CUDA device with this ordinal: its primary context and default stream.
    ///
    /// # Errors
    /// [`Error::NoDriver`](crate::Error::NoDriver), [`NoDevice`](crate::Error::NoDevice),
    /// [`KernelsNotBuilt`](crate::Error::KernelsNotBuilt) or
    /// [`UnsupportedDevice`](crate::Error::UnsupportedDevice), each with what is missing. Never
    /// panics.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Device { backend: Backend::Cuda(Arc::new(Cuda::new(ordinal)?)) })
    }

    /// A caller's stream, in the context the stream belongs to.
    ///
    /// The kernels are loaded once per context, here and not at the first call: make the device
    /// before capturing a CUDA graph. No stream is created, now or later.
    ///
    /// # Errors
    /// As for [`Device::cuda`].
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Device { backend: Backend::Cuda(Arc::new(Cuda::from_stream(stream)?)) })
    }

    /// The same device, held to the kernels that serve every GPU: [`Path::Mma`](crate::Path::Mma)
    /// instead of what its generation has of its own. For comparisons and tests.
    pub fn generic(&self) -> Self {
        self.with_profile(|profile| profile.hopper = false)
    }

    /// The same device, with no more than so many multiprocessors for the kernels that stay on them
    /// to the end of a product, which are those of [`Path::Hopper`](crate::Path::Hopper). What a call
    /// computes may then be divided differently, and S have other bits, the same on every run.
    pub fn with_sms(&self, sms: usize) -> Self {
        self.with_profile(|profile| {
            profile.sms = profile.sms.min(sms.max(2));
            profile.pairs = profile.pairs.min(profile.sms / 2);
        })
    }

    fn with_profile(&self, change: impl Fn(&mut DeviceProfile)) -> Self {
        let backend = match &self.backend {
            Backend::Cpu => Backend::Cpu,
            Backend::Cuda(cuda) => {
                let mut profile = cuda.profile().clone();
                change(&mut profile);
                Backend::Cuda(Arc::new(cuda.with_profile(profile)))
            }
        };
        Device { backend }
    }

    /// Whether this is a CUDA device.
    pub fn is_cuda(&self) -> bool {
        self.profile().is_some()
    }

    /// What plans need to know of the device; `None` for the CPU.
    pub fn profile(&self) -> Option<&DeviceProfile> {
        match &self.backend {
            Backend::Cpu => None,
            Backend::Cuda(cuda) => Some(cuda.profile()),
        }
    }

    /// The stream that calls on this device are enqueued on; `None` for the CPU.
    pub fn stream(&self) -> Option<&Arc<CudaStream>> {
        match &self.backend {
            Backend::Cpu => None,
            Backend::Cuda(cuda) => Some(cuda.stream()),
        }
    }

    /// The CUDA context; `None` for the CPU.
    pub fn context(&self) -> Option<&Arc<CudaContext>> {
        self.stream().map(|stream| stream.context())
    }

    /// Waits until all work enqueued on this device's stream is done.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver) if any of that work failed.
    pub fn synchronize(&self) -> Result<()> {
        match &self.backend {
            Backend::Cpu => Ok(()),
            Backend::Cuda(cuda) => cuda.synchronize(),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Backend::Cpu => f.write_str("cpu"),
            Backend::Cuda(cuda) => {
                write!(f, "cuda:{} ({})", cuda.context().ordinal(), cuda.profile().name)
            }
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
