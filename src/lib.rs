//! LoRA (low-rank adaptation) as CUDA kernels: the adapter rides inside the frozen layer's own
//! matrix product.
//!
//! A frozen weight W0 (d×k) gets a trainable low-rank update (Hu et al., 2021,
//! <https://arxiv.org/abs/2106.09685>, section 4.1):
//!
//! ```text
//! h = W0 x + s · B (A x)        A (r×k) Gaussian, B (d×r) zero at the start, s = α/r
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
//! W0 never gets a gradient. The same calls run on a CUDA device (bf16 and f16, accumulated in
//! f32) and on the CPU reference (bf16, f16 and f32, computed in f64).
//!
//! There are two levels:
//!
//! * [`LoraLinear`] and [`Adapter`] own their tensors and allocate what they return. So does
//!   [`SharedLoraLinear`], the layers of one x: q, k and v of an attention, or gate and up of a
//!   gated MLP.
//! * [`ops`] takes the caller's buffers, outputs and [`Workspace`], enqueues on the caller's stream,
//!   and never allocates device memory, synchronises or makes a stream, so that a CUDA graph can
//!   capture it.
//!
//! With the feature `peft`, the module `peft` loads and saves adapters as Hugging Face PEFT keeps
//! them.
//!
//! # Example
//!
//! ```
//! use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, InputGradient,
//!                    LoraLinear, Tensor};
//!
//! # fn main() -> lora_kernels::Result<()> {
//! let device = Device::cuda(0).unwrap_or(Device::cpu());
//! let (t, k, d) = (3, 8, 4);
//! let tensor = |shape: [usize; 2]| {
//!     let n = shape[0] * shape[1];
//!     let values: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
//!     Tensor::from_f32(&device, &values, shape, DType::Bf16)
//! };
//! let config = AdapterConfig { rank: 2, alpha: 4.0, ..AdapterConfig::default() };
//! let adapter = Adapter::for_weight(&device, [d, k], DType::Bf16, &config)?;
//! let layer = LoraLinear::new(tensor([d, k])?, adapter)?;
//!
//! let x = tensor([t, k])?;
//! let out = layer.forward(&x)?;
//! assert_eq!(out.h.shape().dims(), [t, d]);
//!
//! let mut gradients = layer.zero_gradients()?;
//! let (dh, overwrite) = (tensor([t, d])?, Accumulation::Overwrite);
//! let wanted = InputGradient::Compute;
//! let dx = layer.backward(&dh, &x, &out.s, &mut gradients, overwrite, wanted)?;
//! assert_eq!(dx.expect("dX was asked for").shape().dims(), [t, k]);
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs, unsafe_code, unsafe_op_in_unsafe_fn)]

mod adapter;
#[allow(unsafe_code)]
mod cuda;
mod device;
mod dtype;
mod error;
mod linear;
pub mod ops;
#[cfg(feature = "peft")]
pub mod peft;
pub mod plan;
mod reference;
mod rng;
mod shape;
mod shared_linear;
mod tensor;
mod workspace;

pub use adapter::{Adapter, AdapterConfig, Scaling};
pub use cudarc;
pub use device::Device;
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use half;
pub use linear::{Forward, Gradients, LoraLinear};
pub use ops::{Accumulation, InputGradient};
pub use plan::{Path, Problem, SharedProblem, MAX_PROJECTIONS};
pub use shape::{IntoShape, Shape};
pub use shared_linear::{SharedForward, SharedGradients, SharedLoraLinear, SharedProjection};
pub use tensor::{Tensor, TensorView, TensorViewMut};
pub use workspace::Workspace;

/// Compiles the README's code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
