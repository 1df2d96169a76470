//! The CUDA backend: which launches serve a call, and what their parameters are.

mod backward;
mod base;
mod buffers;
mod few_tokens;
mod forward;
mod hopper_decode;
mod hopper_grads;
mod hopper_linear;
mod hopper_short;
mod last;
mod merge;
mod mma;
mod operands;
mod round;

pub(crate) use backward::{zero_gradients, Backward};
pub(crate) use base::{BaseForward, BaseInputGrad};
pub(crate) use forward::Forward;
pub(crate) use merge::merge;
pub(crate) use round::round;
