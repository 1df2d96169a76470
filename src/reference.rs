//! The CPU reference: the paper's formulas in f64, rounded once at the end.
//!
//! It is the oracle of every other path, so it is written to be read.

use crate::ops::Accumulation;
use crate::{DType, Element, TensorView, TensorViewMut};
use half::{bf16, f16};

/// A dense row-major matrix of f64.
#[derive(Debug, Clone)]
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// The values of a tensor, its leading dimensions counted as rows; every type is exact in f64.
    fn load(view: &TensorView<'_>) -> Self {
        fn widen<E: Element>(bytes: &[u8]) -> Vec<f64> {
            bytemuck::cast_slice::<u8, E>(bytes).iter().map(|value| value.to_f64()).collect()
        }
        let bytes = view.region.host_bytes();
        let values = match view.dtype {
            DType::Bf16 => widen::<bf16>(bytes),
            DType::F16 => widen::<f16>(bytes),
            DType::F32 => widen::<f32>(bytes),
        };
        Matrix { rows: view.shape.rows(), cols: view.shape.cols(), values }
    }

    /// Rounds every value to the element type of the output.
    fn store(&self, out: &mut TensorViewMut<'_>) {
        self.write(out, |_, value| value);
    }

    /// Adds to what an f32 output holds, as a gradient that is first rounded and then added.
    fn add_to(&self, out: &mut TensorViewMut<'_>) {
        self.write(out, |old, value| old + f64::from(value as f32));
    }

    fn write(&self, out: &mut TensorViewMut<'_>, combine: impl Fn(f64, f64) -> f64) {
        fn narrow<E: Element>(bytes: &mut [u8], values: &[f64], combine: impl Fn(f64, f64) -> f64) {
            let out = bytemuck::cast_slice_mut::<u8, E>(bytes);
            for (out, &value) in out.iter_mut().zip(values) {
                *out = E::from_f64(combine(out.to_f64(), value));
            }
        }
        let dtype = out.dtype;
        let bytes = out.region.host_bytes_mut();
        match dtype {
            DType::Bf16 => narrow::<bf16>(bytes, &self.values, combine),
            DType::F16 => narrow::<f16>(bytes, &self.values, combine),
            DType::F32 => narrow::<f32>(bytes, &self.values, combine),
        }
    }

    fn transpose(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for col in 0..self.cols {
            values.extend((0..self.rows).map(|row| self.values[row * self.cols + col]));
        }
        Matrix { rows: self.cols, cols: self.rows, values }
    }

    /// self · other. Rows are shared out over the cores; each sum runs over k in order.
    fn times(&self, other: &Matrix) -> Self {
        assert_eq!(self.cols, other.rows);
        let mut values = vec![0.0; self.rows * other.cols];
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let multiplications = self.rows * self.cols * other.cols;
        let threads = if multiplications < 1 << 20 { 1 } else { cores.min(self.rows) };
        let rows_each = self.rows.div_ceil(threads);
        std::thread::scope(|scope| {
            let chunks = values.chunks_mut(rows_each * other.cols);
            for (chunk, lhs) in chunks.zip(self.values.chunks(rows_each * self.cols)) {
                let mut work = move || {
                    for (out, lhs) in chunk.chunks_mut(other.cols).zip(lhs.chunks(self.cols)) {
                        for (&l, rhs) in lhs.iter().zip(other.values.chunks(other.cols)) {
                            for (out, &r) in out.iter_mut().zip(rhs) {
                                *out += l * r;
                            }
                        }
                    }
                };
                if threads == 1 {
                    work();
                } else {
                    scope.spawn(work);
                }
            }
        });
        Matrix { rows: self.rows, cols: other.cols, values }
    }

    fn scaled(mut self, factor: f64) -> Self {
        self.values.iter_mut().for_each(|value| *value *= factor);
        self
    }

    fn plus(mut self, other: &Matrix) -> Self {
        self.values.iter_mut().zip(&other.values).for_each(|(a, b)| *a += b);
        self
    }
}

/// H = X W0ᵀ.
pub(crate) fn frozen(w0: &TensorView<'_>, x: &TensorView<'_>, h: &mut TensorViewMut<'_>) {
    Matrix::load(x).times(&Matrix::load(w0).transpose()).store(h);
}

/// S = s · X Aᵀ, H = X W0ᵀ + S Bᵀ.
pub(crate) fn forward(
    weights: &crate::ops::Weights<'_>,
    x: &TensorView<'_>,
    h: &mut TensorViewMut<'_>,
    s: Option<&mut TensorViewMut<'_>>,
) {
    let (w0, a, b) = (&weights.w0, &weights.a, &weights.b);
    let x = Matrix::load(x);
    let s_exact = x.times(&Matrix::load(a).transpose()).scaled(weights.scale.into());
    let low_rank = s_exact.times(&Matrix::load(b).transpose());
    x.times(&Matrix::load(w0).transpose()).plus(&low_rank).store(h);
    if let Some(s) = s {
        s_exact.store(s);
    }
}

/// dS = s · dH B, dX = dH W0 + dS A, dA = dSᵀ X, dB = dHᵀ S.
pub(crate) fn backward(
    weights: &crate::ops::Weights<'_>,
    dh: &TensorView<'_>,
    x: &TensorView<'_>,
    s: &TensorView<'_>,
    out: &mut crate::ops::BackwardOutputs<'_>,
) {
    let dh = Matrix::load(dh);
    let ds = dh.times(&Matrix::load(&weights.b)).scaled(weights.scale.into());
    if let Some(dx) = &mut out.dx {
        let low_rank = ds.times(&Matrix::load(&weights.a));
        dh.times(&Matrix::load(&weights.w0)).plus(&low_rank).store(dx);
    }
    let da = ds.transpose().times(&Matrix::load(x));
    let db = dh.transpose().times(&Matrix::load(s));
    match out.accumulation {
        Accumulation::Overwrite => {
            da.store(&mut out.da);
            db.store(&mut out.db);
        }
        Accumulation::Add => {
            da.add_to(&mut out.da);
            db.add_to(&mut out.db);
        }
    }
}

/// W0 + s · B A, with W0 given as the output or beside it.
pub(crate) fn merge(
    w0: Option<&TensorView<'_>>,
    a: &TensorView<'_>,
    b: &TensorView<'_>,
    scale: f32,
    out: &mut TensorViewMut<'_>,
) {
    let delta = Matrix::load(b).times(&Matrix::load(a)).scaled(scale.into());
    match w0 {
        Some(w0) => Matrix::load(w0).plus(&delta).store(out),
        None => delta.write(out, |old, delta| old + delta),
    }
}
