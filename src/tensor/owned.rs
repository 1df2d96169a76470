//! Tensors that own their memory.

use super::layout::check_length;
use super::view::{Memory, MemoryMut, TensorView, TensorViewMut};
use crate::device::Device;
use crate::driver::{Allocation, DeviceMemory, DeviceMemoryMut};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::{IntoShape, Shape};
use half::{bf16, f16};

/// A dense row-major tensor that owns its memory: a device buffer, or a `Vec` on the CPU device.
///
/// It has one to six dimensions and no broadcasting or autograd. A tensor with no elements is an
/// empty batch.
///
/// Any thread may use and drop it, and several streams of its context may use it: see
/// [`Device`](crate::Device#threads-and-streams).
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
    /// [`Error::OutOfMemory`] with the bytes asked for; [`Error::TooLarge`] for the shape;
    /// [`Error::Driver`]; [`Error::Capture`] while the stream captures.
    pub fn zeros(device: &Device, shape: impl IntoShape, dtype: DType) -> Result<Self> {
        let shape = shape.into_shape()?;
        let storage = match device.queue() {
            None => Storage::Host(HostBuffer::zeros(dtype, shape.elements())?),
            Some(stream) => {
                let allocation = stream.allocate_zeros(shape.elements() * dtype.bytes())?;
                Storage::Cuda { dtype, allocation }
            }
        };
        Ok(Tensor { shape, device: device.clone(), storage })
    }

    /// A tensor whose elements an operation is about to write, all of them.
    pub(crate) fn for_output(device: &Device, shape: Shape, dtype: DType) -> Result<Self> {
        let storage = match device.queue() {
            None => return Tensor::zeros(device, shape, dtype),
            Some(stream) => {
                let allocation = stream.allocate(shape.elements() * dtype.bytes())?;
                Storage::Cuda { dtype, allocation }
            }
        };
        Ok(Tensor { shape, device: device.clone(), storage })
    }

    /// The rows of dense views of tensors, one below the other, of the columns and the element type
    /// of the first. Errors call each of them `argument`.
    pub(crate) fn stacked(
        device: &Device,
        argument: &'static str,
        parts: &[TensorView<'_>],
    ) -> Result<Self> {
        let (cols, dtype) = (parts[0].shape().cols(), parts[0].dtype());
        let rows = parts.iter().map(|part| part.shape().rows()).sum();
        let mut stacked = Tensor::for_output(device, Shape::new(&[rows, cols])?, dtype)?;
        let mut start = 0;
        for part in parts {
            stacked.copy_part(start, argument, part)?;
            start += part.shape().elements() * dtype.bytes();
        }
        Ok(stacked)
    }

    /// A tensor with the given values, row-major.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one value for every element of the shape, and as for
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

    /// A tensor of element type `dtype` with the given values, row-major, each rounded to the
    /// nearest of that type.
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

    /// The device that the tensor was made on.
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
    /// [`Error::DType`] or [`Error::Length`] if the values do not fit the tensor;
    /// [`Error::Driver`]; [`Error::Capture`] while the stream captures.
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

    /// Overwrites all elements with host values, row-major, each rounded to the element type: for
    /// an optimiser that keeps f32 weights on the host.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one value for every element; [`Error::Driver`];
    /// [`Error::Capture`] while the stream captures.
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
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if they differ; [`Error::Driver`].
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
    /// [`Error::DType`] if the tensor does not hold `E`; [`Error::Driver`] if the copy or earlier
    /// work on the stream failed; [`Error::Capture`] while the stream captures.
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
    /// [`Error::Driver`] if the copy or earlier work on the stream failed; [`Error::Capture`] while
    /// the stream captures.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype() {
            DType::Bf16 => self.to_vec::<bf16>()?.into_iter().map(f32::from).collect(),
            DType::F16 => self.to_vec::<f16>()?.into_iter().map(f32::from).collect(),
            DType::F32 => self.to_vec::<f32>()?,
        })
    }

    /// The tensor as an input of an operation.
    pub fn view(&self) -> TensorView<'_> {
        let memory = match &self.storage {
            Storage::Host(buffer) => Memory::Host(buffer.bytes()),
            Storage::Cuda { allocation, .. } => Memory::Cuda(DeviceMemory::Owned(allocation)),
        };
        TensorView::new(self.shape, self.dtype(), memory)
    }

    /// The tensor as an output of an operation.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        let (shape, dtype) = (self.shape, self.dtype());
        let memory = match &mut self.storage {
            Storage::Host(buffer) => MemoryMut::Host(buffer.bytes_mut()),
            Storage::Cuda { allocation, .. } => MemoryMut::Cuda(DeviceMemoryMut::Owned(allocation)),
        };
        TensorViewMut::new(shape, dtype, memory)
    }

    /// Overwrites the bytes from `start` on with a dense view of a tensor, which fits.
    fn copy_part(
        &mut self,
        start: usize,
        argument: &'static str,
        source: &TensorView<'_>,
    ) -> Result<()> {
        if !source.is_usable_on(&self.device) {
            let got = source.context().map_or("the CPU".into(), |context| context.to_string());
            return Err(Error::Device { argument, expected: self.device.to_string(), got });
        }
        let bytes = source.shape().elements() * source.dtype().bytes();
        match (&mut self.storage, source.memory()) {
            (Storage::Host(to), Memory::Host(_)) => {
                to.bytes_mut()[start..start + bytes].copy_from_slice(&source.host_bytes()[..bytes]);
                Ok(())
            }
            (Storage::Cuda { allocation, .. }, Memory::Cuda(DeviceMemory::Owned(from))) => {
                allocation.copy_from(start, from, source.start(), bytes)
            }
            _ => unreachable!("checked to be on the same device, and of a tensor"),
        }
    }

    /// The allocation of a tensor on a CUDA device.
    pub(crate) fn allocation(&self) -> Option<&Allocation> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Cuda { allocation, .. } => Some(allocation),
        }
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
