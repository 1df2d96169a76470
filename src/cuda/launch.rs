//! The launches: parameters as the kernels take them, and the operations as sequences of kernels.

use super::kernels::{Kernel, LinearKernels};
use super::memory::{self, Resolved};
use super::tensor_map::TensorMap;
use super::{driver, Cuda};
use crate::ops::{Accumulation, BackwardOutputs, Weights};
use crate::plan::{self, rank_tile, BackwardWorkspace, GradSplit, Path, Problem};
use crate::{DType, Error, Result, TensorView, TensorViewMut};
use cudarc::driver::{sys, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop};

/// A matrix in device memory, as `Operand` in kernels/tile.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Operand {
    data: sys::CUdeviceptr,
    ld: i32,
    vectors: i32,
}

impl Operand {
    /// Dense rows of `cols` elements.
    fn new(data: sys::CUdeviceptr, cols: usize, dtype: DType) -> Self {
        let vectors = data.is_multiple_of(16) && (cols * dtype.bytes()).is_multiple_of(16);
        Operand { data, ld: cols as i32, vectors: vectors.into() }
    }

    /// The operand of a stretch of the sum that has no length.
    const NONE: Operand = Operand { data: 0, ld: 0, vectors: 0 };
}

/// As in kernels/linear.cu.
#[repr(C)]
struct LinearParams {
    lhs: Operand,
    rhs: Operand,
    lhs_ext: Operand,
    rhs_ext: Operand,
    out: Operand,
    m: i32,
    n: i32,
    k: i32,
    r: i32,
}

/// As in kernels/hopper_linear.cu.
#[repr(C)]
struct HopperLinearParams {
    lhs: TensorMap,
    rhs: TensorMap,
    lhs_ext: TensorMap,
    rhs_ext: TensorMap,
    out: TensorMap,
    m: i32,
    n: i32,
    k: i32,
    r: i32,
}

/// As in kernels/project.cu.
#[repr(C)]
struct ProjectParams {
    lhs: Operand,
    rhs: Operand,
    out: Operand,
    m: i32,
    r: i32,
    k: i32,
    scale: f32,
}

/// As in kernels/grad.cu.
#[repr(C)]
struct GradParams {
    lhs: Operand,
    rhs: Operand,
    partials: Operand,
    t: i32,
    r: i32,
    n: i32,
    rows_per_split: i32,
}

/// As in kernels/reduce.cu.
#[repr(C)]
struct ReduceParams {
    partials: sys::CUdeviceptr,
    out: sys::CUdeviceptr,
    splits: i32,
    r: i32,
    n: i32,
    transpose: i32,
    accumulate: i32,
}

/// As in kernels/merge.cu.
#[repr(C)]
struct MergeParams {
    w: Operand,
    b: Operand,
    a: Operand,
    out: Operand,
    d: i32,
    k: i32,
    r: i32,
    scale: f32,
}

// The same sizes are asserted in the kernels.
const _: () = {
    assert!(size_of::<Operand>() == 16);
    assert!(size_of::<LinearParams>() == 96);
    assert!(size_of::<HopperLinearParams>() == 704);
    assert!(size_of::<ProjectParams>() == 64);
    assert!(size_of::<GradParams>() == 64);
    assert!(size_of::<ReduceParams>() == 40);
    assert!(size_of::<MergeParams>() == 80);
};

// SAFETY: plain integers, floats and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for LinearParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for HopperLinearParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ProjectParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for GradParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ReduceParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for MergeParams {}

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

/// Which of the base product's two forms a launch runs.
#[derive(Clone, Copy)]
enum Linear {
    Forward,
    InputGrad,
}

impl Linear {
    fn of(self, kernels: &LinearKernels) -> &Kernel {
        match self {
            Linear::Forward => &kernels.forward,
            Linear::InputGrad => &kernels.input_grad,
        }
    }
}

/// What a rank-r product multiplies: S = s·X Aᵀ or dS = s·dH B.
#[derive(Clone, Copy)]
enum Project {
    S,
    Ds,
}

impl Cuda {
    pub(crate) fn forward(
        &self,
        problem: &Problem,
        weights: &Weights<'_>,
        x: &TensorView<'_>,
        h: &mut TensorViewMut<'_>,
        s: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let &Problem { t, k, d, r, dtype } = problem;
        let mut buffers = Buffers::new(self.stream());
        let w0 = Operand::new(buffers.read("w0", &weights.w0), k, dtype);
        let a = Operand::new(buffers.read("a", &weights.a), k, dtype);
        let b = Operand::new(buffers.read("b", &weights.b), r, dtype);
        let x = Operand::new(buffers.read("x", x), k, dtype);
        let h = Operand::new(buffers.write("h", h), d, dtype);
        let s = Operand::new(buffers.write("s", s), r, dtype);
        buffers.check_overlap()?;

        self.project(Project::S, dtype, [t, r, k], [x, a, s], weights.scale)?;
        let path = plan::forward(problem, Some(self.profile())).path;
        self.linear(Linear::Forward, path, dtype, [t, d, k, r], [x, w0, s, b, h])
    }

    pub(crate) fn frozen(
        &self,
        problem: &Problem,
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

        let operands = [x, w0, Operand::NONE, Operand::NONE, h];
        let path = plan::frozen(problem, Some(self.profile())).path;
        self.linear(Linear::Forward, path, dtype, [t, d, k, 0], operands)
    }

    #[allow(clippy::too_many_arguments)] // the inputs of the formula
    pub(crate) fn backward(
        &self,
        problem: &Problem,
        weights: &Weights<'_>,
        dh: &TensorView<'_>,
        x: &TensorView<'_>,
        s: &TensorView<'_>,
        out: &mut BackwardOutputs<'_>,
        workspace: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let &Problem { t, k, d, r, dtype } = problem;
        let mut buffers = Buffers::new(self.stream());
        let w0 = Operand::new(buffers.read("w0", &weights.w0), k, dtype);
        let a = Operand::new(buffers.read("a", &weights.a), k, dtype);
        let b = Operand::new(buffers.read("b", &weights.b), r, dtype);
        let dh = Operand::new(buffers.read("dh", dh), d, dtype);
        let x = Operand::new(buffers.read("x", x), k, dtype);
        let s = Operand::new(buffers.read("s", s), r, dtype);
        let dx = out.dx.as_mut().map(|dx| Operand::new(buffers.write("dx", dx), k, dtype));
        let da = buffers.write("da", &mut out.da);
        let db = buffers.write("db", &mut out.db);
        let workspace = buffers.write("workspace", workspace);
        buffers.check_overlap()?;

        let layout = BackwardWorkspace::new(problem);
        let ds = Operand::new(workspace, r, dtype);
        let partials = workspace + 4 * layout.partials_offset() as u64;

        self.project(Project::Ds, dtype, [t, r, d], [dh, b, ds], weights.scale)?;
        if let Some(dx) = dx {
            let path = plan::backward(problem, Some(self.profile())).path;
            self.linear(Linear::InputGrad, path, dtype, [t, k, d, r], [dh, w0, ds, a, dx])?;
        }
        let accumulate = i32::from(out.accumulation == Accumulation::Add);
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

    /// out (m×n) = lhs (m×k) · rhsᵀ + lhs_ext (m×r) · rhs_extᵀ.
    fn linear(
        &self,
        which: Linear,
        path: Path,
        dtype: DType,
        sizes: [usize; 4],
        operands: [Operand; 5],
    ) -> Result<()> {
        let kernels = self.kernels.of(dtype);
        let aligned = operands.iter().all(|operand| operand.vectors == 1 || operand.data == 0);
        let hopper = kernels.hopper_linear.as_ref().filter(|_| path == Path::Hopper && aligned);
        if let Some(kernels) = hopper {
            return self.hopper_linear(which, kernels, dtype, sizes, operands);
        }
        let blocks = plan::linear_blocks(sizes[0], sizes[1]);
        let [m, n, k, r] = sizes.map(|size| size as i32);
        let [lhs, rhs, lhs_ext, rhs_ext, out] = operands;
        let params = LinearParams { lhs, rhs, lhs_ext, rhs_ext, out, m, n, k, r };
        self.launch(which.of(&kernels.linear), [blocks, 1], &params)
    }

    fn hopper_linear(
        &self,
        which: Linear,
        kernels: &LinearKernels,
        dtype: DType,
        [m, n, k, r]: [usize; 4],
        [lhs, rhs, lhs_ext, rhs_ext, out]: [Operand; 5],
    ) -> Result<()> {
        let map = |operand: Operand, shape, box_rows| {
            TensorMap::new(operand.data, shape, dtype, box_rows)
        };
        let rhs_map = |operand, inner| match which {
            Linear::Forward => map(operand, [n, inner], 128),
            Linear::InputGrad => map(operand, [inner, n], 64),
        };
        let (lhs, rhs) = (map(lhs, [m, k], 128)?, rhs_map(rhs, k)?);
        let (lhs_ext, rhs_ext) = match r {
            0 => (lhs, rhs), // never read
            _ => (map(lhs_ext, [m, r], 128)?, rhs_map(rhs_ext, r)?),
        };
        let out = map(out, [m, n], 64)?;
        let blocks = plan::hopper_linear_blocks(m, n, self.profile().sms);
        let [m, n, k, r] = [m, n, k, r].map(|size| size as i32);
        let params = HopperLinearParams { lhs, rhs, lhs_ext, rhs_ext, out, m, n, k, r };
        self.launch(which.of(kernels), [blocks, 1], &params)
    }

    fn project(
        &self,
        which: Project,
        dtype: DType,
        [m, r, k]: [usize; 3],
        [lhs, rhs, out]: [Operand; 3],
        scale: f32,
    ) -> Result<()> {
        let kernels = self.kernels.of(dtype);
        let kernels = match which {
            Project::S => &kernels.project_s,
            Project::Ds => &kernels.project_ds,
        };
        let blocks = plan::project_blocks(m, r);
        let kernel = kernels.get(rank_tile(r));
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

    fn launch<P: DeviceRepr>(&self, kernel: &Kernel, grid: [usize; 2], params: &P) -> Result<()> {
        if grid[0] > i32::MAX as usize || grid[1] > u16::MAX as usize {
            return Err(Error::TooLarge { what: format!("a launch of {grid:?} blocks") });
        }
        let footprint = &kernel.footprint;
        let config = LaunchConfig {
            grid_dim: (grid[0] as u32, grid[1] as u32, 1),
            block_dim: (footprint.threads[0], footprint.threads[1], 1),
            shared_mem_bytes: footprint.shared_bytes,
        };
        let mut launch = self.stream().launch_builder(&kernel.function);
        launch.arg(params);
        // SAFETY: `params` is the kernel's own struct, its addresses hold matrices of the sizes it
        // names (checked by `ops`), and the outputs overlap nothing (checked by `Buffers`).
        unsafe { launch.launch(config) }.map_err(driver::during("cuLaunchKernel"))?;
        Ok(())
    }
}
