//! Device memory that the crate owns, and memory it borrows.

use super::{driver, Cuda};
use crate::tensor::check_length;
use crate::{DType, Device, Element, Error, IntoShape, Result, Shape, TensorView, TensorViewMut};
use cudarc::driver::{
    sys, CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut,
    DeviceSlice, SyncOnDrop,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Bytes on a device, allocated and freed in the order of a stream.
#[derive(Debug)]
pub(crate) struct Allocation {
    slice: CudaSlice<u8>,
}

impl Cuda {
    pub(crate) fn allocate_zeros(&self, bytes: usize) -> Result<Allocation> {
        let mut allocation = self.allocate(bytes)?;
        let zeroed = self.stream().memset_zeros(&mut allocation.slice);
        zeroed.map_err(driver::during("cuMemsetD8Async"))?;
        Ok(allocation)
    }

    /// Memory with whatever bits it holds, for outputs that a kernel writes whole.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<Allocation> {
        // The driver refuses to allocate nothing; an empty tensor gets a byte it never uses.
        // SAFETY: every bit pattern is a value of every element type.
        match unsafe { self.stream().alloc::<u8>(bytes.max(1)) } {
            Ok(slice) => Ok(Allocation { slice }),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { bytes })
            }
            Err(error) => Err(driver::error("cuMemAllocAsync", error)),
        }
    }
}

impl Allocation {
    fn stream(&self) -> Arc<CudaStream> {
        self.slice.stream().clone()
    }

    /// The slice is as long as the allocation, or empty.
    pub(crate) fn copy_from_host(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let copied = self.stream().memcpy_htod(bytes, &mut self.slice);
        copied.map_err(driver::during("cuMemcpyHtoDAsync"))
    }

    /// As [`Allocation::copy_from_host`].
    pub(crate) fn copy_to_host(&self, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let stream = self.stream();
        let copied = stream.memcpy_dtoh(&self.slice, bytes);
        copied.map_err(driver::during("cuMemcpyDtoHAsync"))?;
        stream.synchronize().map_err(driver::during("cuStreamSynchronize"))
    }

    /// Overwrites as many bytes as the source has, from `start` on.
    pub(crate) fn copy_from(&mut self, start: usize, source: &CudaView<'_, u8>) -> Result<()> {
        let stream = self.stream();
        let copied =
            stream.memcpy_dtod(source, &mut self.slice.slice_mut(start..start + source.len()));
        copied.map_err(driver::during("cuMemcpyDtoDAsync"))
    }

    pub(crate) fn region(&self) -> Region<'_> {
        Region::Cuda(self.slice.as_view())
    }

    pub(crate) fn region_mut(&mut self) -> RegionMut<'_> {
        RegionMut::Cuda(self.slice.as_view_mut())
    }
}

/// Memory that an operation reads.
#[derive(Debug)]
pub(crate) enum Region<'a> {
    Host(&'a [u8]),
    Cuda(CudaView<'a, u8>),
    Raw(RawRegion),
}

/// Memory that an operation writes.
#[derive(Debug)]
pub(crate) enum RegionMut<'a> {
    Host(&'a mut [u8]),
    Cuda(CudaViewMut<'a, u8>),
    Raw(RawRegion),
}

/// Where memory is, as far as it decides which calls may use it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    Host,
    /// Device memory whose uses cudarc orders, and the stream it was allocated on.
    Stream(&'a Arc<CudaStream>),
    /// Device memory whose uses the caller orders.
    Context(&'a Arc<CudaContext>),
}

impl Place<'_> {
    /// Whether a call on `stream` (on the CPU, if it is `None`) may use the memory.
    ///
    /// cudarc orders uses on several streams by the events of one `CudaContext` object. Two
    /// objects may stand for the same CUDA context and not know of each other's streams; between
    /// those, only the same stream will do.
    pub(crate) fn is_usable_on(self, stream: Option<&Arc<CudaStream>>) -> bool {
        match (self, stream) {
            (Place::Host, None) => true,
            (Place::Stream(own), Some(stream)) => {
                Arc::ptr_eq(own.context(), stream.context()) || own == stream
            }
            (Place::Context(own), Some(stream)) => own == stream.context(),
            _ => false,
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let context = match self {
            Place::Host => return f.write_str("the CPU"),
            Place::Stream(stream) => stream.context(),
            Place::Context(context) => context,
        };
        write!(f, "cuda:{}", context.ordinal())
    }
}

/// A device address whose memory somebody else keeps alive.
#[derive(Debug, Clone)]
pub(crate) struct RawRegion {
    address: sys::CUdeviceptr,
    context: Arc<CudaContext>,
}

/// A device address, and cudarc's record of its use by a stream, which is to be dropped after the
/// launch that uses the address.
pub(super) type Resolved<'a> = (sys::CUdeviceptr, Option<SyncOnDrop<'a>>);

impl<'a> Region<'a> {
    /// So many of its bytes, all of which are there.
    pub(crate) fn part(&self, bytes: Range<usize>) -> Region<'a> {
        match self {
            Region::Host(all) => Region::Host(&all[bytes]),
            Region::Cuda(view) => Region::Cuda(view.slice(bytes)),
            Region::Raw(RawRegion { address, context }) => {
                let (address, context) = (address + bytes.start as u64, context.clone());
                Region::Raw(RawRegion { address, context })
            }
        }
    }

    pub(crate) fn place(&self) -> Place<'_> {
        match self {
            Region::Host(_) => Place::Host,
            Region::Cuda(view) => Place::Stream(view.stream()),
            Region::Raw(raw) => Place::Context(&raw.context),
        }
    }

    /// The bytes of a region that was checked to be host memory.
    pub(crate) fn host_bytes(&self) -> &[u8] {
        match self {
            Region::Host(bytes) => bytes,
            _ => unreachable!("device memory passed to the CPU reference"),
        }
    }

    /// The address of a region that was checked to be in the stream's context. `stream` waits for
    /// writes that cudarc knows of.
    pub(super) fn resolve<'s>(&'s self, stream: &'s CudaStream) -> Resolved<'s> {
        match self {
            Region::Cuda(view) => {
                let (address, record) = view.device_ptr(stream);
                (address, Some(record))
            }
            Region::Raw(raw) => (raw.address, None),
            Region::Host(_) => unreachable!("host memory passed to a kernel"),
        }
    }
}

impl RegionMut<'_> {
    pub(crate) fn place(&self) -> Place<'_> {
        match self {
            RegionMut::Host(_) => Place::Host,
            RegionMut::Cuda(view) => Place::Stream(view.stream()),
            RegionMut::Raw(raw) => Place::Context(&raw.context),
        }
    }

    /// The bytes of a region that was checked to be host memory.
    pub(crate) fn host_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            RegionMut::Host(bytes) => bytes,
            _ => unreachable!("device memory passed to the CPU reference"),
        }
    }

    /// As [`Region::resolve`]; `stream` also waits for reads that cudarc knows of.
    pub(super) fn resolve<'s>(&'s mut self, stream: &'s CudaStream) -> Resolved<'s> {
        match self {
            RegionMut::Cuda(view) => {
                let (address, record) = view.device_ptr_mut(stream);
                (address, Some(record))
            }
            RegionMut::Raw(raw) => (raw.address, None),
            RegionMut::Host(_) => unreachable!("host memory passed to a kernel"),
        }
    }
}

impl<'a> TensorView<'a> {
    /// A view of a caller's device memory: `slice.as_view()` of a `CudaSlice`, or a part of one.
    ///
    /// # Errors
    /// [`Error::Length`] if the shape asks for another number of elements.
    pub fn from_cuda<E: Element>(view: CudaView<'a, E>, shape: impl IntoShape) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, view.len())?;
        // SAFETY: every bit pattern is a valid u8, and the length is the view's own in bytes.
        let bytes = unsafe { view.transmute(view.num_bytes()) };
        let region = Region::Cuda(bytes.expect("a view is as long as itself"));
        Ok(TensorView { shape, dtype: E::DTYPE, region })
    }

    /// A view of device memory at `address`, in the context of `device`.
    ///
    /// # Errors
    /// [`Error::Misaligned`] unless `address` is a multiple of the element's size;
    /// [`Error::Device`] if `device` is the CPU.
    ///
    /// # Safety
    /// `address` must point to memory of the device's context that holds `shape` elements of
    /// `dtype` and stays allocated until the work that uses the view is done. Whoever writes the
    /// memory must order that work before the calls that read it, on the device's stream.
    pub unsafe fn from_raw(
        device: &Device,
        address: sys::CUdeviceptr,
        shape: impl IntoShape,
        dtype: DType,
    ) -> Result<Self> {
        let shape = shape.into_shape()?;
        let region = Region::Raw(raw(device, address, dtype)?);
        Ok(TensorView { shape, dtype, region })
    }
}

impl<'a> TensorViewMut<'a> {
    /// A view of a caller's device memory: `slice.as_view_mut()` of a `CudaSlice`, or a part of
    /// one.
    ///
    /// # Errors
    /// [`Error::Length`] if the shape asks for another number of elements.
    pub fn from_cuda<E: Element>(
        view: &'a mut CudaViewMut<'_, E>,
        shape: impl IntoShape,
    ) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, view.len())?;
        let bytes = view.num_bytes();
        // SAFETY: as in `TensorView::from_cuda`; and whatever bytes are written, they are an `E`.
        let bytes = unsafe { view.transmute_mut(bytes) };
        let region = RegionMut::Cuda(bytes.expect("a view is as long as itself"));
        Ok(TensorViewMut { shape, dtype: E::DTYPE, region })
    }

    /// A view of device memory at `address`, in the context of `device`.
    ///
    /// # Errors
    /// As for [`TensorView::from_raw`].
    ///
    /// # Safety
    /// As for [`TensorView::from_raw`]; and nothing else may access the memory until the work that
    /// writes it is done.
    pub unsafe fn from_raw(
        device: &Device,
        address: sys::CUdeviceptr,
        shape: impl IntoShape,
        dtype: DType,
    ) -> Result<Self> {
        let shape = shape.into_shape()?;
        let region = RegionMut::Raw(raw(device, address, dtype)?);
        Ok(TensorViewMut { shape, dtype, region })
    }
}

fn raw(device: &Device, address: sys::CUdeviceptr, dtype: DType) -> Result<RawRegion> {
    let Some(context) = device.context() else {
        let (expected, got) = ("a CUDA device".into(), device.to_string());
        return Err(Error::Device { argument: "device", expected, got });
    };
    if !address.is_multiple_of(dtype.bytes() as u64) {
        return Err(Error::Misaligned { address, dtype });
    }
    Ok(RawRegion { address, context: context.clone() })
}

/// The bytes of a tensor of this shape.
pub(super) fn bytes(shape: Shape, dtype: DType) -> u64 {
    (shape.elements() * dtype.bytes()) as u64
}
