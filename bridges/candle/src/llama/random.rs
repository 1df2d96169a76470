//! Weights of a model that learned nothing, for tests.

use super::config::Config;
use candle_core::{Device, Result, Tensor};
use std::collections::HashMap;

/// Weights of a model by the names of its safetensors file, in f32 on the CPU: the same at every
/// call. For [`VarBuilder::from_tensors`](candle_nn::VarBuilder::from_tensors).
///
/// # Errors
/// candle's.
pub fn random_weights(config: &Config) -> Result<HashMap<String, Tensor>> {
    let (n, wide) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim();
    let kv = config.kv_heads() * config.head_dim();
    let mut weights = HashMap::new();
    let mut seed = 0u64;
    let mut add = |name: String, dims: &[usize]| -> Result<()> {
        let mut uniform = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        // Norms are about 1, and a product with a weight keeps the variance.
        let (mean, width) = match dims {
            [_, k] => (0.0, (3.0 / *k as f32).sqrt()),
            _ => (1.0, 0.2),
        };
        let values = (0..dims.iter().product()).map(|_| mean + width * uniform()).collect();
        weights.insert(name, Tensor::from_vec::<_, f32>(values, dims, &Device::Cpu)?);
        Ok(())
    };
    add("model.embed_tokens.weight".into(), &[config.vocab_size, n])?;
    for i in 0..config.num_hidden_layers {
        let layers = [
            ("self_attn.q_proj", [q, n], config.attention_bias),
            ("self_attn.k_proj", [kv, n], config.attention_bias),
            ("self_attn.v_proj", [kv, n], config.attention_bias),
            ("self_attn.o_proj", [n, q], config.attention_bias),
            ("mlp.gate_proj", [wide, n], config.mlp_bias),
            ("mlp.up_proj", [wide, n], config.mlp_bias),
            ("mlp.down_proj", [n, wide], config.mlp_bias),
        ];
        for (name, sizes, bias) in layers {
            add(format!("model.layers.{i}.{name}.weight"), &sizes)?;
            if bias {
                add(format!("model.layers.{i}.{name}.bias"), &sizes[..1])?;
            }
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("model.layers.{i}.{name}.weight"), &[n])?;
        }
    }
    add("model.norm.weight".into(), &[n])?;
    if !config.tie_word_embeddings {
        add("lm_head.weight".into(), &[config.vocab_size, n])?;
    }
    Ok(weights)
}
