//! Launches of kernels/sm80/decode.cu: few tokens of one layer.

use crate::cuda::operands::{Gradients, Handover, Layer, Layers};
use crate::driver::params::{DecodeParams, Operand};
use crate::driver::sm80::{DecodeForward, DecodeInputGrad};
use crate::driver::{Gpu, Kernel, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::Needs;
use crate::plan::sm80::copy_needs;
use crate::plan::sm80::decode::{Instance, Launch};

/// The launch that serves a layer.
#[derive(Clone, Copy)]
pub(crate) struct Decode {
    kernel: Kernel<DecodeParams>,
    launch: Launch,
}

impl Decode {
    /// For H and S of a layer, or H alone.
    pub(crate) fn forward(gpu: &Gpu, dtype: DType, launch: Launch) -> Self {
        let kernels = &gpu.kernels.of(dtype).sm80.decode_forward;
        let Instance { t, rows, splits, loads } = launch.instance;
        let kernel = kernels.get(DecodeForward { t, rows, splits, loads });
        Decode { kernel: kernel.expect("there is a kernel for every plan"), launch }
    }

    /// For dX, dS, dA and dB of a layer, or dX alone.
    pub(crate) fn input_grad(gpu: &Gpu, dtype: DType, launch: Launch) -> Self {
        let kernels = &gpu.kernels.of(dtype).sm80.decode_input_grad;
        let Instance { t, rows, splits, loads } = launch.instance;
        let kernel = kernels.get(DecodeInputGrad { t, rows, splits, loads });
        Decode { kernel: kernel.expect("there is a kernel for every plan"), launch }
    }

    /// Whether this launch serves a forward pass of these operands: rows of A, B and S must start
    /// at multiples of 16 bytes, rows of W0 and X too unless the instance shifts. H has no say.
    pub(crate) fn serves_forward(&self, layers: &Layers) -> bool {
        let shifts = self.launch.instance.shifts();
        let anywhere = layers.of().iter().map(|layer| layer.w0).chain([layers.x]);
        let others = layers.of().iter().map(|layer| layer.b).chain([layers.a, layers.s]);
        anywhere.filter(|_| !shifts).chain(others).all(|operand| operand.is_aligned())
    }

    /// Whether this launch serves a backward pass of these operands: rows of dH, B and dS must
    /// start at multiples of 16 bytes, for dX rows of A too, and of W0 unless the instance shifts.
    /// dX itself has no say.
    pub(crate) fn serves_input_grad(&self, layers: &Layers, wants_dx: bool) -> bool {
        let shifts = self.launch.instance.shifts();
        let w0 = layers.of().iter().map(|layer| layer.w0).filter(|_| !shifts);
        let for_dx = w0.chain([layers.a]).filter(|_| wants_dx);
        let others = layers.of().iter().flat_map(|layer| [layer.b, layer.h]).chain([layers.s]);
        for_dx.chain(others).all(|operand| operand.is_aligned())
    }

    /// Whether it will serve a backward pass of these operands with W0 where it lies, once others
    /// whose sizes need copies are copied.
    pub(crate) fn reads_w0(&self, layers: &Layers) -> bool {
        let is_ready = |layer: &Layer| {
            let dh_is_copied = copy_needs([layers.t, layer.d]) != Needs::default();
            layer.b.is_aligned() && (dh_is_copied || layer.h.is_aligned())
        };
        self.launch.instance.shifts() && layers.of().iter().all(is_ready)
    }

    /// H and S of a layer, given its A and its columns of S, or H alone where r = 0.
    pub(crate) fn run_forward(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        layer: &Layer,
        [a, s]: [Operand; 2],
        handover: Handover,
    ) -> Result<()> {
        let &Layers { t, k, x, .. } = layers;
        let &Layer { d, r, w0, b, h, scale } = layer;
        let params = params(&self.launch, [t, k, d, r], scale, handover);
        let params = DecodeParams { x, w0, a, b, s, h, ..params };
        run.launch(&self.kernel, [self.launch.grid(), 1], LaunchMode::default(), &params)
    }

    /// dX of a single layer if `wants_dx`; with gradients dS, dA and dB too.
    pub(crate) fn run_input_grad(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        wants_dx: bool,
        gradients: Option<&Gradients>,
        handover: Handover,
    ) -> Result<()> {
        // By their names in the forward, whose kernel this is.
        let &Layers { t, k: d, x: h, a: b, s, .. } = layers;
        let &Layer { d: k, r, w0, b: a, h: x, scale } = &layers.of()[0];
        let launch = if wants_dx { self.launch } else { self.launch.without_out() };
        let mut params = params(&launch, [t, k, d, r], scale, handover);
        if let Some(gradients) = gradients {
            let &Gradients { x: y, s: saved_s, da, db: [db, ..], accumulate, .. } = gradients;
            let (accumulate, rounds) = (accumulate.into(), gradients.rounds().into());
            params = DecodeParams { y, saved_s, da, db, accumulate, rounds, ..params };
        }
        let params = DecodeParams { x, w0, a, b, s, h, ..params };
        run.launch(&self.kernel, [launch.grid(), 1], LaunchMode::default(), &params)
    }
}

/// All but the operands.
fn params(
    launch: &Launch,
    [t, k, d, r]: [usize; 4],
    scale: f32,
    Handover { flags, partials }: Handover,
) -> DecodeParams {
    let &Launch { proj, row_tiles, da_tiles, db_tiles, waiters, .. } = launch;
    let none = Operand::NONE;
    DecodeParams {
        x: none,
        w0: none,
        a: none,
        b: none,
        s: none,
        h: none,
        y: none,
        saved_s: none,
        da: 0,
        db: 0,
        partials,
        flags,
        t: t as i32,
        k: k as i32,
        d: d as i32,
        r: r as i32,
        rank_tiles: proj.tiles as i32,
        proj_ctas: proj.ctas() as i32,
        ctas: launch.blocks() as i32,
        row_tiles: row_tiles as i32,
        da_tiles: da_tiles as i32,
        db_tiles: db_tiles as i32,
        waiters: waiters as i32,
        proj_partials: proj.needs().partials as i32,
        scale,
        accumulate: 0,
        rounds: 0,
    }
}
