//! The CUDA backend: which launches serve a call, and what their parameters are.

mod backward;
mod base;
mod buffers;
mod dropout;
mod forward;
mod last;
mod merge;
mod operands;
mod round;
mod sm80;
mod sm90a;

pub(crate) use backward::{Backward, zero_gradients};
pub(crate) use base::{BaseForward, BaseInputGrad};
pub(crate) use forward::Forward;
pub(crate) use merge::merge;
pub(crate) use round::round;
