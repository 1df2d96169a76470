//! A small Llama with GQA against the same model of candle's own operations.

use crate::common::{assert_close, assert_same_gradients, random};
use crate::plain::Plain;
use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use candle_nn::VarBuilder;
use lora_kernels_candle::llama::{Config, Llama, Lora, random_weights};
use lora_kernels_candle::lora_kernels::AdapterConfig;
use std::collections::HashMap;

/// Two layers, three heads for each KV head, and sizes that are no powers of two.
pub fn config(extra: &str) -> Config {
    let json = r#"{"vocab_size": 53, "hidden_size": 36, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4"#;
    Config::from_json(&format!("{json}{extra}}}")).unwrap()
}

pub fn vb(weights: &HashMap<String, Tensor>, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights.clone(), dtype, device)
}

/// The model in `dtype`, with adapters whose B is not zero.
pub fn model(config: &Config, targets: &[&str], dtype: DType) -> Result<Llama> {
    let lora = Lora::new(AdapterConfig::new(3).with_alpha(4.5), targets.iter().copied());
    let weights = random_weights(config)?;
    let model = Llama::load(config, vb(&weights, dtype, &Device::Cpu), Some(&lora))?;
    for (_, adapter) in model.adapters() {
        adapter.b().set(&random(adapter.b().dims()))?;
    }
    Ok(model)
}

/// Tokens and the tokens that follow them.
pub fn batch(b: usize, t: usize) -> Result<(Tensor, Tensor)> {
    let ids = (0..b * (t + 1)).map(|i| ((i * 37 + i * i) % 53) as u32);
    let ids = Tensor::from_iter(ids, &Device::Cpu)?.reshape((b, t + 1))?;
    Ok((ids.i((.., ..t))?, ids.i((.., 1..))?))
}

fn named(vars: &[(String, Var)]) -> Vec<(&str, &Var)> {
    vars.iter().map(|(name, var)| (name.as_str(), var)).collect()
}

fn compare(extra: &str, targets: &[&str]) -> Result<()> {
    let config = config(extra);
    let (model, weights) = (model(&config, targets, DType::F32)?, random_weights(&config)?);
    let plain = Plain { config: &config, weights: &weights, model: &model };
    let (ids, labels) = batch(2, 11)?;
    assert_close("logits", &model.forward(&ids)?, &plain.logits(&ids)?, 1e-5);
    let (got, expected) = (model.loss(&ids, &labels)?, plain.loss(&ids, &labels)?);
    assert_close("loss", &got, &expected, 1e-6);
    let vars = model.vars();
    assert_eq!(vars.len(), 2 * 2 * if targets == ["all-linear"] { 7 } else { targets.len() });
    assert_same_gradients(&got.backward()?, &expected.backward()?, &named(&vars));
    Ok(())
}

#[test]
fn gradients_are_those_of_candle() -> Result<()> {
    compare("", &["all-linear"])?;
    compare(r#", "tie_word_embeddings": true"#, &["all-linear"])?;
    compare(r#", "attention_bias": true, "mlp_bias": true"#, &["all-linear"])?;
    for targets in [&["q_proj", "v_proj"][..], &["o_proj"], &["k_proj", "down_proj", "up_proj"]] {
        compare("", targets)?;
    }
    Ok(())
}
