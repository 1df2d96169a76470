//! The operations as sequences of launches.

use super::buffers::Buffers;
use super::hopper::Handover;
use super::kernels::Kernel;
use super::params::{MergeParams, Operand};
use super::{driver, Cuda};
use crate::ops::{Accumulation, Call, SharedBackwardOutputs};
use crate::plan::hopper::{Projection, Schedule};
use crate::plan::{self, Alone, Apart, BackwardWorkspace, Plan, Problem, MAX_PROJECTIONS};
use crate::{DType, Result, TensorView, TensorViewMut, Workspace};
use cudarc::driver::{sys, DeviceRepr, LaunchConfig, PushKernelArg};
use std::ptr;

/// How a launch stands to others.
#[derive(Clone, Copy)]
pub(super) struct LaunchMode {
    /// Its blocks may start as soon as there is room for them: the kernel itself waits for the one
    /// before it in the stream (`griddepcontrol.wait`).
    pub(super) overlap: bool,
    /// All its blocks run at the same time, or it is refused.
    pub(super) cooperative: bool,
}

/// Which of the base product's two forms a launch runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Linear {
    Forward,
    InputGrad,
}

impl Linear {
    /// As in the names of kernels.
    pub(super) fn name(self) -> &'static str {
        match self {
            Linear::Forward => "forward",
            Linear::InputGrad => "input_grad",
        }
    }
}

/// Layers that share X, and what a pass works on: the forward, or the backward up to dX.
#[derive(Clone, Copy)]
pub(super) struct Layers<'a> {
    pub(super) dtype: DType,
    pub(super) t: usize,
    pub(super) k: usize,
    /// X or dX, T×k.
    pub(super) x: Operand,
    /// The layers' A, one below the other, R×k with the sum of their ranks as R.
    pub(super) a: Operand,
    /// S or dS, T×R.
    pub(super) s: Operand,
    pub(super) of: &'a [Layer],
}

/// What each has for itself. Without an adapter, r = 0.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    pub(super) d: usize,
    pub(super) r: usize,
    /// W0, d×k.
    pub(super) w0: Operand,
    /// B, d×r.
    pub(super) b: Operand,
    /// H or dH, T×d.
    pub(super) h: Operand,
    pub(super) scale: f32,
}

impl Layers<'_> {
    /// R.
    pub(super) fn rank(&self) -> usize {
        self.of.iter().map(|layer| layer.r).sum()
    }

    /// How the Hopper kernel serves it, if that is the plan and all rows start at multiples of 16 bytes.
    fn schedule<'a>(&self, plan: &'a Plan) -> Option<&'a Schedule> {
        plan.hopper.as_ref().filter(|_| self.is_aligned())
    }

    /// The same of the kernels for few tokens, for every layer.
    fn apart<'a>(&self, plan: &'a Plan) -> Option<&'a Apart> {
        plan.apart.as_ref().filter(|_| self.is_aligned())
    }

    fn is_aligned(&self) -> bool {
        let of_all = [self.x, self.a, self.s].into_iter();
        let of_each = self.of.iter().flat_map(|layer| [layer.w0, layer.b, layer.h]);
        of_all.chain(of_each).all(|operand| operand.vectors == 1)
    }
}

/// What the gradients of A and B are made of, and where they go.
#[derive(Clone, Copy)]
pub(super) struct Gradients {
    pub(super) x: Operand,
    pub(super) s: Operand,
    pub(super) da: sys::CUdeviceptr,
    /// Of every layer.
    pub(super) db: [sys::CUdeviceptr; MAX_PROJECTIONS],
    /// Added to what is there.
    pub(super) accumulate: bool,
}

impl Cuda {
    pub(crate) fn forward(
        &self,
        call: &Call<'_>,
        plan: &Plan,
        x: &TensorView<'_>,
        h: &mut [TensorViewMut<'_>],
        s: Option<&mut TensorViewMut<'_>>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let problem = &call.problem;
        let (t, k, dtype) = (problem.t, problem.k, problem.dtype);
        let (mut scratch, mut flags) = workspace.views();
        let mut buffers = Buffers::new(self.stream());
        let a = Operand::new(buffers.read("a", call.a), k, dtype);
        let x = Operand::new(buffers.read("x", x), k, dtype);
        let mut of = Vec::new();
        for ((layer, part), h) in call.layers.iter().zip(problem.parts()).zip(h) {
            let (d, r, scale, names) = (part.d, part.r, layer.scale, layer.names);
            let w0 = Operand::new(buffers.read(names.w0, layer.w0), k, dtype);
            let b = Operand::new(buffers.read(names.b, layer.b), r, dtype);
            let h = Operand::new(buffers.write(names.h, h), d, dtype);
            of.push(Layer { d, r, w0, b, h, scale });
        }
        let s = s.map(|s| buffers.write("s", s));
        let flags = buffers.write("flags of the workspace", &mut flags);
        let scratch = buffers.write("scratch of the workspace", &mut scratch);
        buffers.check_overlap()?;

        let s = Operand::new(s.unwrap_or(scratch), problem.rank(), dtype);
        let partials = scratch + 4 * plan::projection_elements(problem) as u64;
        let layers = Layers { dtype, t, k, x, a, s, of: &of };
        self.products(&layers, plan, Handover { flags, partials })
    }

    pub(crate) fn frozen(
        &self,
        problem: &Problem,
        plan: &Plan,
        w0: &TensorView<'_>,
        x: &TensorView<'_>,
        h: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let &Problem { t, k, d, dtype, .. } = problem;
        let mut buffers = Buffers::new(self.stream());
        let w0 = Operand::new(buffers.read("w0", w0), k, dtype);
        let x = Operand::new(buffers.read("x", x), k, dtype);
        let h = Operand::new(buffers.write("h", h), d, dtype);
        buffers.check_overlap()?;

        let none = Operand::NONE;
        let of = [Layer { d, r: 0, w0, b: none, h, scale: 1.0 }];
        let layers = Layers { dtype, t, k, x, a: none, s: none, of: &of };
        self.products(&layers, plan, Handover::NONE)
    }

    /// S, unless all r = 0, and H of every layer.
    fn products(&self, layers: &Layers<'_>, plan: &Plan, handover: Handover) -> Result<()> {
        if let Some(apart) = layers.apart(plan) {
            return self.products_apart(layers, apart, handover.flags);
        }
        if let Some(schedule) = layers.schedule(plan) {
            if schedule.projection == Projection::Before {
                self.mma_project(layers)?;
            }
            return self.hopper_forward(layers, schedule, handover);
        }
        self.mma_project(layers)?;
        self.mma_forward(layers)
    }

    /// The same of aligned operands, one layer after the other. Few tokens take little time to read again.
    fn products_apart(
        &self,
        layers: &Layers<'_>,
        apart: &Apart,
        flags: sys::CUdeviceptr,
    ) -> Result<()> {
        let mut a = layers.a;
        for ((layer, s), alone) in layers.with_columns().zip(apart.iter().flatten()) {
            match alone {
                Alone::Decode(schedule) => {
                    self.hopper_decode(layers, layer, [a, s], schedule, flags)?;
                }
                Alone::Short(schedule) => {
                    self.hopper_short(layers, layer, [a, s], schedule, flags)?;
                }
            }
            a.data += (layer.r * layers.k * layers.dtype.bytes()) as u64;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // the operands of the formulas
    pub(crate) fn backward(
        &self,
        call: &Call<'_>,
        plan: &Plan,
        dh: &[TensorView<'_>],
        x: &TensorView<'_>,
        s: &TensorView<'_>,
        out: &mut SharedBackwardOutputs<'_, '_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let problem = &call.problem;
        let (t, k, rank, dtype) = (problem.t, problem.k, problem.rank(), problem.dtype);
        let (mut scratch, mut flags) = workspace.views();
        let mut buffers = Buffers::new(self.stream());
        let a = Operand::new(buffers.read("a", call.a), k, dtype);
        let x = Operand::new(buffers.read("x", x), k, dtype);
        let s = Operand::new(buffers.read("s", s), rank, dtype);
        let dx = out.dx.as_mut().map(|dx| Operand::new(buffers.write("dx", dx), k, dtype));
        let da = buffers.write("da", &mut out.da);
        let (mut of, mut db) = (Vec::new(), [0; MAX_PROJECTIONS]);
        let of_each = call.layers.iter().zip(problem.parts()).zip(dh);
        for (((layer, part), dh), (db, out)) in of_each.zip(db.iter_mut().zip(out.db.iter_mut())) {
            let (d, r, scale, names) = (part.d, part.r, layer.scale, layer.names);
            let w0 = Operand::new(buffers.read(names.w0, layer.w0), k, dtype);
            let b = Operand::new(buffers.read(names.b, layer.b), r, dtype);
            let h = Operand::new(buffers.read(names.dh, dh), d, dtype);
            *db = buffers.write(names.db, out);
            of.push(Layer { d, r, w0, b, h, scale });
        }
        let scratch = buffers.write("scratch of the workspace", &mut scratch);
        let flags = buffers.write("flags of the workspace", &mut flags);
        buffers.check_overlap()?;

        let ds = Operand::new(scratch, rank, dtype);
        let layout = BackwardWorkspace::new(problem, plan.hopper.as_ref());
        let partials = scratch + 4 * layout.partials_offset() as u64;
        let out_x = dx.unwrap_or(Operand::NONE);
        let layers = Layers { dtype, t, k, x: out_x, a, s: ds, of: &of };
        let accumulate = out.accumulation == Accumulation::Add;
        let gradients = Gradients { x, s, da, db, accumulate };
        let all = db.iter().fold(da, |all, db| all | db);
        let aligned = x.vectors == 1 && s.vectors == 1 && all.is_multiple_of(16);
        if let Some(schedule) = layers.schedule(plan).filter(|_| aligned) {
            let handover = Handover { flags, partials };
            return self.hopper_backward(&layers, dx.is_some(), &gradients, schedule, handover);
        }
        if let Some([Some(alone), ..]) = layers.apart(plan).filter(|_| aligned) {
            let wants_dx = dx.is_some();
            return match alone {
                Alone::Decode(schedule) => {
                    self.hopper_decode_backward(&layers, wants_dx, &gradients, schedule, flags)
                }
                Alone::Short(schedule) => {
                    self.hopper_short_backward(&layers, wants_dx, &gradients, schedule, flags)
                }
            };
        }
        self.mma_backward(&layers, dx.is_some(), &gradients, partials)
    }

    /// out = W + scale · B A, where W is out itself if `w0` is `None`.
    pub(crate) fn merge(
        &self,
        problem: &Problem,
        w0: Option<&TensorView<'_>>,
        a: &TensorView<'_>,
        b: &TensorView<'_>,
        scale: f32,
        out: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let &Problem { k, d, r, dtype, .. } = problem;
        let mut buffers = Buffers::new(self.stream());
        let name = if w0.is_some() { "out" } else { "w" };
        let w0 = w0.map(|w0| Operand::new(buffers.read("w0", w0), k, dtype));
        let a = Operand::new(buffers.read("a", a), k, dtype);
        let b = Operand::new(buffers.read("b", b), r, dtype);
        let out = Operand::new(buffers.write(name, out), k, dtype);
        buffers.check_overlap()?;

        let (d, k, r) = (d as i32, k as i32, r as i32);
        let params = MergeParams { w: w0.unwrap_or(out), b, a, out, d, k, r, scale };
        let blocks = plan::merge_blocks(problem);
        self.launch(&self.kernels.of(dtype).merge, [blocks, 1], &params)
    }

    pub(super) fn launch<P: DeviceRepr>(
        &self,
        kernel: &Kernel,
        grid: [usize; 2],
        params: &P,
    ) -> Result<()> {
        let config = kernel.config(grid)?;
        let mut launch = self.stream().launch_builder(&kernel.function);
        launch.arg(params);
        // SAFETY: `params` is the kernel's own struct, its addresses hold matrices of the sizes it
        // names (checked by `ops`), and the outputs overlap nothing (checked by `Buffers`).
        unsafe { launch.launch(config) }.map_err(driver::during("cuLaunchKernel"))?;
        Ok(())
    }

    /// As [`Cuda::launch`], in other ways.
    pub(super) fn launch_with<P: DeviceRepr>(
        &self,
        kernel: &Kernel,
        config: LaunchConfig,
        params: &P,
        mode: LaunchMode,
    ) -> Result<()> {
        use sys::CUlaunchAttributeID::*;
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let LaunchMode { overlap, cooperative } = mode;
        let overlap =
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: overlap.into() };
        let cooperative = sys::CUlaunchAttributeValue { cooperative: cooperative.into() };
        let mut attributes = [
            attribute(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, overlap),
            attribute(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, cooperative),
        ];
        let LaunchConfig { grid_dim, block_dim, shared_mem_bytes } = config;
        let config = sys::CUlaunchConfig {
            gridDimX: grid_dim.0,
            gridDimY: grid_dim.1,
            gridDimZ: grid_dim.2,
            blockDimX: block_dim.0,
            blockDimY: block_dim.1,
            blockDimZ: block_dim.2,
            sharedMemBytes: shared_mem_bytes,
            hStream: self.stream().cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut args = [ptr::from_ref(params).cast_mut().cast()];
        self.context().bind_to_thread().map_err(driver::during("cuCtxSetCurrent"))?;
        // SAFETY: as in `launch`; what the pointers refer to lives until the call returns, which has then
        // copied it.
        let launched = unsafe {
            let function = kernel.function.cu_function();
            sys::cuLaunchKernelEx(&config, function, args.as_mut_ptr(), ptr::null_mut())
        };
        launched.result().map_err(driver::during("cuLaunchKernelEx"))
    }
}
