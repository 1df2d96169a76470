//! The launches of the kernels that serve every GPU.

pub(super) mod align;
pub(super) mod decode;
pub(super) mod linear;
pub(super) mod project;
