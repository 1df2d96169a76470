//! An adapted linear layer.

use crate::adapter::LoraAdapter;
use crate::dropout::Training;
use crate::frozen::FrozenLinear;
use crate::group;
use crate::pass::tokens;
use candle_core::{Module, Result, Tensor, Var, bail};
use lora_kernels::{AdapterConfig, Dropout};
use std::collections::BTreeMap;

/// The name of the adapter that a new layer has, which is PEFT's.
pub const DEFAULT_ADAPTER: &str = "default";

/// A frozen linear layer with adapters, of which one is active:
/// H = X W0ᵀ + s · (X Aᵀ) Bᵀ + bias.
///
/// x and W0 are bf16 or f16, or, on the CPU, f32. A and B are f32 variables. The backward pass
/// computes dA and dB in f32, dX if x is part of the graph, and never dW0.
///
/// # A and B in 16 bits
/// If x has 16 bits, each forward pass casts A and B first. That is always right, and two launches.
/// [`refresh`](LoraLinear::refresh) casts them once, for training with many forward passes in a
/// step, or for inference: see there.
///
/// # Merged
/// After [`merge`](LoraLinear::merge) the layer is a [`FrozenLinear`] of W0 + s · B A: A and B get
/// no gradient. [`unmerge`](LoraLinear::unmerge) restores W0 exactly, because the layer keeps it.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use lora_kernels_candle::{LoraLinear, lora_kernels::AdapterConfig};
///
/// # fn main() -> candle_core::Result<()> {
/// let w0 = Tensor::randn(0f32, 0.1, (4, 8), &Device::Cpu)?;
/// let layer = LoraLinear::new(w0, None, &AdapterConfig::new(2).with_alpha(4.0))?;
/// let x = Tensor::ones((2, 3, 8), DType::F32, &Device::Cpu)?;
/// let gradients = layer.forward(&x)?.sqr()?.sum_all()?.backward()?;
/// assert!(gradients.get(layer.adapter().b()).is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LoraLinear {
    base: FrozenLinear,
    adapters: BTreeMap<String, LoraAdapter>,
    active: String,
    merged: Option<FrozenLinear>,
    training: Option<Training>,
}

impl LoraLinear {
    /// The layer of W0 [d, k] and bias `[d]`, both frozen, with a new adapter named
    /// [`DEFAULT_ADAPTER`].
    ///
    /// # Errors
    /// As for [`FrozenLinear::new`] and [`LoraAdapter::new`].
    pub fn new(w0: Tensor, bias: Option<Tensor>, config: &AdapterConfig) -> Result<Self> {
        let (d, k) = w0.dims2()?;
        let adapter = LoraAdapter::new([d, k], config, w0.device())?;
        LoraLinear::with_adapter(w0, bias, DEFAULT_ADAPTER, adapter)
    }

    /// The same with an existing adapter.
    ///
    /// # Errors
    /// If the adapter is not one of a weight [d, k] on this device; as for [`FrozenLinear::new`].
    pub fn with_adapter(
        w0: Tensor,
        bias: Option<Tensor>,
        name: &str,
        adapter: LoraAdapter,
    ) -> Result<Self> {
        let base = FrozenLinear::new(w0, bias)?;
        let (active, adapters) = (name.to_string(), BTreeMap::new());
        let mut layer = LoraLinear { base, adapters, active, merged: None, training: None };
        layer.add_adapter(name, adapter)?;
        Ok(layer)
    }

    /// Adds an adapter. The active one stays active.
    ///
    /// # Errors
    /// If there is one of this name, or it is not one of a weight [d, k] on this device.
    pub fn add_adapter(&mut self, name: &str, adapter: LoraAdapter) -> Result<()> {
        let (d, k) = self.base.w0().dims2()?;
        let (of_d, of_k) = (adapter.b().dim(0)?, adapter.a().dim(1)?);
        if (of_d, of_k) != (d, k) {
            bail!("adapter {name} is for a weight [{of_d}, {of_k}]: expected [{d}, {k}]")
        }
        if !adapter.a().device().same_device(self.base.w0().device()) {
            bail!("adapter {name} and W0 are on different devices")
        }
        if self.adapters.contains_key(name) {
            bail!("the layer has an adapter {name}")
        }
        self.adapters.insert(name.to_string(), adapter);
        Ok(())
    }

    /// Makes this adapter the active one.
    ///
    /// # Errors
    /// If there is none of this name, or the layer is merged.
    pub fn set_adapter(&mut self, name: &str) -> Result<()> {
        if self.merged.is_some() {
            bail!("the layer is merged with {}: unmerge it first", self.active)
        }
        if !self.adapters.contains_key(name) {
            bail!("the layer has no adapter {name}")
        }
        self.active = name.to_string();
        Ok(())
    }

    /// The active adapter.
    pub fn adapter(&self) -> &LoraAdapter {
        &self.adapters[&self.active]
    }

    /// The name of the active adapter.
    pub fn active_adapter(&self) -> &str {
        &self.active
    }

    /// All adapters by their names.
    pub fn adapters(&self) -> &BTreeMap<String, LoraAdapter> {
        &self.adapters
    }

    /// A and B of the active adapter, for an optimiser.
    pub fn vars(&self) -> Vec<Var> {
        self.adapter().vars()
    }

    /// W0 [d, k] as it was given, merged or not.
    pub fn w0(&self) -> &Tensor {
        self.base.w0()
    }

    /// The weight [d, k] that stands for the layer: W0 + s · B A if it is merged, else W0.
    pub fn weight(&self) -> &Tensor {
        self.merged.as_ref().unwrap_or(&self.base).w0()
    }

    /// The frozen bias, `[d]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.base.bias()
    }

    /// Whether the active adapter is merged.
    pub fn is_merged(&self) -> bool {
        self.merged.is_some()
    }

    /// Computes with the weight W0 + s · B A from now on, rounded once to the type of W0. It is a
    /// tensor of its own: others that share W0 do not see it. Later changes of A and B have no
    /// effect until the layer is unmerged.
    ///
    /// # Errors
    /// If the layer is merged, or candle's.
    pub fn merge(&mut self) -> Result<()> {
        if self.is_merged() {
            bail!("the layer is merged with {}", self.active)
        }
        let weight = self.adapter().merged_into(self.w0())?;
        self.merged = Some(FrozenLinear::new(weight, self.bias().cloned())?);
        Ok(())
    }

    /// Computes with W0 and the adapter again. W0 has the same bits as before the merge.
    ///
    /// # Errors
    /// If the layer is not merged.
    pub fn unmerge(&mut self) -> Result<()> {
        match self.merged.take() {
            Some(_) => Ok(()),
            None => bail!("the layer is not merged"),
        }
    }

    /// From now on forward passes drop elements of the adapter's input with probability p: see
    /// [`Dropout`]. Every pass has a mask of its own, which its backward pass uses again. Rows of
    /// masks are counted from `offset` on, over all passes: the same arguments make the same masks
    /// again. Give every layer another seed, or see [`LoraGroup`] and
    /// [`Llama::train`]. A layer that is merged drops nothing.
    ///
    /// [`LoraGroup`]: crate::LoraGroup
    /// [`Llama::train`]: crate::llama::Llama::train
    ///
    /// # Errors
    /// Unless 0 ≤ p < 1.
    pub fn train(&mut self, p: f32, seed: u64, offset: u64) -> Result<()> {
        self.training = Training::new(p, seed, offset)?;
        Ok(())
    }

    /// From now on nothing is dropped, as in a new layer.
    pub fn eval(&mut self) {
        self.training = None;
    }

    /// The dropout of the next forward pass.
    pub fn dropout(&self) -> Option<Dropout<'static>> {
        self.training.as_ref().map(Training::dropout)
    }

    /// The dropout of a forward pass of x, for that pass alone.
    pub(crate) fn next_dropout(&self, x: &Tensor) -> Result<Option<Dropout<'static>>> {
        let t = tokens(x, self.w0())?;
        Ok(self.training.as_ref().map(|training| training.next(t)))
    }

    /// Casts A and B of the active adapter to the type of W0 and keeps the result: forward passes
    /// use it until the next `refresh`, or until [`forget`](LoraLinear::forget). In f32 nothing is
    /// cast or kept.
    ///
    /// An optimiser writes into the memory of a `Var`, and candle keeps no record of that. So a
    /// layer that was refreshed once must be refreshed after **every** step, or it computes with
    /// old values. A layer that never was casts in each forward pass.
    ///
    /// # Errors
    /// candle's.
    pub fn refresh(&self) -> Result<()> {
        self.adapter().refresh(self.w0().dtype())
    }

    /// Casts in each forward pass again.
    pub fn forget(&self) {
        self.adapter().forget();
    }

    pub(crate) fn base(&self) -> &FrozenLinear {
        &self.base
    }
}

impl Module for LoraLinear {
    /// h [..., d] of x [..., k].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.merged {
            Some(merged) => merged.forward(x),
            None => {
                let dropout = self.next_dropout(x)?;
                Ok(group::forward(x, None, std::slice::from_ref(self), dropout)?.remove(0))
            }
        }
    }
}
