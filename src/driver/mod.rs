//! The floor over the CUDA driver: contexts, streams, memory, kernels and launches. All unsafe code
//! of the crate is in here.

mod context;
mod gpu;
mod kernels;
mod launch;
mod lent;
mod memory;
mod nvtx;
pub(crate) mod params;
mod probe;
mod stream;
mod tensor_map;

pub(crate) use gpu::Gpu;
pub(crate) use kernels::{ElementKernels, Instances, Kernels, sm80, sm90a};
pub(crate) use launch::{Kernel, LaunchMode};
pub(crate) use lent::{ContextId, DeviceMemory, DeviceMemoryMut, LentUse, RawMemory};
pub use lent::{CudaMemory, CudaMemoryMut};
pub(crate) use memory::Allocation;
pub(crate) use nvtx::RangeName;
pub(crate) use stream::{Run, Stream};
