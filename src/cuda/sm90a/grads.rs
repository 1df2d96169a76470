//! The launches of kernels/sm90a/grads.cu, and the parameters of kernels that make dA and dB
//! beside dX.

use crate::cuda::dropout::Launch;
use crate::cuda::operands::{Gradients, Layers, parts};
use crate::driver::params::HopperGradsParams;
use crate::driver::{Gpu, LaunchMode, Run};
use crate::error::Result;
use crate::manifest::sm90a::{grads::STEP_ROWS, linear_tiles::TILE_K, ptx::BOX_COLS};
use crate::plan::input_grad_sizes;
use crate::plan::sm90a::grads::{Makes, Schedule, box_beside, rank_tile};
use crate::problem::{MAX_PROJECTIONS, Problem};
use bytemuck::Zeroable;

/// Rows of T and columns of S that kernels/sm90a/grads.cu loads at a time, for S of r columns.
pub(crate) fn boxes(r: usize) -> [usize; 2] {
    [STEP_ROWS, rank_tile(r).min(BOX_COLS)]
}

/// What dA and dB of a layer take in a launch for few tokens, which makes dS and knows who waits
/// for it.
pub(crate) fn grads_beside(layers: &Layers, gradients: &Gradients) -> Result<HopperGradsParams> {
    grads_params(layers, gradients, 0, box_beside(layers.t, layers.rank()))
}

/// What dA and dB of these layers take, and dS, if others need not be waited for, with T in boxes
/// of so many rows, and S of so many columns.
pub(crate) fn grads_params(
    layers: &Layers,
    gradients: &Gradients,
    flags: u64,
    [rows, rank_cols]: [usize; 2],
) -> Result<HopperGradsParams> {
    let &Layers { dtype, t, k, s: ds, .. } = layers;
    let &Gradients { x, s, da, db, accumulate, splits, splits_at, .. } = gradients;
    let r = layers.rank();
    let (parts, outputs) = parts(layers, TILE_K);
    let mut d = [0; MAX_PROJECTIONS];
    for (d, layer) in d.iter_mut().zip(layers.of()) {
        *d = layer.d as i32;
    }
    let mut params = HopperGradsParams {
        dh: Zeroable::zeroed(),
        b: Zeroable::zeroed(),
        x: x.boxes([t, k], dtype, [rows, BOX_COLS])?,
        s: s.boxes([t, r], dtype, [rows, rank_cols])?,
        ds: ds.boxes([t, r], dtype, [rows, rank_cols])?,
        ds_out: ds.data,
        flags,
        db,
        da,
        d,
        t: t as i32,
        k: k as i32,
        r: r as i32,
        outputs,
        proj_ctas: 0,
        ds_flag_count: 0,
        accumulate: accumulate.into(),
        rounds: gradients.rounds().into(),
        splits: splits.count as i32,
        rows_per_split: splits.rows as i32,
        partials: splits_at.partials,
        arrivals: splits_at.flags,
        parts,
    };
    layers.fill(&mut params.dh, |layer| layer.h.boxes([t, layer.d], dtype, [rows, BOX_COLS]))?;
    layers.fill(&mut params.b, |layer| {
        layer.b.boxes([layer.d, layer.r], dtype, [TILE_K, BOX_COLS])
    })?;
    Ok(params)
}

/// A launch for dS, dA and dB, or a part of them.
pub(crate) struct Grads {
    kernel: Launch<(Layers, Gradients, u64), HopperGradsParams>,
    mode: LaunchMode,
    makes: Makes,
    schedule: Schedule,
}

impl Grads {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, makes: Makes) -> Self {
        let kernels = gpu.kernels.of(problem.dtype());
        let (kernels, tile) = (&kernels.sm90a, rank_tile(problem.rank()));
        let kernel = match problem.dropout() && makes != Makes::Ds {
            false => Launch::whole(kernels.grads.get(tile)),
            true => Launch::dropped(kernels.grads_dropout.get(tile)),
        };
        let (cooperative, after) = (makes == Makes::All, makes == Makes::DaDb);
        let mode = LaunchMode { overlap: gpu.kernels.overlap && after, cooperative };
        let schedule = Schedule::new(&input_grad_sizes(problem), makes, 2 * gpu.profile.clusters());
        Grads { kernel, mode, makes, schedule }
    }

    /// `flags` are zeros, unless this makes only dA and dB.
    pub(crate) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        gradients: &Gradients,
        flags: u64,
    ) -> Result<()> {
        let (grid, key) = ((self.schedule.blocks, self.mode), (*layers, *gradients, flags));
        self.kernel.run(run, grid, layers, key, || self.params(layers, gradients, flags))
    }

    fn params(
        &self,
        layers: &Layers,
        gradients: &Gradients,
        flags: u64,
    ) -> Result<HopperGradsParams> {
        let r = layers.rank();
        let mut params = grads_params(layers, gradients, flags, boxes(r))?;
        params.proj_ctas = self.schedule.proj_ctas as i32;
        match self.makes {
            Makes::All => params.ds_flag_count = r.div_ceil(rank_tile(r)) as i32,
            Makes::Ds => params.da = 0,
            Makes::DaDb => {}
        }
        Ok(params)
    }
}
