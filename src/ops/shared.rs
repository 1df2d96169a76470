//! Projections that share their input.

use super::call::{Call, Layer};
use super::check::{check_activations, check_input};
use super::Accumulation;
use crate::plan::{self, check_count, Plan, SharedProblem};
use crate::{Device, Error, Result, TensorView, TensorViewMut, Workspace};

/// The weights of one of several projections of the same x, borrowed: all but its A.
#[derive(Debug)]
pub struct Projection<'a> {
    /// The frozen weight, [d, k].
    pub w0: TensorView<'a>,
    /// The up-projection, [d, r].
    pub b: TensorView<'a>,
    /// s = α/r, or whatever finite factor the update carries.
    pub scale: f32,
}

/// The weights of adapted projections of the same x, borrowed: q, k and v of an attention, or gate
/// and up of a gated MLP.
///
/// Each may have a d, an r and a scale of its own. With R the sum of the ranks, A is [R, k]: the
/// down-projections one below the other, in the order of `projections`.
#[derive(Debug)]
pub struct SharedWeights<'a> {
    /// The down-projections of all, [R, k].
    pub a: TensorView<'a>,
    /// What each has for itself: 1 to [`MAX_PROJECTIONS`](crate::MAX_PROJECTIONS).
    pub projections: &'a [Projection<'a>],
}

/// Where the backward pass of projections that share their input writes.
#[derive(Debug)]
pub struct SharedBackwardOutputs<'a, 'b> {
    /// dX, [..., k], in the element type of the inputs, if it is wanted.
    pub dx: Option<TensorViewMut<'a>>,
    /// dA of all projections, [R, k], f32.
    pub da: TensorViewMut<'a>,
    /// dB of every projection, [d, r], f32.
    pub db: &'b mut [TensorViewMut<'a>],
    /// What dA and dB do with what the buffers hold; dX is always overwritten.
    pub accumulation: Accumulation,
}

/// Which path serves [`forward_shared`] on this device, and the workspace it needs.
pub fn forward_shared_plan(device: &Device, problem: &SharedProblem) -> Plan {
    plan::forward_shared(problem, device.profile())
}

/// Which path serves [`backward_shared`] on this device, and the workspace it needs.
pub fn backward_shared_plan(device: &Device, problem: &SharedProblem) -> Plan {
    plan::backward_shared(problem, device.profile())
}

/// S = [s₀ · X A₀ᵀ, s₁ · X A₁ᵀ, ...] and, for every projection i, Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ.
///
/// x is [..., k]; `h` has one [..., d] for every projection, with the d of that. s is [..., R]:
/// beside each other, in the order of the projections, what [`forward`](super::forward) makes for
/// each. Keep it for [`backward_shared`], or leave it out (`None`) where there will be none.
/// `workspace` must have what [`forward_shared_plan`] asks for.
///
/// ```
/// use lora_kernels::ops::{self, Projection, SharedWeights};
/// use lora_kernels::{DType, Device, SharedProblem, Tensor, Workspace};
///
/// # fn main() -> lora_kernels::Result<()> {
/// let device = Device::cuda(0).unwrap_or(Device::cpu());
/// let (t, k) = (16, 64);
/// let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::Bf16);
/// // A gate and an up-projection, of ranks 8 and 16.
/// let (gate, up) = ((zeros([96, k])?, zeros([96, 8])?), (zeros([96, k])?, zeros([96, 16])?));
/// let (x, a) = (zeros([t, k])?, zeros([8 + 16, k])?);
/// let (mut h_gate, mut h_up, mut s) = (zeros([t, 96])?, zeros([t, 96])?, zeros([t, 8 + 16])?);
///
/// let problem = SharedProblem::new(t, k, &[(96, 8), (96, 16)], DType::Bf16)?;
/// let plan = ops::forward_shared_plan(&device, &problem);
/// let mut workspace = Workspace::new(&device, &[plan])?;
///
/// let projections =
///     [&gate, &up].map(|(w0, b)| Projection { w0: w0.view(), b: b.view(), scale: 2.0 });
/// let weights = SharedWeights { a: a.view(), projections: &projections };
/// let h = &mut [h_gate.view_mut(), h_up.view_mut()];
/// ops::forward_shared(&device, &weights, x.view(), h, s.view_mut(), &mut workspace)?;
/// # Ok(())
/// # }
/// ```
///
/// On [`Path::Hopper`](crate::plan::Path::Hopper) a product may meet columns of S that are another
/// projection's, with zeros on the other side: where those are not finite, h is NaN. The same goes
/// for dh in [`backward_shared`].
///
/// # Errors
/// As for [`forward`](super::forward), and [`Error::Count`] unless there are 1 to
/// [`MAX_PROJECTIONS`](crate::MAX_PROJECTIONS) projections and one `h` for each. Arguments in lists
/// are named as `projections[1].w0` and `h[1]`.
pub fn forward_shared<'a>(
    device: &Device,
    weights: &SharedWeights<'_>,
    x: TensorView<'_>,
    h: &mut [TensorViewMut<'_>],
    s: impl Into<Option<TensorViewMut<'a>>>,
    workspace: &mut Workspace,
) -> Result<()> {
    let call = weights.call(device, &x)?;
    check_one_each("h", h.len(), weights)?;
    call.forward(device, &x, h, s.into(), workspace)
}

/// dSᵢ = sᵢ · dHᵢ Bᵢ for every projection i, dX = Σᵢ dHᵢ W0ᵢ + dS A, dA = dSᵀ X and dBᵢ = dHᵢᵀ Sᵢ.
///
/// `dh` has one [..., d] for every projection; `s` is the S that [`forward_shared`] made. dX is
/// summed over all projections before it is rounded, once. The sums over T run in an order that
/// depends on the shapes alone: the same bits on every run, and those of dA and dB whether dX is
/// asked for or not. `workspace` must have what [`backward_shared_plan`] asks for.
///
/// # Errors
/// As for [`forward_shared`], with one `dh` and one `db` for every projection.
pub fn backward_shared(
    device: &Device,
    weights: &SharedWeights<'_>,
    dh: &[TensorView<'_>],
    x: TensorView<'_>,
    s: TensorView<'_>,
    out: SharedBackwardOutputs<'_, '_>,
    workspace: &mut Workspace,
) -> Result<()> {
    let call = weights.call(device, &x)?;
    check_one_each("dh", dh.len(), weights)?;
    check_one_each("db", out.db.len(), weights)?;
    call.backward(device, dh, &x, &s, out, workspace)
}

impl SharedWeights<'_> {
    /// The call that these weights and x make, with everything about them checked.
    fn call(&self, device: &Device, x: &TensorView<'_>) -> Result<Call<'_>> {
        let dtype = check_activations(device, "x", x)?;
        check_count(self.projections.len())?;
        let layers = Layer::of(self.projections);
        let sizes: Vec<_> = layers.iter().map(|l| (l.w0.shape.rows(), l.b.shape.cols())).collect();
        let (t, k) = (x.shape.rows(), x.shape.cols());
        let problem = SharedProblem::new(t, k, &sizes, dtype)?;
        for (layer, (d, r)) in layers.iter().zip(sizes) {
            layer.check(device, [d, k, r], dtype)?;
        }
        check_input(device, "a", &self.a, [problem.rank(), k], dtype)?;
        Ok(Call { problem, a: &self.a, layers })
    }
}

/// Refuses a list that does not have one argument for every projection.
fn check_one_each(argument: &'static str, got: usize, weights: &SharedWeights<'_>) -> Result<()> {
    let count = weights.projections.len();
    if got == count {
        return Ok(());
    }
    Err(Error::Count { argument, expected: format!("{count}, one for every projection"), got })
}
