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

/// A forward pass: S = [s₀ · X A₀ᵀ, s₁ · X A₁ᵀ, ...] and, for every projection i,
/// Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ ([Hu et al., 2021](https://arxiv.org/abs/2106.09685), section 4.1).
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
    /// [`Error::Device`](crate::Error::Device) if the device belongs to another context.
    pub fn on(&self, device: &Device) -> Result<Self> {
        Ok(Forward { device: self.device.on(device)?, plan: self.plan.clone() })
    }

    /// The problem it was made for.
    pub fn problem(&self) -> &Problem {
        &self.plan.problem
    }

    /// The device whose stream it runs on.
    pub fn device(&self) -> &Device {
        &self.device
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

    /// Enqueues a pass: x is [..., k], `h` has one [..., d] for every projection, and s is
    /// [..., R], with the columns of the projections side by side. h and s are overwritten.
    ///
    /// Keep S for [`Backward`](super::Backward). Pass `None` if no backward pass follows. A CUDA
    /// device computes H from S rounded to the element type, the CPU from S in f64.
    ///
    /// H of a token does not depend on the other tokens. On every path but [`Path::Hopper`] it does
    /// not depend on their number either: it has the same bits in any batch that the same path
    /// serves. On [`Path::Hopper`] the number of tokens decides the tiles, and with them the order
    /// of sums.
    ///
    /// On [`Path::Hopper`], S of one projection may be multiplied by zeros in the GEMM of another.
    /// So an S that is not finite may make h of other projections NaN.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`RowStride`](crate::Error::RowStride),
    /// [`Count`](crate::Error::Count), [`DType`](crate::Error::DType),
    /// [`Device`](crate::Error::Device), [`NotFinite`](crate::Error::NotFinite),
    /// [`Workspace`](crate::Error::Workspace), [`Overlap`](crate::Error::Overlap),
    /// [`Capture`](crate::Error::Capture) or [`Driver`](crate::Error::Driver). With several
    /// projections, arguments are named like `projections[1].w0` and `h[1]`.
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

/// The problem, and the kernels and tiles that serve it.
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
