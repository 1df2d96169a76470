//! Where a tensor has its elements.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;
use std::ops::Range;

/// Where in its memory a view has which elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) shape: Shape,
    pub(super) dtype: DType,
    /// Elements from the start of a row to that of the next.
    pub(super) row_stride: usize,
    /// Bytes from the start of the memory.
    pub(super) start: usize,
}

impl Layout {
    pub(super) fn dense(shape: Shape, dtype: DType) -> Self {
        Layout { shape, dtype, row_stride: shape.cols(), start: 0 }
    }

    pub(super) fn strided(shape: Shape, row_stride: usize, dtype: DType) -> Result<Self> {
        // A single row has no next one.
        let row_stride = if shape.rows() > 1 { row_stride } else { shape.cols() };
        let extent = shape.rows().checked_mul(row_stride);
        if row_stride < shape.cols() || extent.is_none_or(|n| n > isize::MAX as usize / 4) {
            let expected = format!("rows of at most {row_stride}, the row stride");
            return Err(Error::Shape { argument: "tensor", expected, got: shape });
        }
        Ok(Layout { shape, dtype, row_stride, start: 0 })
    }

    /// Elements from the first to the last, inclusive.
    pub(super) fn extent(&self) -> usize {
        match self.shape.elements() {
            0 => 0,
            _ => (self.shape.rows() - 1) * self.row_stride + self.shape.cols(),
        }
    }

    pub(super) fn check_extent(&self, got: usize) -> Result<()> {
        match self.extent() <= got {
            true => Ok(()),
            false => Err(Error::Length { shape: self.shape, got }),
        }
    }

    /// Some rows, as a matrix.
    pub(super) fn rows(&self, rows: Range<usize>) -> Result<Self> {
        self.check_range("rows", &rows, self.shape.rows())?;
        let shape = Shape::new(&[rows.len(), self.shape.cols()])?;
        let start = self.start + rows.start * self.row_stride * self.dtype.bytes();
        let row_stride = if rows.len() > 1 { self.row_stride } else { shape.cols() };
        Ok(Layout { shape, start, row_stride, dtype: self.dtype })
    }

    /// Some columns of every row.
    pub(super) fn columns(&self, columns: Range<usize>) -> Result<Self> {
        self.check_range("columns", &columns, self.shape.cols())?;
        let shape = self.shape.with_cols(columns.len())?;
        let start = self.start + columns.start * self.dtype.bytes();
        let row_stride = if shape.rows() > 1 { self.row_stride } else { shape.cols() };
        Ok(Layout { shape, start, row_stride, dtype: self.dtype })
    }

    fn check_range(&self, what: &str, range: &Range<usize>, size: usize) -> Result<()> {
        if range.start > range.end || range.end > size {
            let expected = format!("one with {what} {range:?}");
            return Err(Error::Shape { argument: "tensor", expected, got: self.shape });
        }
        Ok(())
    }
}

/// Refuses another number of elements than the shape asks for.
pub(super) fn check_length(shape: Shape, got: usize) -> Result<()> {
    if shape.elements() == got { Ok(()) } else { Err(Error::Length { shape, got }) }
}
