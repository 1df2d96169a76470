//! The parameters of the kernels, laid out as the kernels take them.

use crate::plan::MAX_PROJECTIONS;
use crate::DType;
use cudarc::driver::{sys, DeviceRepr};

/// A matrix in device memory, as `Operand` in kernels/tile.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub(super) data: sys::CUdeviceptr,
    pub(super) ld: i32,
    pub(super) vectors: i32,
}

impl Operand {
    /// Dense rows of `cols` elements.
    pub(super) fn new(data: sys::CUdeviceptr, cols: usize, dtype: DType) -> Self {
        let vectors = data.is_multiple_of(16) && (cols * dtype.bytes()).is_multiple_of(16);
        Operand { data, ld: cols as i32, vectors: vectors.into() }
    }

    /// The same rows from a column on.
    pub(super) fn columns_from(&self, col: usize, dtype: DType) -> Self {
        Operand::new(self.data + (col * dtype.bytes()) as u64, self.ld as usize, dtype)
    }

    /// The operand of a stretch of the sum that has no length.
    pub(super) const NONE: Operand = Operand { data: 0, ld: 0, vectors: 1 };
}

/// A stretch of the inner dimension, as `Segment` in kernels/tile.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Segment {
    lhs: Operand,
    rhs: Operand,
    k: i32,
}

impl Segment {
    pub(super) fn new(lhs: Operand, rhs: Operand, k: usize) -> Self {
        Segment { lhs, rhs, k: k as i32 }
    }

    pub(super) const NONE: Segment = Segment { lhs: Operand::NONE, rhs: Operand::NONE, k: 0 };
}

/// As in kernels/linear.cu.
#[repr(C)]
pub(super) struct LinearParams {
    /// The first `count` are used: a product with each W0, and the adapters'.
    pub(super) segments: [Segment; MAX_PROJECTIONS + 1],
    pub(super) out: Operand,
    pub(super) m: i32,
    pub(super) n: i32,
    pub(super) count: i32,
}

/// As in kernels/project.cu.
#[repr(C)]
pub(super) struct ProjectParams {
    pub(super) lhs: Operand,
    pub(super) rhs: Operand,
    pub(super) out: Operand,
    pub(super) m: i32,
    pub(super) r: i32,
    pub(super) k: i32,
    pub(super) ends: [i32; MAX_PROJECTIONS],
    pub(super) scales: [f32; MAX_PROJECTIONS],
}

/// As in kernels/grad.cu.
#[repr(C)]
pub(super) struct GradParams {
    pub(super) lhs: Operand,
    pub(super) rhs: Operand,
    pub(super) partials: Operand,
    pub(super) t: i32,
    pub(super) r: i32,
    pub(super) n: i32,
    pub(super) rows_per_split: i32,
}

/// As in kernels/reduce.cu.
#[repr(C)]
pub(super) struct ReduceParams {
    pub(super) partials: sys::CUdeviceptr,
    pub(super) out: sys::CUdeviceptr,
    pub(super) splits: i32,
    pub(super) r: i32,
    pub(super) n: i32,
    pub(super) transpose: i32,
    pub(super) accumulate: i32,
}

/// As in kernels/merge.cu.
#[repr(C)]
pub(super) struct MergeParams {
    pub(super) w: Operand,
    pub(super) b: Operand,
    pub(super) a: Operand,
    pub(super) out: Operand,
    pub(super) d: i32,
    pub(super) k: i32,
    pub(super) r: i32,
    pub(super) scale: f32,
}

// The same sizes are asserted in the kernels.
const _: () = {
    assert!(size_of::<Operand>() == 16);
    assert!(size_of::<Segment>() == 40);
    assert!(size_of::<LinearParams>() == 232);
    assert!(size_of::<ProjectParams>() == 96);
    assert!(size_of::<GradParams>() == 64);
    assert!(size_of::<ReduceParams>() == 40);
    assert!(size_of::<MergeParams>() == 80);
};

// SAFETY: plain integers, floats and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for LinearParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ProjectParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for GradParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ReduceParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for MergeParams {}
