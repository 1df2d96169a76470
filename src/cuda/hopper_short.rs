//! The launches of kernels/hopper_short.cu.

use super::launch::{LaunchMode, Layer, Layers};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::plan::hopper_short::{rank_tile, Schedule};
use crate::Result;
use cudarc::driver::{sys, DeviceRepr};

/// As in kernels/hopper_short.cu.
#[repr(C)]
struct HopperShortParams {
    x: TensorMap,
    s: TensorMap,
    w0: TensorMap,
    b: TensorMap,
    a: TensorMap,
    h: sys::CUdeviceptr,
    s_out: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    t: i32,
    k: i32,
    d: i32,
    r: i32,
    s_cols: i32,
    scale: f32,
    down_pairs: i32,
}

// The same size is asserted in the kernel.
const _: () = assert!(size_of::<HopperShortParams>() == 704);

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for HopperShortParams {}

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
        let &Schedule { tile_m, tile_n, down_pairs, .. } = schedule;
        let &Layers { dtype, t, k, x, .. } = layers;
        let &Layer { d, r, w0, b, h, scale } = layer;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            TensorMap::new(operand, size, dtype, [box_rows as u32, 64])
        };
        let x = boxes(x, [t, k], tile_m)?;
        // A pair's two blocks load half of the rows of W0 and B each.
        let w0 = boxes(w0, [d, k], tile_n / 2)?;
        let (mut s_boxes, mut a_boxes, mut b_boxes) = (x, w0, w0); // never read if r = 0
        if r > 0 {
            s_boxes = boxes(s, [t, r], tile_m)?;
            a_boxes = boxes(a, [r, k], rank_tile(r))?;
            b_boxes = boxes(b, [d, r], tile_n / 2)?;
        }
        let [t, k, d, r] = [t, k, d, r].map(|size| size as i32);
        let params = HopperShortParams {
            x,
            s: s_boxes,
            w0,
            b: b_boxes,
            a: a_boxes,
            h: h.data,
            s_out: s.data,
            flags,
            t,
            k,
            d,
            r,
            s_cols: s.ld,
            scale,
            down_pairs: down_pairs as i32,
        };
        let mut kernels = self.kernels.of(dtype).hopper_short.iter();
        let kernel = kernels.find(|(tile, _)| *tile == [tile_m, tile_n]);
        let (_, kernel) = kernel.expect("there is a kernel for every tile");
        // Its first blocks wait for nobody, so that it need not be cooperative, which takes longer.
        let mode = LaunchMode { overlap: self.kernels.overlap, cooperative: false };
        self.launch_with(kernel, schedule.blocks(), &params, mode)
    }
}
