//! The operations as sequences of launches.

use super::hopper::{Gradients, Handover};
use super::kernels::{Kernel, LinearKernels};
use super::memory::{self, Resolved};
use super::params::{GradParams, LinearParams, MergeParams, Operand, ProjectParams, ReduceParams};
use super::{driver, Cuda};
use crate::ops::{Accumulation, Call, SharedBackwardOutputs};
use crate::plan::hopper::{Projection, Schedule};
use crate::plan::hopper_decode;
use crate::plan::{self, rank_tile, BackwardWorkspace, GradSplit, Plan, Problem};
use crate::{DType, Error, Result, TensorView, TensorViewMut, Workspace};
use cudarc::driver::{sys, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop};
use std::ptr;

/// The buffers of a call: their addresses, checked for overlap, and cudarc's records of their use,
/// which are taken when this is dropped, after the launches.
struct Buffers<'a> {
    stream: &'a CudaStream,
    ranges: Vec<Range>,
    records: Vec<SyncOnDrop<'a>>,
}

struct Range {
    argument: &'static str,
    start: sys::CUdeviceptr,
    bytes: u64,
    written: bool,
}

impl<'a> Buffers<'a> {
    fn new(stream: &'a CudaStream) -> Self {
        Buffers { stream, ranges: Vec::new(), records: Vec::new() }
    }

    fn read(&mut self, argument: &'static str, view: &'a TensorView<'_>) -> sys::CUdeviceptr {
        let bytes = memory::bytes(view.shape, view.dtype);
        self.add(argument, view.region.resolve(self.stream), bytes, false)
    }

    fn write(
        &mut self,
        argument: &'static str,
        view: &'a mut TensorViewMut<'_>,
    ) -> sys::CUdeviceptr {
        let bytes = memory::bytes(view.shape, view.dtype);
        self.add(argument, view.region.resolve(self.stream), bytes, true)
    }

    fn add(
        &mut self,
        argument: &'static str,
        (start, record): Resolved<'a>,
        bytes: u64,
        written: bool,
    ) -> sys::CUdeviceptr {
        self.ranges.push(Range { argument, start, bytes, written });
        self.records.extend(record);
        start
    }

    /// Refuses outputs that share memory with anything else.
    fn check_overlap(&self) -> Result<()> {
        for (i, a) in self.ranges.iter().enumerate() {
            for b in &self.ranges[i + 1..] {
                let apart = a.start + a.bytes <= b.start || b.start + b.bytes <= a.start;
                if apart || !(a.written || b.written) {
                    continue;
                }
                let (output, other) = if b.written { (b, a) } else { (a, b) };
                let (output, other) = (output.argument, other.argument);
                return Err(Error::Overlap { output, other });
            }
        }
        Ok(())
    }
}

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
#[derive(Clone, Copy)]
pub(super) enum Linear {
    Forward,
    InputGrad,
}

/// A product with W0 and the adapter's beside it:
///
/// ```text
/// lhs_ext (m×r) = scale · lhs (m×k) downᵀ       out (m×n) = lhs rhsᵀ + lhs_ext rhs_extᵀ
/// ```
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) lhs: Operand,
    pub(super) rhs: Operand,
    pub(super) down: Operand,
    pub(super) lhs_ext: Operand,
    pub(super) rhs_ext: Operand,
    pub(super) out: Operand,
    pub(super) scale: f32,
}

impl Product {
    /// How the Hopper kernel serves it, if that is the plan and all rows start at multiples of 16 bytes.
    fn schedule<'a>(&self, plan: &'a Plan) -> Option<&'a Schedule> {
        plan.hopper.as_ref().filter(|_| self.is_aligned())
    }

    /// The same of the kernel for few tokens.
    fn decode_schedule<'a>(&self, plan: &'a Plan) -> Option<&'a hopper_decode::Schedule> {
        plan.decode.as_ref().filter(|_| self.is_aligned())
    }

    fn is_aligned(&self) -> bool {
        let Product { lhs, rhs, down, lhs_ext, rhs_ext, out, .. } = self;
        let mut operands = [lhs, rhs, down, lhs_ext, rhs_ext, out].into_iter();
        operands.all(|operand| operand.vectors == 1)
    }
}

impl Linear {
    pub(super) fn of(self, kernels: &LinearKernels) -> &Kernel {
        match self {
            Linear::Forward => &kernels.forward,
            Linear::InputGrad => &kernels.input_grad,
        }
    }
}

fn alone(call: &Call<'_>) -> Result<Problem> {
    let reason = "there are none yet for projections that share their input";
    call.problem.alone().ok_or(Error::KernelsNotBuilt { reason })
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
        let Problem { t, k, d, r, dtype } = alone(call)?;
        let (problem, weights, h) = (&call.problem, &call.layers[0], &mut h[0]);
        let (mut scratch, mut flags) = workspace.views();
        let mut buffers = Buffers::new(self.stream());
        let w0 = Operand::new(buffers.read("w0", weights.w0), k, dtype);
        let a = Operand::new(buffers.read("a", call.a), k, dtype);
        let b = Operand::new(buffers.read("b", weights.b), r, dtype);
        let x = Operand::new(buffers.read("x", x), k, dtype);
        let h = Operand::new(buffers.write("h", h), d, dtype);
        let s = s.map(|s| buffers.write("s", s));
        let flags = buffers.write("flags of the workspace", &mut flags);
        let scratch = buffers.write("scratch of the workspace", &mut scratch);
        buffers.check_overlap()?;
        let s = Operand::new(s.unwrap_or(scratch), r, dtype);
        let partials = scratch + 4 * plan::projection_elements(problem) as u64;
        let handover = Handover { flags, partials };

        let (lhs, rhs, out, scale) = (x, w0, h, weights.scale);
        let product = Product { lhs, rhs, down: a, lhs_ext: s, rhs_ext: b, out, scale };
        let (which, sizes) = (Linear::Forward, [t, d, k, r]);
        if let Some(schedule) = product.decode_schedule(plan) {
            return self.hopper_decode(dtype, sizes, &product, schedule, flags);
        }
        let schedule = product.schedule(plan);
        if schedule.is_none_or(|schedule| schedule.projection == Projection::Before) {
            self.project(which, dtype, sizes, &product)?;
        }
        self.linear(which, plan, dtype, sizes, &product, handover)
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

        let (none, scale) = (Operand::NONE, 1.0);
        let (down, lhs_ext, rhs_ext) = (none, none, none);
        let product = Product { lhs: x, rhs: w0, down, lhs_ext, rhs_ext, out: h, scale };
        if let Some(schedule) = product.decode_schedule(plan) {
            let no_flags = Handover::NONE.flags;
            return self.hopper_decode(dtype, [t, d, k, 0], &product, schedule, no_flags);
        }
        self.linear(Linear::Forward, plan, dtype, [t, d, k, 0], &product, Handover::NONE)
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
        let problem = alone(call)?;
        let (weights, dh) = (&call.layers[0], &dh[0]);
        let Problem { t, k, d, r, dtype } = problem;
        let (mut scratch, mut flags) = workspace.views();
        let mut buffers = Buffers::new(self.stream());
        let w0 = Operand::new(buffers.read("w0", weights.w0), k, dtype);
        let a = Operand::new(buffers.read("a", call.a), k, dtype);
        let b = Operand::new(buffers.read("b", weights.b), r, dtype);
        let dh = Operand::new(buffers.read("dh", dh), d, dtype);
        let x = Operand::new(buffers.read("x", x), k, dtype);
        let s = Operand::new(buffers.read("s", s), r, dtype);
        let dx = out.dx.as_mut().map(|dx| Operand::new(buffers.write("dx", dx), k, dtype));
        let da = buffers.write("da", &mut out.da);
        let db = buffers.write("db", &mut out.db[0]);
        let scratch = buffers.write("scratch of the workspace", &mut scratch);
        let flags = buffers.write("flags of the workspace", &mut flags);
        buffers.check_overlap()?;

        let accumulation = out.accumulation;
        let layout = BackwardWorkspace::new(&call.problem, plan.hopper.as_ref());
        let ds = Operand::new(scratch, r, dtype);
        let partials = scratch + 4 * layout.partials_offset() as u64;

        let (out, scale) = (dx.unwrap_or(Operand::NONE), weights.scale);
        let product = Product { lhs: dh, rhs: w0, down: b, lhs_ext: ds, rhs_ext: a, out, scale };
        let accumulate = accumulation == Accumulation::Add;
        let aligned = x.vectors == 1 && s.vectors == 1 && (da | db).is_multiple_of(16);
        if let Some(schedule) = product.schedule(plan).filter(|_| aligned) {
            let gradients = Gradients { x, s, da, db, accumulate };
            let handover = Handover { flags, partials };
            let wants_dx = dx.is_some();
            return self
                .hopper_backward(&problem, &product, wants_dx, &gradients, schedule, handover);
        }
        let (which, sizes) = (Linear::InputGrad, [t, k, d, r]);
        self.project(which, dtype, sizes, &product)?;
        if dx.is_some() {
            self.mma_linear(which, dtype, sizes, &product)?;
        }
        let accumulate = accumulate.into();
        for (lhs, rhs, n, out, transpose) in [(ds, x, k, da, 0), (s, dh, d, db, 1)] {
            let split = GradSplit::new(t, r, n);
            self.grad(dtype, t, &split, [lhs, rhs], partials)?;
            let (splits, r, n) = (split.splits as i32, r as i32, n as i32);
            self.reduce(ReduceParams { partials, out, splits, r, n, transpose, accumulate })?;
        }
        Ok(())
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

    /// The second half of a product, with lhs_ext given, or all of it by a schedule that makes lhs_ext.
    fn linear(
        &self,
        which: Linear,
        plan: &Plan,
        dtype: DType,
        sizes: [usize; 4],
        product: &Product,
        handover: Handover,
    ) -> Result<()> {
        match product.schedule(plan) {
            Some(schedule) => self.hopper_linear(which, dtype, sizes, product, schedule, handover),
            None => self.mma_linear(which, dtype, sizes, product),
        }
    }

    /// The second half of a product.
    fn mma_linear(
        &self,
        which: Linear,
        dtype: DType,
        sizes: [usize; 4],
        product: &Product,
    ) -> Result<()> {
        let kernels = self.kernels.of(dtype);
        let blocks = plan::linear_blocks(sizes[0], sizes[1]);
        let [m, n, k, r] = sizes.map(|size| size as i32);
        let &Product { lhs, rhs, lhs_ext, rhs_ext, out, .. } = product;
        let params = LinearParams { lhs, rhs, lhs_ext, rhs_ext, out, m, n, k, r };
        self.launch(which.of(&kernels.linear), [blocks, 1], &params)
    }

    /// The first half of a product: lhs_ext.
    fn project(
        &self,
        which: Linear,
        dtype: DType,
        [m, _, k, r]: [usize; 4],
        product: &Product,
    ) -> Result<()> {
        let kernels = self.kernels.of(dtype);
        let kernels = match which {
            Linear::Forward => &kernels.project_s,
            Linear::InputGrad => &kernels.project_ds,
        };
        let blocks = plan::project_blocks(m, r);
        let kernel = kernels.get(rank_tile(r));
        let &Product { lhs, down: rhs, lhs_ext: out, scale, .. } = product;
        let (m, r, k) = (m as i32, r as i32, k as i32);
        self.launch(kernel, [blocks, 1], &ProjectParams { lhs, rhs, out, m, r, k, scale })
    }

    fn grad(
        &self,
        dtype: DType,
        t: usize,
        split: &GradSplit,
        [lhs, rhs]: [Operand; 2],
        partials: sys::CUdeviceptr,
    ) -> Result<()> {
        let kernel = self.kernels.of(dtype).grad.get(rank_tile(split.r));
        let params = GradParams {
            lhs,
            rhs,
            partials: Operand::new(partials, split.n, DType::F32),
            t: t as i32,
            r: split.r as i32,
            n: split.n as i32,
            rows_per_split: split.rows_per_split as i32,
        };
        self.launch(kernel, [split.rank_tiles * split.column_tiles, split.splits], &params)
    }

    fn reduce(&self, params: ReduceParams) -> Result<()> {
        let blocks = [params.n as usize, params.r as usize].map(|extent| extent.div_ceil(32));
        self.launch(&self.kernels.reduce, blocks, &params)
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
        blocks: usize,
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
        let LaunchConfig { grid_dim, block_dim, shared_mem_bytes } = kernel.config([blocks, 1])?;
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
