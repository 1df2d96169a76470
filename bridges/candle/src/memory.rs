//! candle's storage as views of lora-kernels, without a copy.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use lora_kernels::half::{bf16, f16};
use lora_kernels::{self as lk, TensorView, TensorViewMut};
use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, cuda_backend::CudaStorageSlice};
#[cfg(feature = "cuda")]
use lora_kernels::cudarc::driver::CudaView;

/// An error of lora-kernels as one of candle.
pub(crate) fn err(error: lk::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// The element type that kernels compute in.
pub(crate) fn element(dtype: DType) -> Result<lk::DType> {
    match dtype {
        DType::BF16 => Ok(lk::DType::Bf16),
        DType::F16 => Ok(lk::DType::F16),
        DType::F32 => Ok(lk::DType::F32),
        other => bail!("lora-kernels computes in bf16, f16 and f32, not in {other:?}"),
    }
}

/// The elements of a contiguous tensor.
pub(crate) enum Elements<'a> {
    Cpu(&'a CpuStorage, Range<usize>),
    #[cfg(feature = "cuda")]
    Bf16(CudaView<'a, bf16>),
    #[cfg(feature = "cuda")]
    F16(CudaView<'a, f16>),
    #[cfg(feature = "cuda")]
    F32(CudaView<'a, f32>),
}

impl<'a> Elements<'a> {
    pub(crate) fn new(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("lora-kernels: a tensor {:?} is not contiguous", layout.shape())
        };
        match storage {
            Storage::Cpu(storage) => Ok(Elements::Cpu(storage, start..end)),
            #[cfg(feature = "cuda")]
            Storage::Cuda(CudaStorage { slice, .. }) => match slice {
                CudaStorageSlice::BF16(slice) => Ok(Elements::Bf16(slice.slice(start..end))),
                CudaStorageSlice::F16(slice) => Ok(Elements::F16(slice.slice(start..end))),
                CudaStorageSlice::F32(slice) => Ok(Elements::F32(slice.slice(start..end))),
                _ => bail!("lora-kernels computes in bf16, f16 and f32"),
            },
            _ => bail!("lora-kernels has no kernels for this device"),
        }
    }

    pub(crate) fn view(&self, shape: [usize; 2]) -> Result<TensorView<'_>> {
        let view = match self {
            Elements::Cpu(CpuStorage::BF16(values), at) => {
                TensorView::from_host(&values[at.clone()], shape)
            }
            Elements::Cpu(CpuStorage::F16(values), at) => {
                TensorView::from_host(&values[at.clone()], shape)
            }
            Elements::Cpu(CpuStorage::F32(values), at) => {
                TensorView::from_host(&values[at.clone()], shape)
            }
            Elements::Cpu(..) => bail!("lora-kernels computes in bf16, f16 and f32"),
            #[cfg(feature = "cuda")]
            Elements::Bf16(slice) => TensorView::from_cuda(slice, shape),
            #[cfg(feature = "cuda")]
            Elements::F16(slice) => TensorView::from_cuda(slice, shape),
            #[cfg(feature = "cuda")]
            Elements::F32(slice) => TensorView::from_cuda(slice, shape),
        };
        view.map_err(err)
    }
}

/// Memory for a matrix [rows, columns] that an operation overwrites.
pub(crate) struct Output {
    storage: Storage,
    shape: [usize; 2],
}

impl Output {
    pub(crate) fn new(device: &Device, dtype: DType, shape: [usize; 2]) -> Result<Self> {
        let n = shape[0] * shape[1];
        let storage = match (device, dtype) {
            (Device::Cpu, DType::BF16) => Storage::Cpu(CpuStorage::BF16(vec![bf16::ZERO; n])),
            (Device::Cpu, DType::F16) => Storage::Cpu(CpuStorage::F16(vec![f16::ZERO; n])),
            (Device::Cpu, DType::F32) => Storage::Cpu(CpuStorage::F32(vec![0.0; n])),
            #[cfg(feature = "cuda")]
            (Device::Cuda(device), DType::BF16 | DType::F16 | DType::F32) => {
                Storage::Cuda(uninitialised(device, dtype, n)?)
            }
            (device, dtype) => bail!("lora-kernels has no {dtype:?} on {:?}", device.location()),
        };
        Ok(Output { storage, shape })
    }

    pub(crate) fn view(&mut self) -> Result<TensorViewMut<'_>> {
        let shape = self.shape;
        let view = match &mut self.storage {
            Storage::Cpu(CpuStorage::BF16(values)) => TensorViewMut::from_host(values, shape),
            Storage::Cpu(CpuStorage::F16(values)) => TensorViewMut::from_host(values, shape),
            Storage::Cpu(CpuStorage::F32(values)) => TensorViewMut::from_host(values, shape),
            #[cfg(feature = "cuda")]
            Storage::Cuda(CudaStorage { slice, .. }) => match slice {
                CudaStorageSlice::BF16(slice) => TensorViewMut::from_cuda(slice, shape),
                CudaStorageSlice::F16(slice) => TensorViewMut::from_cuda(slice, shape),
                CudaStorageSlice::F32(slice) => TensorViewMut::from_cuda(slice, shape),
                _ => bail!("lora-kernels computes in bf16, f16 and f32"),
            },
            _ => bail!("lora-kernels computes in bf16, f16 and f32"),
        };
        view.map_err(err)
    }

    pub(crate) fn into_storage(self) -> Storage {
        self.storage
    }

    /// A tensor of this shape, outside of any graph.
    pub(crate) fn into_tensor(self, shape: &Shape) -> Tensor {
        let none = candle_core::op::BackpropOp::none();
        Tensor::from_storage(self.storage, shape.clone(), none, false)
    }
}

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn uninitialised(device: &candle_core::CudaDevice, dtype: DType, n: usize) -> Result<CudaStorage> {
    // SAFETY: any bits are a value of these types. Only operations that overwrite every element
    // get the memory, and if one fails, its output is dropped unread.
    let slice = unsafe {
        match dtype {
            DType::BF16 => CudaStorageSlice::BF16(device.alloc(n)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc(n)?),
            _ => CudaStorageSlice::F32(device.alloc(n)?),
        }
    };
    Ok(CudaStorage { slice, device: device.clone() })
}

/// A byte, to stand where memory was taken from.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub(crate) fn placeholder(
    device: &candle_core::CudaDevice,
) -> Result<lora_kernels::cudarc::driver::CudaSlice<u8>> {
    // SAFETY: nothing reads it, and any bits are a u8.
    unsafe { device.alloc(1) }
}
