//! The parameters of kernels/sm90a/short.cu.

use super::few_tokens::{FewTokens, Product};
use crate::driver::params::{
    HopperGradsParams, HopperShortBackwardParams, HopperShortParams, Operand,
};
use crate::driver::sm90a::{ShortForward, ShortInputGrad};
use crate::driver::{ElementKernels, Gpu, Kernel};
use crate::error::Result;
use crate::manifest::sm90a::short::STEP;
use crate::plan::sm80::rank_tile;
use crate::plan::sm90a::short::Schedule;
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
        let &Schedule { rows, tile_n, clusters, proj_clusters, .. } = self;
        let &Product { dtype, by_columns, sizes: [m, n, k, r], scale, .. } = product;
        let &Product { lhs, rhs, proj_weight, proj, up_weight, out, .. } = product;
        let boxes = |operand: Operand, size: [usize; 2], box_rows: usize| {
            operand.boxes(size, dtype, [box_rows, STEP])
        };
        // Matrices as they lie, and of what a cluster's CTAs share, half for each.
        let (rhs_rows, proj_rows) =
            if by_columns { (STEP / 2, STEP) } else { (tile_n / 2, rank_tile(r)) };
        let size = |n, k| if by_columns { [k, n] } else { [n, k] };
        let lhs = boxes(lhs, [m, k], rows)?;
        // Never read if there are no tiles of out, or r = 0.
        let (mut rhs_boxes, mut proj_boxes, mut up_weight_boxes, mut proj_weight_boxes) =
            (lhs, lhs, lhs, lhs);
        if clusters > 0 {
            rhs_boxes = boxes(rhs, size(n, k), rhs_rows)?;
        }
        if r > 0 {
            proj_boxes = boxes(proj, [m, r], rows)?;
            up_weight_boxes = boxes(up_weight, size(n, r), rhs_rows)?;
            proj_weight_boxes = boxes(proj_weight, size(r, k), proj_rows)?;
        }
        let [m, n, k, r] = [m, n, k, r].map(|size| size as i32);
        Ok(HopperShortParams {
            lhs,
            proj: proj_boxes,
            rhs: rhs_boxes,
            up_weight: up_weight_boxes,
            proj_weight: proj_weight_boxes,
            out: out.data,
            s: proj.data,
            flags,
            m,
            n,
            k,
            r,
            rows: rows as i32,
            s_cols: proj.ld,
            scale,
            proj_clusters: proj_clusters as i32,
            publishes: (clusters > 0).into(),
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
