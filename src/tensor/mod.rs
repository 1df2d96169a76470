//! Row-major tensors: owned, and borrowed from whoever owns the memory.

mod layout;
mod owned;
mod view;

pub use owned::Tensor;
pub use view::{TensorView, TensorViewMut};
