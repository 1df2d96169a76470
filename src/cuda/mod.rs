//! The CUDA side: the driver, memory and launches. All unsafe code of the crate is in here.

mod buffers;
mod driver;
mod hopper;
mod hopper_decode;
mod hopper_short;
mod kernels;
mod launch;
mod memory;
mod mma;
mod params;
mod tensor_map;

pub(crate) use memory::{Allocation, Place, Region, RegionMut};

use crate::plan::DeviceProfile;
use crate::{Error, Result};
use cudarc::driver::{sys, CudaContext, CudaStream};
use kernels::Kernels;
use std::sync::Arc;

/// A stream of a CUDA context, with the kernels loaded.
pub(crate) struct Cuda {
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
    profile: DeviceProfile,
    /// Pairs of blocks of the Hopper kernels that fill the GPU, of which the profile may allow fewer.
    all_pairs: usize,
}

impl Cuda {
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        driver::probe()?;
        let count = match CudaContext::device_count() {
            Ok(count) => count.max(0) as usize,
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => 0,
            Err(error) => return Err(driver::error("cuDeviceGetCount", error)),
        };
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        kernels::check_built()?;
        let context = CudaContext::new(ordinal).map_err(driver::during("cuCtxCreate"))?;
        Cuda::from_stream(context.default_stream())
    }

    pub(crate) fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        kernels::check_built()?;
        let profile = profile(stream.context())?;
        if profile.compute_capability.0 < 8 {
            let DeviceProfile { name, compute_capability, .. } = profile;
            return Err(Error::UnsupportedDevice { name, compute_capability });
        }
        let kernels = Kernels::of_context(stream.context())?;
        let pairs = kernels.hopper_pairs(&stream)?;
        let profile = DeviceProfile { pairs, hopper: pairs > 0, ..profile };
        Ok(Cuda { stream, kernels, profile, all_pairs: pairs })
    }

    /// The same with another profile.
    pub(crate) fn with_profile(&self, profile: DeviceProfile) -> Self {
        let (stream, kernels) = (self.stream.clone(), self.kernels.clone());
        Cuda { stream, kernels, profile, all_pairs: self.all_pairs }
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(crate) fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(driver::during("cuStreamSynchronize"))
    }
}

fn profile(context: &Arc<CudaContext>) -> Result<DeviceProfile> {
    use sys::CUdevice_attribute::*;
    let attribute = |attribute| {
        let value = context.attribute(attribute);
        value.map(|value| value as u32).map_err(driver::during("cuDeviceGetAttribute"))
    };
    Ok(DeviceProfile {
        name: context.name().map_err(driver::during("cuDeviceGetName"))?,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        sms: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        pairs: 0, // until the kernels are loaded
        hopper: false,
    })
}
