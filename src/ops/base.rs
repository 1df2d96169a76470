//! The frozen layer alone.

use crate::call::{BaseCall, check_dtype};
use crate::device::{Backend, Device};
use crate::driver::RangeName;
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{self, Path, Plan};
use crate::problem::Problem;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{Workspace, WorkspaceSize};
use crate::{cpu, cuda};
use std::fmt;
use std::sync::Arc;

macro_rules! base_operation {
    (
        $(#[$doc:meta])* $name:ident, $plan:ident, $what:literal,
        $(#[$run_doc:meta])* run($input:ident, $output:ident), $sizes:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name {
            device: Device,
            plan: Arc<(Problem, Plan, Option<cuda::$name>, RangeName)>,
        }

        impl $name {
            /// The operation for T = `t` tokens and a W0 of [d, k], on this device's stream.
            ///
            /// # Errors
            /// [`Error::DType`](crate::Error::DType) for f32 on a CUDA device;
            /// [`Error::Shape`](crate::Error::Shape) or [`TooLarge`](crate::Error::TooLarge) for
            /// the sizes.
            pub fn new(
                device: &Device,
                t: usize,
                [d, k]: [usize; 2],
                dtype: DType,
            ) -> Result<Self> {
                check_dtype(device, "w0", dtype)?;
                let problem = Problem::single(t, k, d, 1, dtype)?;
                let plan = plan::$plan(&problem, device.profile());
                let launches = match &device.backend {
                    Backend::Cpu => None,
                    Backend::Cuda(gpu) => Some(cuda::$name::new(gpu, &problem, &plan)),
                };
                let range =
                    RangeName::new(format_args!(concat!("lora ", $what, " {}×{}→{}"), t, k, d));
                let plan = Arc::new((problem, plan, launches, range));
                Ok($name { device: device.clone(), plan })
            }

            /// The same operation on another stream of the same CUDA context.
            ///
            /// # Errors
            /// [`Error::Device`](crate::Error::Device) if the device belongs to another context.
            pub fn on(&self, device: &Device) -> Result<Self> {
                Ok($name { device: self.device.on(device)?, plan: self.plan.clone() })
            }

            /// The device whose stream it runs on.
            pub fn device(&self) -> &Device {
                &self.device
            }

            /// The kernels that serve it, if the buffers of a call are aligned for them.
            pub fn path(&self) -> Path {
                self.plan.1.path()
            }

            /// The workspace that [`run`](Self::run) needs: of no bytes, unless k or d is no
            /// multiple of 8.
            pub fn workspace(&self) -> WorkspaceSize {
                let Plan { scratch, flags, .. } = self.plan.1;
                WorkspaceSize { scratch, flags }
            }

            $(#[$run_doc])*
            ///
            /// # Errors
            /// As for [`Forward::run`](super::Forward::run).
            pub fn run(
                &self,
                w0: TensorView<'_>,
                $input: TensorView<'_>,
                mut $output: TensorViewMut<'_>,
                workspace: &mut Workspace,
            ) -> Result<()> {
                let (problem, _, launches, range) = &*self.plan;
                let (input, output) = ($input, $output.reborrow());
                let names = [stringify!($input), stringify!($output)];
                let call = BaseCall { problem, w0, input, output, names };
                let (k, (d, _)) = (problem.k(), problem.projections()[0]);
                call.check(&self.device, $sizes(d, k))?;
                workspace.check(&self.device, self.workspace())?;
                let _range = range.enter();
                match (&self.device.backend, launches) {
                    _ if problem.t() == 0 => Ok(()),
                    (Backend::Cuda(gpu), Some(launches)) => launches.run(gpu, call, workspace),
                    _ => {
                        cpu::$plan(call);
                        Ok(())
                    }
                }
            }
        }

        /// The sizes, and the kernels and tiles that serve them.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (problem, plan, ..) = &*self.plan;
                let (t, k, (d, _)) = (problem.t(), problem.k(), problem.projections()[0]);
                write!(f, concat!($what, " T={} k={} d={} {}: {}"), t, k, d, problem.dtype(), plan)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self} on {}", self.device)
            }
        }
    };
}

/// The columns of the input and of the output.
fn from_k_to_d(d: usize, k: usize) -> [usize; 2] {
    [k, d]
}

fn from_d_to_k(d: usize, k: usize) -> [usize; 2] {
    [d, k]
}

base_operation!(
    /// The frozen layer's forward, H = X W0ᵀ: a layer whose adapter is off, or merged.
    BaseForward,
    base_forward,
    "base forward",
    /// Enqueues a pass: W0 is [d, k], x [..., k] and h [..., d].
    run(x, h),
    from_k_to_d
);

base_operation!(
    /// The frozen layer's backward, dX = dH W0.
    BaseInputGrad,
    base_input_grad,
    "base input grad",
    /// Enqueues a pass: W0 is [d, k], dh [..., d] and dx [..., k].
    run(dh, dx),
    from_d_to_k
);
