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
}

// The same size is asserted in the kernel.
const _: () = assert!(size_of::<HopperDecodeParams>() == 896);

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
        let &Schedule { tile_t, split, rows, rounds, stages, ahead, next_at, down, .. } = schedule;
        let &Layers { dtype, t, k, x, .. } = layers;
        let &Layer { d, r, w0, b, h, scale } = layer;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            TensorMap::new(operand, size, dtype, [box_rows as u32, 64])
        };
        let x_rows = schedule.x_rows(t);
        let (x, down_x) = (boxes(x, [t, k], x_rows)?, boxes(x, [t, k], down.tokens)?);
        let w0 = boxes(w0, [d, k], rows)?;
        let (mut a_boxes, mut b_boxes, mut s_boxes) = (w0, w0, w0); // never read if r = 0
        if r > 0 {
            a_boxes = boxes(a, [r, k], down.rows)?;
            b_boxes = boxes(b, [d, r], rows)?;
            s_boxes = boxes(s, [t, r], t)?;
        }
        let [t, k, d, r] = [t, k, d, r].map(|size| size as i32);
        let [rows, rounds, stages] = [rows, rounds, stages].map(|n| n as i32);
        let params = HopperDecodeParams {
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
            s_cols: s.ld,
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
        };
        let mut kernels = self.kernels.of(dtype).hopper_decode.iter();
        let (_, kernel) =
            kernels.find(|(tile, _)| *tile == tile_t).expect("there is a kernel for every tile");
        // Its first blocks wait for nobody, so that it need not be cooperative, which takes longer.
        let mode = LaunchMode { overlap: self.kernels.overlap, cooperative: false };
        let mut config = kernel.config([schedule.blocks(), 1])?;
        config.shared_mem_bytes = schedule.shared_bytes as u32;
        self.launch_with(kernel, config, &params, mode)
    }
}
