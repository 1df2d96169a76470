//! The parameters of the kernels, laid out as the kernels take them.

use super::tensor_map::TensorMap;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::MAX_PROJECTIONS;
use cudarc::driver::sys;

/// The parameters of a kernel.
///
/// # Safety
/// The type must be laid out as the struct that the kernel takes.
pub(crate) unsafe trait KernelParams {}

/// A matrix in device memory, as `Operand` in kernels/sm80/tile.cuh.
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Operand {
    pub(crate) data: sys::CUdeviceptr,
    pub(crate) ld: i32,
    pub(crate) vectors: i32,
}

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
        box_size: [u32; 2],
    ) -> Result<TensorMap> {
        TensorMap::new(self.data, self.ld as usize, size, dtype, box_size)
    }

    /// The operand of a stretch of the sum that has no length.
    pub(crate) const NONE: Operand = Operand { data: 0, ld: 0, vectors: 1 };
}

/// A stretch of the inner dimension, as `Segment` in kernels/sm80/tile.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    lhs: Operand,
    rhs: Operand,
    k: i32,
}

impl Segment {
    pub(crate) fn new(lhs: Operand, rhs: Operand, k: usize) -> Self {
        Segment { lhs, rhs, k: k as i32 }
    }

    pub(crate) const NONE: Segment = Segment { lhs: Operand::NONE, rhs: Operand::NONE, k: 0 };
}

/// As in kernels/sm80/linear.cu.
#[repr(C)]
pub(crate) struct LinearParams {
    /// The first `count` are used: a product with each W0, and the adapters'.
    pub(crate) segments: [Segment; MAX_PROJECTIONS + 1],
    pub(crate) out: Operand,
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) count: i32,
}

/// As in kernels/sm80/project.cu.
#[repr(C)]
pub(crate) struct ProjectParams {
    pub(crate) lhs: Operand,
    pub(crate) rhs: Operand,
    pub(crate) out: Operand,
    pub(crate) m: i32,
    pub(crate) r: i32,
    pub(crate) k: i32,
    pub(crate) ends: [i32; MAX_PROJECTIONS],
    pub(crate) scales: [f32; MAX_PROJECTIONS],
}

/// As in kernels/sm80/grad.cu.
#[repr(C)]
pub(crate) struct GradParams {
    pub(crate) lhs: Operand,
    pub(crate) rhs: Operand,
    pub(crate) partials: Operand,
    pub(crate) t: i32,
    pub(crate) r: i32,
    pub(crate) n: i32,
    pub(crate) rows_per_split: i32,
}

/// As in kernels/sm80/reduce.cu.
#[repr(C)]
pub(crate) struct ReduceParams {
    pub(crate) partials: sys::CUdeviceptr,
    pub(crate) out: sys::CUdeviceptr,
    pub(crate) splits: i32,
    pub(crate) r: i32,
    pub(crate) n: i32,
    pub(crate) transpose: i32,
    pub(crate) accumulate: i32,
}

/// As in kernels/sm80/merge.cu.
#[repr(C)]
pub(crate) struct MergeParams {
    pub(crate) w: Operand,
    pub(crate) b: Operand,
    pub(crate) a: Operand,
    pub(crate) out: Operand,
    pub(crate) d: i32,
    pub(crate) k: i32,
    pub(crate) r: i32,
    pub(crate) scale: f32,
}

/// The segments of a launch of kernels/sm80/round.cu.
pub(crate) const ROUND_SEGMENTS: usize = 8;

/// As in kernels/sm80/round.cu.
#[repr(C)]
pub(crate) struct RoundParams {
    pub(crate) src: [sys::CUdeviceptr; ROUND_SEGMENTS],
    pub(crate) dst: [sys::CUdeviceptr; ROUND_SEGMENTS],
    pub(crate) elements: [i64; ROUND_SEGMENTS],
    pub(crate) count: i32,
    pub(crate) accumulate: i32,
}

/// As in kernels/sm90a/parts.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) start: [i32; MAX_PROJECTIONS],
    pub(crate) rank_start: [i32; MAX_PROJECTIONS],
    pub(crate) rank: [i32; MAX_PROJECTIONS],
    pub(crate) scale: [f32; MAX_PROJECTIONS],
}

impl Parts {
    pub(crate) const NONE: Parts = Parts {
        start: [i32::MAX; MAX_PROJECTIONS],
        rank_start: [i32::MAX; MAX_PROJECTIONS],
        rank: [0; MAX_PROJECTIONS],
        scale: [0.0; MAX_PROJECTIONS],
    };
}

/// As in kernels/sm90a/tiles.cuh.
#[repr(C)]
pub(crate) struct HopperProduct {
    pub(crate) s: sys::CUdeviceptr,
    pub(crate) flags: sys::CUdeviceptr,
    pub(crate) partials: sys::CUdeviceptr,
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) r: i32,
    pub(crate) slices: i32,
    pub(crate) slice_cols: i32,
    pub(crate) group: i32,
    pub(crate) makers: i32,
    pub(crate) whole: i32,
    pub(crate) projectors: i32,
    pub(crate) streamers: i32,
    pub(crate) parts: Parts,
}

/// As in kernels/sm90a/tiles.cuh: an output in boxes of 64, 32 and 16 columns.
pub(crate) type OutBoxes = [TensorMap; 3];

/// As in kernels/sm90a/tiles.cuh, of the forward.
#[repr(C)]
pub(crate) struct ForwardParams {
    pub(crate) product: HopperProduct,
    pub(crate) lhs: TensorMap,
    pub(crate) down: TensorMap,
    pub(crate) lhs_ext: TensorMap,
    pub(crate) of: [ForwardLayer; MAX_PROJECTIONS],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ForwardLayer {
    pub(crate) rhs: TensorMap,
    pub(crate) rhs_ext: TensorMap,
    pub(crate) out: OutBoxes,
}

/// As in kernels/sm90a/tiles.cuh, of the input gradient.
#[repr(C)]
pub(crate) struct InputGradParams {
    pub(crate) product: HopperProduct,
    pub(crate) lhs_ext: TensorMap,
    pub(crate) rhs_ext: TensorMap,
    pub(crate) out: OutBoxes,
    pub(crate) of: [InputGradLayer; MAX_PROJECTIONS],
    pub(crate) grads: HopperGradsParams,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct InputGradLayer {
    pub(crate) lhs: TensorMap,
    pub(crate) rhs: TensorMap,
    pub(crate) down: TensorMap,
}

/// As in kernels/sm90a/grads.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HopperGradsParams {
    pub(crate) dh: [TensorMap; MAX_PROJECTIONS],
    pub(crate) b: [TensorMap; MAX_PROJECTIONS],
    pub(crate) x: TensorMap,
    pub(crate) s: TensorMap,
    pub(crate) ds: TensorMap,
    pub(crate) ds_out: sys::CUdeviceptr,
    pub(crate) flags: sys::CUdeviceptr,
    pub(crate) db: [sys::CUdeviceptr; MAX_PROJECTIONS],
    pub(crate) da: sys::CUdeviceptr,
    pub(crate) d: [i32; MAX_PROJECTIONS],
    pub(crate) t: i32,
    pub(crate) k: i32,
    pub(crate) r: i32,
    pub(crate) outputs: i32,
    pub(crate) projectors: i32,
    pub(crate) ds_parts: i32,
    pub(crate) accumulate: i32,
    pub(crate) parts: Parts,
}

impl HopperGradsParams {
    /// For a launch that makes neither.
    pub(crate) const NONE: HopperGradsParams = HopperGradsParams {
        dh: [TensorMap::NONE; MAX_PROJECTIONS],
        b: [TensorMap::NONE; MAX_PROJECTIONS],
        x: TensorMap::NONE,
        s: TensorMap::NONE,
        ds: TensorMap::NONE,
        ds_out: 0,
        flags: 0,
        db: [0; MAX_PROJECTIONS],
        da: 0,
        d: [0; MAX_PROJECTIONS],
        t: 0,
        k: 0,
        r: 0,
        outputs: 0,
        projectors: 0,
        ds_parts: 0,
        accumulate: 0,
        parts: Parts::NONE,
    };
}

/// As in kernels/sm90a/decode.cu.
#[repr(C)]
pub(crate) struct HopperDecodeParams {
    pub(crate) w0: TensorMap,
    pub(crate) a: TensorMap,
    pub(crate) b: TensorMap,
    pub(crate) x: TensorMap,
    pub(crate) s: TensorMap,
    pub(crate) down_x: TensorMap,
    pub(crate) h: sys::CUdeviceptr,
    pub(crate) s_out: sys::CUdeviceptr,
    pub(crate) flags: sys::CUdeviceptr,
    pub(crate) t: i32,
    pub(crate) k: i32,
    pub(crate) d: i32,
    pub(crate) r: i32,
    pub(crate) s_cols: i32,
    pub(crate) scale: f32,
    pub(crate) x_rows: i32,
    pub(crate) split: i32,
    pub(crate) rows: i32,
    pub(crate) rounds: i32,
    pub(crate) stages: i32,
    pub(crate) ahead: i32,
    pub(crate) next_at: i32,
    pub(crate) down_pairs: i32,
    pub(crate) down_ranks: i32,
    pub(crate) down_rows: i32,
    pub(crate) down_tile: i32,
    pub(crate) down_tokens: i32,
    pub(crate) down_stages: i32,
    pub(crate) down_ahead: i32,
    pub(crate) grads_at: i32,
    pub(crate) h_cols: i32,
}

/// As in kernels/sm90a/short.cu.
#[repr(C)]
pub(crate) struct HopperShortParams {
    pub(crate) lhs: TensorMap,
    pub(crate) lhs_ext: TensorMap,
    pub(crate) rhs: TensorMap,
    pub(crate) rhs_ext: TensorMap,
    pub(crate) down: TensorMap,
    pub(crate) out: sys::CUdeviceptr,
    pub(crate) s: sys::CUdeviceptr,
    pub(crate) flags: sys::CUdeviceptr,
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) r: i32,
    pub(crate) rows: i32,
    pub(crate) s_cols: i32,
    pub(crate) scale: f32,
    pub(crate) down_pairs: i32,
    pub(crate) tells: i32,
    pub(crate) out_cols: i32,
}

/// As `HopperDecodeBackwardParams` in kernels/sm90a/decode.cu, and `HopperShortBackwardParams` in
/// kernels/sm90a/short.cu.
#[repr(C)]
pub(crate) struct WithGrads<Product> {
    pub(crate) product: Product,
    pub(crate) grads: HopperGradsParams,
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
    assert!(size_of::<RoundParams>() == 200);
    assert!(size_of::<HopperProduct>() == 136);
    assert!(size_of::<ForwardParams>() == 3136);
    assert!(size_of::<InputGradParams>() == 3968);
    assert!(size_of::<HopperGradsParams>() == 1600);
    assert!(size_of::<HopperDecodeParams>() == 896);
    assert!(size_of::<WithGrads<HopperDecodeParams>>() == 2496);
    assert!(size_of::<HopperShortParams>() == 704);
    assert!(size_of::<WithGrads<HopperShortParams>>() == 2304);
};

macro_rules! kernel_params {
    ($($params:ty),* $(,)?) => {
        // SAFETY: plain integers, floats, descriptors and device addresses, laid out as C does.
        $(unsafe impl KernelParams for $params {})*
    };
}

kernel_params!(
    LinearParams,
    ProjectParams,
    GradParams,
    ReduceParams,
    MergeParams,
    RoundParams,
    ForwardParams,
    InputGradParams,
    HopperGradsParams,
    HopperDecodeParams,
    HopperShortParams,
);

// SAFETY: as the two kernel files declare it.
unsafe impl<Product: KernelParams> KernelParams for WithGrads<Product> {}
