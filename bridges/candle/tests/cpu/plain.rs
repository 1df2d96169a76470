//! A Llama of candle's own operations, all of them with a backward pass.

use crate::dropped::drop_by_hand;
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_slow;
use lora_kernels_candle::llama::{Config, Llama};
use lora_kernels_candle::lora_kernels::Dropout;
use std::collections::HashMap;

pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let v = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?;
    x.broadcast_div(&v.sqrt()?)?.broadcast_mul(weight)
}

/// softmax(scale · q kᵀ + mask) v of [batch, heads, T, n], with k and v repeated.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let (b, heads, t, n) = q.dims4()?;
    let kv_heads = k.dim(1)?;
    let repeat = |x: &Tensor| {
        let shape = (b, kv_heads, heads / kv_heads, t, n);
        x.unsqueeze(2)?.broadcast_as(shape)?.reshape((b, heads, t, n))
    };
    let above = |i: usize| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 };
    let mask = Tensor::from_iter((0..t * t).map(above), q.device())?
        .reshape((t, t))?
        .to_dtype(q.dtype())?;
    let scores = (q.matmul(&repeat(k)?.t()?)? * scale)?.broadcast_add(&mask)?;
    candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&repeat(v)?)
}

/// [batch, T, heads · n] as [batch, heads, T, n].
pub fn split(x: &Tensor, n: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    x.reshape((b, t, width / n, n))?.transpose(1, 2)?.contiguous()
}

pub fn join(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.flatten_from(2)
}

/// Cosines and sines [T, n/2].
pub fn tables(t: usize, n: usize, theta: f64) -> Result<[Tensor; 2]> {
    let angle = |i: usize| {
        let (position, pair) = ((i / (n / 2)) as f64, (i % (n / 2)) as f64);
        (position * theta.powf(-2.0 * pair / n as f64)) as f32
    };
    let angles = (0..t * n / 2).map(angle);
    let angles = Tensor::from_iter(angles, &Device::Cpu)?.reshape((t, n / 2))?;
    Ok([angles.cos()?, angles.sin()?])
}

/// The model of these weights in f32, with the variables of `model`.
pub struct Plain<'a> {
    pub config: &'a Config,
    pub weights: &'a HashMap<String, Tensor>,
    pub model: &'a Llama,
    /// By the paths of their modules.
    pub dropouts: HashMap<String, Dropout<'static>>,
}

impl Plain<'_> {
    fn weight(&self, name: &str) -> &Tensor {
        &self.weights[&format!("{name}.weight")]
    }

    fn linear(&self, x: &Tensor, module: &str) -> Result<Tensor> {
        let times = |x: &Tensor, w: &Tensor| x.broadcast_matmul(&w.to_dtype(x.dtype())?.t()?);
        let mut h = times(x, self.weight(module))?;
        if let Some((_, adapter)) = self.model.adapters().find(|(name, _)| *name == module) {
            let dropped = drop_by_hand(x, self.dropouts.get(module).copied())?;
            let s = (times(&dropped, adapter.a())? * f64::from(adapter.scale()))?;
            h = (h + times(&s, adapter.b())?)?;
        }
        match self.weights.get(&format!("{module}.bias")) {
            Some(bias) => h.broadcast_add(bias),
            None => Ok(h),
        }
    }

    pub fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        let Config { hidden_size, rms_norm_eps: eps, rope_theta, .. } = *self.config;
        let ((b, t), n) = (ids.dims2()?, self.config.head_dim());
        let [cos, sin] = tables(t, n, rope_theta)?
            .map(|x| x.to_dtype(self.weight("model.norm").dtype()).unwrap());
        let embedding = self.weight("model.embed_tokens");
        let mut x = embedding.embedding(&ids.flatten_all()?)?.reshape((b, t, hidden_size))?;
        for i in 0..self.config.num_hidden_layers {
            let path = |name: &str| format!("model.layers.{i}.{name}");
            let y = rms_norm(&x, self.weight(&path("input_layernorm")), eps)?;
            let heads = |name: &str| split(&self.linear(&y, &path(name))?, n);
            let q = rope_slow(&heads("self_attn.q_proj")?, &cos, &sin)?;
            let k = rope_slow(&heads("self_attn.k_proj")?, &cos, &sin)?;
            let h = attention(&q, &k, &heads("self_attn.v_proj")?, (n as f64).powf(-0.5))?;
            x = (x + self.linear(&join(&h)?, &path("self_attn.o_proj"))?)?;
            let y = rms_norm(&x, self.weight(&path("post_attention_layernorm")), eps)?;
            let gate = self.linear(&y, &path("mlp.gate_proj"))?.silu()?;
            let h = (gate * self.linear(&y, &path("mlp.up_proj"))?)?;
            x = (x + self.linear(&h, &path("mlp.down_proj"))?)?;
        }
        let x = rms_norm(&x, self.weight("model.norm"), eps)?;
        let head = if self.config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
        x.broadcast_matmul(&self.weight(head).t()?)
    }

    pub fn loss(&self, ids: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let logits = self.logits(ids)?.to_dtype(DType::F32)?.flatten_to(1)?;
        candle_nn::loss::cross_entropy(&logits, &labels.flatten_all()?)
    }
}
