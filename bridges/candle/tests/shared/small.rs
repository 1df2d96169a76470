//! A small Llama with GQA.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use lora_kernels_candle::llama::{Config, Llama, Lora, random_weights};
use lora_kernels_candle::lora_kernels::AdapterConfig;

/// Two layers, three heads for each KV head, and sizes that are no powers of two.
pub fn config(extra: &str) -> Config {
    let json = r#"{"vocab_size": 53, "hidden_size": 36, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4"#;
    Config::from_json(&format!("{json}{extra}}}")).unwrap()
}

/// The model of random weights, with adapters whose B is not zero.
pub fn model(config: &Config, targets: &[&str], dtype: DType, device: &Device) -> Result<Llama> {
    let lora = Lora::new(AdapterConfig::new(3).with_alpha(4.5), targets.iter().copied());
    let vb = VarBuilder::from_tensors(random_weights(config)?, dtype, device);
    let model = Llama::load(config, vb, Some(&lora))?;
    for (i, (_, adapter)) in model.adapters().enumerate() {
        let b = adapter.b();
        let values = (0..b.elem_count()).map(|j| 0.2 * (0.7 * j as f32 + i as f32).sin());
        b.set(&Tensor::from_iter(values, device)?.reshape(b.shape())?)?;
    }
    Ok(model)
}

/// Tokens and the tokens that follow them.
pub fn batch(b: usize, t: usize) -> Result<(Tensor, Tensor)> {
    let ids = (0..b * (t + 1)).map(|i| ((i * 37 + i * i) % 53) as u32);
    let ids = Tensor::from_iter(ids, &Device::Cpu)?.reshape((b, t + 1))?;
    Ok((ids.i((.., ..t))?, ids.i((.., 1..))?))
}
