//! The CPU reference: the paper's formulas in f64, rounded once at the end.
//!
//! It is the oracle of every other path, so it is written to be read.

use crate::ops::{Accumulation, Call, SharedBackwardOutputs};
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

    /// So many columns from `start` on.
    fn columns(&self, start: usize, cols: usize) -> Self {
        let rows = self.values.chunks(self.cols);
        let values = rows.flat_map(|row| &row[start..start + cols]).copied().collect();
        Matrix { rows: self.rows, cols, values }
    }

    /// Matrices of as many rows each, beside each other.
    fn beside(all: &[Matrix]) -> Self {
        let (rows, cols) = (all[0].rows, all.iter().map(|one| one.cols).sum());
        let row = |row: usize| {
            all.iter().flat_map(move |one| &one.values[row * one.cols..(row + 1) * one.cols])
        };
        Matrix { rows, cols, values: (0..rows).flat_map(row).copied().collect() }
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

/// Sᵢ = sᵢ · X Aᵢᵀ, Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ, for every projection of the call.
pub(crate) fn forward(
    call: &Call<'_>,
    x: &TensorView<'_>,
    h: &mut [TensorViewMut<'_>],
    s: Option<&mut TensorViewMut<'_>>,
) {
    let x = Matrix::load(x);
    let x_a = x.times(&Matrix::load(call.a).transpose());
    let mut s_exact = Vec::new();
    for ((part, layer), h) in call.problem.parts().zip(&call.layers).zip(h) {
        let s = x_a.columns(part.start, part.r).scaled(layer.scale.into());
        let low_rank = s.times(&Matrix::load(layer.b).transpose());
        x.times(&Matrix::load(layer.w0).transpose()).plus(&low_rank).store(h);
        s_exact.push(s);
    }
    if let Some(s) = s {
        Matrix::beside(&s_exact).store(s);
    }
}

/// dSᵢ = sᵢ · dHᵢ Bᵢ, dX = Σᵢ dHᵢ W0ᵢ + dS A, dA = dSᵀ X, dBᵢ = dHᵢᵀ Sᵢ.
pub(crate) fn backward(
    call: &Call<'_>,
    dh: &[TensorView<'_>],
    x: &TensorView<'_>,
    s: &TensorView<'_>,
    out: &mut SharedBackwardOutputs<'_, '_>,
) {
    let accumulation = out.accumulation;
    let write = |gradient: Matrix, out: &mut TensorViewMut<'_>| match accumulation {
        Accumulation::Overwrite => gradient.store(out),
        Accumulation::Add => gradient.add_to(out),
    };
    let s = Matrix::load(s);
    let (mut ds, mut base) = (Vec::new(), None);
    let parts = call.problem.parts().zip(&call.layers);
    for (((part, layer), dh), db) in parts.zip(dh).zip(out.db.iter_mut()) {
        let dh = Matrix::load(dh);
        ds.push(dh.times(&Matrix::load(layer.b)).scaled(layer.scale.into()));
        if out.dx.is_some() {
            let product = dh.times(&Matrix::load(layer.w0));
            base = Some(match base {
                Some(sum) => product.plus(&sum),
                None => product,
            });
        }
        write(dh.transpose().times(&s.columns(part.start, part.r)), db);
    }
    let ds = Matrix::beside(&ds);
    if let (Some(base), Some(dx)) = (base, &mut out.dx) {
        base.plus(&ds.times(&Matrix::load(call.a))).store(dx);
    }
    write(ds.transpose().times(&Matrix::load(x)), &mut out.da);
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
