//! The operations on the caller's buffers.
//!
//! Every function takes the device whose stream it enqueues on, inputs, outputs and workspace,
//! checks them, and returns without waiting. None allocates device memory, synchronises, or makes
//! a stream, so all of them can be captured in a CUDA graph.
//!
//! Arguments are dense and row-major, in the paper's letters: x [..., k], W0 [d, k], A [r, k],
//! B [d, r], s [..., r], h and dh [..., d], dx [..., k], with T the product of the leading
//! dimensions. All share one element type: bf16 or f16 on a CUDA device, f32 too on the CPU. The
//! gradients dA [r, k] and dB [d, r] are f32. Any T, d, k >= 1 and any rank in `1..=256` will do;
//! rows of 16-byte multiples are fastest.
//!
//! Up to four projections of the same x, such as q, k and v, are served by one call of
//! [`forward_shared`] and one of [`backward_shared`].
//!
//! ```
//! use lora_kernels::ops::{self, Weights};
//! use lora_kernels::{DType, Device, Problem, Tensor, Workspace};
//!
//! # fn main() -> lora_kernels::Result<()> {
//! let device = Device::cuda(0).unwrap_or(Device::cpu());
//! let (t, k, d, r) = (16, 64, 32, 8);
//! let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::Bf16);
//! let (x, w0, a, b) = (zeros([t, k])?, zeros([d, k])?, zeros([r, k])?, zeros([d, r])?);
//! let (mut h, mut s) = (zeros([t, d])?, zeros([t, r])?);
//!
//! // Once, for every call whose plan needs no more.
//! let problem = Problem::new(t, k, d, r, DType::Bf16)?;
//! let mut workspace = Workspace::new(&device, &[ops::forward_plan(&device, &problem)])?;
//!
//! let weights = Weights { w0: w0.view(), a: a.view(), b: b.view(), scale: 2.0 };
//! ops::forward(&device, &weights, x.view(), h.view_mut(), s.view_mut(), &mut workspace)?;
//! # Ok(())
//! # }
//! ```

mod call;
mod check;
mod shared;

pub(crate) use call::{Call, Layer, SHARED as NAMES_OF_PROJECTIONS};
pub(crate) use check::{check_device, check_finite};
pub use shared::{
    backward_shared, backward_shared_plan, forward_shared, forward_shared_plan, Projection,
    SharedBackwardOutputs, SharedWeights,
};

use crate::device::Backend;
use crate::plan::{self, Plan, Problem};
use crate::{reference, DType, Device, Result, Shape, TensorView, TensorViewMut, Workspace};
use check::{check_activations, check_dtype, check_input, check_output};
use std::slice;

/// The weights of an adapted layer, borrowed.
#[derive(Debug)]
pub struct Weights<'a> {
    /// The frozen weight, [d, k].
    pub w0: TensorView<'a>,
    /// The down-projection, [r, k].
    pub a: TensorView<'a>,
    /// The up-projection, [d, r].
    pub b: TensorView<'a>,
    /// s = α/r, or whatever finite factor the update carries.
    pub scale: f32,
}

/// Whether a gradient replaces what its buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accumulation {
    /// `grad = new`.
    Overwrite,
    /// `grad = grad + new`, the same bits as an overwrite followed by an f32 addition.
    Add,
}

/// Whether the backward pass computes dX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputGradient {
    /// No dX: the first adapted layer of a network needs none.
    Skip,
    /// dX, so that layers chain.
    Compute,
}

/// Where the backward pass writes.
#[derive(Debug)]
pub struct BackwardOutputs<'a> {
    /// dX, [..., k], in the element type of the inputs, if it is wanted.
    pub dx: Option<TensorViewMut<'a>>,
    /// dA, [r, k], f32.
    pub da: TensorViewMut<'a>,
    /// dB, [d, r], f32.
    pub db: TensorViewMut<'a>,
    /// What dA and dB do with what the buffers hold; dX is always overwritten.
    pub accumulation: Accumulation,
}

/// Which path serves a forward pass on this device, and the workspace it needs.
pub fn forward_plan(device: &Device, problem: &Problem) -> Plan {
    plan::forward(problem, device.profile())
}

/// Which path serves [`frozen`] on this device; it needs no workspace.
pub fn frozen_plan(device: &Device, problem: &Problem) -> Plan {
    plan::frozen(problem, device.profile())
}

/// Which path serves a backward pass on this device, and the workspace it needs.
pub fn backward_plan(device: &Device, problem: &Problem) -> Plan {
    plan::backward(problem, device.profile())
}

/// S = s · X Aᵀ and H = X W0ᵀ + S Bᵀ.
///
/// Keep S for [`backward`], or leave it out (`None`) where there will be none. A CUDA device computes
/// H from S as rounded to its element type, the CPU reference from the exact one. `workspace` must have
/// what [`forward_plan`] asks for.
///
/// H of a token does not depend on the tokens beside it, and on the paths for few tokens,
/// [`Path::HopperDecode`](plan::Path) and [`Path::HopperShort`](plan::Path), not on how many there are
/// either: it has the same bits in any batch that is served by the same of them. The plan tells which; the
/// first ends at 64 tokens or 128, the second at 1024 or earlier.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`DType`](crate::Error::DType),
/// [`Device`](crate::Error::Device), [`Rank`](crate::Error::Rank),
/// [`NotFinite`](crate::Error::NotFinite), [`Workspace`](crate::Error::Workspace) or
/// [`Overlap`](crate::Error::Overlap) before anything is enqueued;
/// [`Driver`](crate::Error::Driver) if a launch is refused.
pub fn forward<'a>(
    device: &Device,
    weights: &Weights<'_>,
    x: TensorView<'_>,
    mut h: TensorViewMut<'_>,
    s: impl Into<Option<TensorViewMut<'a>>>,
    workspace: &mut Workspace,
) -> Result<()> {
    let call = weights.call(device, &x)?;
    call.forward(device, &x, slice::from_mut(&mut h), s.into(), workspace)
}

/// H = X W0ᵀ: the layer with its adapter switched off.
///
/// # Errors
/// As for [`forward`].
pub fn frozen(
    device: &Device,
    w0: &TensorView<'_>,
    x: TensorView<'_>,
    mut h: TensorViewMut<'_>,
) -> Result<()> {
    let dtype = check_activations(device, "x", &x)?;
    let problem = Problem::new(x.shape.rows(), x.shape.cols(), w0.shape.rows(), 1, dtype)?;
    check_input(device, "w0", w0, [problem.d, problem.k], dtype)?;
    check_output(device, "h", &h, [problem.t, problem.d], dtype)?;
    match &device.backend {
        Backend::Cpu => reference::frozen(w0, &x, &mut h),
        Backend::Cuda(cuda) => {
            cuda.frozen(&problem, &frozen_plan(device, &problem), w0, &x, &mut h)?
        }
    }
    Ok(())
}

/// dS = s · dH B, dX = dH W0 + dS A, dA = dSᵀ X and dB = dHᵀ S.
///
/// `s` is the S that [`forward`] made, which already carries the scale. The sums over T run in an
/// order that depends on the shapes alone: the same bits on every run, and those of dA and dB whether dX
/// is asked for or not. `workspace` must have what [`backward_plan`] asks for.
///
/// On [`Path::Hopper`](plan::Path::Hopper), where tensor cores truncate, no chain of their additions is
/// longer than 2048 tokens, so that the error of a sum over T does not grow with T as theirs would: in
/// norm, dB is off by no more than 514 · 2⁻²³ = 6.1e-5 for real numbers without a pattern.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    device: &Device,
    weights: &Weights<'_>,
    dh: TensorView<'_>,
    x: TensorView<'_>,
    s: TensorView<'_>,
    out: BackwardOutputs<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    let call = weights.call(device, &x)?;
    let BackwardOutputs { dx, da, mut db, accumulation } = out;
    let out = SharedBackwardOutputs { dx, da, db: slice::from_mut(&mut db), accumulation };
    call.backward(device, slice::from_ref(&dh), &x, &s, out, workspace)
}

/// out = W0 + s · B A, computed in f32 (CPU: f64) and rounded once to the element type of W0.
///
/// In bf16 that rounding keeps 8 significant bits of the sum, so an update smaller than about
/// 1/256 of a weight's magnitude vanishes from that weight, and h from the merged weight differs
/// from the adapted layer's by the rounding of W0 + sBA. Unmerging is merging with −s; it gives W0
/// back only up to that rounding, so keep W0 where the exact weight matters.
///
/// # Errors
/// As for [`forward`].
pub fn merge(device: &Device, weights: &Weights<'_>, mut out: TensorViewMut<'_>) -> Result<()> {
    let Weights { w0, a, b, scale } = weights;
    let problem = check_merge(device, "w0", w0.shape, w0.dtype, a, b, *scale)?;
    check_input(device, "w0", w0, [problem.d, problem.k], problem.dtype)?;
    check_output(device, "out", &out, [problem.d, problem.k], problem.dtype)?;
    match &device.backend {
        Backend::Cpu => reference::merge(Some(w0), a, b, *scale, &mut out),
        Backend::Cuda(cuda) => cuda.merge(&problem, Some(w0), a, b, *scale, &mut out)?,
    }
    Ok(())
}

/// W += s · B A, in place; with −s it unmerges. [`merge`] tells what the rounding does.
///
/// # Errors
/// As for [`forward`].
pub fn merge_in_place(
    device: &Device,
    mut w: TensorViewMut<'_>,
    a: &TensorView<'_>,
    b: &TensorView<'_>,
    scale: f32,
) -> Result<()> {
    let problem = check_merge(device, "w", w.shape, w.dtype, a, b, scale)?;
    check_output(device, "w", &w, [problem.d, problem.k], problem.dtype)?;
    match &device.backend {
        Backend::Cpu => reference::merge(None, a, b, scale, &mut w),
        Backend::Cuda(cuda) => cuda.merge(&problem, None, a, b, scale, &mut w)?,
    }
    Ok(())
}

impl Weights<'_> {
    /// The call that these weights and x make, with everything about them checked.
    fn call(&self, device: &Device, x: &TensorView<'_>) -> Result<Call<'_>> {
        let dtype = check_activations(device, "x", x)?;
        let (t, k) = (x.shape.rows(), x.shape.cols());
        let (d, r) = (self.w0.shape.rows(), self.a.shape.rows());
        let problem = Problem::new(t, k, d, r, dtype)?;
        let layer = Layer::alone(self);
        check_input(device, "a", &self.a, [r, k], dtype)?;
        layer.check(device, [d, k, r], dtype)?;
        Ok(Call { problem: problem.into(), a: &self.a, layers: vec![layer] })
    }
}

fn check_merge(
    device: &Device,
    argument: &'static str,
    w: Shape,
    dtype: DType,
    a: &TensorView<'_>,
    b: &TensorView<'_>,
    scale: f32,
) -> Result<Problem> {
    check_dtype(device, argument, dtype)?;
    let (d, k, r) = (w.rows(), w.cols(), a.shape.rows());
    let problem = Problem::new(1, k, d, r, dtype)?;
    check_input(device, "a", a, [r, k], dtype)?;
    check_input(device, "b", b, [d, r], dtype)?;
    check_finite("scale", scale)?;
    Ok(problem)
}
