//! The launches of kernels/hopper_decode.cu.

use super::launch::{LaunchMode, Layer, Layers};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::plan::hopper_decode::Schedule;
use crate::Result;
use cudarc::driver::{sys, DeviceRepr};

/// As in kernels/hopper_decode.cu.
#[repr(C)]
struct HopperDecodeParams {
    w0: TensorMap,
    a: TensorMap,
    b: TensorMap,
    x: TensorMap,
    s: TensorMap,
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
    down_pairs: i32,
    down_rows: i32,
    down_stages: i32,
}

// The same size is asserted in the kernel.
const _: () = assert!(size_of::<HopperDecodeParams>() == 768);

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for HopperDecodeParams {}

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
        let &Schedule { tile_t, split, rows, rounds, stages, ahead, .. } = schedule;
        let &Schedule { down_pairs, down_rows, down_stages, .. } = schedule;
        let &Layers { dtype, t, k, x, .. } = layers;
        let &Layer { d, r, w0, b, h, scale } = layer;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            TensorMap::new(operand, size, dtype, [box_rows as u32, 64])
        };
        let x_rows = schedule.x_rows(t);
        let x = boxes(x, [t, k], x_rows)?;
        let w0 = boxes(w0, [d, k], rows)?;
        let (mut a_boxes, mut b_boxes, mut s_boxes) = (w0, w0, w0); // never read if r = 0
        if r > 0 {
            a_boxes = boxes(a, [r, k], down_rows)?;
            b_boxes = boxes(b, [d, r], rows)?;
            s_boxes = boxes(s, [t, r], t)?;
        }
        let [t, k, d, r] = [t, k, d, r].map(|size| size as i32);
        let [rows, rounds, stages, ahead] = [rows, rounds, stages, ahead].map(|n| n as i32);
        let params = HopperDecodeParams {
            w0,
            a: a_boxes,
            b: b_boxes,
            x,
            s: s_boxes,
            h: h.data,
            s_out: s.data,
            flags,
            t,
            k,
            d,
            r,
            s_cols: s.ld,
            scale,
            x_rows: x_rows as i32,
            split: split.into(),
            rows,
            rounds,
            stages,
            ahead,
            down_pairs: down_pairs as i32,
            down_rows: down_rows as i32,
            down_stages: down_stages as i32,
        };
        let mut kernels = self.kernels.of(dtype).hopper_decode.iter();
        let (_, kernel) =
            kernels.find(|(tile, _)| *tile == tile_t).expect("there is a kernel for every tile");
        // Its first blocks wait for nobody, so that it need not be cooperative, which takes longer.
        let mode = LaunchMode { overlap: self.kernels.overlap, cooperative: false };
        self.launch_with(kernel, schedule.blocks(), &params, mode)
    }
}
