//! Dense row-major matrices in device memory, and random numbers to fill them with.

use super::Result;
use super::gpu::Gpu;
use lora_kernels::cudarc::driver::sys::{self, CUdeviceptr, CUmemorytype};
use lora_kernels::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result};
use lora_kernels::half::{bf16, f16};
use lora_kernels::{DType, Device, Element, TensorView, TensorViewMut};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::ptr;
use std::sync::Arc;

/// About a million.
pub const PERIOD: usize = 8 * 131_071;

/// A matrix that owns its memory.
///
/// Everything that reads or writes it is enqueued on the one stream of its GPU, so shared
/// references are enough to write.
pub struct Matrix {
    memory: CudaSlice<u8>,
    address: CUdeviceptr,
    device: Device,
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
}

impl Matrix {
    /// A matrix for something to write.
    pub fn new(gpu: &Gpu, [rows, cols]: [usize; 2], dtype: DType) -> Result<Self> {
        let memory = gpu.allocate(rows * cols * dtype.bytes())?;
        let address = memory.device_ptr(&gpu.stream).0;
        Ok(Matrix { memory, address, device: gpu.device.clone(), rows, cols, dtype })
    }

    /// A matrix of numbers with mean 0 and this standard deviation; one seed, one matrix.
    ///
    /// The numbers repeat after [`PERIOD`], to be ready soon. It is 8 times a prime, so no row of a
    /// matrix is a copy of another.
    pub fn gaussian(
        gpu: &Gpu,
        shape: [usize; 2],
        dtype: DType,
        std: f64,
        seed: u64,
    ) -> Result<Self> {
        let mut matrix = Matrix::new(gpu, shape, dtype)?;
        let numbers = gaussian(matrix.elements().min(PERIOD), std, seed);
        match dtype {
            DType::Bf16 => matrix.upload::<bf16>(&numbers)?,
            DType::F16 => matrix.upload::<f16>(&numbers)?,
            _ => matrix.upload::<f32>(&numbers)?,
        }
        let total = matrix.bytes();
        let mut filled = numbers.len() * dtype.bytes();
        while filled < total {
            let bytes = filled.min(total - filled);
            let (to, from) = (matrix.address + filled as u64, matrix.address);
            // SAFETY: both ranges lie in the matrix, and `bytes <= filled` keeps them apart.
            unsafe { result::memcpy_dtod_async(to, from, bytes, gpu.stream.cu_stream()) }?;
            filled += bytes;
        }
        Ok(matrix)
    }

    fn upload<E: Element>(&mut self, numbers: &[f64]) -> Result<()> {
        let values: Vec<E> = numbers.iter().map(|&number| E::from_f64(number)).collect();
        let stream = self.stream().clone();
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        stream.memcpy_htod(bytes, &mut self.memory)?;
        Ok(())
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.memory.stream()
    }

    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.bytes()
    }

    pub fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// The matrix as an input of the crate's operations.
    pub fn view(&self) -> TensorView<'_> {
        let shape = [self.rows, self.cols];
        // SAFETY: the memory holds the shape and outlives the view; the stream orders its use.
        unsafe { TensorView::from_raw(&self.device, self.address, shape, self.cols, self.dtype) }
            .expect("device memory, aligned by its allocator")
    }

    /// The matrix as an output of the crate's operations.
    pub fn view_mut(&self) -> TensorViewMut<'_> {
        let shape = [self.rows, self.cols];
        // SAFETY: as in `view`; nothing else accesses the memory while the stream runs the call.
        unsafe { TensorViewMut::from_raw(&self.device, self.address, shape, self.cols, self.dtype) }
            .expect("device memory, aligned by its allocator")
    }

    /// Fills the matrix with NaNs, so that elements nobody writes are noticed.
    pub fn poison(&self) -> Result<()> {
        let stream = self.stream().cu_stream();
        // SAFETY: the range is the matrix; all bits set is a NaN in every element type.
        Ok(unsafe { result::memset_d8_async(self.address, 0xff, self.bytes(), stream) }?)
    }

    /// Copies `source` into the columns that start at `first`.
    pub fn copy_into_columns(&self, first: usize, source: &Matrix) -> Result<()> {
        assert_eq!((self.rows, self.dtype), (source.rows, source.dtype));
        assert!(first + source.cols <= self.cols);
        let bytes = |cols: usize| cols * self.dtype.bytes();
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: ptr::null(),
            srcDevice: source.address,
            srcArray: ptr::null_mut(),
            srcPitch: bytes(source.cols),
            dstXInBytes: bytes(first),
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: ptr::null_mut(),
            dstDevice: self.address,
            dstArray: ptr::null_mut(),
            dstPitch: bytes(self.cols),
            WidthInBytes: bytes(source.cols),
            Height: self.rows,
        };
        // SAFETY: both matrices hold the ranges named, as asserted, and they are not the same.
        Ok(unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream().cu_stream()) }.result()?)
    }

    /// The first 64 rows and the last 64, on the host. Waits for the device.
    pub fn sample(&self) -> Result<Vec<f32>> {
        match self.dtype {
            DType::Bf16 => self.sample_as::<bf16>(),
            DType::F16 => self.sample_as::<f16>(),
            _ => self.sample_as::<f32>(),
        }
    }

    fn sample_as<E: Element>(&self) -> Result<Vec<f32>> {
        let bytes = self.rows.min(64) * self.cols * self.dtype.bytes();
        let mut values = Vec::new();
        for start in [0, self.bytes() - bytes] {
            let part = self.memory.slice(start..start + bytes);
            let mut host = vec![E::zeroed(); self.rows.min(64) * self.cols];
            self.stream().memcpy_dtoh(&part, bytemuck::cast_slice_mut::<E, u8>(&mut host))?;
            self.stream().synchronize()?;
            values.extend(host.into_iter().map(|value| value.to_f64() as f32));
        }
        Ok(values)
    }
}

/// Matrices of one shape that calls take in turns, so that none is found in the L2 cache.
pub struct Rotating(Vec<Matrix>);

impl Rotating {
    pub fn new(sets: usize, make: impl FnMut(usize) -> Result<Matrix>) -> Result<Self> {
        Ok(Rotating((0..sets).map(make).collect::<Result<_>>()?))
    }

    /// The matrix of call `i`.
    pub fn at(&self, i: usize) -> &Matrix {
        &self.0[i % self.0.len()]
    }

    pub fn sets(&self) -> usize {
        self.0.len()
    }
}

/// Nearly normal numbers: each the sum of four uniform ones, the quarters of 64 random bits.
/// Hundreds of matrices are filled this way, and a true normal distribution takes far longer.
pub fn gaussian(n: usize, std: f64, seed: u64) -> Vec<f64> {
    // Four numbers uniform in 0..2^16 have the mean 2 · (2^16 − 1) and the variance 2^32 / 3.
    let (mean, unit) = (131_070.0, std * 3f64.sqrt() / 65_536.0);
    let mut rng = Pcg64::seed_from_u64(seed);
    let number = || {
        let bits = rng.next_u64();
        let sum: u64 = [0, 16, 32, 48].into_iter().map(|shift| (bits >> shift) & 0xffff).sum();
        (sum as f64 - mean) * unit
    };
    std::iter::repeat_with(number).take(n).collect()
}
