//! A LoRA linear layer that owns its tensors.

use crate::ops::{self, Accumulation, BackwardOutputs, InputGradient, Weights};
use crate::{Adapter, DType, Device, Error, Problem, Result, Tensor, TensorViewMut, Workspace};

/// A frozen weight W0 [d, k] with an adapter: h = W0 x + s · B (A x).
///
/// The layer runs on the device of its weight and allocates what it returns. For buffers of your
/// own, and inside CUDA-graph captures, use [`ops`] with [`LoraLinear::weights`].
#[derive(Debug)]
pub struct LoraLinear {
    w0: Tensor,
    adapter: Adapter,
    merged: bool,
}

/// What a forward pass makes.
#[derive(Debug)]
pub struct Forward {
    /// The layer's output h, [..., d].
    pub h: Tensor,
    /// S = s · X Aᵀ, [..., r], which the backward pass needs.
    pub s: Tensor,
}

/// The gradients of an adapter, in f32.
#[derive(Debug)]
pub struct Gradients {
    /// dA, [r, k].
    pub a: Tensor,
    /// dB, [d, r].
    pub b: Tensor,
}

impl LoraLinear {
    /// A layer of a frozen weight [d, k] and an adapter of the same element type and device.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if they do not fit together.
    pub fn new(w0: Tensor, adapter: Adapter) -> Result<Self> {
        adapter.check_weight("w0", &w0)?;
        Ok(LoraLinear { w0, adapter, merged: false })
    }

    /// The weight, [d, k]: W0, or W0 + s · B A while the adapter is merged.
    pub fn w0(&self) -> &Tensor {
        &self.w0
    }

    /// The adapter.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Whether [`LoraLinear::merge`] has folded the adapter into the weight.
    pub fn is_merged(&self) -> bool {
        self.merged
    }

    /// The adapter, for an optimiser to update in place; not while it is merged, or
    /// [`LoraLinear::unmerge`] subtracts another update than was added.
    pub fn adapter_mut(&mut self) -> &mut Adapter {
        &mut self.adapter
    }

    /// The device the layer runs on.
    pub fn device(&self) -> &Device {
        self.w0.device()
    }

    /// The weights as the operations in [`ops`] take them.
    pub fn weights(&self) -> Weights<'_> {
        Weights {
            w0: self.w0.view(),
            a: self.adapter.a().view(),
            b: self.adapter.b().view(),
            scale: self.adapter.scale(),
        }
    }

    /// h [..., d] and the S that backward needs, for x [..., k].
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if x does not fit the layer;
    /// [`Error::Merged`] if the adapter is merged; [`Error::OutOfMemory`]; [`Error::Driver`].
    pub fn forward(&self, x: &Tensor) -> Result<Forward> {
        let mut s = output(&self.w0, x, self.adapter.rank())?;
        let h = self.run(x, Some(s.view_mut()))?;
        Ok(Forward { h, s })
    }

    /// h [..., d] alone, where no backward pass will follow.
    ///
    /// # Errors
    /// As for [`LoraLinear::forward`].
    pub fn infer(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None)
    }

    /// h [..., d] from the layer's own weight alone: W0 x, with the adapter switched off, or the
    /// whole layer while the adapter is merged.
    ///
    /// # Errors
    /// As for [`LoraLinear::forward`].
    pub fn forward_frozen(&self, x: &Tensor) -> Result<Tensor> {
        self.problem(x)?;
        let mut h = output(&self.w0, x, self.w0.shape().rows())?;
        ops::frozen(self.device(), &self.w0.view(), x.view(), h.view_mut())?;
        Ok(h)
    }

    /// dA and dB into `gradients`, and dX [..., k] if asked for, from dh [..., d], the x of the
    /// forward pass and the S it made.
    ///
    /// # Errors
    /// As for [`LoraLinear::forward`].
    pub fn backward(
        &self,
        dh: &Tensor,
        x: &Tensor,
        s: &Tensor,
        gradients: &mut Gradients,
        accumulation: Accumulation,
        input_gradient: InputGradient,
    ) -> Result<Option<Tensor>> {
        check_merged(self.merged, false)?;
        let device = self.device();
        let plan = ops::backward_plan(device, &self.problem(x)?);
        let mut dx = match input_gradient {
            InputGradient::Skip => None,
            InputGradient::Compute => Some(output(&self.w0, x, self.w0.shape().cols())?),
        };
        let mut workspace = Workspace::new(device, &[plan])?;
        let outputs = BackwardOutputs {
            dx: dx.as_mut().map(Tensor::view_mut),
            da: gradients.a.view_mut(),
            db: gradients.b.view_mut(),
            accumulation,
        };
        let (weights, inputs) = (self.weights(), (dh.view(), x.view(), s.view()));
        ops::backward(device, &weights, inputs.0, inputs.1, inputs.2, outputs, &mut workspace)?;
        Ok(dx)
    }

    /// Gradients of the adapter's shapes, all zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zero_gradients(&self) -> Result<Gradients> {
        let zeros = |of: &Tensor| Tensor::zeros(self.device(), of.shape(), DType::F32);
        Ok(Gradients { a: zeros(self.adapter.a())?, b: zeros(self.adapter.b())? })
    }

    /// W0 + s · B A as a new weight; [`ops::merge`] tells what its rounding does.
    ///
    /// # Errors
    /// [`Error::Merged`] if the adapter is merged; [`Error::OutOfMemory`]; [`Error::Driver`].
    pub fn merged(&self) -> Result<Tensor> {
        check_merged(self.merged, false)?;
        let mut out = Tensor::for_output(self.device(), self.w0.shape(), self.w0.dtype())?;
        ops::merge(self.device(), &self.weights(), out.view_mut())?;
        Ok(out)
    }

    /// Adds s · B A to the layer's own weight, for [`LoraLinear::forward_frozen`] to use.
    ///
    /// # Errors
    /// [`Error::Merged`] if it was added before; [`Error::Driver`].
    pub fn merge(&mut self) -> Result<()> {
        check_merged(self.merged, false)?;
        self.add_update(self.adapter.scale())?;
        self.merged = true;
        Ok(())
    }

    /// Subtracts s · B A from the layer's own weight again; exact only up to the rounding that
    /// [`ops::merge`] tells of.
    ///
    /// # Errors
    /// [`Error::Merged`] if it is not merged; [`Error::Driver`].
    pub fn unmerge(&mut self) -> Result<()> {
        check_merged(self.merged, true)?;
        self.add_update(-self.adapter.scale())?;
        self.merged = false;
        Ok(())
    }

    /// h, and S where it is asked for.
    fn run(&self, x: &Tensor, s: Option<TensorViewMut<'_>>) -> Result<Tensor> {
        check_merged(self.merged, false)?;
        let (device, weights) = (self.device(), self.weights());
        let plan = ops::forward_plan(device, &self.problem(x)?);
        let mut h = output(&self.w0, x, self.w0.shape().rows())?;
        let mut workspace = Workspace::new(device, &[plan])?;
        ops::forward(device, &weights, x.view(), h.view_mut(), s, &mut workspace)?;
        Ok(h)
    }

    fn add_update(&mut self, scale: f32) -> Result<()> {
        let device = self.w0.device().clone();
        let (a, b) = (self.adapter.a().view(), self.adapter.b().view());
        ops::merge_in_place(&device, self.w0.view_mut(), &a, &b, scale)
    }

    fn problem(&self, x: &Tensor) -> Result<Problem> {
        let (d, k) = (self.w0.shape().rows(), self.w0.shape().cols());
        check_input(x, k)?;
        Problem::new(x.shape().rows(), k, d, self.adapter.rank(), x.dtype())
    }
}

/// Refuses a layer that is merged, or one that is not.
pub(crate) fn check_merged(merged: bool, expected: bool) -> Result<()> {
    if merged == expected {
        Ok(())
    } else {
        Err(Error::Merged { merged })
    }
}

/// Refuses an x that is not [..., k].
pub(crate) fn check_input(x: &Tensor, k: usize) -> Result<()> {
    if x.shape().cols() == k {
        return Ok(());
    }
    let expected = format!("[..., {k}]");
    Err(Error::Shape { argument: "x", expected, got: x.shape() })
}

/// A tensor for an output with the rows of x, and the element type and device of a weight.
pub(crate) fn output(w0: &Tensor, x: &Tensor, cols: usize) -> Result<Tensor> {
    Tensor::for_output(w0.device(), x.shape().with_cols(cols)?, w0.dtype())
}
