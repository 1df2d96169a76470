//! From GGUF to the files of a Hugging Face checkpoint.

use crate::{Result, tokenizer};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Cursor;
use std::path::Path;

/// The names of a layer's tensors, theirs and ours.
const NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Writes config.json, tokenizer.json and model.safetensors, in bf16. The weights come last: a
/// folder that has them is complete.
pub fn convert(gguf: &[u8], dir: &Path) -> Result<()> {
    let mut file = Cursor::new(gguf);
    let content = Content::read(&mut file)?;
    let sizes = Sizes::read(&content)?;
    fs::write(dir.join("config.json"), format!("{:#}\n", sizes.config()))?;
    let tokenizer = tokenizer::from_gguf(&content)?;
    tokenizer.save(dir.join("tokenizer.json"), false).map_err(|error| error.to_string())?;

    let mut tensors = BTreeMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let new = rename(name).ok_or_else(|| format!("the GGUF file has a tensor {name}"))?;
        let tensor = match () {
            _ if new.ends_with("q_proj.weight") => unpermuted(&tensor, sizes.heads)?,
            _ if new.ends_with("k_proj.weight") => unpermuted(&tensor, sizes.kv_heads)?,
            _ => tensor,
        };
        tensors.insert(new, tensor.to_dtype(DType::BF16)?);
    }
    let path = dir.join("model.safetensors");
    let partial = path.with_extension("partial");
    // transformers refuses a file that does not say its format.
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(&tensors, Some(format), &partial)?;
    Ok(fs::rename(partial, path)?)
}

fn rename(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let (_, new) = NAMES.iter().find(|(old, _)| *old == part)?;
    Some(format!("model.layers.{layer}.{new}.weight"))
}

/// GGUF keeps each head's rows of q and k in the order that rotates neighbours, (0, n/2, 1, ..).
/// Hugging Face's rotates halves: (0, 1, ..).
fn unpermuted(w: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, k) = w.dims2()?;
    let halves = w.reshape((heads, rows / heads / 2, 2, k))?.transpose(1, 2)?;
    halves.contiguous()?.reshape((rows, k))
}

struct Sizes {
    vocabulary: usize,
    width: u32,
    mlp: u32,
    layers: u32,
    heads: usize,
    kv_heads: usize,
    context: u32,
    eps: f32,
    rope: f32,
    bos: u32,
    eos: u32,
}

impl Sizes {
    fn read(content: &Content) -> Result<Self> {
        let value = |key: &str| {
            let value = content.metadata.get(key);
            value.ok_or_else(|| format!("the GGUF file has no {key}"))
        };
        let number = |key: &str| -> Result<u32> { Ok(value(key)?.to_u32()?) };
        let architecture = value("general.architecture")?.to_string()?;
        if architecture != "llama" {
            return Err(format!("the GGUF file is of a {architecture}: expected llama").into());
        }
        Ok(Sizes {
            vocabulary: value("tokenizer.ggml.tokens").and_then(|tokens| match tokens {
                Value::Array(tokens) => Ok(tokens.len()),
                _ => Err("tokenizer.ggml.tokens is no array".into()),
            })?,
            width: number("llama.embedding_length")?,
            mlp: number("llama.feed_forward_length")?,
            layers: number("llama.block_count")?,
            heads: number("llama.attention.head_count")? as usize,
            kv_heads: number("llama.attention.head_count_kv")? as usize,
            context: number("llama.context_length")?,
            eps: value("llama.attention.layer_norm_rms_epsilon")?.to_f32()?,
            rope: value("llama.rope.freq_base")?.to_f32()?,
            bos: number("tokenizer.ggml.bos_token_id")?,
            eos: number("tokenizer.ggml.eos_token_id")?,
        })
    }

    fn config(&self) -> serde_json::Value {
        // Through text, because 1e-5 in f32 is 9.99999974e-6 in f64.
        let decimal = |value: f32| value.to_string().parse::<f64>().expect("a number");
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": decimal(self.eps),
            "rope_theta": decimal(self.rope),
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "torch_dtype": "bfloat16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
    use candle_nn::VarBuilder;
    use lora_kernels_candle::llama::{Config, Llama};
    use tokenizers::Tokenizer;

    #[test]
    fn rows_of_q_and_k_are_put_back() {
        // As llama.cpp permutes them: reshape (heads, 2, n/2, k), swap the axes between.
        let (heads, n, k) = (3, 8, 2);
        let count = (heads * n * k) as u32;
        let w = Tensor::arange(0u32, count, &Device::Cpu).unwrap();
        let w = w.reshape((heads * n, k)).unwrap().to_dtype(DType::F32).unwrap();
        let halves = w.reshape((heads, 2, n / 2, k)).unwrap().transpose(1, 2).unwrap();
        let permuted = halves.contiguous().unwrap().reshape((heads * n, k)).unwrap();
        let values = |w: &Tensor| w.to_vec2::<f32>().unwrap();
        assert_eq!(values(&permuted)[1], values(&w)[4]);
        assert_eq!(values(&unpermuted(&permuted, heads).unwrap()), values(&w));
    }

    /// A file of one layer, with norms of 1 and other weights of 0.5.
    fn small_file() -> Vec<u8> {
        let list = |items: &[&str]| {
            Value::Array(items.iter().map(|item| Value::String(item.to_string())).collect())
        };
        let metadata = [
            ("general.architecture", Value::String("llama".into())),
            ("llama.embedding_length", Value::U32(8)),
            ("llama.feed_forward_length", Value::U32(12)),
            ("llama.block_count", Value::U32(1)),
            ("llama.attention.head_count", Value::U32(2)),
            ("llama.attention.head_count_kv", Value::U32(1)),
            ("llama.context_length", Value::U32(16)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(1e5)),
            ("tokenizer.ggml.tokens", list(&["<|im_end|>", "a", "b", "ab"])),
            ("tokenizer.ggml.merges", list(&["a b"])),
            ("tokenizer.ggml.token_type", Value::Array([3, 1, 1, 1].map(Value::I32).to_vec())),
            ("tokenizer.ggml.bos_token_id", Value::U32(0)),
            ("tokenizer.ggml.eos_token_id", Value::U32(0)),
        ];
        let weights = [
            ("token_embd", vec![4, 8]),
            ("output_norm", vec![8]),
            ("blk.0.attn_norm", vec![8]),
            ("blk.0.attn_q", vec![8, 8]),
            ("blk.0.attn_k", vec![4, 8]),
            ("blk.0.attn_v", vec![4, 8]),
            ("blk.0.attn_output", vec![8, 8]),
            ("blk.0.ffn_norm", vec![8]),
            ("blk.0.ffn_gate", vec![12, 8]),
            ("blk.0.ffn_up", vec![12, 8]),
            ("blk.0.ffn_down", vec![8, 12]),
        ];
        let weights = weights.map(|(name, dims)| {
            let value = if dims.len() == 1 { 1f32 } else { 0.5 };
            let tensor = Tensor::full(value, dims, &Device::Cpu).unwrap();
            let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
            (format!("{name}.weight"), tensor)
        });
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let weights: Vec<_> = weights.iter().map(|(name, w)| (name.as_str(), w)).collect();
        let mut file = Cursor::new(Vec::new());
        gguf_file::write(&mut file, &metadata, &weights).unwrap();
        file.into_inner()
    }

    #[test]
    fn a_file_becomes_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        convert(&small_file(), dir.path()).unwrap();
        let config = Config::from_file(dir.path().join("config.json")).unwrap();
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-5, 1e5));
        let path = dir.path().join("model.safetensors");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        assert!(tensors.values().all(|tensor| tensor.dtype() == DType::BF16));
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let model = Llama::load(&config, vb, None).unwrap();
        assert_eq!(model.generate(&[1, 2], 2, &[]).unwrap().len(), 2);
        let tokenizer = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        assert_eq!(tokenizer.encode("ab<|im_end|>", false).unwrap().get_ids(), [3, 0]);
    }

    #[test]
    fn tensors_are_renamed() {
        for (name, expected) in [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("blk.12.attn_q.weight", Some("model.layers.12.self_attn.q_proj.weight")),
            ("blk.0.ffn_norm.weight", Some("model.layers.0.post_attention_layernorm.weight")),
            ("blk.0.attn_q.bias", None),
            ("rope_freqs.weight", None),
        ] {
            assert_eq!(rename(name).as_deref(), expected, "{name}");
        }
    }
}
