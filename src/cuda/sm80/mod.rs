//! The launches of the kernels that serve every GPU: kernels/sm80/linear.cu, project.cu, grad.cu,
//! reduce.cu, and decode.cu.

pub(super) mod decode;

use super::operands::{Gradients, Layer, Layers};
use crate::driver::params::{
    GradParams, LinearParams, Operand, ProjectParams, ReduceParams, Segment,
};
use crate::driver::sm80::{LinearForward, LinearInputGrad};
use crate::driver::{Gpu, Instances, Kernel, Kernels, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::manifest::sm80::reduce;
use crate::plan::sm80::{
    forward_tiles, input_grad_tile, project_blocks, rank_tile, GradSplit, LinearTile,
};
use crate::problem::{Problem, MAX_PROJECTIONS};
use std::slice;

/// In stream order, after the launch before.
const PLAIN: LaunchMode = LaunchMode { overlap: false, cooperative: false };

/// S or dS by kernels/sm80/project.cu.
pub(super) struct Project {
    /// For the sum of the ranks.
    of_all: Kernel<ProjectParams>,
    /// For the rank of each layer.
    of_each: [Kernel<ProjectParams>; MAX_PROJECTIONS],
}

impl Project {
    fn new(kernels: &Instances<usize, ProjectParams>, problem: &Problem) -> Self {
        let kernel = |r| by_rank(kernels, r);
        let mut of_each = [kernel(1); MAX_PROJECTIONS];
        for (of, &(_, r)) in of_each.iter_mut().zip(problem.projections()) {
            *of = kernel(r);
        }
        Project { of_all: kernel(problem.rank()), of_each }
    }

    /// For S.
    pub(super) fn s(kernels: &Kernels, problem: &Problem) -> Self {
        Project::new(&kernels.of(problem.dtype()).sm80.project_s, problem)
    }

    /// For dS.
    pub(super) fn ds(kernels: &Kernels, problem: &Problem) -> Self {
        Project::new(&kernels.of(problem.dtype()).sm80.project_ds, problem)
    }

    /// S of all layers in one launch.
    pub(super) fn run_s(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        let &Layers { t, k, x, a, s, .. } = layers;
        project(run, &self.of_all, [t, k], [x, a, s], layers.of())
    }

    /// dS of every layer.
    fn run_ds(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        for ((layer, ds), kernel) in layers.with_columns().zip(&self.of_each) {
            let operands = [layer.h, layer.b, ds];
            project(run, kernel, [layers.t, layer.d], operands, slice::from_ref(layer))?;
        }
        Ok(())
    }
}

fn by_rank<P>(kernels: &Instances<usize, P>, r: usize) -> Kernel<P> {
    kernels.get(rank_tile(r)).expect("there is a kernel for every rank tile")
}

/// out = lhs rhsᵀ over k, with as many columns as these layers have ranks, scaled by the scale of
/// each.
fn project(
    run: &Run<'_>,
    kernel: &Kernel<ProjectParams>,
    [m, k]: [usize; 2],
    [lhs, rhs, out]: [Operand; 3],
    layers: &[Layer],
) -> Result<()> {
    let (mut ends, mut scales) = ([i32::MAX; MAX_PROJECTIONS], [0.0; MAX_PROJECTIONS]);
    let mut r = 0;
    for ((end, scale), layer) in ends.iter_mut().zip(&mut scales).zip(layers) {
        r += layer.r;
        (*end, *scale) = (r as i32, layer.scale);
    }
    let blocks = project_blocks(m, r);
    let (m, r, k) = (m as i32, r as i32, k as i32);
    run.launch(kernel, [blocks, 1], PLAIN, &ProjectParams { lhs, rhs, out, m, r, k, ends, scales })
}

/// The sum of the segments' products, by kernels/sm80/linear.cu.
#[derive(Clone, Copy)]
struct Linear {
    tile: LinearTile,
    kernel: Kernel<LinearParams>,
}

impl Linear {
    /// An output of m×n.
    fn run(
        &self,
        run: &Run<'_>,
        [m, n]: [usize; 2],
        segments: [Segment; MAX_PROJECTIONS + 1],
        count: usize,
        out: Operand,
    ) -> Result<()> {
        let blocks = self.tile.ctas([m, n]);
        let (m, n, count) = (m as i32, n as i32, count as i32);
        run.launch(&self.kernel, [blocks, 1], PLAIN, &LinearParams { segments, out, m, n, count })
    }
}

/// H of every layer.
pub(super) struct MmaForward([Option<Linear>; MAX_PROJECTIONS]);

impl MmaForward {
    pub(super) fn new(gpu: &Gpu, problem: &Problem) -> Self {
        let kernels = &gpu.kernels.of(problem.dtype()).sm80.linear_forward;
        let sizes = [problem.t(), problem.k()];
        let tiles = forward_tiles(sizes, problem.projections(), &gpu.profile);
        MmaForward(tiles.map(|tile| {
            let tile @ LinearTile { m, n } = tile?;
            let kernel = kernels.get(LinearForward { m, n });
            Some(Linear { tile, kernel: kernel.expect("there is a kernel for every tile") })
        }))
    }

    /// Of the S that is there.
    pub(super) fn run(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        let &Layers { t, k, x, .. } = layers;
        for ((layer, s), linear) in layers.with_columns().zip(self.0.iter().flatten()) {
            let &Layer { d, r, w0, b, h, .. } = layer;
            let mut segments = [Segment::NONE; MAX_PROJECTIONS + 1];
            segments[0] = Segment::new(x, w0, k);
            segments[1] = Segment::new(s, b, r);
            linear.run(run, [t, d], segments, if r > 0 { 2 } else { 1 }, h)?;
        }
        Ok(())
    }
}

/// dX.
pub(super) struct MmaInputGrad(Linear);

impl MmaInputGrad {
    /// For layers of these (d, r).
    pub(super) fn new(gpu: &Gpu, problem: &Problem, layers: &[(usize, usize)]) -> Self {
        let kernels = &gpu.kernels.of(problem.dtype()).sm80.linear_input_grad;
        let sizes = [problem.t(), problem.k()];
        let tile @ LinearTile { m, n } = input_grad_tile(sizes, layers, &gpu.profile);
        let kernel = kernels.get(LinearInputGrad { m, n });
        let kernel = kernel.expect("there is a kernel for every tile");
        MmaInputGrad(Linear { tile, kernel })
    }

    /// Of the dS that is there.
    pub(super) fn run(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        let &Layers { t, k, x: dx, a, s: ds, .. } = layers;
        let (count, rank) = (layers.of().len(), layers.rank());
        let mut segments = [Segment::NONE; MAX_PROJECTIONS + 1];
        for (segment, layer) in segments.iter_mut().zip(layers.of()) {
            *segment = Segment::new(layer.h, layer.w0, layer.d);
        }
        segments[count] = Segment::new(ds, a, rank);
        self.0.run(run, [t, k], segments, if rank > 0 { count + 1 } else { count }, dx)
    }
}

/// A sum over T by kernels/sm80/grad.cu and reduce.cu.
struct Grad {
    split: GradSplit,
    kernel: Kernel<GradParams>,
}

impl Grad {
    /// (r×n) = lhsᵀ rhs, or its transpose, in f32. `partials` is memory for the partial sums.
    fn run(
        &self,
        run: &Run<'_>,
        backward: &MmaBackward,
        [lhs, rhs]: [Operand; 2],
        partials: u64,
        out: u64,
        [transpose, accumulate]: [bool; 2],
    ) -> Result<()> {
        let &GradSplit { r, n, rows_per_split, splits, rank_tiles, column_tiles } = &self.split;
        let params = GradParams {
            lhs,
            rhs,
            partials: Operand::new(partials, n, DType::F32),
            t: backward.t as i32,
            r: r as i32,
            n: n as i32,
            rows_per_split: rows_per_split as i32,
        };
        run.launch(&self.kernel, [rank_tiles * column_tiles, splits], PLAIN, &params)?;
        let params = ReduceParams {
            partials,
            out,
            splits: splits as i32,
            r: r as i32,
            n: n as i32,
            transpose: transpose.into(),
            accumulate: accumulate.into(),
        };
        let blocks = [n, r].map(|extent| extent.div_ceil(reduce::TILE));
        run.launch(&backward.reduce, blocks, PLAIN, &params)
    }
}

/// A backward pass.
pub(super) struct MmaBackward {
    t: usize,
    project: Project,
    input_grad: MmaInputGrad,
    da: Grad,
    db: [Option<Grad>; MAX_PROJECTIONS],
    reduce: Kernel<ReduceParams>,
}

impl MmaBackward {
    pub(super) fn new(gpu: &Gpu, problem: &Problem) -> Self {
        let of = &gpu.kernels.of(problem.dtype()).sm80;
        let (t, k, rank) = (problem.t(), problem.k(), problem.rank());
        let grad = |r, n| Grad { split: GradSplit::new(t, r, n), kernel: by_rank(&of.grad, r) };
        let mut db = [const { None }; MAX_PROJECTIONS];
        for (db, &(d, r)) in db.iter_mut().zip(problem.projections()) {
            *db = Some(grad(r, d));
        }
        MmaBackward {
            t,
            project: Project::ds(gpu.kernels, problem),
            input_grad: MmaInputGrad::new(gpu, problem, problem.projections()),
            da: grad(rank, k),
            db,
            reduce: of.reduce,
        }
    }

    /// dS, dX if `wants_dx`, dA, and dB of every layer. `partials` is memory for the partial sums
    /// of one gradient.
    pub(super) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        wants_dx: bool,
        gradients: &Gradients,
        partials: u64,
    ) -> Result<()> {
        self.project.run_ds(run, layers)?;
        if wants_dx {
            self.input_grad.run(run, layers)?;
        }
        let &Gradients { x, s, da, db, accumulate } = gradients;
        self.da.run(run, self, [layers.s, x], partials, da, [false, accumulate])?;
        let mut of_s = *layers;
        of_s.s = s;
        for (((layer, s), out), grad) in of_s.with_columns().zip(db).zip(self.db.iter().flatten()) {
            grad.run(run, self, [s, layer.h], partials, out, [true, accumulate])?;
        }
        Ok(())
    }
}
