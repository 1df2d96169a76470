//! The operations on the caller's buffers.
//!
//! An operation is made once, from a device and a [`Problem`](crate::Problem): it decides how calls
//! of these sizes are served, and prints it. Running it takes inputs, outputs and a
//! [`Workspace`](crate::Workspace), checks them, enqueues on the device's stream and returns without
//! waiting. It plans nothing, looks nothing up, allocates no device memory, synchronises nothing and
//! makes no stream, so all of them can be captured in a CUDA graph (see
//! [`Device`](crate::Device#cuda-graphs)).
//!
//! | operation | computes | |
//! |---|---|---|
//! | [`Forward`] | Sᵢ = sᵢ · X Aᵢᵀ, Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ | 1 to 4 projections of X |
//! | [`Backward`] | dSᵢ = sᵢ · dHᵢ Bᵢ, dX = Σ dHᵢ W0ᵢ + dS A, dA = dSᵀ X, dBᵢ = dHᵢᵀ Sᵢ | with dX or without |
//! | [`BaseForward`] | H = X W0ᵀ | the frozen layer alone |
//! | [`BaseInputGrad`] | dX = dH W0 | its backward |
//! | [`merge()`], [`merge_in_place`] | W0 + s · B A | |
//! | [`round()`] | f32 to 16 bits | master weights to A and B |
//!
//! # Arguments
//! They are row-major, in the paper's letters: x [..., k], W0 [d, k], A [R, k], B [d, r], s [..., R],
//! h and dh [..., d], dx [..., k], with T the product of the leading dimensions and R the sum of the
//! ranks. All share one element type: bf16 or f16 on a CUDA device, f32 too on the CPU. dA [R, k]
//! and dB [d, r] are f32, or that type. Any T, d, k and ranks in `1..=256` will do; k, d and r that
//! are multiples of 8, in buffers at multiples of 16 bytes, are fastest. T = 0 is an empty batch.
//!
//! Rows of x, W0, A, B, h, dh and dx may lie apart
//! ([`TensorView::row_stride`](crate::TensorView::row_stride)), and so may the rows of the S that a
//! backward pass reads; S as an output, dA and dB are dense.
//!
//! # Numbers
//! Products are summed in f32 (on the CPU in f64) and rounded once. The same call gives the same
//! bits on every run. In f16, S and dS beyond ±65504 become ±65504: with B = 0 and finite x, A and
//! W0, h is W0 x whatever the scale. NaN stays NaN. Everything else overflows to infinity, as f16
//! does.
//!
//! # Errors
//! Arguments are checked before anything is enqueued. [`Error::Driver`](crate::Error::Driver) is a
//! launch that the driver refuses, for instance because fewer SMs are left to the process than
//! when the device was made: outputs are unspecified then, and the workspace can be used again.
//!
//! # Other kernels on the stream
//! Kernels of this crate let the next launch of their stream start early (programmatic dependent
//! launch). An ordinary launch is not affected. One that asks for it by its launch attribute must
//! execute `griddepcontrol.wait` before it reads what these operations write.
//!
//! ```
//! use lora_kernels::ops::{Forward, Projection, Weights};
//! use lora_kernels::{DType, Device, Problem, Tensor, Workspace};
//!
//! # fn main() -> lora_kernels::Result<()> {
//! let device = Device::cuda(0).unwrap_or(Device::cpu());
//! let (t, k, d, r) = (16, 64, 32, 8);
//! let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::Bf16);
//! let (x, w0, a, b) = (zeros([t, k])?, zeros([d, k])?, zeros([r, k])?, zeros([d, r])?);
//! let (mut h, mut s) = (zeros([t, d])?, zeros([t, r])?);
//!
//! // Once.
//! let forward = Forward::new(&device, &Problem::single(t, k, d, r, DType::Bf16)?)?;
//! let mut workspace = Workspace::new(&device, forward.workspace())?;
//!
//! // For every call.
//! let layer = [Projection::new(w0.view(), b.view(), 2.0)];
//! let weights = Weights::new(a.view(), &layer);
//! forward.run(&weights, x.view(), &mut [h.view_mut()], s.view_mut(), &mut workspace)?;
//! # Ok(())
//! # }
//! ```

mod backward;
mod base;
mod forward;
mod merge;
mod round;

pub use crate::call::{Accumulation, GradientsMut, Projection, Weights};
pub use crate::plan::Path;
pub use backward::Backward;
pub use base::{BaseForward, BaseInputGrad};
pub use forward::Forward;
pub use merge::{merge, merge_in_place};
pub use round::round;
