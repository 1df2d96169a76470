//! The operations on the caller's buffers.
//!
//! An operation is made once, from a device and a [`Problem`](crate::Problem). It chooses the
//! kernels that serve calls of these sizes, and prints the choice. A call takes inputs, outputs and
//! a [`Workspace`](crate::Workspace), checks them, enqueues on the device's stream and returns
//! without waiting. A call never plans, allocates device memory, synchronises or creates a stream,
//! so it can be captured in a CUDA graph (see [`Device`](crate::Device#cuda-graphs)).
//!
//! | operation | computes | for |
//! |---|---|---|
//! | [`Forward`] | Sᵢ = sᵢ · X Aᵢᵀ, Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ | 1 to 4 projections of X |
//! | [`Backward`] | dSᵢ = sᵢ · dHᵢ Bᵢ, dX = Σ dHᵢ W0ᵢ + dS A, dA = dSᵀ X, dBᵢ = dHᵢᵀ Sᵢ | |
//! | [`BaseForward`] | H = X W0ᵀ | the frozen layer alone |
//! | [`BaseInputGrad`] | dX = dH W0 | its backward |
//! | [`merge()`], [`merge_in_place`] | W0 + s · B A | inference with the adapter in the weight |
//! | [`round()`] | f32 to 16 bits | A and B from an optimiser's master weights |
//!
//! The forward is that of [Hu et al., 2021](https://arxiv.org/abs/2106.09685), section 4.1, for one
//! projection or several; the backward, with dX or without, is its derivative. PEFT computes the
//! same in `peft.tuners.lora.layer.Linear.forward` and by autograd.
//!
//! # Arguments
//! Tensors are row-major, in the paper's letters:
//!
//! | argument | shape | may have a row stride |
//! |---|---|---|
//! | x, dx | [..., k] | yes |
//! | h, dh, one for each projection | [..., d] | yes |
//! | s: S of all projections, side by side | [..., R] | as an input |
//! | W0, one for each projection | [d, k] | yes |
//! | A of all projections, stacked; dA | [R, k] | A |
//! | B, one for each projection; dB | [d, r] | B |
//!
//! T is the product of the leading dimensions, R the sum of the ranks. For the stride see
//! [`TensorView::row_stride`](crate::TensorView::row_stride).
//!
//! All share one element type: bf16 or f16 on a CUDA device, f32 too on the CPU. dA and dB are f32,
//! or that type. T, d and k have any size, ranks are 1 to 256. Fastest are k, d and r that are
//! multiples of 8, in buffers at multiples of 16 bytes. The workspace for other k and d has room for
//! copies of W0, x and dh. T = 0 is an empty batch.
//!
//! # Numbers
//! Sums are in f32 (on the CPU in f64) and rounded once. The same call gives the same bits on every
//! run. In f16, S and dS saturate at ±65504: with B = 0 and finite x, A and W0, h is W0 x for any
//! scale. Other results overflow to infinity. NaN stays NaN.
//!
//! # Errors
//! Arguments are checked before anything is enqueued. [`Error::Driver`](crate::Error::Driver) means
//! that the driver refused a launch, for instance because the process has fewer SMs than when the
//! device was made. The outputs are unspecified then. The workspace can be used again.
//!
//! # Other kernels on the stream
//! Kernels of this crate trigger the next launch of their stream early (programmatic dependent
//! launch). This affects only a launch with the attribute for it: its kernel must execute
//! `griddepcontrol.wait` before it reads an output of these operations.
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
