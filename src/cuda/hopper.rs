//! The launches of kernels/hopper_linear.cu and kernels/hopper_grads.cu.

use super::launch::{LaunchMode, Linear, Product};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::plan::hopper::{Projection, Schedule, GROUP};
use crate::plan::hopper_grads::{self, rank_tile, Makes};
use crate::plan::Problem;
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
    projectors: i32,
    streamers: i32,
    grads: HopperGradsParams,
}

/// As in kernels/hopper_grads.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct HopperGradsParams {
    dh: TensorMap,
    x: TensorMap,
    b: TensorMap,
    s: TensorMap,
    ds: TensorMap,
    ds_out: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    db: sys::CUdeviceptr,
    da: sys::CUdeviceptr,
    t: i32,
    d: i32,
    k: i32,
    r: i32,
    scale: f32,
    projectors: i32,
    ds_parts: i32,
    accumulate: i32,
}

impl HopperGradsParams {
    /// Where no block works on gradients.
    const NONE: HopperGradsParams = HopperGradsParams {
        dh: TensorMap::NONE,
        x: TensorMap::NONE,
        b: TensorMap::NONE,
        s: TensorMap::NONE,
        ds: TensorMap::NONE,
        ds_out: 0,
        flags: 0,
        db: 0,
        da: 0,
        t: 0,
        d: 0,
        k: 0,
        r: 0,
        scale: 0.0,
        projectors: 0,
        ds_parts: 0,
        accumulate: 0,
    };
}

// The same sizes are asserted in the kernels.
const _: () = {
    assert!(size_of::<HopperLinearParams>() == 1856);
    assert!(size_of::<HopperGradsParams>() == 704);
};

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for HopperLinearParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for HopperGradsParams {}

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

/// What the adapter's gradients are made of, and where they go.
#[derive(Clone, Copy)]
pub(super) struct Gradients {
    pub(super) x: Operand,
    pub(super) s: Operand,
    pub(super) da: sys::CUdeviceptr,
    pub(super) db: sys::CUdeviceptr,
    /// Added to what is there.
    pub(super) accumulate: bool,
}

impl Cuda {
    /// A product of aligned operands. Unless the projection comes before, it makes lhs_ext too.
    pub(super) fn hopper_linear(
        &self,
        which: Linear,
        dtype: DType,
        sizes: [usize; 4],
        product: &Product,
        schedule: &Schedule,
        handover: Handover,
    ) -> Result<()> {
        self.hopper_product(
            which,
            dtype,
            sizes,
            product,
            schedule,
            handover,
            HopperGradsParams::NONE,
        )
    }

    /// dX if `wants_dx`, and dA and dB, of aligned operands. `product` is that of dX, whose lhs_ext, dS, is
    /// made here.
    pub(super) fn hopper_backward(
        &self,
        problem: &Problem,
        product: &Product,
        wants_dx: bool,
        gradients: &Gradients,
        schedule: &Schedule,
        handover: Handover,
    ) -> Result<()> {
        let &Problem { t, k, d, r, dtype } = problem;
        let &Product { lhs: dh, down: b, lhs_ext: ds, scale, .. } = product;
        let &Gradients { x, s, da, db, accumulate } = gradients;
        let boxes = |operand: Operand, [rows, cols]: [usize; 2], box_cols| {
            TensorMap::new(operand.data, [rows, cols], dtype, [64, box_cols])
        };
        let rank_cols = rank_tile(r).min(64) as u32;
        let grads = HopperGradsParams {
            dh: boxes(dh, [t, d], 64)?,
            x: boxes(x, [t, k], 64)?,
            b: boxes(b, [d, r], 64)?,
            s: boxes(s, [t, r], rank_cols)?,
            ds: boxes(ds, [t, r], rank_cols)?,
            ds_out: ds.data,
            flags: handover.flags,
            db,
            da,
            t: t as i32,
            d: d as i32,
            k: k as i32,
            r: r as i32,
            scale,
            projectors: 0,
            ds_parts: 0,
            accumulate: accumulate.into(),
        };
        if !wants_dx {
            let ds_parts = r.div_ceil(rank_tile(r)) as i32;
            let grads = HopperGradsParams { ds_parts, ..grads };
            return self.hopper_grads(problem, Makes::All, grads);
        }
        if schedule.projection == Projection::Before {
            let ds_alone = HopperGradsParams { da: 0, db: 0, ..grads };
            self.hopper_grads(problem, Makes::Ds, ds_alone)?;
        }
        let beside = match schedule.streamers {
            0 => HopperGradsParams::NONE,
            _ => HopperGradsParams { ds_parts: schedule.slices(r) as i32, ..grads },
        };
        let (which, sizes) = (Linear::InputGrad, [t, k, d, r]);
        self.hopper_product(which, dtype, sizes, product, schedule, handover, beside)?;
        if schedule.streamers == 0 {
            self.hopper_grads(problem, Makes::DaDb, grads)?;
        }
        Ok(())
    }

    /// A launch of kernels/hopper_grads.cu.
    fn hopper_grads(
        &self,
        problem: &Problem,
        makes: Makes,
        params: HopperGradsParams,
    ) -> Result<()> {
        let &Problem { t, k, d, r, dtype } = problem;
        let sms = 2 * self.profile().pairs;
        let schedule = hopper_grads::Schedule::new([t, k, d, r], makes, sms);
        let mut kernels = self.kernels.of(dtype).hopper_grads.iter();
        let kernel = kernels.find(|(tile, _)| *tile == rank_tile(r));
        let (_, kernel) = kernel.expect("there is a kernel for every tile of the rank");
        let params = HopperGradsParams { projectors: schedule.projectors as i32, ..params };
        let mode = LaunchMode { overlap: false, cooperative: makes == Makes::All };
        self.launch_with(kernel, schedule.blocks, &params, mode)
    }

    #[allow(clippy::too_many_arguments)] // what a launch is made of
    fn hopper_product(
        &self,
        which: Linear,
        dtype: DType,
        [m, n, k, r]: [usize; 4],
        product: &Product,
        schedule: &Schedule,
        handover: Handover,
        grads: HopperGradsParams,
    ) -> Result<()> {
        let &Schedule { tile_n, projection, whole, streamers, .. } = schedule;
        let blocks = schedule.blocks();
        let all = &self.kernels.of(dtype).hopper_linear;
        // A matrix of rows×inner, or inner×rows where the kernel reads it MN-major. Boxes have 64
        // columns, which is what the swizzle allows. A pair's two blocks load half of rhs each, and of what
        // is read MN-major beside it.
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
            down = match (projection, which) {
                (Projection::Before, _) => down,
                (Projection::Within { slice, .. }, Linear::Forward) => {
                    k_major(product.down, r, k, slice as u32)?
                }
                (Projection::Within { .. }, Linear::InputGrad) => k_major(product.down, k, r, 32)?,
                (Projection::Beside { .. }, _) => k_major(product.down, r, k, rank_tile(r) as u32)?,
            };
            lhs_ext = k_major(product.lhs_ext, m, r, 128)?;
            rhs_ext = half(product.rhs_ext, n, r)?;
        }

        let out = |cols| TensorMap::new(product.out.data, [m, n], dtype, [64, cols]);
        let out = [out(64)?, out(32)?, out(16)?];

        let (slice_cols, makers) = match projection {
            Projection::Before | Projection::Beside { .. } => (0, 0),
            Projection::Within { slice_cols, makers, .. } => (slice_cols, makers),
        };
        let (slice, slices) = (schedule.slice(), schedule.slices(r));
        let cooperative = schedule.is_cooperative(m, n);
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
            projectors: schedule.projectors() as i32,
            streamers: streamers as i32,
            grads,
        };
        let kernels = all.iter().find(|kernels| (kernels.tile_n, kernels.slice) == (tile_n, slice));
        let kernel = which.of(&kernels.expect("there is a kernel for every schedule").linear);
        // Where there is room beside this launch, early blocks of the next would take it from others, and
        // at 2048×4096×1024 that one took 9 % longer than without overlap.
        let fills_gpu = blocks == 2 * self.all_pairs;
        // Blocks that wait for others than the first must run at the same time. Nothing says that this still
        // holds where some of them start early, and another stream may take the room of the rest.
        let overlap = self.kernels.overlap && fills_gpu && !cooperative;
        self.launch_with(kernel, blocks, &params, LaunchMode { overlap, cooperative })
    }
}
