//! Passes as nodes of candle's graph.
//!
//! A single layer is one `CustomOp3` of (x, A, B). Its forward has run before candle asks for it:
//! the node hands the result over.
//!
//! A node of candle has one output, so a group is several. The [`Hub`] is a `CustomOp3` of
//! (x, A, B) whose output is a token of one element, and each H is an [`Output`] of the token:
//!
//! ```text
//! x, A, B ──▶ Hub ──▶ token ─┬▶ Output ──▶ H₀        backward: an Output leaves dHᵢ with the Hub,
//!                            ├▶ Output ──▶ H₁        and the Hub, which candle visits after all
//!                            └▶ Output ──▶ H₂        Outputs, computes dX, dA and dB at once
//! ```
//!
//! An H that the loss does not use has dH = 0 there, so its gradients are right too.

use crate::kernels::lock;
use crate::pass::{Gradients, Pass};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::sync::{Arc, Mutex};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;

type Three = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// A result that waits for candle to take it.
pub(crate) struct Ready(Mutex<Option<Storage>>);

impl Ready {
    pub(crate) fn new(storage: Storage) -> Self {
        Ready(Mutex::new(Some(storage)))
    }

    pub(crate) fn cpu(&self) -> Result<CpuStorage> {
        match lock(&self.0).take() {
            Some(Storage::Cpu(storage)) => Ok(storage),
            _ => bail!("the result is not on the CPU, or was taken"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(&self) -> Result<CudaStorage> {
        match lock(&self.0).take() {
            Some(Storage::Cuda(storage)) => Ok(storage),
            _ => bail!("the result is not on a CUDA device, or was taken"),
        }
    }
}

/// One layer: H [..., d] of x [..., k], A [r, k] and B [d, r].
pub(crate) struct Single {
    pub(crate) pass: Pass,
    pub(crate) h: Ready,
}

impl CustomOp3 for Single {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((self.h.cpu()?, self.pass.outputs[0].clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((self.h.cuda()?, self.pass.outputs[0].clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, dh: &Tensor) -> Result<Three> {
        let Gradients { dx, da, mut db } =
            self.pass.backward(x, std::slice::from_ref(dh), x.track_op())?;
        Ok((dx, Some(da), db.pop()))
    }
}

/// What the nodes of a group share.
pub(crate) struct Shared {
    pass: Pass,
    /// The dH that have arrived in the backward pass that runs.
    dh: Mutex<Vec<Option<Tensor>>>,
}

/// The node of a group that computes its gradients.
struct Hub {
    shared: Arc<Shared>,
    token: Ready,
}

/// The node of one H.
struct Output {
    shared: Arc<Shared>,
    index: usize,
    h: Ready,
}

/// Every H of a group, of x [..., k], A [R, k], and the B of all as one vector.
pub(crate) fn group(
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    pass: Pass,
    h: Vec<Storage>,
) -> Result<Vec<Tensor>> {
    let dh = Mutex::new(vec![None; h.len()]);
    let shared = Arc::new(Shared { pass, dh });
    // One element, which nothing reads: candle wants a gradient of the shape of each node.
    let token = Tensor::zeros(1, DType::F32, x.device())?;
    let token = {
        let (storage, layout) = token.storage_and_layout();
        Ready::new(storage.try_clone(layout)?)
    };
    let token = x.apply_op3(a, b, Hub { shared: shared.clone(), token })?;
    let outputs = h.into_iter().enumerate().map(|(index, h)| {
        token.apply_op1(Output { shared: shared.clone(), index, h: Ready::new(h) })
    });
    outputs.collect()
}

impl CustomOp3 for Hub {
    fn name(&self) -> &'static str {
        "lora-group"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((self.token.cpu()?, Shape::from(1)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((self.token.cuda()?, Shape::from(1)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Three> {
        let pass = &self.shared.pass;
        let count = pass.outputs.len();
        let arrived = std::mem::replace(&mut *lock(&self.shared.dh), vec![None; count]);
        let dh = arrived.into_iter().zip(&pass.outputs).map(|(dh, shape)| match dh {
            Some(dh) => Ok(dh),
            None => Tensor::zeros(shape, x.dtype(), x.device()),
        });
        let Gradients { dx, da, db } =
            pass.backward(x, &dh.collect::<Result<Vec<_>>>()?, x.track_op())?;
        let db = db.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        Ok((dx, Some(da), Some(Tensor::cat(&db, 0)?)))
    }
}

impl CustomOp1 for Output {
    fn name(&self) -> &'static str {
        "lora-group-output"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((self.h.cpu()?, self.shared.pass.outputs[self.index].clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((self.h.cuda()?, self.shared.pass.outputs[self.index].clone()))
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, dh: &Tensor) -> Result<Option<Tensor>> {
        let mut all = lock(&self.shared.dh);
        // The token needs a gradient for candle to visit the hub: one is enough.
        let first = all.iter().all(Option::is_none);
        if all[self.index].is_some() {
            bail!("a backward pass of this graph failed, or runs: repeat the forward pass")
        }
        all[self.index] = Some(dh.clone());
        if first { Ok(Some(token.zeros_like()?)) } else { Ok(None) }
    }
}
