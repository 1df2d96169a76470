//! LoRA (low-rank adaptation) layers as CUDA kernels: the adapter is part of the frozen layer's
//! GEMM.
//!
//! A frozen weight W0 (d×k) gets a trainable low-rank update ([Hu et al., 2021], section 4.1):
//!
//! ```text
//! h = W0 x + s · B (A x)        A (r×k) Gaussian, B (d×r) zero at the start, s = α/r or α/√r
//! ```
//!
//! For T tokens, row-major, with X (T×k), H (T×d) and the incoming gradient dH (T×d):
//!
//! ```text
//! forward    S  = s · X Aᵀ      (T×r)    H  = X W0ᵀ + S Bᵀ     (T×d)
//! backward   dS = s · dH B      (T×r)    dX = dH W0 + dS A     (T×k)
//!            dB = dHᵀ S         (d×r)    dA = dSᵀ X            (r×k)
//! ```
//!
//! The second block is the derivative of the first. W0 has no gradient. s = α/√r is rank-stabilised
//! LoRA ([Kalajdzievski, 2023]).
//!
//! [Hu et al., 2021]: https://arxiv.org/abs/2106.09685
//! [Kalajdzievski, 2023]: https://arxiv.org/abs/2312.03732
//!
//! # Two levels
//!
//! * [`LoraLinear`] and [`Adapter`] own their tensors and allocate what they return. A layer is one
//!   projection of x, or a group of up to four: q, k and v of an attention, or gate and up of a
//!   gated MLP.
//! * The operations in [`ops`] are made once, from the sizes. They take the caller's buffers and
//!   [`Workspace`] and enqueue on the caller's stream. A call never plans, allocates device memory,
//!   synchronises or creates a stream, so a CUDA graph can capture it.
//!
//! [`Device`] says what holds for threads, streams and CUDA graphs.
//!
//! # With and without a GPU
//!
//! [`Device::cuda`] needs an NVIDIA GPU of compute capability 8.0 or newer, its driver, and a build
//! in which the build script found nvcc. It computes in bf16 and f16 and accumulates in f32. If
//! something is missing, it returns an error that says what; the crate always builds and links.
//! [`Device::cpu`] is the reference: the same calls, computed in f64, for bf16, f16 and f32.
//!
//! # Features
//!
//! None is on by default, and none needs a GPU.
//!
//! * `peft`: the module `peft` loads and saves adapters in the format of Hugging Face PEFT, and
//!   reads safetensors files.
//! * `serde`: `Serialize` and `Deserialize` for [`AdapterConfig`], [`Scaling`] and [`DType`].
//! * `nvtx`: NVTX ranges around operations, for Nsight Systems.
//!
//! The element types bf16 and f16 are those of the crate [`half`], which is re-exported, and so is
//! [`cudarc`], whose streams and slices the API takes.
//!
//! # Example
//!
//! ```
//! use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, LoraLinear, Tensor};
//!
//! # fn main() -> lora_kernels::Result<()> {
//! let device = Device::cuda(0).unwrap_or(Device::cpu());
//! let (t, k, d) = (3, 8, 4);
//! let tensor = |shape: [usize; 2]| {
//!     let n = shape[0] * shape[1];
//!     let values: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
//!     Tensor::from_f32(&device, &values, shape, DType::Bf16)
//! };
//! let config = AdapterConfig::new(2).with_alpha(4.0);
//! let adapter = Adapter::new(&device, [d, k], DType::Bf16, &config)?;
//! let layer = LoraLinear::new(tensor([d, k])?, adapter)?;
//!
//! let x = tensor([t, k])?;
//! let out = layer.forward(&x)?;
//! assert_eq!(out.h[0].shape().dims(), [t, d]);
//!
//! let (dh, mut gradients) = (tensor([t, d])?, layer.zero_gradients()?);
//! let dx = layer.backward(&[&dh], &out.saved, &mut gradients, Accumulation::Overwrite)?;
//! assert_eq!(dx.shape().dims(), [t, k]);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]
// Not in Cargo.toml, whose lints are for tests and benchmarks too: those call the driver.
#![deny(unsafe_code)]

#[doc(hidden)]
pub mod calibration;
mod call;
mod cpu;
mod cuda;
mod device;
#[allow(unsafe_code)]
mod driver;
mod dropout;
mod dtype;
mod error;
mod layers;
mod manifest;
pub mod ops;
#[cfg(feature = "peft")]
pub mod peft;
mod plan;
mod problem;
mod rng;
mod shape;
mod tensor;
mod workspace;

pub use call::Accumulation;
pub use cudarc;
pub use device::Device;
pub use driver::{CudaMemory, CudaMemoryMut};
pub use dropout::{Dropout, DropoutState};
pub use dtype::{DType, Element, UnknownDType};
pub use error::{Error, Result};
pub use half;
pub use layers::{Adapter, AdapterConfig, Scaling};
pub use layers::{LayerGradients, LayerOutput, LayerProjection, LoraLinear, Saved};
pub use plan::DeviceProfile;
pub use problem::{MAX_PROJECTIONS, MAX_RANK, Problem};
pub use shape::{IntoShape, InvalidShape, Shape};
pub use tensor::{Tensor, TensorView, TensorViewMut};
pub use workspace::{Workspace, WorkspaceSize};

/// Compiles the README's code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
