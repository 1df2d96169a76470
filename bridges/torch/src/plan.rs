//! Both passes of projections that share x, planned.

use crate::exception;
use crate::memory::{read, write};
use crate::streams::{self, CPU, Stream};
use lora_kernels::ops::{
    Accumulation, Backward, Forward, GradientsMut, Projection, Weights, round,
};
use lora_kernels::{DType, Problem, Result, TensorView, TensorViewMut};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Elements of 16 bits in a line of 16 bytes, at which rounded operands start.
const LINE: usize = 8;

/// Both passes of 1 to 4 projections that share x, planned for one device.
///
/// Arguments of the passes are addresses of dense matrices, 0 for what is not wanted. The caller
/// keeps the memory alive, in the order of the stream, and vouches for the addresses.
///
/// x is T×k, each w0 d×k, s T×R with R the sum of the ranks. `a` is one R×k, and each b d×r: or,
/// with masters, one A r×k for each projection. `operands` then receives A and every B, rounded.
#[pyclass(frozen, module = "lora_kernels._native")]
#[derive(Debug)]
pub(crate) struct Plan {
    device: i32,
    problem: Problem,
    forward: Forward,
    backward: Backward,
    /// Where masters A and B are f32: the first element of every B among the rounded operands, and
    /// their end.
    rounded: Option<(Vec<usize>, usize)>,
}

/// A and B as the kernels read them.
type Operands = (TensorView<'static>, Vec<TensorView<'static>>);

#[pymethods]
impl Plan {
    /// `device` is the ordinal of a CUDA device, or -1 for the CPU; `sizes` has (d, r) of each
    /// projection; `dtype` is `"bf16"`, `"f16"` or, on the CPU, `"f32"`; with `masters`, A, B and
    /// their gradients are f32 beside a `dtype` of 16 bits.
    #[new]
    fn new(
        py: Python<'_>,
        device: i32,
        t: usize,
        k: usize,
        sizes: Vec<(usize, usize)>,
        dtype: &str,
        masters: bool,
    ) -> PyResult<Self> {
        let dtype: DType =
            dtype.parse().map_err(|error| PyValueError::new_err(format!("{error}")))?;
        let of = format!("T={t} k={k} (d, r)={sizes:?} {dtype}");
        let plan = || {
            let problem = Problem::new(t, k, &sizes, dtype)?;
            let stream = streams::get(device, 0)?;
            let gradients = if masters { DType::F32 } else { dtype };
            let rounded = (masters && dtype != DType::F32).then(|| {
                let mut end = problem.rank() * k;
                let starts = sizes.iter().map(|(d, r)| {
                    let start = end.next_multiple_of(LINE);
                    end = start + d * r;
                    start
                });
                (starts.collect(), end)
            });
            Ok(Plan {
                device,
                problem,
                forward: Forward::new(&stream.device, &problem)?,
                backward: Backward::new(&stream.device, &problem)?.with_gradients(gradients)?,
                rounded,
            })
        };
        py.detach(plan).map_err(|error| exception(&error, &of))
    }

    /// R, the sum of the ranks.
    #[getter]
    fn rank(&self) -> usize {
        self.problem.rank()
    }

    /// Elements of 16 bits of the rounded operands; 0 without masters.
    #[getter]
    fn operands(&self) -> usize {
        self.rounded.as_ref().map_or(0, |&(_, end)| end)
    }

    /// Bytes of scratch and of flags of a forward pass.
    #[getter]
    fn forward_workspace(&self) -> (usize, usize) {
        let size = self.forward.workspace();
        (size.scratch_bytes(), size.flag_bytes())
    }

    /// Bytes of scratch and of flags of a backward pass.
    #[getter]
    fn backward_workspace(&self) -> (usize, usize) {
        let size = self.backward.workspace();
        (size.scratch_bytes(), size.flag_bytes())
    }

    fn __repr__(&self) -> String {
        format!("{}\n{}", self.forward, self.backward)
    }

    /// Enqueues a forward pass: each h T×d, and s unless it is 0. `flags` is the address of zeros,
    /// or 0 for the stream's own, which a CUDA graph must not use.
    #[allow(clippy::too_many_arguments)] // the operands of the formulas
    fn forward(
        &self,
        py: Python<'_>,
        stream: u64,
        x: u64,
        w0: Vec<u64>,
        a: Vec<u64>,
        b: Vec<u64>,
        scales: Vec<f32>,
        operands: u64,
        h: Vec<u64>,
        s: u64,
        scratch: u64,
        flags: u64,
    ) -> PyResult<()> {
        let n = self.problem.projections().len();
        let of_a = if self.rounded.is_some() { n } else { 1 };
        Self::check(&[
            ("w0", w0.len(), n),
            ("a", a.len(), of_a),
            ("b", b.len(), n),
            ("scales", scales.len(), n),
            ("h", h.len(), n),
        ])?;
        let run = || {
            let stream = streams::get(self.device, stream)?;
            let (t, k, dtype) = (self.problem.t(), self.problem.k(), self.problem.dtype());
            let device = &stream.device;
            // SAFETY: the caller vouches for the addresses, as the class says.
            unsafe {
                let (a, b) = match &self.rounded {
                    Some(_) => self.round(&stream, &a, &b, operands)?,
                    None => self.given(&stream, &a, &b)?,
                };
                let projections = self.projections(&stream, &w0, &b, &scales)?;
                let sizes = self.problem.projections().iter();
                let h = h.iter().zip(sizes);
                let h = h.map(|(&h, &(d, _))| write(device, h, [t, d], dtype));
                let mut h = h.collect::<Result<Vec<_>>>()?;
                let s = (s != 0).then(|| write(device, s, [t, self.problem.rank()], dtype));
                let (x, s) = (read(device, x, [t, k], dtype)?, s.transpose()?);
                let forward = self.forward.on(device)?;
                stream.with_workspace(forward.workspace(), [scratch, flags], |workspace| {
                    forward.run(&Weights::new(a, &projections), x, &mut h, s, workspace)
                })
            }
        };
        self.run(py, run)
    }

    /// Enqueues a backward pass with the s, and the operands, of the forward pass: dx T×k unless it
    /// is 0, da R×k, and each db d×r. With masters `a` and `b` are empty. Flags as for `forward`.
    #[allow(clippy::too_many_arguments)] // the operands of the formulas
    fn backward(
        &self,
        py: Python<'_>,
        stream: u64,
        x: u64,
        s: u64,
        w0: Vec<u64>,
        a: Vec<u64>,
        b: Vec<u64>,
        scales: Vec<f32>,
        operands: u64,
        dh: Vec<u64>,
        dx: u64,
        da: u64,
        db: Vec<u64>,
        scratch: u64,
        flags: u64,
    ) -> PyResult<()> {
        let n = self.problem.projections().len();
        let (of_a, of_b) = if self.rounded.is_some() { (0, 0) } else { (1, n) };
        Self::check(&[
            ("w0", w0.len(), n),
            ("a", a.len(), of_a),
            ("b", b.len(), of_b),
            ("scales", scales.len(), n),
            ("dh", dh.len(), n),
            ("db", db.len(), n),
        ])?;
        let run = || {
            let stream = streams::get(self.device, stream)?;
            let (t, k, dtype) = (self.problem.t(), self.problem.k(), self.problem.dtype());
            let (device, rank) = (&stream.device, self.problem.rank());
            let (sizes, gradients) = (self.problem.projections(), self.backward.gradients());
            // SAFETY: the caller vouches for the addresses, as the class says.
            unsafe {
                let (a, b) = match &self.rounded {
                    Some((starts, _)) => self.operands_at(&stream, starts, operands)?,
                    None => self.given(&stream, &a, &b)?,
                };
                let projections = self.projections(&stream, &w0, &b, &scales)?;
                let dh = dh.iter().zip(sizes);
                let dh = dh.map(|(&dh, &(d, _))| read(device, dh, [t, d], dtype));
                let dh = dh.collect::<Result<Vec<_>>>()?;
                let db = db.iter().zip(sizes);
                let db = db.map(|(&db, &(d, r))| write(device, db, [d, r], gradients));
                let mut db = db.collect::<Result<Vec<_>>>()?;
                let x = read(device, x, [t, k], dtype)?;
                let s = read(device, s, [t, rank], dtype)?;
                let dx = (dx != 0).then(|| write(device, dx, [t, k], dtype)).transpose()?;
                let da = write(device, da, [rank, k], gradients)?;
                let accumulation = Accumulation::Overwrite;
                let out = GradientsMut { da, db: &mut db, accumulation };
                let (backward, weights) =
                    (self.backward.on(device)?, Weights::new(a, &projections));
                let size = backward.workspace();
                stream.with_workspace(size, [scratch, flags], |workspace| match dx {
                    Some(dx) => backward.run(&weights, &dh, x, s, dx, out, workspace),
                    None => backward.run_params(&weights, &dh, x, s, out, workspace),
                })
            }
        };
        self.run(py, run)
    }
}

impl Plan {
    /// Runs without Python's lock where that takes long: on the CPU.
    fn run(&self, py: Python<'_>, run: impl FnOnce() -> Result<()> + Send) -> PyResult<()> {
        let done = if self.device == CPU { py.detach(run) } else { run() };
        done.map_err(|error| exception(&error, &self.problem))
    }

    /// Refuses lists that do not have as many entries as they must.
    fn check(lists: &[(&str, usize, usize)]) -> PyResult<()> {
        match lists.iter().find(|(_, got, expected)| got != expected) {
            None => Ok(()),
            Some((name, got, expected)) => {
                let message = format!("{name} is a list of {got}, expected {expected}");
                Err(PyValueError::new_err(message))
            }
        }
    }

    /// # Safety
    /// The addresses are as the class says.
    unsafe fn projections(
        &self,
        stream: &Stream,
        w0: &[u64],
        b: &[TensorView<'static>],
        scales: &[f32],
    ) -> Result<Vec<Projection<'static>>> {
        let (k, dtype) = (self.problem.k(), self.problem.dtype());
        let each = self.problem.projections().iter().zip(w0).zip(b).zip(scales);
        let each = each.map(|(((&(d, _), &w0), &b), &scale)| {
            // SAFETY: the caller's promise.
            let w0 = unsafe { read(&stream.device, w0, [d, k], dtype)? };
            Ok(Projection::new(w0, b, scale))
        });
        each.collect()
    }

    /// A and B in the type of x.
    ///
    /// # Safety
    /// The addresses are as the class says.
    unsafe fn given(&self, stream: &Stream, a: &[u64], b: &[u64]) -> Result<Operands> {
        let (k, dtype, device) = (self.problem.k(), self.problem.dtype(), &stream.device);
        let each = b.iter().zip(self.problem.projections());
        // SAFETY: the caller's promise.
        let each = each.map(|(&b, &(d, r))| unsafe { read(device, b, [d, r], dtype) });
        let b = each.collect::<Result<Vec<_>>>()?;
        // SAFETY: the caller's promise.
        Ok((unsafe { read(device, a[0], [self.problem.rank(), k], dtype)? }, b))
    }

    /// A and B as they were rounded.
    ///
    /// # Safety
    /// `operands` points to as many elements as the plan says.
    unsafe fn operands_at(
        &self,
        stream: &Stream,
        starts: &[usize],
        operands: u64,
    ) -> Result<Operands> {
        let at = starts.iter().map(|&start| operands + 2 * start as u64).collect::<Vec<_>>();
        // SAFETY: the caller's promise.
        unsafe { self.given(stream, &[operands], &at) }
    }

    /// Enqueues the rounding of f32 A and B, in one launch.
    ///
    /// # Safety
    /// The addresses are as the class says.
    unsafe fn round(
        &self,
        stream: &Stream,
        a: &[u64],
        b: &[u64],
        operands: u64,
    ) -> Result<Operands> {
        let Some((starts, _)) = &self.rounded else { unreachable!("there are masters") };
        let (k, dtype, device) = (self.problem.k(), self.problem.dtype(), &stream.device);
        let (mut sources, mut outputs) = (Vec::new(), Vec::<TensorViewMut<'_>>::new());
        let mut row = 0;
        let each = self.problem.projections().iter().zip(a).zip(b).zip(starts);
        for (((&(d, r), &a), &b), &start) in each {
            for (source, start, shape) in [(a, row * k, [r, k]), (b, start, [d, r])] {
                // SAFETY: the caller's promise.
                unsafe {
                    sources.push(read(device, source, shape, DType::F32)?);
                    outputs.push(write(device, operands + 2 * start as u64, shape, dtype)?);
                }
            }
            row += r;
        }
        round(device, &sources, &mut outputs)?;
        // SAFETY: the caller's promise.
        unsafe { self.operands_at(stream, starts, operands) }
    }
}
