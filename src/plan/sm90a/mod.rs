//! How the kernels of `kernels/sm90a` are launched, a module for each of them.

pub(crate) mod decode;
pub(crate) mod grads;
pub(crate) mod linear;
pub(crate) mod short;
pub(crate) mod small;
