//! The launch of kernels/hopper_linear.cu.

use super::launch::{LaunchMode, Linear, Product};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::plan::hopper::{slices, Projection, Schedule, GROUP};
use crate::{DType, Result};
use cudarc::driver::{sys, DeviceRepr};

/// As in kernels/hopper_linear.cu.
#[repr(C)]
struct HopperLinearParams {
    lhs: TensorMap,
    rhs: TensorMap,
    down: TensorMap,
    lhs_ext: TensorMap,
    rhs_ext: TensorMap,
    out: [TensorMap; 3],
    s: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    partials: sys::CUdeviceptr,
    m: i32,
    n: i32,
    k: i32,
    r: i32,
    scale: f32,
    slices: i32,
    slice_cols: i32,
    group: i32,
    makers: i32,
    whole: i32,
}

// The same size is asserted in the kernel.
const _: () = assert!(size_of::<HopperLinearParams>() == 1088);

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for HopperLinearParams {}

/// Where blocks tell each other what they have made: memory of the sizes that the schedule asks for.
#[derive(Clone, Copy)]
pub(super) struct Handover {
    /// Zeros.
    pub(super) flags: sys::CUdeviceptr,
    pub(super) partials: sys::CUdeviceptr,
}

impl Handover {
    /// For a schedule that needs none.
    pub(super) const NONE: Handover = Handover { flags: 0, partials: 0 };
}

impl Cuda {
    /// A product of aligned operands. Unless the projection comes before, a forward product makes
    /// lhs_ext too.
    pub(super) fn hopper_linear(
        &self,
        which: Linear,
        dtype: DType,
        [m, n, k, r]: [usize; 4],
        product: &Product,
        schedule: &Schedule,
        handover: Handover,
    ) -> Result<()> {
        let &Schedule { tile_n, projection, whole, blocks } = schedule;
        let all = &self.kernels.of(dtype).hopper_linear;
        let kernels = all.iter().find(|kernels| kernels.tile_n == tile_n);
        let kernels = kernels.expect("there is a kernel for every tile of a schedule");
        // A matrix of rows×inner, or inner×rows where the kernel reads it MN-major. Boxes have 64
        // columns, which is what the swizzle allows. A pair's two blocks load half of rhs each.
        let k_major = |operand: Operand, rows, inner, box_rows| {
            TensorMap::new(operand.data, [rows, inner], dtype, [box_rows, 64])
        };
        let half = |operand: Operand, rows, inner| match which {
            Linear::Forward => k_major(operand, rows, inner, tile_n as u32 / 2),
            Linear::InputGrad => k_major(operand, inner, rows, 32),
        };
        let (lhs, rhs) = (k_major(product.lhs, m, k, 128)?, half(product.rhs, n, k)?);
        let (mut down, mut lhs_ext, mut rhs_ext) = (lhs, lhs, rhs); // never read if r = 0
        if r > 0 {
            if projection != Projection::Before {
                down = k_major(product.down, r, k, 16)?;
            }
            lhs_ext = k_major(product.lhs_ext, m, r, 128)?;
            rhs_ext = half(product.rhs_ext, n, r)?;
        }

        let out = |cols| TensorMap::new(product.out.data, [m, n], dtype, [64, cols]);
        let out = [out(64)?, out(32)?, out(16)?];

        let (slices, slice_cols, makers) = match projection {
            Projection::Before => (0, 0, 0),
            Projection::Within { slice_cols, makers } => (slices(r), slice_cols, makers),
        };
        let waits = schedule.waits(m, n);
        let [m, n, k, r] = [m, n, k, r].map(|size| size as i32);
        let [slices, slice_cols, group] = [slices, slice_cols, GROUP].map(|count| count as i32);
        let params = HopperLinearParams {
            lhs,
            rhs,
            down,
            lhs_ext,
            rhs_ext,
            out,
            s: product.lhs_ext.data,
            flags: handover.flags,
            partials: handover.partials,
            m,
            n,
            k,
            r,
            scale: product.scale,
            slices,
            slice_cols,
            group,
            makers: makers as i32,
            whole: whole as i32,
        };
        let kernel = match projection {
            Projection::Before => which.of(&kernels.linear),
            Projection::Within { .. } => &kernels.sliced,
        };
        // Where there is room beside this launch, early blocks of the next would take it from others, and
        // at 2048×4096×1024 that one took 9 % longer than without overlap.
        let fills_gpu = blocks == 2 * self.all_pairs;
        // Blocks that wait for others must run at the same time. Nothing says that this still holds where
        // some of them start early, and another stream may take the room of the rest.
        let overlap = self.kernels.overlap && fills_gpu && !waits;
        self.launch_with(kernel, blocks, &params, LaunchMode { overlap, cooperative: waits })
    }
}
