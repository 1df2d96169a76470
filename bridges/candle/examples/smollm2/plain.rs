//! The contender: the same model by candle's own operations, as candle-transformers computes it,
//! with operations that have a backward pass. LoRA is two more layers.

use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm, loss, ops, rotary_emb};
use lora_kernels_candle::PeftAdapters;
use lora_kernels_candle::llama::Config;
use std::collections::HashMap;
use std::path::Path;

pub struct Plain {
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    config: Config,
    dtype: DType,
    pub adapter: PeftAdapters,
    /// Of the adapters' input.
    pub dropout: f32,
}

struct Block {
    attention_norm: RmsNorm,
    q: Adapted,
    k: Adapted,
    v: Adapted,
    o: Adapted,
    mlp_norm: RmsNorm,
    gate: Adapted,
    up: Adapted,
    down: Adapted,
}

struct Adapted {
    base: Linear,
    /// The path of the module.
    name: String,
}

impl Plain {
    pub fn load(
        dir: &Path,
        adapter: PeftAdapters,
        config: Config,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let mut tensors = candle_core::safetensors::load(dir.join("model.safetensors"), device)?;
        let mut take = |name: String| take(&mut tensors, &name)?.to_dtype(dtype);
        let eps = config.rms_norm_eps;
        let embedding = take("model.embed_tokens.weight".into())?;
        let blocks = (0..config.num_hidden_layers).map(|layer| {
            let path = |part: &str| format!("model.layers.{layer}.{part}");
            let mut norm = |part| {
                Ok::<_, candle_core::Error>(RmsNorm::new(take(path(part) + ".weight")?, eps))
            };
            let attention_norm = norm("input_layernorm")?;
            let mlp_norm = norm("post_attention_layernorm")?;
            let mut linear = |part| {
                let name = path(part);
                let base = Linear::new(take(format!("{name}.weight"))?, None);
                Ok::<_, candle_core::Error>(Adapted { base, name })
            };
            Ok(Block {
                attention_norm,
                q: linear("self_attn.q_proj")?,
                k: linear("self_attn.k_proj")?,
                v: linear("self_attn.v_proj")?,
                o: linear("self_attn.o_proj")?,
                mlp_norm,
                gate: linear("mlp.gate_proj")?,
                up: linear("mlp.up_proj")?,
                down: linear("mlp.down_proj")?,
            })
        });
        let blocks = blocks.collect::<Result<_>>()?;
        let norm = RmsNorm::new(take("model.norm.weight".into())?, eps);
        let head = Linear::new(embedding.clone(), None);
        Ok(Plain { embedding, blocks, norm, head, config, dtype, adapter, dropout: 0.0 })
    }

    /// The mean cross-entropy of the next tokens, of ids and targets [B, T].
    pub fn loss(&self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let (batch, seq) = ids.dims2()?;
        let flat = self.embedding.embedding(&ids.flatten_all()?)?;
        let mut x = flat.reshape((batch, seq, self.config.hidden_size))?;
        let (rotation, mask) = (self.rotation(seq, ids.device())?, mask(seq, ids.device())?);
        for block in &self.blocks {
            let h = block.attention_norm.forward_diff(&x)?;
            x = (x + self.attention(block, &h, &rotation, &mask)?)?;
            let h = block.mlp_norm.forward_diff(&x)?;
            let gated =
                (ops::silu(&self.linear(&block.gate, &h)?)? * self.linear(&block.up, &h)?)?;
            x = (x + self.linear(&block.down, &gated)?)?;
        }
        let logits = self.head.forward(&self.norm.forward_diff(&x)?)?;
        let logits = logits.flatten_to(1)?.to_dtype(DType::F32)?;
        loss::cross_entropy(&logits, &targets.flatten_all()?)
    }

    fn linear(&self, layer: &Adapted, x: &Tensor) -> Result<Tensor> {
        let h = layer.base.forward(x)?;
        let Some(adapter) = self.adapter.adapters.get(&layer.name) else { return Ok(h) };
        let a = Linear::new(adapter.a().to_dtype(self.dtype)?, None);
        let b = Linear::new(adapter.b().to_dtype(self.dtype)?, None);
        let x = if self.dropout > 0.0 { &ops::dropout(x, self.dropout)? } else { x };
        h + (b.forward(&a.forward(x)?)? * f64::from(adapter.scale()))?
    }

    fn attention(
        &self,
        block: &Block,
        x: &Tensor,
        (cos, sin): &(Tensor, Tensor),
        mask: &Tensor,
    ) -> Result<Tensor> {
        let (batch, seq, _) = x.dims3()?;
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.kv_heads());
        let split = |layer, heads| {
            let y = self.linear(layer, x)?.reshape((batch, seq, heads, ()))?;
            y.transpose(1, 2)?.contiguous()
        };
        let rotate = |y: Tensor| rotary_emb::rope_slow(&y, cos, sin);
        let repeat = |y: Tensor| {
            let copies = vec![&y; heads / kv_heads];
            Tensor::cat(&copies, 2)?.reshape((batch, heads, seq, ()))?.to_dtype(DType::F32)
        };
        let q = rotate(split(&block.q, heads)?)?.to_dtype(DType::F32)?;
        let k = repeat(rotate(split(&block.k, kv_heads)?)?)?;
        let v = repeat(split(&block.v, kv_heads)?)?;
        let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
        let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_add(mask)?;
        let y = ops::softmax(&scores, D::Minus1)?.matmul(&v)?.to_dtype(self.dtype)?;
        self.linear(&block.o, &y.transpose(1, 2)?.reshape((batch, seq, ()))?)
    }

    /// cos and sin of each position and frequency, [seq, n/2].
    fn rotation(&self, seq: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let n = self.config.head_dim();
        let base = self.config.rope_theta as f32;
        let frequencies = (0..n / 2).map(|i| base.powf(-2.0 * i as f32 / n as f32));
        let frequencies = Tensor::from_iter(frequencies, device)?.reshape((1, n / 2))?;
        let positions = Tensor::arange(0u32, seq as u32, device)?.to_dtype(DType::F32)?;
        let angles = positions.reshape((seq, 1))?.matmul(&frequencies)?;
        Ok((angles.cos()?.to_dtype(self.dtype)?, angles.sin()?.to_dtype(self.dtype)?))
    }
}

/// 0 for the past, -∞ for the future, [seq, seq].
fn mask(seq: usize, device: &Device) -> Result<Tensor> {
    let values = (0..seq).flat_map(|row| {
        (0..seq).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 })
    });
    Tensor::from_iter(values, device)?.reshape((seq, seq))
}

fn take(tensors: &mut HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    match tensors.remove(name) {
        Some(tensor) => Ok(tensor),
        None => candle_core::bail!("model.safetensors has no {name}"),
    }
}
