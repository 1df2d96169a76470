//! A layer: attention and MLP, each with a norm before it and a sum after it.

use super::config::Config;
use super::projections::{MakeAdapter, Projections};
use crate::nn::{Attention, residual, rms_norm, swiglu};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

#[derive(Debug)]
pub(super) struct Layer {
    input_norm: Tensor,
    qkv: Projections,
    o: Projections,
    mlp_norm: Tensor,
    gate_up: Projections,
    down: Projections,
    eps: f64,
}

impl Layer {
    pub(super) fn load(
        config: &Config,
        vb: &VarBuilder<'_>,
        make: &mut MakeAdapter<'_>,
    ) -> Result<Self> {
        let (n, wide) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim();
        let kv = config.kv_heads() * config.head_dim();
        let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
        let (bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        let qkv = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        let gate_up = [("gate_proj", wide), ("up_proj", wide)];
        Ok(Layer {
            input_norm: vb.get(n, "input_layernorm.weight")?,
            qkv: Projections::load(&attention, qkv, n, bias, make)?,
            o: Projections::load(&attention, [("o_proj", n)], q, bias, make)?,
            mlp_norm: vb.get(n, "post_attention_layernorm.weight")?,
            gate_up: Projections::load(&mlp, gate_up, n, mlp_bias, make)?,
            down: Projections::load(&mlp, [("down_proj", n)], wide, mlp_bias, make)?,
            eps: config.rms_norm_eps,
        })
    }

    /// [batch, T, n] of x of that shape.
    ///
    /// The backward pass computes the inputs of q, k, v, gate, up and down again, in four launches:
    /// kept, they would be a third of what a layer keeps.
    pub(super) fn forward(&self, x: &Tensor, attention: &Attention) -> Result<Tensor> {
        let [q, k, v] = self.normed(&self.qkv, x, &self.input_norm)?;
        let [h] = self.o.forward(&attention.forward(&q, &k, &v)?)?;
        let x = residual(x, h)?;
        let [gate, up] = self.normed(&self.gate_up, &x, &self.mlp_norm)?;
        let h = swiglu(&gate, &up)?;
        let (gate, up) = (gate.detach(), up.detach());
        let [h] = self.down.forward_of(move || swiglu(&gate, &up), h)?;
        residual(&x, h)
    }

    fn normed<const N: usize>(
        &self,
        layers: &Projections,
        x: &Tensor,
        weight: &Tensor,
    ) -> Result<[Tensor; N]> {
        let (y, eps) = (rms_norm(x, weight, self.eps)?, self.eps);
        let (x, weight) = (x.detach(), weight.clone());
        layers.forward_of(move || rms_norm(&x, &weight, eps), y)
    }

    pub(super) fn projections(&self) -> [&Projections; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    pub(super) fn projections_mut(&mut self) -> [&mut Projections; 4] {
        [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down]
    }
}
