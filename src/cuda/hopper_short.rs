//! The parameters of kernels/sm90a/short.cu.

use super::few_tokens::{FewTokens, Product};
use crate::driver::params::{
    HopperGradsParams, HopperShortBackwardParams, HopperShortParams, Operand,
};
use crate::driver::sm90a::{ShortForward, ShortInputGrad};
use crate::driver::{ElementKernels, Gpu, Kernel};
use crate::error::Result;
use crate::manifest::sm90a::short::STEP;
use crate::plan::hopper_short::Schedule;
use crate::plan::mma::rank_tile;
use crate::problem::Problem;

impl FewTokens for Schedule {
    type Params = HopperShortParams;
    type BackwardParams = HopperShortBackwardParams;

    fn forward(&self, kernels: &ElementKernels) -> Kernel<HopperShortParams> {
        let kernel =
            kernels.sm90a.short_forward.get(ShortForward { m: self.tile_m, n: self.tile_n });
        kernel.expect("there is a kernel for every tile")
    }

    fn input_grad(&self, kernels: &ElementKernels) -> Kernel<HopperShortBackwardParams> {
        let kernel =
            kernels.sm90a.short_input_grad.get(ShortInputGrad { m: self.tile_m, n: self.tile_n });
        kernel.expect("there is a kernel for every tile")
    }

    fn params(&self, product: &Product, flags: u64) -> Result<HopperShortParams> {
        let &Schedule { rows, tile_n, pairs, down_pairs, .. } = self;
        let &Product { dtype, by_columns, sizes: [m, n, k, r], scale, .. } = product;
        let &Product { lhs, rhs, down, lhs_ext, rhs_ext, out, .. } = product;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            operand.boxes(size, dtype, [box_rows, STEP])
        };
        // Matrices as they lie, and of what a cluster's CTAs share, half for each.
        let (rhs_rows, down_rows) =
            if by_columns { (STEP / 2, STEP) } else { (tile_n / 2, rank_tile(r)) };
        let size = |n, k| if by_columns { [k, n] } else { [n, k] };
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

    fn backward_params(
        product: HopperShortParams,
        grads: HopperGradsParams,
    ) -> HopperShortBackwardParams {
        HopperShortBackwardParams { product, grads }
    }

    fn blocks(&self) -> usize {
        Schedule::blocks(self)
    }

    fn without_dx(&self, gpu: &Gpu, problem: &Problem) -> Self {
        self.without_out([problem.t(), problem.rank()], gpu.profile.clusters())
    }

    fn makes_grads(&self) -> bool {
        Schedule::makes_grads(self)
    }
}
