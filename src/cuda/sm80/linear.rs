//! Launches of kernels/sm80/linear.cuh.

use super::project::Project;
use crate::cuda::operands::{Gradients, Handover, Layer, Layers};
use crate::driver::params::{
    Dropout, LinearGradient, LinearParams, Operand, ProjectionParams, Segment, WithDropout,
};
use crate::driver::sm80::{LinearForward, LinearInputGrad, LinearInputGradDropout};
use crate::driver::{Gpu, Kernel, LaunchMode, Run};
use crate::error::Result;
use crate::plan::sm80::{GradSplit, LinearSchedule, LinearTile, ProjSplit, s_flags, whole_s};
use crate::problem::{MAX_PROJECTIONS, Problem};
use std::mem;

/// A kernel of a tile, with dropout or without.
#[derive(Clone, Copy)]
enum TileKernel {
    Whole(Kernel<LinearParams>),
    Dropped(Kernel<WithDropout<LinearParams>>),
}

/// An output in tiles.
#[derive(Clone, Copy)]
struct Tiles {
    tile: LinearTile,
    kernel: TileKernel,
    /// CTAs that fill the GPU.
    whole_gpu: usize,
}

/// An output, by the alignment of the rows that it is a sum over.
#[derive(Clone, Copy)]
struct Linear {
    tiles: Tiles,
    /// For unaligned rows. If `None`, `tiles` gather them, which is slow.
    unaligned: Option<Tiles>,
}

impl Linear {
    /// The i-th output of a schedule, given its kernel by m, n and whether it shifts.
    fn new(
        schedule: &LinearSchedule,
        i: usize,
        gpu: &Gpu,
        kernel: impl Fn([usize; 3]) -> Option<TileKernel>,
    ) -> Option<Self> {
        let tiles = |tile: LinearTile, shifts: bool| {
            let kernel = kernel([tile.m, tile.n, shifts.into()]);
            let kernel = kernel.expect("there is a kernel for every tile");
            Tiles { tile, kernel, whole_gpu: tile.whole_gpu(shifts, &gpu.profile) }
        };
        Some(Linear {
            tiles: tiles(schedule.tiles[i]?, false),
            unaligned: schedule.unaligned[i].map(|tile| tiles(tile, true)),
        })
    }

    /// What serves these products with frozen weights. The rows of S and B have no say: they are
    /// one step.
    fn of(&self, products: &[Segment]) -> Tiles {
        let mut operands = products.iter().flat_map(|segment| [segment.lhs, segment.rhs]);
        match self.unaligned {
            Some(unaligned) if !operands.all(|operand| operand.is_aligned()) => unaligned,
            _ => self.tiles,
        }
    }

    /// Without operands. Unused entries have no CTAs.
    const NONE: LinearParams = LinearParams {
        segments: [Segment::NONE; MAX_PROJECTIONS + 1],
        out: Operand::NONE,
        m: 0,
        n: 0,
        rhs_n: 0,
        count: 0,
        projections: [ProjectionParams::NONE; MAX_PROJECTIONS],
        gradients: [LinearGradient::NONE; MAX_PROJECTIONS + 1],
        tiles: 0,
        proj_ctas: 0,
        whole_tiles: 0,
        s_tiles: 0,
        waiters: 0,
        ctas: 0,
        accumulate: 0,
        rounds: 0,
        flags: 0,
    };

    /// The tiles and the parameters of an output of m×n: `products` segments with frozen weights,
    /// then that of S if `has_s`.
    fn params(
        &self,
        [m, n]: [usize; 2],
        segments: [Segment; MAX_PROJECTIONS + 1],
        products: usize,
        has_s: bool,
        out: Operand,
    ) -> (Tiles, LinearParams) {
        let tiles = self.of(&segments[..products]);
        let ctas = tiles.tile.ctas([m, n]) as i32;
        let (m, n, count) = (m as i32, n as i32, (products + usize::from(has_s)) as i32);
        let sizes = LinearParams { m, n, rhs_n: n, count, tiles: ctas, ..Linear::NONE };
        (tiles, LinearParams { segments, out, ..sizes })
    }
}

impl Tiles {
    fn run(&self, run: &Run<'_>, mut params: LinearParams, dropout: Option<Dropout>) -> Result<()> {
        let gradients = params.gradients.iter().map(|gradient| gradient.ctas);
        params.ctas = params.proj_ctas + params.tiles + gradients.sum::<i32>();
        let mut grid = params.ctas as usize;
        if params.proj_ctas > 0 && params.whole_tiles == 0 {
            grid = grid.max(self.whole_gpu);
        }
        let (grid, mode) = ([grid, 1], LaunchMode::default());
        match &self.kernel {
            TileKernel::Whole(kernel) => run.launch(kernel, grid, mode, &params),
            TileKernel::Dropped(kernel) => {
                let dropout = dropout.expect("checked to have dropout");
                run.launch(kernel, grid, mode, &WithDropout { pass: params, dropout })
            }
        }
    }
}

/// The memory of a pass behind the flags of S, of the sizes and in the order of plan/sm80/split.rs.
fn behind_s_flags(handover: Handover, t: usize) -> Handover {
    Handover { flags: handover.flags + 4 * s_flags(t) as u64, ..handover }
}

/// Adds the projection out (T×r) = scale · lhs · rhsᵀ over k to a launch, before its gradients.
fn add_projection(
    params: &mut LinearParams,
    memory: &mut Handover,
    split: ProjSplit,
    [lhs, rhs, out]: [Operand; 3],
    [k, r]: [usize; 2],
    scale: f32,
) {
    let Handover { flags: arrivals, partials } = memory.take(split.needs());
    let (k, r, ctas) = (k as i32, r as i32, split.ctas() as i32);
    let unused = params.projections.iter_mut().find(|projection| projection.ctas == 0);
    *unused.expect("there are as many as layers") =
        ProjectionParams { lhs, rhs, out, partials, arrivals, k, r, scale, ctas };
    params.proj_ctas += ctas;
    params.s_tiles += split.rank_tiles as i32;
    params.waiters = params.tiles;
}

/// Adds the gradient (r×n) = lhsᵀ rhs, or its transpose, to a launch. `waits`: that computes lhs.
fn add_gradient(
    params: &mut LinearParams,
    memory: &mut Handover,
    split: GradSplit,
    [lhs, rhs]: [Operand; 2],
    out: Operand,
    [transpose, waits]: [bool; 2],
) {
    let Handover { flags: arrivals, partials } = memory.take(split.needs());
    let GradSplit { r, n, splits, rows_per_split, .. } = split;
    let ctas = split.ctas() as i32;
    let unused = params.gradients.iter_mut().find(|gradient| gradient.ctas == 0);
    *unused.expect("there are as many as layers, and one") = LinearGradient {
        lhs,
        rhs,
        out,
        partials,
        arrivals,
        r: r as i32,
        n: n as i32,
        splits: splits as i32,
        rows_per_split: rows_per_split as i32,
        transpose: transpose.into(),
        waits: waits.into(),
        ctas,
    };
    params.waiters += if waits { ctas } else { 0 };
}

/// H of every layer, and S.
pub(crate) struct MmaForward {
    linears: [Option<Linear>; MAX_PROJECTIONS],
    project: Project,
    /// Whether the first launch computes S.
    with_s: bool,
    /// Of the first tiles, if it is whole beside them, and its CTAs.
    whole_s: Option<(LinearTile, usize)>,
}

impl MmaForward {
    /// `short`: the plan is of these launches, for a short batch. Where they serve what another
    /// kernel cannot, there is memory only for S.
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, short: bool) -> Self {
        let kernels = &gpu.kernels.of(problem.dtype()).sm80.linear_forward;
        let (sizes, layers) = ([problem.t(), problem.k()], problem.projections());
        let schedule = match problem.dropout() {
            false => LinearSchedule::forward(sizes, layers, &gpu.profile),
            true => LinearSchedule::forward_after_s(sizes, layers, &gpu.profile),
        };
        let linears = std::array::from_fn(|i| {
            Linear::new(&schedule, i, gpu, |[m, n, shifts]| {
                kernels.get(LinearForward { m, n, shifts }).map(TileKernel::Whole)
            })
        });
        let (ranks, sizes) =
            (layers.iter().map(|&(_, r)| r), [problem.t(), layers[0].0, problem.k()]);
        let whole_s = whole_s(&schedule, sizes, ranks, &gpu.profile);
        MmaForward { linears, project: Project::s(gpu.kernels, problem), with_s: short, whole_s }
    }

    pub(crate) fn run(&self, run: &Run<'_>, layers: &Layers, handover: Handover) -> Result<()> {
        let &Layers { t, k, x, .. } = layers;
        let mut memory = behind_s_flags(handover, t);
        let has_s = layers.rank() > 0;
        if has_s && !self.with_s {
            self.project.run_s(run, layers)?;
        }
        let each = layers.with_columns().zip(self.linears.iter().flatten());
        for (i, ((layer, s), linear)) in each.enumerate() {
            let &Layer { d, r, w0, b, h, .. } = layer;
            let mut segments = [Segment::NONE; MAX_PROJECTIONS + 1];
            segments[0] = Segment::new(x, w0, k);
            segments[1] = Segment::new(s, b, r);
            let (tiles, mut params) = linear.params([t, d], segments, 1, r > 0, h);
            if has_s && self.with_s && i == 0 {
                params.flags = handover.flags;
                let aligned = x.is_aligned() && layers.a.is_aligned();
                let whole = self.whole_s.filter(|&(tile, _)| aligned && tile == tiles.tile);
                for (&Layer { r, scale, .. }, [a, s]) in layers.with_operands() {
                    let split = ProjSplit::new([t, k, r]);
                    let split = if whole.is_some() { split.whole() } else { split };
                    add_projection(&mut params, &mut memory, split, [x, a, s], [k, r], scale);
                }
                if let Some((_, ctas)) = whole {
                    params.whole_tiles = mem::replace(&mut params.proj_ctas, ctas as i32);
                }
            }
            tiles.run(run, params, None)?;
        }
        Ok(())
    }
}

/// dX.
pub(crate) struct MmaInputGrad {
    linear: Linear,
    /// Columns of copies of W0 and A: k, and then zeros.
    padded_k: usize,
}

impl MmaInputGrad {
    /// For layers of these (d, r), copies as for [`MmaBackward::new`].
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, layers: &[(usize, usize)]) -> Self {
        let kernels = &gpu.kernels.of(problem.dtype()).sm80;
        let sizes = [problem.t(), problem.k()];
        let schedule = match problem.dropout() {
            false => LinearSchedule::input_grad(sizes, layers, &gpu.profile),
            true => LinearSchedule::input_grad_dropout(sizes, layers, &gpu.profile),
        };
        let linear = Linear::new(&schedule, 0, gpu, |[m, n, shifts]| match problem.dropout() {
            false => {
                let kernels = &kernels.linear_input_grad;
                kernels.get(LinearInputGrad { m, n, shifts }).map(TileKernel::Whole)
            }
            true => {
                let kernels = &kernels.linear_input_grad_dropout;
                kernels.get(LinearInputGradDropout { m, n, shifts }).map(TileKernel::Dropped)
            }
        });
        MmaInputGrad { linear: linear.expect("there is an output"), padded_k: problem.k() }
    }

    /// Of the dS of these layers, if they have one.
    fn params(&self, layers: &Layers) -> (Tiles, LinearParams) {
        let &Layers { t, k, x: dx, a, s: ds, .. } = layers;
        let (count, rank) = (layers.of().len(), layers.rank());
        let mut segments = [Segment::NONE; MAX_PROJECTIONS + 1];
        for (segment, layer) in segments.iter_mut().zip(layers.of()) {
            *segment = Segment::new(layer.h, layer.w0, layer.d);
        }
        segments[count] = Segment::new(ds, a, rank);
        let (tiles, params) = self.linear.params([t, k], segments, count, rank > 0, dx);
        let is_aligned = layers.of().iter().all(|layer| layer.w0.is_aligned());
        let rhs_n = if is_aligned { self.padded_k as i32 } else { params.n };
        (tiles, LinearParams { rhs_n, ..params })
    }

    /// Of frozen layers.
    pub(crate) fn run(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        let (tiles, params) = self.params(layers);
        tiles.run(run, params, None)
    }
}

/// A backward pass.
pub(crate) struct MmaBackward {
    input_grad: MmaInputGrad,
    project: Project,
    /// Whether the launch computes dS.
    with_ds: bool,
}

impl MmaBackward {
    /// For copies of this problem's sizes. `short` as for [`MmaForward::new`].
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, short: bool) -> Self {
        MmaBackward {
            input_grad: MmaInputGrad::new(gpu, problem, problem.projections()),
            project: Project::ds(gpu.kernels, problem),
            with_ds: short,
        }
    }

    /// dS, dX if `wants_dx`, dA, and dB of every layer.
    pub(crate) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        wants_dx: bool,
        gradients: &Gradients,
        handover: Handover,
    ) -> Result<()> {
        let (t, k, with_ds) = (layers.t, layers.k, self.with_ds);
        let mut memory = behind_s_flags(handover, t);
        let &Gradients { x, s, da, db, dtype, accumulate, .. } = gradients;
        if !with_ds {
            self.project.run_ds(run, layers)?;
        }
        let (tiles, mut params) = self.input_grad.params(layers);
        if !wants_dx {
            params.tiles = 0;
        }
        params.flags = handover.flags;
        if with_ds {
            for (&Layer { d, r, b, h, scale, .. }, ds) in layers.with_columns() {
                let split = ProjSplit::new([t, d, r]);
                add_projection(&mut params, &mut memory, split, [h, b, ds], [d, r], scale);
            }
        }
        (params.accumulate, params.rounds) = (accumulate.into(), gradients.rounds().into());
        let mut of_s = *layers;
        of_s.s = s;
        for ((&Layer { d, r, h, .. }, s), db) in of_s.with_columns().zip(db) {
            let split = GradSplit::new(t, r, d);
            let db = Operand::new(db, r, dtype);
            add_gradient(&mut params, &mut memory, split, [s, h], db, [true, false]);
        }
        let split = GradSplit::new(t, layers.rank(), k);
        let da = Operand::new(da, k, dtype);
        add_gradient(&mut params, &mut memory, split, [layers.s, x], da, [false, with_ds]);
        tiles.run(run, params, layers.dropout)
    }
}
