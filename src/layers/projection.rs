//! One projection of a layer.

use super::adapter::Scaling;
use crate::call::Projection;
use crate::tensor::Tensor;
use std::ops::Range;

/// One of the projections of a [`LoraLinear`](crate::LoraLinear): W0, B and scale. Its A is some
/// rows of the layer's.
#[derive(Debug)]
pub struct LayerProjection {
    pub(super) w0: Tensor,
    pub(super) b: Tensor,
    pub(super) alpha: f32,
    pub(super) scaling: Scaling,
    pub(super) rows: Range<usize>,
}

impl LayerProjection {
    /// The weight, [d, k]: W0, or W0 + s · B A while the adapters are merged.
    pub fn w0(&self) -> &Tensor {
        &self.w0
    }

    /// The up-projection B, [d, r].
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// The projection's rows of the layer's A and dA, and its columns of S.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The rank r.
    pub fn rank(&self) -> usize {
        self.rows.len()
    }

    /// α.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// How s follows from α and r.
    pub fn scaling(&self) -> Scaling {
        self.scaling
    }

    /// The factor s of the update: α/r or α/√r.
    pub fn scale(&self) -> f32 {
        self.scaling.scale(self.alpha, self.rank())
    }

    pub(super) fn view(&self) -> Projection<'_> {
        Projection::new(self.w0.view(), self.b.view(), self.scale())
    }
}
