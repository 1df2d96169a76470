//! The parameters of kernels/sm90a/decode.cu.

use super::few_tokens::{FewTokens, Product};
use crate::driver::params::{
    HopperDecodeBackwardParams, HopperDecodeParams, HopperGradsParams, Operand,
};
use crate::driver::{ElementKernels, Gpu, Kernel};
use crate::error::Result;
use crate::manifest::sm90a::{decode::STEP, ptx::BOX_COLS};
use crate::plan::sm90a::decode::Schedule;
use crate::problem::Problem;

impl FewTokens for Schedule {
    type Params = HopperDecodeParams;
    type BackwardParams = HopperDecodeBackwardParams;

    fn forward(&self, kernels: &ElementKernels) -> Kernel<HopperDecodeParams> {
        let kernel = kernels.sm90a.decode_forward.get(self.tile_t);
        let kernel = kernel.expect("there is a kernel for every tile");
        kernel.with_shared_bytes(self.shared_bytes as u32)
    }

    fn input_grad(&self, kernels: &ElementKernels) -> Kernel<HopperDecodeBackwardParams> {
        let kernel = kernels.sm90a.decode_input_grad.get(self.tile_t);
        let kernel = kernel.expect("there is a kernel for every tile");
        kernel.with_shared_bytes(self.shared_bytes as u32)
    }

    fn params(&self, product: &Product, flags: u64) -> Result<HopperDecodeParams> {
        let &Schedule {
            split, rows, rounds, stages, prefetch_steps, pdl_trigger_step, proj, ..
        } = self;
        let &Product { dtype, by_columns, sizes: [t, d, k, r], scale, .. } = product;
        let &Product { lhs: x, rhs: w0, proj_weight: a, proj: s, up_weight: b, out: h, .. } =
            product;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            operand.boxes(size, dtype, [box_rows, STEP])
        };
        // Weights as they lie: in the input gradient, boxes have a step of what is summed over.
        let weight = |operand: Operand, [n, k]: [usize; 2], rows: usize| match by_columns {
            false => boxes(operand, [n, k], rows),
            true => operand.boxes([k, n], dtype, [STEP, BOX_COLS]),
        };
        let x_rows = self.x_rows(t);
        let (x, proj_x) = (boxes(x, [t, k], x_rows)?, boxes(x, [t, k], proj.tokens)?);
        let w0 = weight(w0, [d, k], rows)?;
        let (mut a_boxes, mut b_boxes, mut s_boxes) = (w0, w0, w0); // never read if r = 0
        if r > 0 {
            a_boxes = weight(a, [r, k], proj.rows)?;
            b_boxes = weight(b, [d, r], rows)?;
            s_boxes = boxes(s, [t, r], t)?;
        }
        let grads_at = self.grads_at([t, r]);
        let [t, k, d, r] = [t, k, d, r].map(|size| size as i32);
        let [rows, rounds, stages] = [rows, rounds, stages].map(|n| n as i32);
        Ok(HopperDecodeParams {
            w0,
            a: a_boxes,
            b: b_boxes,
            x,
            s: s_boxes,
            proj_x,
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
            prefetch_steps: prefetch_steps as i32,
            pdl_trigger_step: pdl_trigger_step as i32,
            proj_clusters: proj.clusters as i32,
            proj_rank_tiles: proj.ranks as i32,
            proj_rows: proj.rows as i32,
            proj_tile: proj.tile_t as i32,
            proj_tokens: proj.tokens as i32,
            proj_stages: proj.stages as i32,
            proj_prefetch_steps: proj.prefetch_steps as i32,
            grads_at: grads_at as i32,
            h_cols: h.ld,
        })
    }

    fn backward_params(
        product: HopperDecodeParams,
        grads: HopperGradsParams,
    ) -> HopperDecodeBackwardParams {
        HopperDecodeBackwardParams { product, grads }
    }

    fn blocks(&self) -> usize {
        Schedule::blocks(self)
    }

    fn without_dx(&self, _: &Gpu, problem: &Problem) -> Self {
        self.without_out([problem.t(), problem.rank()])
    }

    fn makes_grads(&self) -> bool {
        self.clusters > 0
    }
}
