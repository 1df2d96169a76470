//! Launches of kernels/sm80/project.cu.

use crate::cuda::operands::{Layer, Layers};
use crate::driver::params::{Operand, ProjectParams, WithDropout};
use crate::driver::{Instances, Kernel, Kernels, LaunchMode, Run};
use crate::error::Result;
use crate::plan::sm80::{project_blocks, rank_tile};
use crate::problem::{MAX_PROJECTIONS, Problem};
use std::slice;

/// S or dS by kernels/sm80/project.cu.
pub(crate) struct Project {
    /// For the sum of the ranks.
    of_all: Kernel<ProjectParams>,
    /// The same of X with dropout, if the problem has it.
    dropped: Option<Kernel<WithDropout<ProjectParams>>>,
    /// For the rank of each layer.
    of_each: [Kernel<ProjectParams>; MAX_PROJECTIONS],
}

impl Project {
    fn new(kernels: &Instances<usize, ProjectParams>, problem: &Problem) -> Self {
        let kernel = |r| kernels.get(rank_tile(r)).expect("there is a kernel for every rank tile");
        let mut of_each = [kernel(1); MAX_PROJECTIONS];
        for (of, &(_, r)) in of_each.iter_mut().zip(problem.projections()) {
            *of = kernel(r);
        }
        Project { of_all: kernel(problem.rank()), dropped: None, of_each }
    }

    /// For S.
    pub(crate) fn s(kernels: &Kernels, problem: &Problem) -> Self {
        let kernels = &kernels.of(problem.dtype()).sm80;
        let dropped = problem.dropout().then(|| {
            let kernel = kernels.project_s_dropout.get(rank_tile(problem.rank()));
            kernel.expect("there is a kernel for every rank tile")
        });
        Project { dropped, ..Project::new(&kernels.project_s, problem) }
    }

    /// For dS.
    pub(crate) fn ds(kernels: &Kernels, problem: &Problem) -> Self {
        Project::new(&kernels.of(problem.dtype()).sm80.project_ds, problem)
    }

    /// S of all layers in one launch, which does not overlap with those before: Hopper's forward
    /// relies on it, and on being the next launch.
    pub(crate) fn run_s(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        let &Layers { t, k, x, a, s, dropout, .. } = layers;
        let scaled = layers.scaled_for_s();
        let dropped = self.dropped.as_ref().zip(dropout);
        let (blocks, pass) = params([t, k], [x, a, s], scaled.of(), dropped.is_some());
        match dropped {
            Some((kernel, dropout)) => {
                run.launch(kernel, blocks, LaunchMode::default(), &WithDropout { pass, dropout })
            }
            None => run.launch(&self.of_all, blocks, LaunchMode::default(), &pass),
        }
    }

    /// dS of every layer.
    pub(super) fn run_ds(&self, run: &Run<'_>, layers: &Layers) -> Result<()> {
        for ((layer, ds), kernel) in layers.with_columns().zip(&self.of_each) {
            let operands = [layer.h, layer.b, ds];
            let sizes = [layers.t, layer.d];
            let (blocks, pass) = params(sizes, operands, slice::from_ref(layer), false);
            run.launch(kernel, blocks, LaunchMode::default(), &pass)?;
        }
        Ok(())
    }
}

/// The grid and the parameters of out = lhs rhsᵀ over k, with as many columns as these layers have
/// ranks, scaled by the scale of each.
fn params(
    [m, k]: [usize; 2],
    [lhs, rhs, out]: [Operand; 3],
    layers: &[Layer],
    dropout: bool,
) -> ([usize; 2], ProjectParams) {
    let (mut ends, mut scales) = ([i32::MAX; MAX_PROJECTIONS], [0.0; MAX_PROJECTIONS]);
    let mut r = 0;
    for ((end, scale), layer) in ends.iter_mut().zip(&mut scales).zip(layers) {
        r += layer.r;
        (*end, *scale) = (r as i32, layer.scale);
    }
    let blocks = project_blocks(m, r, dropout);
    let (m, r, k) = (m as i32, r as i32, k as i32);
    ([blocks, 1], ProjectParams { lhs, rhs, out, m, r, k, ends, scales })
}
