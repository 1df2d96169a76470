//! The parameters of the kernels, laid out as the kernels take them.

use super::tensor_map::TensorMap;
use crate::dtype::DType;
use crate::error::Result;
use crate::manifest::common::limits::MAX_PROJECTIONS;
use crate::manifest::sm80::align::COPIES;
use crate::manifest::sm80::round::MAX_SEGMENTS;
use bytemuck::Zeroable;
use cudarc::driver::sys;

/// The parameters of a kernel, or a part of them.
///
/// # Safety
/// The type must be laid out as the struct of this name that the kernel takes.
pub(crate) unsafe trait KernelParams: Zeroable {}

// Addresses, by what is there.
type F32 = sys::CUdeviceptr;
type ConstF32 = sys::CUdeviceptr;
type Flags = sys::CUdeviceptr;
type ConstU32 = sys::CUdeviceptr;
type Memory = sys::CUdeviceptr;

pub(crate) type Parts = LayerParts;

macro_rules! params {
    ($($arch:ident { $($file:ident { $(
        $(#[$doc:meta])*
        struct $name:ident $(: $base:ident)? {
            $($(#[$field_doc:meta])* $field:ident: $ty:ty,)*
        }
    )* })* })*) => {
        $($($(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, PartialEq)]
            pub(crate) struct $name {
                $(pub(crate) base: $base,)?
                $($(#[$field_doc])* pub(crate) $field: $ty,)*
            }

            // SAFETY: integers, floats, descriptors and addresses, all of which may be zeros.
            unsafe impl Zeroable for $name {}

            // SAFETY: kernels and this file have the struct from one source, and its layout is
            // asserted in both.
            unsafe impl KernelParams for $name {}
        )*)*)*
    };
}
include!("../../kernels/manifest/params.rs");

// Assertions of all sizes and offsets, by the build script.
include!(concat!(env!("OUT_DIR"), "/layout.rs"));

/// The parameters of a kernel with dropout, as WithDropout in C++.
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct WithDropout<P> {
    pub(crate) pass: P,
    pub(crate) dropout: Dropout,
}

// SAFETY: both may be zeros.
unsafe impl<P: Zeroable> Zeroable for WithDropout<P> {}

// SAFETY: the pass is laid out as the kernel takes it, Dropout follows it in both languages, and
// both sizes are asserted.
unsafe impl<P: KernelParams> KernelParams for WithDropout<P> {}

impl Operand {
    /// Rows that start `row_stride` elements apart.
    pub(crate) fn new(data: sys::CUdeviceptr, row_stride: usize, dtype: DType) -> Self {
        let vectors = data.is_multiple_of(16) && (row_stride * dtype.bytes()).is_multiple_of(16);
        Operand { data, ld: row_stride as i32, vectors: vectors.into() }
    }

    /// The same rows from a column on.
    pub(crate) fn columns_from(&self, col: usize, dtype: DType) -> Self {
        Operand::new(self.data + (col * dtype.bytes()) as u64, self.ld as usize, dtype)
    }

    /// Whether all rows start at multiples of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        self.vectors == 1
    }

    /// Boxes of a matrix of so many rows and columns, as the tensor memory accelerator loads them.
    pub(crate) fn boxes(
        &self,
        size: [usize; 2],
        dtype: DType,
        box_size: [usize; 2],
    ) -> Result<TensorMap> {
        TensorMap::new(self.data, self.ld as usize, size, dtype, box_size)
    }

    /// The operand of a stretch of the sum that has no length.
    pub(crate) const NONE: Operand = Operand { data: 0, ld: 0, vectors: 1 };
}

impl Segment {
    pub(crate) fn new(lhs: Operand, rhs: Operand, k: usize) -> Self {
        Segment { lhs, rhs, k: k as i32 }
    }

    pub(crate) const NONE: Segment = Segment { lhs: Operand::NONE, rhs: Operand::NONE, k: 0 };
}

impl AlignedCopy {
    pub(crate) const NONE: AlignedCopy =
        AlignedCopy { from: Operand::NONE, to: Operand::NONE, rows: 0, cols: 0, ctas: 0 };
}

impl ProjectionParams {
    pub(crate) const NONE: ProjectionParams = ProjectionParams {
        lhs: Operand::NONE,
        rhs: Operand::NONE,
        out: Operand::NONE,
        partials: 0,
        arrivals: 0,
        k: 0,
        r: 0,
        scale: 0.0,
        ctas: 0,
    };
}

impl LinearGradient {
    pub(crate) const NONE: LinearGradient = LinearGradient {
        lhs: Operand::NONE,
        rhs: Operand::NONE,
        out: Operand::NONE,
        partials: 0,
        arrivals: 0,
        r: 0,
        n: 0,
        splits: 0,
        rows_per_split: 0,
        transpose: 0,
        waits: 0,
        ctas: 0,
    };
}

impl Parts {
    pub(crate) const NONE: Parts = Parts {
        start: [i32::MAX; MAX_PROJECTIONS],
        rank_start: [i32::MAX; MAX_PROJECTIONS],
        rank: [0; MAX_PROJECTIONS],
        scale: [0.0; MAX_PROJECTIONS],
    };
}
