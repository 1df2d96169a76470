//! Memory that operations need between and during their launches.

use crate::plan::Plan;
use crate::{DType, Device, Error, Result, Shape, Tensor, TensorViewMut};

/// What operations need besides their arguments, for one stream: make it once, pass it to every call.
///
/// Its flags are how blocks of a kernel tell each other what they have done. They are zeros between
/// calls, which every kernel that uses them sees to, and so nobody else may reach them. Calls that
/// share a workspace must not run at the same time: on one device they do not, since its stream
/// orders them, but a CUDA graph that is replayed on another stream needs a workspace of its own.
#[derive(Debug)]
pub struct Workspace {
    /// f32, one-dimensional, with at least the [`Plan::scratch`] elements of every call; of no meaning
    /// in between.
    pub scratch: Tensor,
    flags: Tensor,
}

impl Workspace {
    /// A workspace for calls of any of these plans, one at a time: those of
    /// [`ops::forward_plan`](crate::ops::forward_plan) and
    /// [`ops::backward_plan`](crate::ops::backward_plan).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Driver`].
    pub fn new(device: &Device, plans: &[Plan]) -> Result<Self> {
        let most = |of: fn(&Plan) -> usize| plans.iter().map(of).max().unwrap_or(0);
        Ok(Workspace {
            scratch: Tensor::for_output(
                device,
                Shape::new(&[most(|plan| plan.scratch)])?,
                DType::F32,
            )?,
            flags: Tensor::zeros(device, [most(|plan| plan.flags)], DType::F32)?,
        })
    }

    /// Refuses plans that need more than there is.
    pub(crate) fn check(&self, plan: &Plan) -> Result<()> {
        let parts = [("scratch", &self.scratch, plan.scratch), ("flags", &self.flags, plan.flags)];
        for (part, tensor, needed) in parts {
            let got = tensor.shape().elements();
            if got < needed {
                return Err(Error::Workspace { part, needed, got });
            }
        }
        Ok(())
    }

    pub(crate) fn flags(&self) -> &Tensor {
        &self.flags
    }

    /// The scratch and the flags.
    pub(crate) fn views(&mut self) -> (TensorViewMut<'_>, TensorViewMut<'_>) {
        (self.scratch.view_mut(), self.flags.view_mut())
    }
}
