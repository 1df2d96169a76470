//! The launches of kernels/sm90a/linear.cuh.

use super::grads::{self, grads_params};
use crate::cuda::dropout;
use crate::cuda::operands::{Gradients, Handover, Layer, Layers, parts};
use crate::driver::params::{
    ForwardLayer, ForwardParams, HopperGradsParams, HopperProduct, InputGradLayer, InputGradParams,
    KernelParams, Operand, OutBoxes, Parts,
};
use crate::driver::sm90a::{
    LinearForward, LinearGroupForward, LinearGroupInputGrad, LinearGroupInputGradDropout,
    LinearInputGrad, LinearInputGradDropout,
};
use crate::driver::{Gpu, LaunchMode, Run};
use crate::error::Result;
use crate::manifest::sm90a::linear_tiles::{TILE_K, TILE_M};
use crate::manifest::sm90a::ptx::BOX_COLS;
use crate::plan::sm90a::grads::rank_tile;
use crate::plan::sm90a::linear::{GROUP, Projection, Schedule};
use crate::problem::Problem;
use bytemuck::Zeroable;

fn out_boxes(layers: &Layers, of: Operand, cols: usize) -> Result<OutBoxes> {
    let boxes = |box_cols| of.boxes([layers.t, cols], layers.dtype, [TILE_M / 2, box_cols]);
    Ok(OutBoxes { by_64: boxes(64)?, by_32: boxes(32)?, by_16: boxes(16)? })
}

/// Clusters that a launch may leave idle and still overlap with the next.
const MAX_IDLE_CLUSTERS: usize = 2;

/// The kernel of a schedule, and how it is launched.
struct Launch<P> {
    kernel: dropout::Launch<(Layers, Option<Gradients>, Handover), P>,
    mode: LaunchMode,
    schedule: Schedule,
}

impl<P: KernelParams> Launch<P> {
    fn new(
        gpu: &Gpu,
        schedule: Schedule,
        kernel: dropout::Launch<(Layers, Option<Gradients>, Handover), P>,
    ) -> Self {
        let cooperative = schedule.is_cooperative();
        // Where there is much room beside this launch, early CTAs of the next take it from others: at
        // 2048×4096×1024 with 52 of 66 clusters, launches took 9 % longer than without overlap, and
        // with 64 of them 3 % less.
        let idle = gpu.kernels.profile.clusters().saturating_sub(schedule.blocks() / 2);
        let fills_gpu = idle <= MAX_IDLE_CLUSTERS;
        // CTAs that wait for others than those before must run at the same time. Nothing says that
        // this still holds where some of them start early, and another stream may take the room of
        // the rest.
        let overlap = gpu.kernels.overlap && fills_gpu && !cooperative;
        Launch { kernel, mode: LaunchMode { overlap, cooperative }, schedule }
    }

    fn run(
        &self,
        run: &Run<'_>,
        operands: (Layers, Option<Gradients>, Handover),
        params: impl FnOnce() -> Result<P>,
    ) -> Result<()> {
        let grid = (self.schedule.blocks(), self.mode);
        let layers = operands.0;
        self.kernel.run(run, grid, &layers, operands, params)
    }

    /// What both forms of the product have, for an output of n columns over k.
    fn product(
        &self,
        layers: &Layers,
        [n, k]: [i32; 2],
        parts: Parts,
        handover: Handover,
    ) -> HopperProduct {
        let schedule = &self.schedule;
        let (slice_cols, slice_clusters) = match schedule.projection {
            Projection::Separate | Projection::Dedicated { .. } => (0, 0),
            Projection::Fused { slice_cols, slice_clusters, .. } => (slice_cols, slice_clusters),
        };
        let r = layers.rank();
        HopperProduct {
            s: layers.s.data,
            flags: handover.flags,
            partials: handover.partials,
            m: layers.t as i32,
            n,
            k,
            r: r as i32,
            slices: schedule.slices(r) as i32,
            slice_cols: slice_cols as i32,
            group: GROUP as i32,
            slice_clusters: slice_clusters as i32,
            full_tiles: schedule.full_tiles as i32,
            proj_clusters: schedule.proj_clusters() as i32,
            grad_clusters: schedule.grad_clusters as i32,
            parts,
        }
    }
}

/// H of every layer. Unless the projection is a launch before, S too.
pub(crate) struct LargeForward(Launch<ForwardParams>);

impl LargeForward {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, schedule: Schedule) -> Self {
        let kernels = &gpu.kernels.of(problem.dtype()).sm90a;
        let (slice, n) = (schedule.slice(), schedule.tile_n);
        let single = problem.projections().len() == 1;
        let kernel = match single {
            true => kernels.linear_forward.get(LinearForward { slice, n }),
            false => kernels.linear_group_forward.get(LinearGroupForward { slice, n }),
        };
        let kernel = dropout::Launch::whole(kernel);
        LargeForward(Launch::new(gpu, schedule, kernel))
    }

    /// Whether S is a launch before.
    pub(crate) fn wants_s(&self) -> bool {
        self.0.schedule.projection == Projection::Separate
    }

    pub(crate) fn run(&self, run: &Run<'_>, layers: &Layers, handover: Handover) -> Result<()> {
        self.0.run(run, (*layers, None, handover), || self.params(layers, handover))
    }

    fn params(&self, layers: &Layers, handover: Handover) -> Result<ForwardParams> {
        let &Layers { dtype, t, k, x, a, s, .. } = layers;
        let schedule = &self.0.schedule;
        let (r, tile_n) = (layers.rank(), schedule.tile_n);
        let (parts, n) = parts(&layers.scaled_for_s(), tile_n);
        // A cluster's two CTAs load half of the rows of W0 and B each.
        let half = tile_n / 2;
        let lhs = x.boxes([t, k], dtype, [TILE_M, TILE_K])?;
        let proj_rows = match schedule.projection {
            Projection::Separate => None,
            Projection::Fused { slice, .. } => Some(slice),
            Projection::Dedicated { .. } => Some(rank_tile(r)),
        };
        let mut params = ForwardParams {
            base: self.0.product(layers, [n, k as i32], parts, handover),
            of_lhs: lhs,
            // Never read if S is not made here, or r = 0.
            of_proj_weight: proj_rows
                .map_or(Ok(lhs), |rows| a.boxes([r, k], dtype, [rows, TILE_K]))?,
            proj: if r > 0 { s.boxes([t, r], dtype, [TILE_M, TILE_K])? } else { lhs },
            of: Zeroable::zeroed(),
        };
        layers.fill(&mut params.of, |layer| {
            let &Layer { d, r, w0, b, h, .. } = layer;
            let rhs = w0.boxes([d, k], dtype, [half, TILE_K])?;
            let up_weight = if r > 0 { b.boxes([d, r], dtype, [half, TILE_K])? } else { rhs };
            Ok(ForwardLayer { rhs, up_weight, out: out_boxes(layers, h, d)? })
        })?;
        Ok(params)
    }
}

/// dX, and dS unless it is a launch before, with the gradients that some clusters make meanwhile.
pub(crate) struct LargeInputGrad(Launch<InputGradParams>);

impl LargeInputGrad {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, schedule: Schedule) -> Self {
        let kernels = &gpu.kernels.of(problem.dtype()).sm90a;
        let (slice, n) = (schedule.slice(), schedule.tile_n);
        let single = problem.projections().len() == 1;
        let kernel = match (single, problem.dropout()) {
            (true, false) => {
                dropout::Launch::whole(kernels.linear_input_grad.get(LinearInputGrad { slice, n }))
            }
            (false, false) => dropout::Launch::whole(
                kernels.linear_group_input_grad.get(LinearGroupInputGrad { slice, n }),
            ),
            (true, true) => dropout::Launch::dropped(
                kernels.linear_input_grad_dropout.get(LinearInputGradDropout { slice, n }),
            ),
            (false, true) => dropout::Launch::dropped(
                kernels
                    .linear_group_input_grad_dropout
                    .get(LinearGroupInputGradDropout { slice, n }),
            ),
        };
        LargeInputGrad(Launch::new(gpu, schedule, kernel))
    }

    pub(crate) fn schedule(&self) -> &Schedule {
        &self.0.schedule
    }

    /// Without `gradients` there is no adapter, and all r are 0.
    pub(crate) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        gradients: Option<&Gradients>,
        handover: Handover,
    ) -> Result<()> {
        self.0.run(run, (*layers, gradients.copied(), handover), || {
            self.params(layers, gradients, handover)
        })
    }

    fn params(
        &self,
        layers: &Layers,
        gradients: Option<&Gradients>,
        handover: Handover,
    ) -> Result<InputGradParams> {
        let &Layers { dtype, t, k, x: dx, a, s: ds, .. } = layers;
        let r = layers.rank();
        let (parts, outputs) = parts(layers, TILE_K);
        // Not looked at if no CTA works on gradients.
        let grads = match gradients {
            None => Zeroable::zeroed(),
            Some(gradients) => HopperGradsParams {
                ds_flag_count: self.0.schedule.slices(r) as i32,
                ..grads_params(layers, gradients, handover.flags, grads::boxes(r))?
            },
        };
        // What is read MN-major, in boxes of 64 columns, which is what the swizzle allows, and half
        // of a step's rows for each CTA of a cluster.
        let half = [TILE_K / 2, BOX_COLS];
        let of_s = |operand: Operand, size, box_size| match gradients {
            None => Ok(Zeroable::zeroed()),
            Some(_) => operand.boxes(size, dtype, box_size),
        };
        let mut params = InputGradParams {
            base: self.0.product(layers, [k as i32, outputs], parts, handover),
            proj: of_s(ds, [t, r], [TILE_M, TILE_K])?,
            of_up_weight: of_s(a, [r, k], half)?,
            of_out: out_boxes(layers, dx, k)?,
            of: Zeroable::zeroed(),
            grads,
        };
        layers.fill(&mut params.of, |layer| {
            let &Layer { d, r, w0, b, h: dh, .. } = layer;
            Ok(InputGradLayer {
                lhs: dh.boxes([t, d], dtype, [TILE_M, TILE_K])?,
                rhs: w0.boxes([d, k], dtype, half)?,
                proj_weight: of_s(b, [d, r], half)?,
            })
        })?;
        Ok(params)
    }
}
