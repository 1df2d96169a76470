//! The launches of kernels/hopper_short.cu.

use super::hopper::HopperGradsParams;
use super::kernels::HopperShort;
use super::launch::{Gradients, LaunchMode, Layer, Layers, Linear};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::plan::hopper_short::Schedule;
use crate::plan::rank_tile;
use crate::{DType, Result};
use cudarc::driver::{sys, DeviceRepr};

/// As in kernels/hopper_short.cu.
#[repr(C)]
struct HopperShortParams {
    lhs: TensorMap,
    lhs_ext: TensorMap,
    rhs: TensorMap,
    rhs_ext: TensorMap,
    down: TensorMap,
    out: sys::CUdeviceptr,
    s: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    m: i32,
    n: i32,
    k: i32,
    r: i32,
    rows: i32,
    s_cols: i32,
    scale: f32,
    down_pairs: i32,
    tells: i32,
}

/// As in kernels/hopper_short.cu.
#[repr(C)]
struct HopperShortBackwardParams {
    product: HopperShortParams,
    grads: HopperGradsParams,
}

// The same sizes are asserted in the kernel.
const _: () = {
    assert!(size_of::<HopperShortParams>() == 704);
    assert!(size_of::<HopperShortBackwardParams>() == 2304);
};

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for HopperShortParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for HopperShortBackwardParams {}

/// A product as kernels/hopper_short.cu names its operands: out (m×n) over k, with lhs_ext (m×r).
struct Product {
    dtype: DType,
    linear: Linear,
    sizes: [usize; 4],
    lhs: Operand,
    rhs: Operand,
    down: Operand,
    lhs_ext: Operand,
    rhs_ext: Operand,
    out: Operand,
    scale: f32,
}

impl Cuda {
    /// S and H of a layer with aligned operands, or H alone where r = 0, given its A and its columns of S.
    pub(super) fn hopper_short(
        &self,
        layers: &Layers<'_>,
        layer: &Layer,
        [a, s]: [Operand; 2],
        schedule: &Schedule,
        flags: sys::CUdeviceptr,
    ) -> Result<()> {
        let product = Product {
            dtype: layers.dtype,
            linear: Linear::Forward,
            sizes: [layers.t, layer.d, layers.k, layer.r],
            lhs: layers.x,
            rhs: layer.w0,
            down: a,
            lhs_ext: s,
            rhs_ext: layer.b,
            out: layer.h,
            scale: layer.scale,
        };
        let params = product.params(schedule, flags)?;
        self.hopper_short_product(&product, schedule, &params)
    }

    /// dX if `wants_dx`, and dA and dB, of a layer with aligned operands. dS is made here.
    pub(super) fn hopper_short_backward(
        &self,
        layers: &Layers<'_>,
        wants_dx: bool,
        gradients: &Gradients,
        schedule: &Schedule,
        flags: sys::CUdeviceptr,
    ) -> Result<()> {
        let layer = &layers.of[0];
        let schedule = match wants_dx {
            true => *schedule,
            false => schedule.without_out([layers.t, layer.r], self.profile().pairs),
        };
        let product = Product {
            dtype: layers.dtype,
            linear: Linear::InputGrad,
            sizes: [layers.t, layers.k, layer.d, layer.r],
            lhs: layer.h,
            rhs: layer.w0,
            down: layer.b,
            lhs_ext: layers.s,
            rhs_ext: layers.a,
            out: layers.x,
            scale: layer.scale,
        };
        let beside = schedule.makes_grads();
        let grads = match beside {
            true => layers.grads_beside(gradients)?,
            false => HopperGradsParams::NONE,
        };
        let params =
            HopperShortBackwardParams { product: product.params(&schedule, flags)?, grads };
        self.hopper_short_product(&product, &schedule, &params)?;
        match beside {
            true => Ok(()),
            false => self.hopper_da_db(layers, gradients),
        }
    }

    /// The launch.
    fn hopper_short_product<P: DeviceRepr>(
        &self,
        product: &Product,
        schedule: &Schedule,
        params: &P,
    ) -> Result<()> {
        let &Product { dtype, linear, .. } = product;
        let &Schedule { tile_m, tile_n, .. } = schedule;
        let wanted = HopperShort { linear, tile_m, tile_n };
        let mut kernels = self.kernels.of(dtype).hopper_short.iter();
        let kernel = kernels.find(|(of, _)| *of == wanted);
        let (_, kernel) = kernel.expect("there is a kernel for every tile");
        // Its first blocks wait for nobody, so that it need not be cooperative, which takes longer.
        let mode = LaunchMode { overlap: self.kernels.overlap, cooperative: false };
        self.launch_with(kernel, kernel.config([schedule.blocks(), 1])?, params, mode)
    }
}

impl Product {
    fn params(&self, schedule: &Schedule, flags: sys::CUdeviceptr) -> Result<HopperShortParams> {
        let &Schedule { rows, tile_n, pairs, down_pairs, .. } = schedule;
        let &Product { dtype, linear, sizes: [m, n, k, r], .. } = self;
        let &Product { lhs, rhs, down, lhs_ext, rhs_ext, out, scale, .. } = self;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            TensorMap::new(operand, size, dtype, [box_rows as u32, 64])
        };
        // Matrices as they lie, and of what a pair's blocks share, half for each.
        let (mn_major, rhs_rows, down_rows) = match linear {
            Linear::Forward => (false, tile_n / 2, rank_tile(r)),
            Linear::InputGrad => (true, 32, 64),
        };
        let size = |n, k| if mn_major { [k, n] } else { [n, k] };
        let lhs = boxes(lhs, [m, k], rows)?;
        // Never read if there are no tiles of out, or r = 0.
        let (mut rhs_boxes, mut lhs_ext_boxes, mut rhs_ext_boxes, mut down_boxes) =
            (lhs, lhs, lhs, lhs);
        if pairs > 0 {
            rhs_boxes = boxes(rhs, size(n, k), rhs_rows)?;
        }
        if r > 0 {
            lhs_ext_boxes = boxes(lhs_ext, [m, r], rows)?;
            rhs_ext_boxes = boxes(rhs_ext, size(n, r), rhs_rows)?;
            down_boxes = boxes(down, size(r, k), down_rows)?;
        }
        let [m, n, k, r] = [m, n, k, r].map(|size| size as i32);
        Ok(HopperShortParams {
            lhs,
            lhs_ext: lhs_ext_boxes,
            rhs: rhs_boxes,
            rhs_ext: rhs_ext_boxes,
            down: down_boxes,
            out: out.data,
            s: lhs_ext.data,
            flags,
            m,
            n,
            k,
            r,
            rows: rows as i32,
            s_cols: lhs_ext.ld,
            scale,
            down_pairs: down_pairs as i32,
            tells: (pairs > 0).into(),
        })
    }
}
