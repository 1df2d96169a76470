//! A forward or backward pass of one projection or several, from its checks to a backend.

use super::check::{check_finite, check_input, check_output, check_rows, check_workspace};
use super::{Projection, SharedBackwardOutputs, Weights};
use crate::device::Backend;
use crate::plan::{self, SharedProblem, MAX_PROJECTIONS};
use crate::{reference, DType, Device, Result, TensorView, TensorViewMut, Workspace};

/// The weights of a call, checked, and the problem that they make with its x.
pub(crate) struct Call<'a> {
    pub(crate) problem: SharedProblem,
    /// The A of all projections, one below the other, R×k.
    pub(crate) a: &'a TensorView<'a>,
    /// One for every projection of the problem.
    pub(crate) layers: Vec<Layer<'a>>,
}

/// What a projection has for itself.
pub(crate) struct Layer<'a> {
    /// d×k.
    pub(crate) w0: &'a TensorView<'a>,
    /// d×r.
    pub(crate) b: &'a TensorView<'a>,
    pub(crate) scale: f32,
    pub(crate) names: &'static Names,
}

/// What errors call the arguments of a projection.
pub(crate) struct Names {
    pub(crate) w0: &'static str,
    pub(crate) b: &'static str,
    scale: &'static str,
    pub(crate) h: &'static str,
    pub(crate) dh: &'static str,
    pub(crate) db: &'static str,
}

const ALONE: Names = Names { w0: "w0", b: "b", scale: "scale", h: "h", dh: "dh", db: "db" };

macro_rules! names_of {
    ($i:literal) => {
        Names {
            w0: concat!("projections[", $i, "].w0"),
            b: concat!("projections[", $i, "].b"),
            scale: concat!("projections[", $i, "].scale"),
            h: concat!("h[", $i, "]"),
            dh: concat!("dh[", $i, "]"),
            db: concat!("db[", $i, "]"),
        }
    };
}

pub(crate) const SHARED: [Names; MAX_PROJECTIONS] =
    [names_of!(0), names_of!(1), names_of!(2), names_of!(3)];

impl<'a> Layer<'a> {
    pub(super) fn alone(weights: &'a Weights<'_>) -> Self {
        let Weights { w0, b, scale, .. } = weights;
        Layer { w0, b, scale: *scale, names: &ALONE }
    }

    /// Of projections in order, [`MAX_PROJECTIONS`] at most.
    pub(super) fn of(projections: &'a [Projection<'_>]) -> Vec<Self> {
        let layer = |(projection, names): (&'a Projection<'_>, &'static Names)| {
            let Projection { w0, b, scale } = projection;
            Layer { w0, b, scale: *scale, names }
        };
        projections.iter().zip(&SHARED).map(layer).collect()
    }

    pub(super) fn check(&self, device: &Device, [d, k, r]: [usize; 3], dtype: DType) -> Result<()> {
        check_input(device, self.names.w0, self.w0, [d, k], dtype)?;
        check_input(device, self.names.b, self.b, [d, r], dtype)?;
        check_finite(self.names.scale, self.scale)
    }
}

impl Call<'_> {
    /// `h` is as long as there are projections.
    pub(super) fn forward(
        &self,
        device: &Device,
        x: &TensorView<'_>,
        h: &mut [TensorViewMut<'_>],
        mut s: Option<TensorViewMut<'_>>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let SharedProblem { t, dtype, .. } = self.problem;
        for ((h, part), layer) in h.iter().zip(self.problem.parts()).zip(&self.layers) {
            check_output(device, layer.names.h, h, [t, part.d], dtype)?;
        }
        if let Some(s) = &s {
            check_output(device, "s", s, [t, self.problem.rank()], dtype)?;
        }
        let plan = plan::forward_shared(&self.problem, device.profile());
        check_workspace(device, workspace, &plan)?;
        match &device.backend {
            Backend::Cpu => reference::forward(self, x, h, s.as_mut()),
            Backend::Cuda(cuda) => cuda.forward(self, &plan, x, h, s.as_mut(), workspace)?,
        }
        Ok(())
    }

    /// `dh` and `out.db` are as long as there are projections.
    pub(super) fn backward(
        &self,
        device: &Device,
        dh: &[TensorView<'_>],
        x: &TensorView<'_>,
        s: &TensorView<'_>,
        mut out: SharedBackwardOutputs<'_, '_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let SharedProblem { t, k, dtype, .. } = self.problem;
        let rank = self.problem.rank();
        for ((dh, part), layer) in dh.iter().zip(self.problem.parts()).zip(&self.layers) {
            check_rows(device, layer.names.dh, dh, [t, part.d], dtype)?;
        }
        check_rows(device, "s", s, [t, rank], dtype)?;
        if let Some(dx) = &out.dx {
            check_output(device, "dx", dx, [t, k], dtype)?;
        }
        check_output(device, "da", &out.da, [rank, k], DType::F32)?;
        for ((db, part), layer) in out.db.iter().zip(self.problem.parts()).zip(&self.layers) {
            check_output(device, layer.names.db, db, [part.d, part.r], DType::F32)?;
        }
        let plan = plan::backward_shared(&self.problem, device.profile());
        check_workspace(device, workspace, &plan)?;
        match &device.backend {
            Backend::Cpu => reference::backward(self, dh, x, s, &mut out),
            Backend::Cuda(cuda) => cuda.backward(self, &plan, dh, x, s, &mut out, workspace)?,
        }
        Ok(())
    }
}
