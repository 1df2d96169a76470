//! How much memory the process took at most.

use candle_core::{Device, Result};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Peak {
    /// CUDA: the bytes in use at once of the pool that candle allocates from, PyTorch's
    /// `max_memory_allocated`. CPU: those resident at once.
    pub bytes: u64,
    /// CUDA: what the pool had reserved at once.
    pub reserved: Option<u64>,
}

/// Forgets the peak so far, which may be that of loading the model.
pub fn reset_peak(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::reset(device),
        _ => {
            // Where Linux refuses, or there is no Linux, the peak is that of the whole process.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
            Ok(())
        }
    }
}

/// `None` where the system does not tell.
pub fn peak(device: &Device) -> Result<Option<Peak>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::peak(device).map(Some),
        _ => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            Ok(resident_peak(&status).map(|bytes| Peak { bytes, reserved: None }))
        }
    }
}

/// `VmHWM` of Linux's `/proc/self/status`, in bytes.
fn resident_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Peak;
    use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
    use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};
    use candle_core::cuda_backend::{CudaDevice, WrapErr};
    use candle_core::{Result, backend::BackendDevice};
    use std::ffi::c_void;

    const USED: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    const RESERVED: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;

    fn pool(device: &CudaDevice) -> Result<CUmemoryPool> {
        // SAFETY: candle's context keeps the device.
        unsafe { device::get_mem_pool(device.cuda_stream().context().cu_device()) }.w()
    }

    pub fn reset(device: &CudaDevice) -> Result<()> {
        device.synchronize()?;
        let (pool, mut zero) = (pool(device)?, 0u64);
        for attribute in [USED, RESERVED] {
            let value = (&raw mut zero).cast::<c_void>();
            // SAFETY: the pool is the device's, and both attributes are a u64, for which 0 resets.
            unsafe { mem_pool::set_attribute(pool, attribute, value) }.w()?;
        }
        Ok(())
    }

    pub fn peak(device: &CudaDevice) -> Result<Peak> {
        let pool = pool(device)?;
        let read = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: the pool is the device's, and both attributes are a u64.
            unsafe { mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast::<c_void>()) }
                .w()?;
            Ok::<_, candle_core::Error>(bytes)
        };
        Ok(Peak { bytes: read(USED)?, reserved: Some(read(RESERVED)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_peak_is_read() {
        assert_eq!(
            resident_peak("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(resident_peak(""), None);
    }
}
