//! The launches of kernels/hopper_decode.cu.

use super::hopper_grads::{grads_beside, Grads};
use super::last::Last;
use super::operands::{Gradients, Layer, Layers};
use crate::driver::params::{
    HopperDecodeBackwardParams, HopperDecodeParams, HopperGradsParams, Operand,
};
use crate::driver::{Gpu, Kernel, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::hopper_decode::Schedule;
use crate::plan::hopper_grads::Makes;
use crate::problem::Problem;

/// A product as kernels/hopper_decode.cu names its operands: h (t×d) over k, with s (t×r).
#[derive(Clone, Copy, PartialEq)]
struct Product {
    dtype: DType,
    /// The weights are read by columns, as in dX.
    by_columns: bool,
    sizes: [usize; 4],
    x: Operand,
    w0: Operand,
    a: Operand,
    b: Operand,
    s: Operand,
    h: Operand,
    scale: f32,
}

/// Its first CTAs wait for nobody, so that it need not be cooperative, which takes longer.
fn mode(gpu: &Gpu) -> LaunchMode {
    LaunchMode { overlap: gpu.kernels.overlap, cooperative: false }
}

/// S and H of a layer, or H alone where r = 0.
pub(super) struct DecodeForward {
    kernel: Kernel<HopperDecodeParams>,
    mode: LaunchMode,
    schedule: Schedule,
    last: Last<(Product, u64), HopperDecodeParams>,
}

impl DecodeForward {
    pub(super) fn new(gpu: &Gpu, dtype: DType, schedule: Schedule) -> Self {
        let kernel = gpu.kernels.of(dtype).decode_forward.get(schedule.tile_t);
        let kernel = kernel.expect("there is a kernel for every tile");
        let kernel = kernel.with_shared_bytes(schedule.shared_bytes as u32);
        DecodeForward { kernel, mode: mode(gpu), schedule, last: Last::new() }
    }

    /// Given the layer's A and its columns of S.
    pub(super) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        layer: &Layer,
        [a, s]: [Operand; 2],
        flags: u64,
    ) -> Result<()> {
        let product = Product {
            dtype: layers.dtype,
            by_columns: false,
            sizes: [layers.t, layer.d, layers.k, layer.r],
            x: layers.x,
            w0: layer.w0,
            a,
            b: layer.b,
            s,
            h: layer.h,
            scale: layer.scale,
        };
        let grid = [self.schedule.blocks(), 1];
        self.last.launch(
            (product, flags),
            || product.params(&self.schedule, flags),
            |params| run.launch(&self.kernel, grid, self.mode, params),
        )
    }
}

/// The product, what dA and dB are made of, and the flags.
type Operands = (Product, Option<(Layers, Gradients)>, u64);

/// dX, or dS alone, of a single layer; with `gradients`, dA and dB beside dX.
struct InputGrad {
    kernel: Kernel<HopperDecodeBackwardParams>,
    mode: LaunchMode,
    schedule: Schedule,
    last: Last<Operands, HopperDecodeBackwardParams>,
}

impl InputGrad {
    fn new(gpu: &Gpu, dtype: DType, schedule: Schedule) -> Self {
        let kernel = gpu.kernels.of(dtype).decode_input_grad.get(schedule.tile_t);
        let kernel = kernel.expect("there is a kernel for every tile");
        let kernel = kernel.with_shared_bytes(schedule.shared_bytes as u32);
        InputGrad { kernel, mode: mode(gpu), schedule, last: Last::new() }
    }

    fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        gradients: Option<&Gradients>,
        flags: u64,
    ) -> Result<()> {
        let layer = &layers.of()[0];
        let product = Product {
            dtype: layers.dtype,
            by_columns: true,
            sizes: [layers.t, layers.k, layer.d, layer.r],
            x: layer.h,
            w0: layer.w0,
            a: layer.b,
            b: layers.a,
            s: layers.s,
            h: layers.x,
            scale: layer.scale,
        };
        let params = || {
            let grads = match gradients {
                Some(gradients) => grads_beside(layers, gradients)?,
                None => HopperGradsParams::NONE,
            };
            Ok(HopperDecodeBackwardParams {
                product: product.params(&self.schedule, flags)?,
                grads,
            })
        };
        let operands = gradients.map(|gradients| (*layers, *gradients));
        let grid = [self.schedule.blocks(), 1];
        self.last.launch((product, operands, flags), params, |params| {
            run.launch(&self.kernel, grid, self.mode, params)
        })
    }
}

/// dX of a single layer without an adapter.
pub(super) struct DecodeBaseInputGrad(InputGrad);

impl DecodeBaseInputGrad {
    pub(super) fn new(gpu: &Gpu, dtype: DType, schedule: Schedule) -> Self {
        DecodeBaseInputGrad(InputGrad::new(gpu, dtype, schedule))
    }

    pub(super) fn run(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        self.0.run(run, layers, None, 0)
    }
}

/// dS, dA and dB of a single layer, with dX or without.
pub(super) struct DecodeBackward {
    with_dx: InputGrad,
    without_dx: InputGrad,
    da_db: Grads,
}

impl DecodeBackward {
    pub(super) fn new(gpu: &Gpu, problem: &Problem, schedule: Schedule) -> Self {
        let (t, r, dtype) = (problem.t(), problem.rank(), problem.dtype());
        DecodeBackward {
            with_dx: InputGrad::new(gpu, dtype, schedule),
            without_dx: InputGrad::new(gpu, dtype, schedule.without_out([t, r])),
            da_db: Grads::new(gpu, problem, Makes::DaDb),
        }
    }

    pub(super) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        wants_dx: bool,
        gradients: &Gradients,
        flags: u64,
    ) -> Result<()> {
        if wants_dx {
            return self.with_dx.run(run, layers, Some(gradients), flags);
        }
        self.without_dx.run(run, layers, None, flags)?;
        self.da_db.run(run, layers, gradients, 0)
    }
}

impl Product {
    fn params(&self, schedule: &Schedule, flags: u64) -> Result<HopperDecodeParams> {
        let &Schedule { split, rows, rounds, stages, ahead, next_at, down, .. } = schedule;
        let &Product { dtype, by_columns, sizes: [t, d, k, r], .. } = self;
        let &Product { x, w0, a, b, s, h, scale, .. } = self;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            operand.boxes(size, dtype, [box_rows as u32, 64])
        };
        // Weights as they lie: in the input gradient, in boxes of 64 rows along what is summed over.
        let weight = |operand: Operand, [n, k]: [usize; 2], rows: usize| match by_columns {
            false => boxes(operand, [n, k], rows),
            true => boxes(operand, [k, n], 64),
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
            grads_at: grads_at as i32,
            h_cols: h.ld,
        })
    }
}
