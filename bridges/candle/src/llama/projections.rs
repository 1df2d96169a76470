//! Linear layers that share their input, each with or without an adapter.

use crate::graph::Again;
use crate::node::Value;
use crate::{FrozenLinear, LoraAdapter, LoraGroup, LoraLinear, linear::DEFAULT_ADAPTER};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// Makes the adapter of a module of these sizes [d, k], or none.
pub(super) type MakeAdapter<'a> = dyn FnMut(&str, [usize; 2]) -> Result<Option<LoraAdapter>> + 'a;

/// The layers with adapters are a group; the others are frozen.
#[derive(Debug)]
pub(super) struct Projections {
    group: Option<LoraGroup>,
    /// The path and the position of every layer of the group.
    adapted: Vec<(String, usize)>,
    frozen: Vec<(usize, FrozenLinear)>,
}

impl Projections {
    /// The layers of these names and numbers of outputs, of k inputs.
    pub(super) fn load<const N: usize>(
        vb: &VarBuilder<'_>,
        layers: [(&str, usize); N],
        k: usize,
        bias: bool,
        make: &mut MakeAdapter<'_>,
    ) -> Result<Self> {
        let (mut adapted, mut loras, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
        for (position, (name, d)) in layers.into_iter().enumerate() {
            let vb = vb.pp(name);
            let w0 = vb.get((d, k), "weight")?;
            let bias = if bias { Some(vb.get(d, "bias")?) } else { None };
            match make(&vb.prefix(), [d, k])? {
                Some(adapter) => {
                    loras.push(LoraLinear::with_adapter(w0, bias, DEFAULT_ADAPTER, adapter)?);
                    adapted.push((vb.prefix(), position));
                }
                None => frozen.push((position, FrozenLinear::new(w0, bias)?)),
            }
        }
        let group = if loras.is_empty() { None } else { Some(LoraGroup::new(loras)?) };
        Ok(Projections { group, adapted, frozen })
    }

    /// The outputs of every layer.
    pub(super) fn forward<const N: usize>(&self, x: &Tensor) -> Result<[Tensor; N]> {
        self.outputs(x, None)
    }

    /// The outputs of every layer, of an x that `again` makes once more in the backward pass: its
    /// memory is free from here on.
    pub(super) fn forward_of<const N: usize>(
        &self,
        again: impl Fn() -> Result<Tensor> + Send + Sync + 'static,
        x: Tensor,
    ) -> Result<[Tensor; N]> {
        let outputs = self.outputs(&x, Some(Arc::new(again)))?;
        drop(Value::take(&x)?);
        Ok(outputs)
    }

    fn outputs<const N: usize>(&self, x: &Tensor, again: Option<Again>) -> Result<[Tensor; N]> {
        let mut outputs = Vec::with_capacity(N);
        if let Some(group) = &self.group {
            let positions = self.adapted.iter().map(|(_, position)| *position);
            outputs.extend(positions.zip(group.forward_again(x, again)?));
        }
        for (position, layer) in &self.frozen {
            outputs.push((*position, layer.forward(x)?));
        }
        outputs.sort_by_key(|(position, _)| *position);
        let outputs: Vec<_> = outputs.into_iter().map(|(_, output)| output).collect();
        outputs.try_into().map_err(|outputs: Vec<_>| {
            candle_core::Error::Msg(format!("{} layers, expected {N}", outputs.len()))
        })
    }

    /// Adapters with the paths of their modules.
    pub(super) fn adapters(&self) -> impl Iterator<Item = (&str, &LoraAdapter)> {
        let layers = self.group.iter().flat_map(LoraGroup::layers).map(LoraLinear::adapter);
        self.adapted.iter().map(|(path, _)| path.as_str()).zip(layers)
    }

    pub(super) fn group(&self) -> Option<&LoraGroup> {
        self.group.as_ref()
    }

    pub(super) fn group_mut(&mut self) -> Option<&mut LoraGroup> {
        self.group.as_mut()
    }

    pub(super) fn refresh(&self) -> Result<()> {
        self.group.iter().try_for_each(LoraGroup::refresh)
    }
}
