//! The launches of kernels/hopper_decode.cu.

use super::hopper::HopperGradsParams;
use super::launch::{Gradients, LaunchMode, Layer, Layers, Linear};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::plan::hopper_decode::Schedule;
use crate::{DType, Result};
use cudarc::driver::{sys, DeviceRepr};

/// As in kernels/hopper_decode.cu.
#[repr(C)]
struct HopperDecodeParams {
    w0: TensorMap,
    a: TensorMap,
    b: TensorMap,
    x: TensorMap,
    s: TensorMap,
    down_x: TensorMap,
    h: sys::CUdeviceptr,
    s_out: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    t: i32,
    k: i32,
    d: i32,
    r: i32,
    s_cols: i32,
    scale: f32,
    x_rows: i32,
    split: i32,
    rows: i32,
    rounds: i32,
    stages: i32,
    ahead: i32,
    next_at: i32,
    down_pairs: i32,
    down_ranks: i32,
    down_rows: i32,
    down_tile: i32,
    down_tokens: i32,
    down_stages: i32,
    down_ahead: i32,
    grads_at: i32,
}

/// As in kernels/hopper_decode.cu.
#[repr(C)]
struct HopperDecodeBackwardParams {
    product: HopperDecodeParams,
    grads: HopperGradsParams,
}

// The same sizes are asserted in the kernel.
const _: () = {
    assert!(size_of::<HopperDecodeParams>() == 896);
    assert!(size_of::<HopperDecodeBackwardParams>() == 2496);
};

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for HopperDecodeParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for HopperDecodeBackwardParams {}

/// A product as kernels/hopper_decode.cu names its operands: h (t×d) over k, with s (t×r).
struct Product {
    dtype: DType,
    linear: Linear,
    sizes: [usize; 4],
    x: Operand,
    w0: Operand,
    a: Operand,
    b: Operand,
    s: Operand,
    h: Operand,
    scale: f32,
}

impl Cuda {
    /// S and H of a layer with aligned operands, or H alone where r = 0, given its A and its columns of S.
    pub(super) fn hopper_decode(
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
            x: layers.x,
            w0: layer.w0,
            a,
            b: layer.b,
            s,
            h: layer.h,
            scale: layer.scale,
        };
        let params = product.params(schedule, flags)?;
        self.hopper_decode_product(&product, schedule, &params)
    }

    /// dX if `wants_dx`, and dA and dB, of a layer with aligned operands. dS is made here.
    pub(super) fn hopper_decode_backward(
        &self,
        layers: &Layers<'_>,
        wants_dx: bool,
        gradients: &Gradients,
        schedule: &Schedule,
        flags: sys::CUdeviceptr,
    ) -> Result<()> {
        let layer = &layers.of[0];
        let (schedule, grads) = match wants_dx {
            true => (*schedule, layers.grads_beside(gradients)?),
            false => (schedule.without_out([layers.t, layer.r]), HopperGradsParams::NONE),
        };
        let product = Product {
            dtype: layers.dtype,
            linear: Linear::InputGrad,
            sizes: [layers.t, layers.k, layer.d, layer.r],
            x: layer.h,
            w0: layer.w0,
            a: layer.b,
            b: layers.a,
            s: layers.s,
            h: layers.x,
            scale: layer.scale,
        };
        let params =
            HopperDecodeBackwardParams { product: product.params(&schedule, flags)?, grads };
        self.hopper_decode_product(&product, &schedule, &params)?;
        match wants_dx {
            true => Ok(()),
            false => self.hopper_da_db(layers, gradients),
        }
    }

    /// The launch.
    fn hopper_decode_product<P: DeviceRepr>(
        &self,
        product: &Product,
        schedule: &Schedule,
        params: &P,
    ) -> Result<()> {
        let wanted = (product.linear, schedule.tile_t);
        let mut kernels = self.kernels.of(product.dtype).hopper_decode.iter();
        let kernel = kernels.find(|(of, _)| *of == wanted);
        let (_, kernel) = kernel.expect("there is a kernel for every tile");
        // Its first blocks wait for nobody, so that it need not be cooperative, which takes longer.
        let mode = LaunchMode { overlap: self.kernels.overlap, cooperative: false };
        let mut config = kernel.config([schedule.blocks(), 1])?;
        config.shared_mem_bytes = schedule.shared_bytes as u32;
        self.launch_with(kernel, config, params, mode)
    }
}

impl Product {
    fn params(&self, schedule: &Schedule, flags: sys::CUdeviceptr) -> Result<HopperDecodeParams> {
        let &Schedule { split, rows, rounds, stages, ahead, next_at, down, .. } = schedule;
        let &Product { dtype, linear, sizes: [t, d, k, r], x, w0, a, b, s, h, scale } = self;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            TensorMap::new(operand, size, dtype, [box_rows as u32, 64])
        };
        // Weights as they lie: in the input gradient, in boxes of 64 rows along what is summed over.
        let weight = |operand: Operand, [n, k]: [usize; 2], rows: usize| match linear {
            Linear::Forward => boxes(operand, [n, k], rows),
            Linear::InputGrad => boxes(operand, [k, n], 64),
        };
        let x_rows = schedule.x_rows(t);
        let (x, down_x) = (boxes(x, [t, k], x_rows)?, boxes(x, [t, k], down.tokens)?);
        let w0 = weight(w0, [d, k], rows)?;
        let (mut a_boxes, mut b_boxes, mut s_boxes) = (w0, w0, w0); // never read if r = 0
        if r > 0 {
            a_boxes = weight(a, [r, k], down.rows)?;
            b_boxes = weight(b, [d, r], rows)?;
            s_boxes = boxes(s, [t, r], t)?;
        }
        let s_cols = s.ld;
        let grads_at = schedule.grads_at([t, r]);
        let [t, k, d, r] = [t, k, d, r].map(|size| size as i32);
        let [rows, rounds, stages] = [rows, rounds, stages].map(|n| n as i32);
        Ok(HopperDecodeParams {
            w0,
            a: a_boxes,
            b: b_boxes,
            x,
            s: s_boxes,
            down_x,
            h: h.data,
            s_out: s.data,
            flags,
            t,
            k,
            d,
            r,
            s_cols,
            scale,
            x_rows: x_rows as i32,
            split: split.into(),
            rows,
            rounds,
            stages,
            ahead: ahead as i32,
            next_at: next_at as i32,
            down_pairs: down.pairs as i32,
            down_ranks: down.ranks as i32,
            down_rows: down.rows as i32,
            down_tile: down.tile_t as i32,
            down_tokens: down.tokens as i32,
            down_stages: down.stages as i32,
            down_ahead: down.ahead as i32,
            grads_at: grads_at as i32,
        })
    }
}
