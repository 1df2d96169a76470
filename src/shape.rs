//! Shapes of dense row-major tensors.

use std::fmt;

/// The error of dimensions that no tensor can have: none, more than six, or more elements than fit
/// in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidShape {
    dims: Vec<usize>,
}

impl fmt::Display for InvalidShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a tensor of shape {:?} (one to {MAX_DIMS} dimensions)", self.dims)
    }
}

impl std::error::Error for InvalidShape {}

type Result<T> = std::result::Result<T, InvalidShape>;

/// How many dimensions a tensor may have.
const MAX_DIMS: usize = 6;

/// The dimensions of a dense row-major tensor, the last one contiguous.
///
/// All but the last count together as rows: activations of shape `[batch, sequence, k]` are the
/// paper's T×k matrix with T = batch · sequence.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_DIMS],
    len: usize,
}

impl Shape {
    /// A shape of one to six dimensions, whose number of elements fits in an `isize`.
    ///
    /// # Errors
    /// [`InvalidShape`] otherwise, which converts into
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn new(dims: &[usize]) -> Result<Self> {
        let elements = dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let addressable = elements.is_some_and(|n| n <= isize::MAX as usize / 4);
        if dims.is_empty() || dims.len() > MAX_DIMS || !addressable {
            return Err(InvalidShape { dims: dims.to_vec() });
        }
        let mut shape = Shape { dims: [0; MAX_DIMS], len: dims.len() };
        shape.dims[..dims.len()].copy_from_slice(dims);
        Ok(shape)
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.len]
    }

    /// The product of all dimensions.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// The product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.dims[..self.len - 1].iter().product()
    }

    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.dims[self.len - 1]
    }

    /// The same rows with another last dimension: the shape of `h` for an `x` of this shape.
    ///
    /// # Errors
    /// [`InvalidShape`] if the new shape has too many elements.
    pub fn with_cols(&self, cols: usize) -> Result<Self> {
        let mut shape = *self;
        shape.dims[self.len - 1] = cols;
        Shape::new(shape.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Anything that names the dimensions of a tensor: arrays and slices of `usize`, or a [`Shape`].
pub trait IntoShape {
    /// The shape, checked as in [`Shape::new`].
    ///
    /// # Errors
    /// [`InvalidShape`] as there.
    fn into_shape(self) -> Result<Shape>;
}

impl IntoShape for Shape {
    fn into_shape(self) -> Result<Shape> {
        Ok(self)
    }
}

impl<const N: usize> IntoShape for [usize; N] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&self)
    }
}

impl IntoShape for &[usize] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_dimensions_count_as_rows() {
        let shape = Shape::new(&[2, 3, 5]).unwrap();
        assert_eq!((shape.rows(), shape.cols(), shape.elements()), (6, 5, 30));
        assert_eq!(shape.with_cols(7).unwrap().dims(), [2, 3, 7]);
        assert_eq!(shape.to_string(), "[2, 3, 5]");
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert!(Shape::new(&[]).is_err());
        assert!(Shape::new(&[1; 7]).is_err());
        assert!(Shape::new(&[1 << 40, 1 << 40]).is_err());
        assert!(Shape::new(&[usize::MAX, 2, 0]).is_err());
    }
}
