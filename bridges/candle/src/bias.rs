//! A frozen bias. candle's `broadcast_add` would compute a gradient of it, and two copies of dH.

use candle_core::backend::BackendStorage;
use candle_core::op::Add;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;

/// h [..., d] + bias `[d]`. The gradient passes through.
pub(crate) fn add(h: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => h.apply_op1(AddBias(bias.broadcast_as(h.shape())?)),
        None => Ok(h.clone()),
    }
}

struct AddBias(Tensor);

impl CustomOp1 for AddBias {
    fn name(&self) -> &'static str {
        "frozen-bias"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (bias, bias_layout) = self.0.storage_and_layout();
        let Storage::Cpu(bias) = &*bias else { bail!("h is on the CPU, the bias is not") };
        Ok((h.binary_impl::<Add>(bias, layout, bias_layout)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, h: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (bias, bias_layout) = self.0.storage_and_layout();
        let Storage::Cuda(bias) = &*bias else { bail!("h is on a GPU, the bias is not") };
        Ok((h.binary_impl::<Add>(bias, layout, bias_layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dh: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(dh.clone()))
    }
}

/// Refuses a bias that is not `[d]` in the type and on the device of W0 [d, k].
pub(crate) fn check(bias: &Tensor, w0: &Tensor) -> Result<()> {
    let d = w0.dim(0)?;
    if bias.dims() != [d] || bias.dtype() != w0.dtype() {
        bail!("bias is {:?} {:?}: expected [{d}] {:?}", bias.dtype(), bias.shape(), w0.dtype())
    }
    if !bias.device().same_device(w0.device()) {
        bail!("the bias and W0 are on different devices")
    }
    Ok(())
}
