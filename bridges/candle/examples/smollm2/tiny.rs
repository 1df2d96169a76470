//! A Llama of random weights and a text of random tokens, in the files of the real ones.

use crate::Result;
use crate::data::Data;
use lora_kernels_candle::llama;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

const VOCABULARY: u16 = 64;

pub fn write(dir: &Path) -> Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "bos_token_id": 0,
        "eos_token_id": 0,
    });
    fs::write(dir.join("config.json"), config.to_string())?;

    let weights = llama::random_weights(&llama::Config::from_json(&config.to_string())?)?;
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(&weights, Some(format), &dir.join("model.safetensors"))?;

    let mut rng = Pcg64::seed_from_u64(0);
    // Not quite random: each token says something of the next.
    let mut token = 1;
    let mut text = |count: usize| -> Vec<u16> {
        let next = |_| {
            token = (5 * token + rng.random_range(0..4)) % VOCABULARY;
            token
        };
        (0..count).map(next).collect()
    };
    Data { train: text(2000), held_out: text(600) }.save(dir)
}
