//! Backward passes.

use crate::call::{Accumulation, BackwardCall, GradientsMut, Weights, check_dtype, names};
use crate::device::{Backend, Device};
use crate::driver::RangeName;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::{self, Path, Plan};
use crate::problem::{Brief, Problem};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{Workspace, WorkspaceSize};
use crate::{cpu, cuda};
use std::fmt;
use std::sync::Arc;

/// A backward pass: dSᵢ = sᵢ · dHᵢ Bᵢ, dX = Σᵢ dHᵢ W0ᵢ + dS A, dA = dSᵀ X and dBᵢ = dHᵢᵀ Sᵢ, the
/// derivatives of [`Forward`](super::Forward).
///
/// W0 has no gradient. Cheap to clone.
#[derive(Clone)]
pub struct Backward {
    device: Device,
    gradients: DType,
    plan: Arc<Planned>,
}

struct Planned {
    problem: Problem,
    plan: Plan,
    launches: Option<cuda::Backward>,
    range: RangeName,
}

impl Backward {
    /// The backward pass of this problem on this device's stream, with dA and dB in f32.
    ///
    /// # Errors
    /// [`Error::DType`] for f32 on a CUDA device.
    pub fn new(device: &Device, problem: &Problem) -> Result<Self> {
        Backward::with_plan(device, problem, plan::backward(problem, device.profile()))
    }

    /// The same, served by this plan.
    pub(crate) fn with_plan(device: &Device, problem: &Problem, plan: Plan) -> Result<Self> {
        check_dtype(device, "x", problem.dtype())?;
        let launches = match &device.backend {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(cuda::Backward::new(gpu, problem, &plan)),
        };
        let range = RangeName::new(format_args!("lora backward {}", Brief(problem)));
        let plan = Arc::new(Planned { problem: *problem, plan, launches, range });
        Ok(Backward { device: device.clone(), gradients: DType::F32, plan })
    }

    /// The same with dA and dB in another element type: f32, or that of the problem. In 16 bits
    /// they are summed in f32 and rounded once.
    ///
    /// # Errors
    /// [`Error::DType`] for any other type.
    pub fn with_gradients(&self, gradients: DType) -> Result<Self> {
        if gradients != DType::F32 && gradients != self.plan.problem.dtype() {
            let expected = "f32, or the element type of x";
            return Err(Error::DType { argument: "gradients", expected, got: gradients });
        }
        Ok(Backward { gradients, ..self.clone() })
    }

    /// The same operation on another stream of the same CUDA context.
    ///
    /// # Errors
    /// [`Error::Device`] if the device belongs to another context.
    pub fn on(&self, device: &Device) -> Result<Self> {
        Ok(Backward { device: self.device.on(device)?, ..self.clone() })
    }

    /// The problem it was made for.
    pub fn problem(&self) -> &Problem {
        &self.plan.problem
    }

    /// The device whose stream it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The element type of dA and dB.
    pub fn gradients(&self) -> DType {
        self.gradients
    }

    /// The kernels that serve it, if the buffers of a call are aligned for them.
    pub fn path(&self) -> Path {
        self.plan.plan.path()
    }

    /// The least size of a call's workspace.
    pub fn workspace(&self) -> WorkspaceSize {
        let Plan { scratch, flags, .. } = self.plan.plan;
        WorkspaceSize { scratch, flags }
    }

    /// Enqueues a pass with dX [..., k], which is overwritten. `dh` has one [..., d] for every
    /// projection. `s` is the S [..., R] that [`Forward`](super::Forward) computed from this x; it
    /// carries the scales. `out` has dA [R, k] and one dB [d, r] for every projection.
    ///
    /// The order of the sums over T depends only on the shapes: the same bits on every run, and dA
    /// and dB have the same bits with dX and without. dX is summed over all projections and then
    /// rounded once.
    ///
    /// On [`Path::Hopper`] tensor cores truncate. So no chain of their additions is longer than
    /// 2048 tokens; chains are added in f32, and the error does not grow with T. The relative error
    /// of dB in norm is at most 514 · 2⁻²³ = 6.1e-5 for random inputs.
    ///
    /// # Errors
    /// As for [`Forward::run`](super::Forward::run), with one `dh` and one `db` for every
    /// projection.
    #[allow(clippy::too_many_arguments)] // the operands of the formulas
    pub fn run(
        &self,
        weights: &Weights<'_>,
        dh: &[TensorView<'_>],
        x: TensorView<'_>,
        s: TensorView<'_>,
        mut dx: TensorViewMut<'_>,
        out: GradientsMut<'_, '_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.enqueue(weights, dh, [x, s], Some(dx.reborrow()), out, workspace)
    }

    /// Enqueues a pass for dA and dB alone: the first adapted layer of a network needs no dX.
    ///
    /// # Errors
    /// As for [`Backward::run`].
    pub fn run_params(
        &self,
        weights: &Weights<'_>,
        dh: &[TensorView<'_>],
        x: TensorView<'_>,
        s: TensorView<'_>,
        out: GradientsMut<'_, '_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.enqueue(weights, dh, [x, s], None, out, workspace)
    }

    fn enqueue<'c>(
        &'c self,
        weights: &'c Weights<'c>,
        dh: &'c [TensorView<'c>],
        [x, s]: [TensorView<'c>; 2],
        dx: Option<TensorViewMut<'c>>,
        out: GradientsMut<'_, '_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let problem = &self.plan.problem;
        let names = names(problem.projections().len());
        let call = BackwardCall { problem, weights, names, dh, x, s, dx, out };
        call.check(&self.device, self.gradients)?;
        workspace.check(&self.device, self.workspace())?;
        let _range = self.plan.range.enter();
        match (&self.device.backend, &self.plan.launches) {
            // Sums of nothing.
            (Backend::Cuda(gpu), _) if problem.t() == 0 => match call.out.accumulation {
                Accumulation::Add => Ok(()),
                Accumulation::Overwrite => cuda::zero_gradients(gpu, call),
            },
            (Backend::Cuda(gpu), Some(launches)) => launches.run(gpu, call, workspace),
            _ => {
                cpu::backward(call);
                Ok(())
            }
        }
    }
}

/// The problem, and the kernels and tiles that serve it.
impl fmt::Display for Backward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backward {}: {}", self.plan.problem, self.plan.plan)?;
        match self.gradients {
            DType::F32 => Ok(()),
            gradients => write!(f, ", gradients in {gradients}"),
        }
    }
}

impl fmt::Debug for Backward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} on {}", self.device)
    }
}
