//! Both passes of projections that share x, planned.

use crate::addresses::Addresses;
use crate::exception;
use crate::memory::{read, write};
use crate::streams::{self, CPU, Stream};
use lora_kernels::ops::{
    Accumulation, Backward, Forward, GradientsMut, Projection, Weights, round,
};
use lora_kernels::{DType, Device, Dropout, Problem, Result, TensorView, TensorViewMut};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Elements of 16 bits in a line of 16 bytes, at which rounded operands start.
const LINE: usize = 8;

/// Both passes of 1 to 4 projections that share x, planned for one device.
///
/// Operands are addresses of dense matrices, 0 for what is not wanted. The caller keeps the memory
/// alive, in the order of the stream, and vouches for the addresses.
///
/// x is T×k, each w0 d×k, each a r×k, each b d×r, and s T×R with R the sum of the ranks. `operands`
/// is the A of all, R×k. With masters, a, b and their gradients are f32, and `operands` receives A
/// and every B, rounded.
#[pyclass(frozen, module = "lora_kernels._native")]
#[derive(Debug)]
pub(crate) struct Plan {
    device: i32,
    problem: Problem,
    forward: Forward,
    backward: Backward,
    /// p of the adapters' input, or 0.
    dropout: f32,
    /// Where masters A and B are f32: the first element of every B among the rounded operands, and
    /// their end.
    rounded: Option<(Vec<usize>, usize)>,
}

#[pymethods]
impl Plan {
    /// `device` is the ordinal of a CUDA device, or -1 for the CPU; `sizes` has (d, r) of each
    /// projection; `dtype` is `"bf16"`, `"f16"` or, on the CPU, `"f32"`; with `masters`, A, B and
    /// their gradients are f32 beside a `dtype` of 16 bits. `dropout` is p of the adapters' input.
    #[new]
    #[allow(clippy::too_many_arguments)] // what decides a plan
    fn new(
        py: Python<'_>,
        device: i32,
        t: usize,
        k: usize,
        sizes: Vec<(usize, usize)>,
        dtype: &str,
        masters: bool,
        dropout: f32,
    ) -> PyResult<Self> {
        let dtype: DType =
            dtype.parse().map_err(|error| PyValueError::new_err(format!("{error}")))?;
        let of = format!("T={t} k={k} (d, r)={sizes:?} {dtype}");
        let plan = || {
            Dropout::new(dropout, 0, 0)?;
            let problem = Problem::new(t, k, &sizes, dtype)?.with_dropout(dropout > 0.0);
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
                dropout,
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

    /// Enqueues a forward pass: each h T×d, and s unless it is 0. `addresses` holds x, then
    /// each w0, each a, each b and each h. `operands` is the A of all, or receives the rounded
    /// masters. `dropout` is the address of the seed and the offset of its mask, 64 bits each.
    /// `scratch` and `flags` are addresses, of zeros for the flags, or 0 for the stream's own.
    /// `False` if nothing was enqueued: the stream captures, and a graph must not use its own.
    #[allow(clippy::too_many_arguments)] // the operands of the formulas
    fn forward(
        &self,
        py: Python<'_>,
        stream: u64,
        addresses: &Bound<'_, PyList>,
        scales: &Bound<'_, PyAny>,
        operands: u64,
        s: u64,
        dropout: u64,
        scratch: u64,
        flags: u64,
    ) -> PyResult<bool> {
        let sizes = self.problem.projections();
        let n = sizes.len();
        let at = Addresses::new(addresses, 1 + 4 * n)?;
        let ([x], [w0, a, b, h]) = at.split([n; 4]);
        let scales = self.scales(scales)?;
        let (t, k, dtype) = (self.problem.t(), self.problem.k(), self.problem.dtype());
        self.run(py, stream, |stream| {
            let device = &stream.device;
            // SAFETY: the caller vouches for the addresses, as the class says.
            unsafe {
                let (all_a, projections) = self.weights(device, w0, b, operands, &scales)?;
                let h = h.iter().zip(sizes);
                let h = h.map(|(&h, &(d, _))| write(device, h, [t, d], dtype));
                let mut h = h.collect::<Result<Vec<_>>>()?;
                let s = (s != 0).then(|| write(device, s, [t, self.problem.rank()], dtype));
                let (x, s) = (read(device, x, [t, k], dtype)?, s.transpose()?);
                let weights = self.dropped(Weights::new(all_a, &projections), device, dropout)?;
                let forward = self.forward.on(device)?;
                stream.with_workspace(forward.workspace(), [scratch, flags], |workspace| {
                    if let Some((starts, _)) = &self.rounded {
                        self.round(device, [a, b], starts, operands)?;
                    }
                    forward.run(&weights, x, &mut h, s, workspace)
                })
            }
        })
    }

    /// Enqueues a backward pass: dx T×k unless it is 0, da R×k, and each db d×r. `addresses`
    /// holds x, s and the operands of the forward pass, then each w0, each b unless there are
    /// masters, each dh, da, and each db. The other arguments are as for `forward`.
    #[allow(clippy::too_many_arguments)] // the operands of the formulas
    fn backward(
        &self,
        py: Python<'_>,
        stream: u64,
        addresses: &Bound<'_, PyList>,
        scales: &Bound<'_, PyAny>,
        dx: u64,
        dropout: u64,
        scratch: u64,
        flags: u64,
    ) -> PyResult<bool> {
        let sizes = self.problem.projections();
        let n = sizes.len();
        let of_b = if self.rounded.is_some() { 0 } else { n };
        let at = Addresses::new(addresses, 4 + 3 * n + of_b)?;
        let ([x, s, operands], [w0, b, dh, da, db]) = at.split([n, of_b, n, 1, n]);
        let scales = self.scales(scales)?;
        let (t, k, dtype) = (self.problem.t(), self.problem.k(), self.problem.dtype());
        self.run(py, stream, |stream| {
            let (device, rank) = (&stream.device, self.problem.rank());
            let gradients = self.backward.gradients();
            // SAFETY: the caller vouches for the addresses, as the class says.
            unsafe {
                let (a, projections) = self.weights(device, w0, b, operands, &scales)?;
                let dh = dh.iter().zip(sizes);
                let dh = dh.map(|(&dh, &(d, _))| read(device, dh, [t, d], dtype));
                let dh = dh.collect::<Result<Vec<_>>>()?;
                let db = db.iter().zip(sizes);
                let db = db.map(|(&db, &(d, r))| write(device, db, [d, r], gradients));
                let mut db = db.collect::<Result<Vec<_>>>()?;
                let x = read(device, x, [t, k], dtype)?;
                let s = read(device, s, [t, rank], dtype)?;
                let dx = (dx != 0).then(|| write(device, dx, [t, k], dtype)).transpose()?;
                let da = write(device, da[0], [rank, k], gradients)?;
                let out = GradientsMut { da, db: &mut db, accumulation: Accumulation::Overwrite };
                let weights = self.dropped(Weights::new(a, &projections), device, dropout)?;
                let backward = self.backward.on(device)?;
                let size = backward.workspace();
                stream.with_workspace(size, [scratch, flags], |workspace| match dx {
                    Some(dx) => backward.run(&weights, &dh, x, s, dx, out, workspace),
                    None => backward.run_params(&weights, &dh, x, s, out, workspace),
                })
            }
        })
    }
}

impl Plan {
    /// Runs a call on a stream, without Python's lock where that takes long: on the CPU.
    fn run(
        &self,
        py: Python<'_>,
        stream: u64,
        call: impl FnOnce(&Stream) -> Result<bool> + Send,
    ) -> PyResult<bool> {
        let run = || call(&*streams::get(self.device, stream)?);
        let done = if self.device == CPU { py.detach(run) } else { run() };
        done.map_err(|error| exception(&error, &self.problem))
    }

    /// One for every projection.
    fn scales(&self, scales: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
        let scales: Vec<f32> = scales.extract()?;
        let (got, expected) = (scales.len(), self.problem.projections().len());
        if got == expected {
            return Ok(scales);
        }
        let message = format!("scales is a list of {got}, expected {expected}");
        Err(PyValueError::new_err(message))
    }

    /// A of all, and W0, B and s of each, A and B as they were rounded.
    ///
    /// # Safety
    /// The addresses are as the class says.
    unsafe fn weights(
        &self,
        device: &Device,
        w0: &[u64],
        b: &[u64],
        operands: u64,
        scales: &[f32],
    ) -> Result<(TensorView<'static>, Vec<Projection<'static>>)> {
        let (k, dtype) = (self.problem.k(), self.problem.dtype());
        let each = self.problem.projections().iter().zip(w0).zip(scales).enumerate();
        let each = each.map(|(i, ((&(d, r), &w0), &scale))| {
            let b = match &self.rounded {
                Some((starts, _)) => operands + 2 * starts[i] as u64,
                None => b[i],
            };
            // SAFETY: the caller's promise.
            let (w0, b) =
                unsafe { (read(device, w0, [d, k], dtype)?, read(device, b, [d, r], dtype)?) };
            Ok(Projection::new(w0, b, scale))
        });
        let projections = each.collect::<Result<Vec<_>>>()?;
        // SAFETY: the caller's promise.
        Ok((unsafe { read(device, operands, [self.problem.rank(), k], dtype)? }, projections))
    }

    /// The weights with the plan's dropout, if it has one.
    ///
    /// # Safety
    /// The address is as the class says.
    unsafe fn dropped<'a>(
        &self,
        weights: Weights<'a>,
        device: &Device,
        state: u64,
    ) -> Result<Weights<'a>> {
        if self.dropout == 0.0 {
            return Ok(weights);
        }
        // SAFETY: the caller's promise.
        let state = unsafe { read(device, state, [1, 4], DType::F32)? };
        Ok(weights.with_dropout(Dropout::from_view(self.dropout, state)?))
    }

    /// Enqueues the rounding of f32 A and B, in one launch.
    ///
    /// # Safety
    /// The addresses are as the class says.
    unsafe fn round(
        &self,
        device: &Device,
        [a, b]: [&[u64]; 2],
        starts: &[usize],
        operands: u64,
    ) -> Result<()> {
        let (k, dtype) = (self.problem.k(), self.problem.dtype());
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
        round(device, &sources, &mut outputs)
    }
}
