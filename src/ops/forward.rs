//! Forward passes.

use crate::call::{ForwardCall, Weights, check_dtype, names};
use crate::device::{Backend, Device};
use crate::driver::RangeName;
use crate::error::Result;
use crate::plan::{self, Path, Plan};
use crate::problem::{Brief, Problem};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{Workspace, WorkspaceSize};
use crate::{cpu, cuda};
use std::fmt;
use std::sync::Arc;

/// S = [s₀ · X A₀ᵀ, s₁ · X A₁ᵀ, ...] and, for every projection i, Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct Forward {
    device: Device,
    plan: Arc<Planned>,
}

struct Planned {
    problem: Problem,
    plan: Plan,
    launches: Option<cuda::Forward>,
    range: RangeName,
}

impl Forward {
    /// The forward pass of this problem on this device's stream.
    ///
    /// # Errors
    /// [`Error::DType`](crate::Error::DType) for f32 on a CUDA device.
    pub fn new(device: &Device, problem: &Problem) -> Result<Self> {
        Forward::with_plan(device, problem, plan::forward(problem, device.profile()))
    }

    /// The same, served by this plan.
    pub(crate) fn with_plan(device: &Device, problem: &Problem, plan: Plan) -> Result<Self> {
        check_dtype(device, "x", problem.dtype())?;
        let launches = match &device.backend {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(cuda::Forward::new(gpu, problem, &plan)),
        };
        let range = RangeName::new(format_args!("lora forward {}", Brief(problem)));
        let plan = Arc::new(Planned { problem: *problem, plan, launches, range });
        Ok(Forward { device: device.clone(), plan })
    }

    /// The same operation on another stream of the same CUDA context.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device is of another context.
    pub fn on(&self, device: &Device) -> Result<Self> {
        Ok(Forward { device: self.device.on(device)?, plan: self.plan.clone() })
    }

    /// What it was made for.
    pub fn problem(&self) -> &Problem {
        &self.plan.problem
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The code that serves it, where the buffers of a call are aligned as that needs.
    pub fn path(&self) -> Path {
        self.plan.plan.path()
    }

    /// What the workspace of a call must have.
    pub fn workspace(&self) -> WorkspaceSize {
        let Plan { scratch, flags, .. } = self.plan.plan;
        WorkspaceSize { scratch, flags }
    }

    /// Enqueues a pass: x is [..., k], `h` has a [..., d] for every projection, and s is [..., R], the
    /// columns of the projections beside each other.
    ///
    /// Keep S for [`Backward`](super::Backward), or leave it out (`None`) where there will be none.
    /// A CUDA device computes H from S as rounded to its element type, the CPU from the exact one.
    ///
    /// H of a token does not depend on the tokens beside it, and on every path but [`Path::Hopper`]
    /// not on how many there are either: it has the same bits in any batch that is served by the
    /// same path. On [`Path::Hopper`] the number of tokens chooses the tiles, and H of a token may be
    /// summed in another order.
    ///
    /// On [`Path::Hopper`], a product may meet columns of S that are another projection's, with
    /// zeros on the other side: where those are not finite, h is NaN.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`RowStride`](crate::Error::RowStride),
    /// [`Count`](crate::Error::Count), [`DType`](crate::Error::DType),
    /// [`Device`](crate::Error::Device), [`NotFinite`](crate::Error::NotFinite),
    /// [`Workspace`](crate::Error::Workspace), [`Overlap`](crate::Error::Overlap),
    /// [`Capture`](crate::Error::Capture) or [`Driver`](crate::Error::Driver). Arguments of one of
    /// several projections are named as `projections[1].w0` and `h[1]`.
    pub fn run<'s>(
        &self,
        weights: &Weights<'_>,
        x: TensorView<'_>,
        h: &mut [TensorViewMut<'_>],
        s: impl Into<Option<TensorViewMut<'s>>>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (problem, mut s) = (&self.plan.problem, s.into());
        let s = s.as_mut().map(TensorViewMut::reborrow);
        let names = names(problem.projections().len());
        let call = ForwardCall { problem, weights, names, x, h, s };
        call.check(&self.device)?;
        workspace.check(&self.device, self.workspace())?;
        if problem.t() == 0 {
            return Ok(());
        }
        let _range = self.plan.range.enter();
        match (&self.device.backend, &self.plan.launches) {
            (Backend::Cuda(gpu), Some(launches)) => launches.run(gpu, call, workspace),
            _ => {
                cpu::forward(call);
                Ok(())
            }
        }
    }
}

/// The problem, and how it is served.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forward {}: {}", self.plan.problem, self.plan.plan)
    }
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} on {}", self.device)
    }
}
