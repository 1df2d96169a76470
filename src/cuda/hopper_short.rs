//! The launches of kernels/hopper_short.cu.

use super::hopper_grads::{grads_beside, Grads};
use super::last::Last;
use super::operands::{Gradients, Layer, Layers};
use crate::driver::params::{
    HopperGradsParams, HopperShortBackwardParams, HopperShortParams, Operand,
};
use crate::driver::{Gpu, Kernel, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::hopper_grads::Makes;
use crate::plan::hopper_short::Schedule;
use crate::plan::mma::rank_tile;
use crate::problem::Problem;

/// A product as kernels/hopper_short.cu names its operands: out (m×n) over k, with lhs_ext (m×r).
#[derive(Clone, Copy, PartialEq)]
struct Product {
    dtype: DType,
    /// What is multiplied with lies MN-major, as in dX.
    mn_major: bool,
    sizes: [usize; 4],
    lhs: Operand,
    rhs: Operand,
    down: Operand,
    lhs_ext: Operand,
    rhs_ext: Operand,
    out: Operand,
    scale: f32,
}

/// Its first CTAs wait for nobody, so that it need not be cooperative, which takes longer.
fn mode(gpu: &Gpu) -> LaunchMode {
    LaunchMode { overlap: gpu.kernels.overlap, cooperative: false }
}

/// S and H of a layer, or H alone where r = 0.
pub(super) struct ShortForward {
    kernel: Kernel<HopperShortParams>,
    mode: LaunchMode,
    schedule: Schedule,
    last: Last<(Product, u64), HopperShortParams>,
}

impl ShortForward {
    pub(super) fn new(gpu: &Gpu, dtype: DType, schedule: Schedule) -> Self {
        let kernel = gpu.kernels.of(dtype).short_forward.get([schedule.tile_m, schedule.tile_n]);
        let kernel = kernel.expect("there is a kernel for every tile");
        ShortForward { kernel, mode: mode(gpu), schedule, last: Last::new() }
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
            mn_major: false,
            sizes: [layers.t, layer.d, layers.k, layer.r],
            lhs: layers.x,
            rhs: layer.w0,
            down: a,
            lhs_ext: s,
            rhs_ext: layer.b,
            out: layer.h,
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
    kernel: Kernel<HopperShortBackwardParams>,
    mode: LaunchMode,
    schedule: Schedule,
    last: Last<Operands, HopperShortBackwardParams>,
}

impl InputGrad {
    fn new(gpu: &Gpu, dtype: DType, schedule: Schedule) -> Self {
        let tile = [schedule.tile_m, schedule.tile_n];
        let kernel = gpu.kernels.of(dtype).short_input_grad.get(tile);
        let kernel = kernel.expect("there is a kernel for every tile");
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
            mn_major: true,
            sizes: [layers.t, layers.k, layer.d, layer.r],
            lhs: layer.h,
            rhs: layer.w0,
            down: layer.b,
            lhs_ext: layers.s,
            rhs_ext: layers.a,
            out: layers.x,
            scale: layer.scale,
        };
        let params = || {
            let grads = match gradients {
                Some(gradients) => grads_beside(layers, gradients)?,
                None => HopperGradsParams::NONE,
            };
            Ok(HopperShortBackwardParams { product: product.params(&self.schedule, flags)?, grads })
        };
        let operands = gradients.map(|gradients| (*layers, *gradients));
        let grid = [self.schedule.blocks(), 1];
        self.last.launch((product, operands, flags), params, |params| {
            run.launch(&self.kernel, grid, self.mode, params)
        })
    }
}

/// dX of a single layer without an adapter.
pub(super) struct ShortBaseInputGrad(InputGrad);

impl ShortBaseInputGrad {
    pub(super) fn new(gpu: &Gpu, dtype: DType, schedule: Schedule) -> Self {
        ShortBaseInputGrad(InputGrad::new(gpu, dtype, schedule))
    }

    pub(super) fn run(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        self.0.run(run, layers, None, 0)
    }
}

/// dS, dA and dB of a single layer, with dX or without.
pub(super) struct ShortBackward {
    with_dx: InputGrad,
    without_dx: InputGrad,
    da_db: Grads,
}

impl ShortBackward {
    pub(super) fn new(gpu: &Gpu, problem: &Problem, schedule: Schedule) -> Self {
        let (t, r, dtype) = (problem.t(), problem.rank(), problem.dtype());
        let without_dx = schedule.without_out([t, r], gpu.profile.clusters());
        ShortBackward {
            with_dx: InputGrad::new(gpu, dtype, schedule),
            without_dx: InputGrad::new(gpu, dtype, without_dx),
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
        let launch = if wants_dx { &self.with_dx } else { &self.without_dx };
        if launch.schedule.makes_grads() {
            return launch.run(run, layers, Some(gradients), flags);
        }
        launch.run(run, layers, None, flags)?;
        self.da_db.run(run, layers, gradients, 0)
    }
}

impl Product {
    fn params(&self, schedule: &Schedule, flags: u64) -> Result<HopperShortParams> {
        let &Schedule { rows, tile_n, pairs, down_pairs, .. } = schedule;
        let &Product { dtype, mn_major, sizes: [m, n, k, r], .. } = self;
        let &Product { lhs, rhs, down, lhs_ext, rhs_ext, out, scale, .. } = self;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            operand.boxes(size, dtype, [box_rows as u32, 64])
        };
        // Matrices as they lie, and of what a cluster's CTAs share, half for each.
        let (rhs_rows, down_rows) = if mn_major { (32, 64) } else { (tile_n / 2, rank_tile(r)) };
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
            out_cols: out.ld,
        })
    }
}
