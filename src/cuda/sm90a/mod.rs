//! Launches of the kernels of `kernels/sm90a`, a module for each of them.

pub(super) mod decode;
pub(super) mod few_tokens;
pub(super) mod grads;
pub(super) mod linear;
pub(super) mod short;
