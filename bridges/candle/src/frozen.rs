//! A linear layer that is not trained.

use crate::bias;
use crate::kernels::Kernels;
use crate::memory::{Elements, Output, element, err};
use crate::node::{self, Value};
use crate::pass::{output_shape, tokens};
use candle_core::{Module, Result, Tensor};
use lora_kernels::Problem;
use std::sync::Arc;

/// A frozen linear layer, H = X W0ᵀ + bias: an output head, or a projection without an adapter.
///
/// Its backward pass computes dX alone. candle's `Linear` also computes dW0, whether it is used or
/// not, and keeps it to the end of the backward pass.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor, Var};
/// use lora_kernels_candle::FrozenLinear;
///
/// # fn main() -> candle_core::Result<()> {
/// let device = Device::Cpu;
/// let head = FrozenLinear::new(Tensor::ones((4, 8), DType::F32, &device)?, None)?;
/// let x = Var::ones((2, 3, 8), DType::F32, &device)?;
/// let h = head.forward(&x)?;
/// assert_eq!(h.dims(), [2, 3, 4]);
/// assert!(h.sum_all()?.backward()?.get(&x).is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    w0: Tensor,
    bias: Option<Tensor>,
    kernels: Arc<Kernels>,
}

impl FrozenLinear {
    /// The layer of W0 [d, k] and bias `[d]`, of one element type: bf16, f16, or, on the CPU, f32.
    /// Neither gets a gradient. W0 is copied only if it is not contiguous.
    ///
    /// # Errors
    /// If the shapes, types or devices do not fit each other.
    pub fn new(w0: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let w0 = w0.detach().contiguous()?;
        let (d, k) = w0.dims2()?;
        Problem::single(1, k, d, 1, element(w0.dtype())?).map_err(err)?;
        let bias = bias.map(|bias| bias.detach());
        if let Some(bias) = &bias {
            bias::check(bias, &w0)?;
        }
        let kernels = Kernels::of(w0.device())?;
        Ok(FrozenLinear { w0, bias, kernels })
    }

    /// W0, [d, k].
    pub fn w0(&self) -> &Tensor {
        &self.w0
    }

    /// The bias, `[d]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(crate) fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }
}

impl Module for FrozenLinear {
    /// h [..., d] of x [..., k].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (t, (d, k)) = (tokens(&x, &self.w0)?, self.w0.dims2()?);
        let problem = Problem::single(t, k, d, 1, element(x.dtype())?).map_err(err)?;
        let layer = Frozen { layer: self.clone(), problem };
        let storage = layer.run(&x, true)?.into_storage();
        let h = Value { storage, shape: output_shape(&x, d) };
        let h = node::one("frozen-linear", &x, h, move |step| {
            let dx = layer.run(&step.dy.contiguous()?, false)?;
            Ok(dx.into_tensor(step.args[0].shape()))
        })?;
        bias::add(h, self.bias.as_ref())
    }
}

struct Frozen {
    layer: FrozenLinear,
    problem: Problem,
}

impl Frozen {
    /// H of a contiguous x, or dX of a contiguous dH.
    fn run(&self, input: &Tensor, forward: bool) -> Result<Output> {
        let FrozenLinear { w0, kernels, .. } = &self.layer;
        let (t, k, d) = (self.problem.t(), self.problem.k(), self.problem.projections()[0].0);
        let (from, to) = if forward { (k, d) } else { (d, k) };
        let mut output = Output::new(input.device(), input.dtype(), [t, to])?;
        {
            let (w0, w0_layout) = w0.storage_and_layout();
            let (input, layout) = input.storage_and_layout();
            let (w0, input) = (Elements::new(&w0, w0_layout)?, Elements::new(&input, layout)?);
            let (w0, input, out) = (w0.view([d, k])?, input.view([t, from])?, output.view()?);
            let (mut operations, device) = (kernels.operations(), &kernels.device);
            let run = if forward {
                let operation = operations.base_forward(device, &self.problem)?;
                operation.run(w0, input, out, &mut operations.workspace)
            } else {
                let operation = operations.base_input_grad(device, &self.problem)?;
                operation.run(w0, input, out, &mut operations.workspace)
            };
            run.map_err(err)?;
        }
        Ok(output)
    }
}
