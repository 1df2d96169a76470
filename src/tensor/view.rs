//! Borrowed tensors.

use super::layout::{Layout, check_length};
use crate::device::Device;
use crate::driver::{
    ContextId, CudaMemory, CudaMemoryMut, DeviceMemory, DeviceMemoryMut, LentUse, RawMemory, Run,
};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::{IntoShape, Shape};
use std::fmt;
use std::ops::Range;

/// A borrowed tensor that an operation reads.
///
/// It is made, without a copy, from a [`Tensor`](crate::Tensor), a host slice
/// ([`TensorView::from_host`]), a caller's `CudaSlice` or `CudaView` ([`TensorView::from_cuda`]) or
/// a raw device address ([`TensorView::from_raw`]). Its row stride may be larger than its rows:
/// some columns of a wider matrix are such a view ([`TensorView::columns`]).
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    layout: Layout,
    memory: Memory<'a>,
}

/// A borrowed tensor that an operation writes. It is made like a [`TensorView`].
///
/// It is not `Copy`: [`TensorViewMut::reborrow`] lends it on.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    layout: Layout,
    memory: MemoryMut<'a>,
}

/// What a view reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Memory<'a> {
    Host(&'a [u8]),
    Cuda(DeviceMemory<'a>),
}

/// What a view writes.
#[derive(Debug)]
pub(crate) enum MemoryMut<'a> {
    Host(&'a mut [u8]),
    Cuda(DeviceMemoryMut<'a>),
}

fn raw(device: &Device, address: u64, dtype: DType) -> Result<RawMemory> {
    let Some(context) = device.context() else {
        let (expected, got) = ("a CUDA device".into(), device.to_string());
        return Err(Error::Device { argument: "device", expected, got });
    };
    if !address.is_multiple_of(dtype.bytes() as u64) {
        return Err(Error::Misaligned { address, dtype });
    }
    Ok(RawMemory::new(context, address))
}

impl<'a> TensorView<'a> {
    /// All of a tensor's memory.
    pub(super) fn new(shape: Shape, dtype: DType, memory: Memory<'a>) -> Self {
        TensorView { layout: Layout::dense(shape, dtype), memory }
    }

    /// A view of host memory, for the CPU device.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one value for every element of the shape.
    pub fn from_host<E: Element>(values: &'a [E], shape: impl IntoShape) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, values.len())?;
        let memory = Memory::Host(bytemuck::cast_slice(values));
        Ok(TensorView::new(shape, E::DTYPE, memory))
    }

    /// A view of a caller's device memory: a `CudaSlice`, or a `CudaView` of a part of one.
    ///
    /// cudarc's events order its uses: see [`Device`](crate::Device#threads-and-streams).
    ///
    /// # Errors
    /// [`Error::Length`] unless the slice has one element for every element of the shape.
    pub fn from_cuda<E: Element>(
        slice: &'a impl CudaMemory<E>,
        shape: impl IntoShape,
    ) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, slice.elements())?;
        Ok(TensorView::new(shape, E::DTYPE, Memory::Cuda(DeviceMemory::Lent(slice))))
    }

    /// The same with rows `row_stride` elements apart: a tensor that was narrowed along its last
    /// dimension. The slice may end with the last element of the last row.
    ///
    /// # Errors
    /// [`Error::Length`] if the slice is too short; [`Error::Shape`] if rows are longer than the
    /// stride.
    pub fn from_cuda_strided<E: Element>(
        slice: &'a impl CudaMemory<E>,
        shape: impl IntoShape,
        row_stride: usize,
    ) -> Result<Self> {
        let layout = Layout::strided(shape.into_shape()?, row_stride, E::DTYPE)?;
        layout.check_extent(slice.elements())?;
        Ok(TensorView { layout, memory: Memory::Cuda(DeviceMemory::Lent(slice)) })
    }

    /// A view of device memory at `address`, in the context of `device`, with rows `row_stride`
    /// elements apart. The row stride of dense rows is the last dimension of `shape`.
    ///
    /// # Errors
    /// [`Error::Misaligned`] unless `address` is a multiple of the element's size;
    /// [`Error::Device`] if `device` is the CPU; [`Error::Shape`] if rows are longer than the
    /// stride.
    ///
    /// # Safety
    /// `address` must point to memory of the device's context that holds these elements of `dtype`
    /// and stays allocated until the work that uses the view is done. The caller must order writes
    /// of the memory before the calls that read it, on the device's stream.
    #[allow(unsafe_code)]
    pub unsafe fn from_raw(
        device: &Device,
        address: u64,
        shape: impl IntoShape,
        row_stride: usize,
        dtype: DType,
    ) -> Result<Self> {
        let layout = Layout::strided(shape.into_shape()?, row_stride, dtype)?;
        let memory = Memory::Cuda(DeviceMemory::Raw(raw(device, address, dtype)?));
        Ok(TensorView { layout, memory })
    }

    /// Some rows, as a matrix [n, columns]: one projection's A of the stacked A, say.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range is not within the view.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        Ok(TensorView { layout: self.layout.rows(rows)?, memory: self.memory })
    }

    /// Some columns of every row.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range is not within the view.
    pub fn columns(&self, columns: Range<usize>) -> Result<Self> {
        Ok(TensorView { layout: self.layout.columns(columns)?, memory: self.memory })
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.layout.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.layout.dtype
    }

    /// Elements from the start of a row to that of the next.
    pub fn row_stride(&self) -> usize {
        self.layout.row_stride
    }

    /// Whether the row stride is the last dimension, so that the elements are one slice.
    pub fn is_dense(&self) -> bool {
        self.layout.row_stride == self.layout.shape.cols()
    }

    pub(crate) fn memory(&self) -> Memory<'a> {
        self.memory
    }

    /// Bytes from the start of the memory to the first element.
    pub(crate) fn start(&self) -> usize {
        self.layout.start
    }

    /// Elements from the first to the last, inclusive.
    pub(crate) fn extent(&self) -> usize {
        self.layout.extent()
    }

    /// The bytes of a view that was checked to be of host memory, from the first element on.
    pub(crate) fn host_bytes(&self) -> &'a [u8] {
        match self.memory {
            Memory::Host(bytes) => &bytes[self.layout.start..],
            Memory::Cuda(_) => unreachable!("device memory passed to the CPU reference"),
        }
    }

    /// The address of a view that was checked to be of memory in the call's context.
    pub(crate) fn resolve(&self, run: &Run<'a>) -> Result<(u64, Option<LentUse<'a>>)> {
        match self.memory {
            Memory::Cuda(memory) => {
                let (address, lent) = memory.resolve(run)?;
                Ok((address + self.layout.start as u64, lent))
            }
            Memory::Host(_) => unreachable!("host memory passed to a kernel"),
        }
    }

    /// Where the memory is, for errors; `None` on the host.
    pub(crate) fn context(&self) -> Option<ContextId> {
        match self.memory {
            Memory::Host(_) => None,
            Memory::Cuda(memory) => Some(memory.context()),
        }
    }

    /// Whether calls on the device may read it.
    pub(crate) fn is_usable_on(&self, device: &Device) -> bool {
        match (self.memory, device.queue()) {
            (Memory::Host(_), None) => true,
            (Memory::Cuda(memory), Some(stream)) => memory.is_usable_on(stream),
            _ => false,
        }
    }
}

impl<'a> TensorViewMut<'a> {
    /// All of a tensor's memory.
    pub(super) fn new(shape: Shape, dtype: DType, memory: MemoryMut<'a>) -> Self {
        TensorViewMut { layout: Layout::dense(shape, dtype), memory }
    }

    /// A view of host memory, for the CPU device.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one value for every element of the shape.
    pub fn from_host<E: Element>(values: &'a mut [E], shape: impl IntoShape) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, values.len())?;
        let memory = MemoryMut::Host(bytemuck::cast_slice_mut(values));
        Ok(TensorViewMut::new(shape, E::DTYPE, memory))
    }

    /// A view of a caller's device memory: a `CudaSlice`, or a `CudaViewMut` of a part of one.
    ///
    /// # Errors
    /// As for [`TensorView::from_cuda`].
    pub fn from_cuda<E: Element>(
        slice: &'a mut impl CudaMemoryMut<E>,
        shape: impl IntoShape,
    ) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, slice.elements_mut())?;
        let memory = MemoryMut::Cuda(DeviceMemoryMut::Lent(slice));
        Ok(TensorViewMut::new(shape, E::DTYPE, memory))
    }

    /// The same with rows `row_stride` elements apart. Elements between the rows are not written.
    ///
    /// # Errors
    /// As for [`TensorView::from_cuda_strided`].
    pub fn from_cuda_strided<E: Element>(
        slice: &'a mut impl CudaMemoryMut<E>,
        shape: impl IntoShape,
        row_stride: usize,
    ) -> Result<Self> {
        let layout = Layout::strided(shape.into_shape()?, row_stride, E::DTYPE)?;
        layout.check_extent(slice.elements_mut())?;
        Ok(TensorViewMut { layout, memory: MemoryMut::Cuda(DeviceMemoryMut::Lent(slice)) })
    }

    /// A view of device memory at `address`, in the context of `device`, with rows `row_stride`
    /// elements apart. Elements between the rows are not written.
    ///
    /// # Errors
    /// As for [`TensorView::from_raw`].
    ///
    /// # Safety
    /// As for [`TensorView::from_raw`]; and nothing else may access the elements until the work
    /// that writes them is done.
    #[allow(unsafe_code)]
    pub unsafe fn from_raw(
        device: &Device,
        address: u64,
        shape: impl IntoShape,
        row_stride: usize,
        dtype: DType,
    ) -> Result<Self> {
        let layout = Layout::strided(shape.into_shape()?, row_stride, dtype)?;
        let memory = MemoryMut::Cuda(DeviceMemoryMut::Raw(raw(device, address, dtype)?));
        Ok(TensorViewMut { layout, memory })
    }

    /// The same view for a shorter lifetime.
    pub fn reborrow(&mut self) -> TensorViewMut<'_> {
        let memory = match &mut self.memory {
            MemoryMut::Host(bytes) => MemoryMut::Host(bytes),
            MemoryMut::Cuda(memory) => MemoryMut::Cuda(memory.reborrow()),
        };
        TensorViewMut { layout: self.layout, memory }
    }

    /// Some rows, as a matrix.
    ///
    /// # Errors
    /// As for [`TensorView::rows`].
    pub fn rows(self, rows: Range<usize>) -> Result<Self> {
        Ok(TensorViewMut { layout: self.layout.rows(rows)?, memory: self.memory })
    }

    /// Some columns of every row. Several outputs in one matrix, such as q, k and v side by side,
    /// need [`TensorViewMut::from_raw`]: two safe views cannot share memory.
    ///
    /// # Errors
    /// As for [`TensorView::columns`].
    pub fn columns(self, columns: Range<usize>) -> Result<Self> {
        Ok(TensorViewMut { layout: self.layout.columns(columns)?, memory: self.memory })
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.layout.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.layout.dtype
    }

    /// Elements from the start of a row to that of the next.
    pub fn row_stride(&self) -> usize {
        self.layout.row_stride
    }

    /// As [`TensorView::is_dense`].
    pub fn is_dense(&self) -> bool {
        self.layout.row_stride == self.layout.shape.cols()
    }

    /// Elements from the first to the last, inclusive.
    pub(crate) fn extent(&self) -> usize {
        self.layout.extent()
    }

    /// As [`TensorView::host_bytes`].
    pub(crate) fn host_bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            MemoryMut::Host(bytes) => &mut bytes[self.layout.start..],
            MemoryMut::Cuda(_) => unreachable!("device memory passed to the CPU reference"),
        }
    }

    /// As [`TensorView::resolve`].
    pub(crate) fn resolve<'r>(&'r mut self, run: &Run<'r>) -> Result<(u64, Option<LentUse<'r>>)> {
        match &mut self.memory {
            MemoryMut::Cuda(memory) => {
                let (address, lent) = memory.resolve(run)?;
                Ok((address + self.layout.start as u64, lent))
            }
            MemoryMut::Host(_) => unreachable!("host memory passed to a kernel"),
        }
    }

    /// As [`TensorView::context`].
    pub(crate) fn context(&self) -> Option<ContextId> {
        match &self.memory {
            MemoryMut::Host(_) => None,
            MemoryMut::Cuda(memory) => Some(memory.context()),
        }
    }

    /// Whether calls on the device may write it.
    pub(crate) fn is_usable_on(&self, device: &Device) -> bool {
        match (&self.memory, device.queue()) {
            (MemoryMut::Host(_), None) => true,
            (MemoryMut::Cuda(memory), Some(stream)) => memory.is_usable_on(stream),
            _ => false,
        }
    }
}

impl fmt::Display for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.dtype(), self.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_narrow_without_a_copy() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let view = TensorView::from_host(&values, [2, 3, 4]).unwrap();
        let first =
            |view: TensorView<'_>| bytemuck::cast_slice::<u8, f32>(&view.host_bytes()[..4])[0];
        let rows = view.rows(2..5).unwrap();
        assert_eq!((rows.shape().dims(), first(rows)), (&[3, 4][..], 8.0));
        let columns = view.columns(1..3).unwrap();
        assert_eq!((columns.shape().dims(), first(columns)), (&[2, 3, 2][..], 1.0));
        assert_eq!((columns.row_stride(), columns.is_dense()), (4, false));
        assert_eq!(columns.extent(), 5 * 4 + 2);
        assert_eq!(first(columns.rows(3..4).unwrap().columns(1..2).unwrap()), 14.0);
        for range in [Range { start: 2, end: 1 }, 0..7] {
            assert!(matches!(view.rows(range), Err(Error::Shape { .. })));
        }
        assert!(matches!(view.columns(3..5), Err(Error::Shape { .. })));
    }
}
