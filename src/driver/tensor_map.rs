//! Descriptors of matrices for the tensor memory accelerator.

use super::probe::check;
use crate::dtype::DType;
use crate::error::Result;
use bytemuck::Zeroable;
use cudarc::driver::sys;
use std::ptr;

/// What `TensorMap` is in kernels/sm90a/ptx.cuh. The alignment of the driver's own type depends on
/// the version of CUDA.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct TensorMap {
    opaque: [u64; 16],
}

const _: () = assert!(size_of::<TensorMap>() == 128);

// SAFETY: of zeros, it is one of a matrix that is never read.
unsafe impl Zeroable for TensorMap {}

impl TensorMap {
    /// Boxes of a rows×cols matrix of bf16 or f16 with 16, 32 or 64 columns each, swizzled in shared
    /// memory over the bytes of their columns. Rows start `row_stride` elements apart, at multiples of
    /// 16 bytes. The context must be current: the driver refuses to encode without one.
    pub(crate) fn new(
        address: sys::CUdeviceptr,
        row_stride: usize,
        [rows, cols]: [usize; 2],
        dtype: DType,
        [box_rows, box_cols]: [usize; 2],
    ) -> Result<Self> {
        #[repr(align(128))]
        struct Aligned(sys::CUtensorMap);
        let element = match dtype {
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        let mut map = Aligned(sys::CUtensorMap { opaque: [0; 16] });
        let sizes = [cols as u64, rows as u64];
        let row_bytes = [(row_stride * dtype.bytes()) as u64];
        let (box_sizes, steps) = ([box_cols as u32, box_rows as u32], [1, 1]);
        let swizzle = match box_cols {
            16 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        // SAFETY: only describes the memory; the arrays have an entry a dimension, strides one
        // less, and the map is aligned for every version of CUDA.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                ptr::from_mut(&mut map.0),
                element,
                2,
                address as *mut _,
                sizes.as_ptr(),
                row_bytes.as_ptr(),
                box_sizes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", result)?;
        Ok(TensorMap { opaque: map.0.opaque })
    }
}
