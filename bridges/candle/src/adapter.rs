//! The trainable half of a layer.

use crate::kernels::lock;
use crate::memory::err;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use lora_kernels::{self as lk, AdapterConfig, Scaling};
use std::sync::Mutex;

/// A low-rank update s · B A of a weight [d, k]: A [r, k] and B [d, r] are f32 variables, for any
/// optimiser of candle.
#[derive(Debug)]
pub struct LoraAdapter {
    a: Var,
    b: Var,
    alpha: f32,
    scaling: Scaling,
    /// A and B in 16 bits, since the last `refresh`.
    kept: Mutex<Option<(Tensor, Tensor)>>,
}

impl LoraAdapter {
    /// A new adapter for a weight [d, k]: A Gaussian, B zero, as
    /// [`lora_kernels::Adapter::new`] makes them.
    ///
    /// # Errors
    /// If the rank, the scale or the sizes are outside the limits of lora-kernels.
    pub fn new([d, k]: [usize; 2], config: &AdapterConfig, device: &Device) -> Result<Self> {
        let cpu = lk::Device::cpu();
        let adapter = lk::Adapter::new(&cpu, [d, k], lk::DType::F32, config).map_err(err)?;
        LoraAdapter::from_core(&adapter, device)
    }

    /// An adapter of existing variables: A [r, k] and B [d, r], f32 and contiguous.
    ///
    /// # Errors
    /// If the shapes, types or devices do not fit each other, or the rank or the scale are outside
    /// the limits of lora-kernels.
    pub fn from_vars(a: Var, b: Var, alpha: f32, scaling: Scaling) -> Result<Self> {
        let ((r, k), (d, columns)) = (a.dims2()?, b.dims2()?);
        if columns != r {
            bail!("A is {:?} and B {:?}: expected [r, k] and [d, r]", a.shape(), b.shape())
        }
        if [a.dtype(), b.dtype()] != [DType::F32; 2] {
            bail!("A is {:?} and B {:?}: expected f32", a.dtype(), b.dtype())
        }
        if !(a.is_contiguous() && b.is_contiguous()) {
            bail!("A and B must be contiguous")
        }
        if !a.device().same_device(b.device()) {
            bail!("A and B are on different devices")
        }
        lk::Problem::single(1, k, d, r, lk::DType::F32).map_err(err)?;
        if !scaling.scale(alpha, r).is_finite() {
            bail!("the scale of alpha {alpha} and rank {r} is not finite")
        }
        Ok(LoraAdapter { a, b, alpha, scaling, kept: Mutex::new(None) })
    }

    /// The adapter in variables on `device`.
    pub(crate) fn from_core(adapter: &lk::Adapter, device: &Device) -> Result<Self> {
        let var = |tensor: &lk::Tensor| {
            let shape = (tensor.shape().rows(), tensor.shape().cols());
            Var::from_vec(tensor.to_f32_vec().map_err(err)?, shape, device)
        };
        let (a, b) = (var(adapter.a())?, var(adapter.b())?);
        LoraAdapter::from_vars(a, b, adapter.alpha(), adapter.scaling())
    }

    /// A copy for [`lora_kernels::peft`], in f32 on the CPU.
    pub(crate) fn to_core(&self) -> Result<lk::Adapter> {
        let tensor = |var: &Var| {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            let (rows, columns) = var.dims2()?;
            lk::Tensor::from_slice(&lk::Device::cpu(), &values, [rows, columns]).map_err(err)
        };
        let (a, b) = (tensor(&self.a)?, tensor(&self.b)?);
        lk::Adapter::from_tensors(a, b, self.alpha, self.scaling).map_err(err)
    }

    /// A, [r, k].
    pub fn a(&self) -> &Var {
        &self.a
    }

    /// B, [d, r].
    pub fn b(&self) -> &Var {
        &self.b
    }

    /// A and B, for an optimiser. Clones share their memory.
    pub fn vars(&self) -> Vec<Var> {
        vec![self.a.clone(), self.b.clone()]
    }

    /// The rank r.
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
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

    /// W0 + s · B A in the type of `w0` [d, k], rounded once. `w0` itself does not change.
    pub(crate) fn merged_into(&self, w0: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.a.as_detached_tensor(), self.b.as_detached_tensor());
        let update = (b.matmul(&a)? * f64::from(self.scale()))?;
        (w0.to_dtype(DType::F32)? + update)?.to_dtype(w0.dtype())
    }

    /// A and B in this type: without a copy in f32, else those kept or new ones.
    pub(crate) fn operands(&self, dtype: DType) -> Result<(Tensor, Tensor)> {
        match &*lock(&self.kept) {
            Some((a, b)) if a.dtype() == dtype => Ok((a.clone(), b.clone())),
            _ => self.cast(dtype),
        }
    }

    fn cast(&self, dtype: DType) -> Result<(Tensor, Tensor)> {
        let cast = |var: &Var| var.as_detached_tensor().to_dtype(dtype);
        Ok((cast(&self.a)?, cast(&self.b)?))
    }

    pub(crate) fn refresh(&self, dtype: DType) -> Result<()> {
        let cast = if dtype == DType::F32 { None } else { Some(self.cast(dtype)?) };
        *lock(&self.kept) = cast;
        Ok(())
    }

    pub(crate) fn forget(&self) {
        *lock(&self.kept) = None;
    }
}
