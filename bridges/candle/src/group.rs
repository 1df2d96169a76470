//! Layers that share their input.

use crate::bias;
use crate::dropout::{self, ROWS_EACH};
use crate::graph::{self, Again};
use crate::linear::LoraLinear;
use crate::pass::{Part, Pass};
use candle_core::{Module, Result, Tensor, Var, bail};
use lora_kernels::{Dropout, MAX_PROJECTIONS};

/// One to four adapted layers of the same x: q, k and v of an attention, or gate and up of a gated
/// MLP. They have one S in the forward pass, and one dX in the backward pass.
///
/// The gradients equal the gradients of separate layers, also if the loss does not use every
/// output. One backward pass of a graph may run at a time, and after one that failed the forward
/// pass must run again.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lora_kernels_candle::{LoraGroup, LoraLinear, lora_kernels::AdapterConfig};
///
/// # fn main() -> candle_core::Result<()> {
/// let layer = |d| {
///     let w0 = Tensor::randn(0f32, 0.1, (d, 8), &Device::Cpu)?;
///     LoraLinear::new(w0, None, &AdapterConfig::new(2))
/// };
/// let qkv = LoraGroup::new(vec![layer(8)?, layer(4)?, layer(4)?])?;
/// let x = Tensor::ones((2, 3, 8), DType::F32, &Device::Cpu)?;
/// let h = qkv.forward(&x)?;
/// assert_eq!(h[1].dims(), [2, 3, 4]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LoraGroup {
    layers: Vec<LoraLinear>,
}

impl LoraGroup {
    /// The group of these layers, each [dᵢ, k] of one k, element type and device.
    ///
    /// # Errors
    /// If they do not fit each other, or are none or more than four.
    pub fn new(layers: Vec<LoraLinear>) -> Result<Self> {
        let Some(first) = layers.first() else { bail!("a group has at least one layer") };
        if layers.len() > MAX_PROJECTIONS {
            bail!("a group has at most {MAX_PROJECTIONS} layers, not {}", layers.len())
        }
        let w0 = first.w0();
        for layer in &layers {
            let other = layer.w0();
            if other.dim(1)? != w0.dim(1)? || other.dtype() != w0.dtype() {
                bail!("weights of a group have one k and one type: {w0:?}, {other:?}")
            }
            if !other.device().same_device(w0.device()) {
                bail!("layers of a group are on one device")
            }
        }
        Ok(LoraGroup { layers })
    }

    /// The layers.
    pub fn layers(&self) -> &[LoraLinear] {
        &self.layers
    }

    /// The layers, to change their adapters or to merge them. The layers are computed one by one if
    /// one is merged, or if they do not all have the same dropout.
    pub fn layers_mut(&mut self) -> &mut [LoraLinear] {
        &mut self.layers
    }

    /// A and B of every active adapter, for an optimiser.
    pub fn vars(&self) -> Vec<Var> {
        self.layers.iter().flat_map(LoraLinear::vars).collect()
    }

    /// [`LoraLinear::train`] of every layer, with one mask for all.
    ///
    /// # Errors
    /// As there.
    pub fn train(&mut self, p: f32, seed: u64, offset: u64) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.train(p, seed, offset))
    }

    /// The same with a mask for each layer, as PEFT has it: the rows of layer i begin
    /// at `offset` + 2⁴⁸·i. The layers are then computed one by one, and candle adds their dX.
    ///
    /// # Errors
    /// As for [`LoraGroup::train`].
    pub fn train_each(&mut self, p: f32, seed: u64, offset: u64) -> Result<()> {
        let mut layers = self.layers.iter_mut().zip(0..);
        layers.try_for_each(|(layer, i)| layer.train(p, seed, offset.wrapping_add(i * ROWS_EACH)))
    }

    /// [`LoraLinear::eval`] of every layer.
    pub fn eval(&mut self) {
        self.layers.iter_mut().for_each(LoraLinear::eval);
    }

    /// [`LoraLinear::refresh`] of every layer.
    ///
    /// # Errors
    /// candle's.
    pub fn refresh(&self) -> Result<()> {
        self.layers.iter().try_for_each(LoraLinear::refresh)
    }

    /// h [..., dᵢ] of every layer, of x [..., k].
    ///
    /// # Errors
    /// If x does not fit the weights, or an operation of candle or lora-kernels fails.
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.forward_again(x, None)
    }

    /// The same. With `again` the backward pass does not read x.
    pub(crate) fn forward_again(&self, x: &Tensor, again: Option<Again>) -> Result<Vec<Tensor>> {
        let dropouts = self.layers.iter().map(|layer| layer.next_dropout(x));
        let dropouts = dropouts.collect::<Result<Vec<_>>>()?;
        let share_s = dropouts.iter().all(|dropout| dropout::same(dropout, &dropouts[0]));
        if share_s && !self.layers.iter().any(LoraLinear::is_merged) {
            return forward(x, again, &self.layers, dropouts[0]);
        }
        let mut h = Vec::new();
        for (layer, dropout) in self.layers.iter().zip(dropouts) {
            match layer.is_merged() {
                true => h.push(layer.forward(x)?),
                false => h.extend(forward(x, again.clone(), std::slice::from_ref(layer), dropout)?),
            }
        }
        Ok(h)
    }
}

/// A of every layer, and the rest, in the type of the weights.
fn operands(layers: &[LoraLinear]) -> Result<(Vec<Tensor>, Vec<Part>)> {
    let operands = layers.iter().map(|layer| {
        let (w0, adapter) = (layer.w0().clone(), layer.adapter());
        let (a, b) = adapter.operands(w0.dtype())?;
        Ok((a, Part { w0, b, scale: adapter.scale() }))
    });
    operands.collect()
}

/// h [..., dᵢ] of layers that are not merged, of one x.
pub(crate) fn forward(
    x: &Tensor,
    again: Option<Again>,
    layers: &[LoraLinear],
    dropout: Option<Dropout<'static>>,
) -> Result<Vec<Tensor>> {
    let x = x.contiguous()?;
    let (a, parts) = operands(layers)?;
    let kernels = layers[0].base().kernels().clone();
    let (pass, h) = Pass::forward(kernels, &x, Tensor::cat(&a, 0)?, parts, dropout)?;
    let adapters: Vec<_> = layers.iter().map(LoraLinear::adapter).collect();
    let h = graph::nodes(&x, again, &adapters, pass, h)?;
    h.into_iter().zip(layers).map(|(h, layer)| bias::add(h, layer.bias())).collect()
}
