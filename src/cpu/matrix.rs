//! Matrices of f64.

use crate::dropout::Dropout;
use crate::dtype::{DType, Element};
use crate::tensor::{TensorView, TensorViewMut};
use half::{bf16, f16};

/// A dense row-major matrix of f64.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// The values of a tensor, its leading dimensions counted as rows; every type is exact in f64.
    pub(super) fn load(view: &TensorView<'_>) -> Self {
        fn widen<E: Element>(view: &TensorView<'_>) -> Vec<f64> {
            let (shape, row_stride) = (view.shape(), view.row_stride());
            if shape.elements() == 0 {
                return Vec::new();
            }
            let bytes = &view.host_bytes()[..view.extent() * size_of::<E>()];
            let rows = bytemuck::cast_slice::<u8, E>(bytes).chunks(row_stride.max(1));
            let rows = rows.flat_map(|row| &row[..shape.cols()]);
            rows.map(|value| value.to_f64()).collect()
        }
        let values = match view.dtype() {
            DType::Bf16 => widen::<bf16>(view),
            DType::F16 => widen::<f16>(view),
            DType::F32 => widen::<f32>(view),
        };
        Matrix { rows: view.shape().rows(), cols: view.shape().cols(), values }
    }

    /// Rounds every value to the element type of the output.
    pub(super) fn store(&self, out: &mut TensorViewMut<'_>) {
        self.write(out, |_, value| value);
    }

    /// Rounds what `combine` makes of the old values and these.
    pub(super) fn write(&self, out: &mut TensorViewMut<'_>, combine: impl Fn(f64, f64) -> f64) {
        fn narrow<E: Element>(
            out: &mut TensorViewMut<'_>,
            values: &[f64],
            combine: impl Fn(f64, f64) -> f64,
        ) {
            let (shape, row_stride, extent) = (out.shape(), out.row_stride(), out.extent());
            if shape.elements() == 0 {
                return;
            }
            let bytes = &mut out.host_bytes_mut()[..extent * size_of::<E>()];
            let rows = bytemuck::cast_slice_mut::<u8, E>(bytes).chunks_mut(row_stride.max(1));
            for (row, values) in rows.zip(values.chunks(shape.cols())) {
                for (out, &value) in row.iter_mut().zip(values) {
                    *out = E::from_f64(combine(out.to_f64(), value));
                }
            }
        }
        match out.dtype() {
            DType::Bf16 => narrow::<bf16>(out, &self.values, combine),
            DType::F16 => narrow::<f16>(out, &self.values, combine),
            DType::F32 => narrow::<f32>(out, &self.values, combine),
        }
    }

    /// What S and dS are where an element type cannot hold them: the largest number that it has.
    /// bf16 and f32 can.
    pub(super) fn saturated(mut self, dtype: DType) -> Self {
        if dtype == DType::F16 {
            let most = f16::MAX.to_f64();
            self.values.iter_mut().for_each(|value| *value = value.clamp(-most, most));
        }
        self
    }

    /// Zeros where an element is not kept, the others by 1 / (1 − p).
    pub(super) fn dropped(mut self, dropout: Option<&Dropout<'_>>) -> Self {
        let Some(dropout) = dropout else { return self };
        let (mask, inv_keep) = (dropout.mask(), 1.0 / (1.0 - f64::from(dropout.p())));
        for (row, values) in self.values.chunks_mut(self.cols).enumerate() {
            for (col, value) in values.iter_mut().enumerate() {
                // Not a product with 0, which of an infinity is NaN.
                *value = if mask.keeps(row, col) { *value * inv_keep } else { 0.0 };
            }
        }
        self
    }

    pub(super) fn transpose(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for col in 0..self.cols {
            values.extend((0..self.rows).map(|row| self.values[row * self.cols + col]));
        }
        Matrix { rows: self.cols, cols: self.rows, values }
    }

    /// So many columns from `start` on.
    pub(super) fn columns(&self, start: usize, cols: usize) -> Self {
        let rows = self.values.chunks(self.cols);
        let values = rows.flat_map(|row| &row[start..start + cols]).copied().collect();
        Matrix { rows: self.rows, cols, values }
    }

    /// Matrices of as many rows each, beside each other.
    pub(super) fn beside(all: &[Matrix]) -> Self {
        let (rows, cols) = (all[0].rows, all.iter().map(|one| one.cols).sum());
        let row = |row: usize| {
            all.iter().flat_map(move |one| &one.values[row * one.cols..(row + 1) * one.cols])
        };
        Matrix { rows, cols, values: (0..rows).flat_map(row).copied().collect() }
    }

    /// self · other. Rows are shared out over the cores; each sum runs over k in order.
    pub(super) fn times(&self, other: &Matrix) -> Self {
        assert_eq!(self.cols, other.rows);
        let mut values = vec![0.0; self.rows * other.cols];
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let multiplications = self.rows * self.cols * other.cols;
        if values.is_empty() || self.cols == 0 {
            return Matrix { rows: self.rows, cols: other.cols, values };
        }
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

    pub(super) fn scaled(mut self, factor: f64) -> Self {
        self.values.iter_mut().for_each(|value| *value *= factor);
        self
    }

    pub(super) fn plus(mut self, other: &Matrix) -> Self {
        self.values.iter_mut().zip(&other.values).for_each(|(a, b)| *a += b);
        self
    }
}
