//! Dense row-major tensors: owned, and borrowed from whoever owns the memory.

use crate::cuda::{Allocation, Region, RegionMut};
use crate::device::Backend;
use crate::ops::check_device;
use crate::{DType, Device, Element, Error, IntoShape, Result, Shape};
use half::{bf16, f16};
use std::ops::Range;

/// A dense row-major tensor that owns its memory: a device buffer, or a `Vec` on the CPU device.
///
/// There is no broadcasting, no striding and no autograd. A tensor may have no elements, which
/// is only of use as an empty workspace.
#[derive(Debug)]
pub struct Tensor {
    shape: Shape,
    device: Device,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Host(HostBuffer),
    Cuda { dtype: DType, allocation: Allocation },
}

/// Host memory, kept typed so that it is aligned for its elements.
#[derive(Debug, Clone)]
enum HostBuffer {
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl HostBuffer {
    fn zeros(dtype: DType, elements: usize) -> Result<Self> {
        fn zeros<E: Element>(elements: usize) -> Result<Vec<E>> {
            let mut values = Vec::new();
            let bytes = elements * size_of::<E>();
            values.try_reserve_exact(elements).map_err(|_| Error::OutOfMemory { bytes })?;
            values.resize(elements, E::zeroed());
            Ok(values)
        }
        Ok(match dtype {
            DType::Bf16 => HostBuffer::Bf16(zeros(elements)?),
            DType::F16 => HostBuffer::F16(zeros(elements)?),
            DType::F32 => HostBuffer::F32(zeros(elements)?),
        })
    }

    fn dtype(&self) -> DType {
        match self {
            HostBuffer::Bf16(_) => DType::Bf16,
            HostBuffer::F16(_) => DType::F16,
            HostBuffer::F32(_) => DType::F32,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            HostBuffer::Bf16(values) => bytemuck::cast_slice(values),
            HostBuffer::F16(values) => bytemuck::cast_slice(values),
            HostBuffer::F32(values) => bytemuck::cast_slice(values),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            HostBuffer::Bf16(values) => bytemuck::cast_slice_mut(values),
            HostBuffer::F16(values) => bytemuck::cast_slice_mut(values),
            HostBuffer::F32(values) => bytemuck::cast_slice_mut(values),
        }
    }
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the bytes asked for; [`Error::TooLarge`] for the shape.
    pub fn zeros(device: &Device, shape: impl IntoShape, dtype: DType) -> Result<Self> {
        let shape = shape.into_shape()?;
        let storage = match &device.backend {
            Backend::Cpu => Storage::Host(HostBuffer::zeros(dtype, shape.elements())?),
            Backend::Cuda(cuda) => {
                let allocation = cuda.allocate_zeros(shape.elements() * dtype.bytes())?;
                Storage::Cuda { dtype, allocation }
            }
        };
        Ok(Tensor { shape, device: device.clone(), storage })
    }

    /// A tensor whose elements an operation is about to write, all of them.
    pub(crate) fn for_output(device: &Device, shape: Shape, dtype: DType) -> Result<Self> {
        let storage = match &device.backend {
            Backend::Cpu => return Tensor::zeros(device, shape, dtype),
            Backend::Cuda(cuda) => {
                let allocation = cuda.allocate(shape.elements() * dtype.bytes())?;
                Storage::Cuda { dtype, allocation }
            }
        };
        Ok(Tensor { shape, device: device.clone(), storage })
    }

    /// The rows of views of tensors, one below the other, of the columns and the element type of the
    /// first. Errors call each of them `argument`.
    pub(crate) fn stacked(
        device: &Device,
        argument: &'static str,
        parts: &[TensorView<'_>],
    ) -> Result<Self> {
        let (cols, dtype) = (parts[0].shape.cols(), parts[0].dtype);
        let rows = parts.iter().map(|part| part.shape.rows()).sum();
        let mut stacked = Tensor::for_output(device, Shape::new(&[rows, cols])?, dtype)?;
        let mut start = 0;
        for part in parts {
            stacked.copy_part(start, argument, part)?;
            start += part.shape.elements() * dtype.bytes();
        }
        Ok(stacked)
    }

    /// A tensor with the given values, row-major.
    ///
    /// # Errors
    /// [`Error::Length`] if the shape asks for another number of elements, and as for
    /// [`Tensor::zeros`].
    pub fn from_slice<E: Element>(
        device: &Device,
        values: &[E],
        shape: impl IntoShape,
    ) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, values.len())?;
        let mut tensor = Tensor::for_output(device, shape, E::DTYPE)?;
        tensor.copy_from_slice(values)?;
        Ok(tensor)
    }

    /// A tensor of element type `dtype` with the given values, each rounded to it.
    ///
    /// # Errors
    /// As for [`Tensor::from_slice`].
    pub fn from_f32(
        device: &Device,
        values: &[f32],
        shape: impl IntoShape,
        dtype: DType,
    ) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, values.len())?;
        let mut tensor = Tensor::for_output(device, shape, dtype)?;
        tensor.copy_from_f32(values)?;
        Ok(tensor)
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Host(buffer) => buffer.dtype(),
            Storage::Cuda { dtype, .. } => *dtype,
        }
    }

    /// The device the tensor lives on, and whose stream orders its use.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype().bytes()
    }

    /// Overwrites all elements with host values, row-major.
    ///
    /// # Errors
    /// [`Error::DType`] or [`Error::Length`] if the values do not fit the tensor.
    pub fn copy_from_slice<E: Element>(&mut self, values: &[E]) -> Result<()> {
        self.check_element::<E>()?;
        check_length(self.shape, values.len())?;
        match &mut self.storage {
            Storage::Host(buffer) => {
                buffer.bytes_mut().copy_from_slice(bytemuck::cast_slice(values))
            }
            Storage::Cuda { allocation, .. } => {
                allocation.copy_from_host(bytemuck::cast_slice(values))?
            }
        }
        Ok(())
    }

    /// Overwrites all elements with host values, row-major, each rounded to the element type: how
    /// an optimiser that keeps f32 weights on the host hands them over.
    ///
    /// # Errors
    /// [`Error::Length`] if there are more or fewer values than elements.
    pub fn copy_from_f32(&mut self, values: &[f32]) -> Result<()> {
        fn rounded<E: Element>(values: &[f32]) -> Vec<E> {
            values.iter().map(|&value| E::from_f64(value.into())).collect()
        }
        match self.dtype() {
            DType::Bf16 => self.copy_from_slice(&rounded::<bf16>(values)),
            DType::F16 => self.copy_from_slice(&rounded::<f16>(values)),
            DType::F32 => self.copy_from_slice(values),
        }
    }

    /// Overwrites all elements with those of a tensor of the same shape, type and device.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if they differ.
    pub fn copy_from(&mut self, source: &Tensor) -> Result<()> {
        if source.shape != self.shape {
            let expected = self.shape.to_string();
            return Err(Error::Shape { argument: "source", expected, got: source.shape });
        }
        if source.dtype() != self.dtype() {
            let expected = "the element type of the destination";
            return Err(Error::DType { argument: "source", expected, got: source.dtype() });
        }
        self.copy_part(0, "source", &source.view())
    }

    /// A copy on the same device.
    ///
    /// # Errors
    /// As for [`Tensor::zeros`].
    pub fn try_clone(&self) -> Result<Self> {
        let mut copy = Tensor::for_output(&self.device, self.shape, self.dtype())?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// All elements on the host, row-major. Waits for the device.
    ///
    /// # Errors
    /// [`Error::DType`] if the tensor does not hold `E`.
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>> {
        self.check_element::<E>()?;
        let mut values = vec![E::zeroed(); self.shape.elements()];
        match &self.storage {
            Storage::Host(buffer) => values.copy_from_slice(bytemuck::cast_slice(buffer.bytes())),
            Storage::Cuda { allocation, .. } => {
                allocation.copy_to_host(bytemuck::cast_slice_mut(&mut values))?
            }
        }
        Ok(values)
    }

    /// All elements on the host as f32, which every element type converts to exactly.
    ///
    /// # Errors
    /// [`Error::Driver`] if the copy or earlier work on the stream failed.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype() {
            DType::Bf16 => self.to_vec::<bf16>()?.into_iter().map(f32::from).collect(),
            DType::F16 => self.to_vec::<f16>()?.into_iter().map(f32::from).collect(),
            DType::F32 => self.to_vec::<f32>()?,
        })
    }

    /// The tensor as an input of an operation.
    pub fn view(&self) -> TensorView<'_> {
        let region = match &self.storage {
            Storage::Host(buffer) => Region::Host(buffer.bytes()),
            Storage::Cuda { allocation, .. } => allocation.region(),
        };
        TensorView { shape: self.shape, dtype: self.dtype(), region }
    }

    /// The tensor as an output of an operation.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        let (shape, dtype) = (self.shape, self.dtype());
        let region = match &mut self.storage {
            Storage::Host(buffer) => RegionMut::Host(buffer.bytes_mut()),
            Storage::Cuda { allocation, .. } => allocation.region_mut(),
        };
        TensorViewMut { shape, dtype, region }
    }

    /// Overwrites the bytes from `start` on with those of a view of a tensor, which fits there.
    fn copy_part(
        &mut self,
        start: usize,
        argument: &'static str,
        source: &TensorView<'_>,
    ) -> Result<()> {
        check_device(&self.device, argument, source.region.place())?;
        match (&mut self.storage, &source.region) {
            (Storage::Host(to), Region::Host(from)) => {
                to.bytes_mut()[start..start + from.len()].copy_from_slice(from)
            }
            (Storage::Cuda { allocation, .. }, Region::Cuda(from)) => {
                allocation.copy_from(start, from)?
            }
            _ => unreachable!("checked to be on the same device, and no tensor is a raw address"),
        }
        Ok(())
    }

    fn check_element<E: Element>(&self) -> Result<()> {
        if self.dtype() == E::DTYPE {
            return Ok(());
        }
        let expected = match E::DTYPE {
            DType::Bf16 => "bf16, as the host values",
            DType::F16 => "f16, as the host values",
            DType::F32 => "f32, as the host values",
        };
        Err(Error::DType { argument: "tensor", expected, got: self.dtype() })
    }
}

/// A borrowed tensor that an operation reads.
///
/// Made from a [`Tensor`], a host slice, a caller's `CudaSlice` or `CudaView`
/// ([`TensorView::from_cuda`]) or a raw device address ([`TensorView::from_raw`]), never with a
/// copy.
#[derive(Debug)]
pub struct TensorView<'a> {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) region: Region<'a>,
}

impl<'a> TensorView<'a> {
    /// A view of host memory, for the CPU device.
    ///
    /// # Errors
    /// [`Error::Length`] if the shape asks for another number of elements.
    pub fn from_host<E: Element>(values: &'a [E], shape: impl IntoShape) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, values.len())?;
        let region = Region::Host(bytemuck::cast_slice(values));
        Ok(TensorView { shape, dtype: E::DTYPE, region })
    }

    /// Some of its rows, as a matrix: of the stacked A of several projections, the A of one.
    ///
    /// # Errors
    /// [`Error::Shape`] if it does not have them all.
    pub fn rows(self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.shape.rows() {
            let expected = format!("one with rows {rows:?}");
            return Err(Error::Shape { argument: "tensor", expected, got: self.shape });
        }
        let shape = Shape::new(&[rows.len(), self.shape.cols()])?;
        let bytes = self.shape.cols() * self.dtype.bytes();
        let region = self.region.part(rows.start * bytes..rows.end * bytes);
        Ok(TensorView { shape, dtype: self.dtype, region })
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

/// A borrowed tensor that an operation writes. See [`TensorView`] for where it comes from.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) region: RegionMut<'a>,
}

impl<'a> TensorViewMut<'a> {
    /// A view of host memory, for the CPU device.
    ///
    /// # Errors
    /// [`Error::Length`] if the shape asks for another number of elements.
    pub fn from_host<E: Element>(values: &'a mut [E], shape: impl IntoShape) -> Result<Self> {
        let shape = shape.into_shape()?;
        check_length(shape, values.len())?;
        let region = RegionMut::Host(bytemuck::cast_slice_mut(values));
        Ok(TensorViewMut { shape, dtype: E::DTYPE, region })
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

pub(crate) fn check_length(shape: Shape, got: usize) -> Result<()> {
    if shape.elements() == got {
        Ok(())
    } else {
        Err(Error::Length { shape, got })
    }
}
