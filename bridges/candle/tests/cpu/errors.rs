//! What does not fit is refused.

use crate::common::{adapter, layer, random, var};
use candle_core::{DType, Device, Error, Module, Tensor, Var};
use candle_nn::VarBuilder;
use lora_kernels_candle::llama::{Config, Llama, Lora, random_weights};
use lora_kernels_candle::lora_kernels::{AdapterConfig, Scaling};
use lora_kernels_candle::nn::{
    Attention, linear_cross_entropy, rms_norm, rope, rope_frequencies, swiglu,
};
use lora_kernels_candle::{FrozenLinear, LoraAdapter, LoraLinear, load_peft};

#[track_caller]
fn refused<T>(result: Result<T, Error>, part: &str) {
    let Err(error) = result else { panic!("accepted: expected an error with {part}") };
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn inputs() {
    let layer = layer([12, 20], 3, DType::F32);
    refused(layer.forward(&random(&[7, 19])), "[..., 20]");
    refused(layer.forward(&Tensor::zeros((), DType::F32, &Device::Cpu).unwrap()), "[..., 20]");
    refused(layer.forward(&random(&[7, 20]).to_dtype(DType::BF16).unwrap()), "one type");
}

#[test]
fn weights_and_biases() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    refused(FrozenLinear::new(zeros(&[12, 20, 1], DType::F32), None), "rank");
    refused(FrozenLinear::new(zeros(&[12, 20], DType::F64), None), "F64");
    refused(FrozenLinear::new(zeros(&[12, 0], DType::F32), None), "at least one column");
    for bias in [zeros(&[11], DType::F32), zeros(&[12], DType::BF16)] {
        refused(FrozenLinear::new(zeros(&[12, 20], DType::F32), Some(bias)), "[12]");
    }
}

#[test]
fn adapters() {
    let rank = AdapterConfig::new(0);
    refused(LoraLinear::new(random(&[12, 20]), None, &rank), "rank");
    let from = |a, b| LoraAdapter::from_vars(a, b, 1.0, Scaling::Standard);
    refused(from(var(&[3, 20]), var(&[12, 4])), "[r, k]");
    let half = Var::zeros((3, 20), DType::BF16, &Device::Cpu).unwrap();
    refused(from(half, var(&[12, 3])), "f32");
    let infinite =
        LoraAdapter::from_vars(var(&[3, 20]), var(&[12, 3]), f32::INFINITY, Scaling::Standard);
    refused(infinite, "not finite");

    let mut layer = layer([12, 20], 3, DType::F32);
    refused(layer.add_adapter("other", adapter([11, 20], 3)), "[12, 20]");
    refused(layer.add_adapter("default", adapter([12, 20], 3)), "has an adapter default");
    refused(layer.set_adapter("other"), "no adapter other");
}

#[test]
fn operations() {
    let x = random(&[2, 5, 8]);
    let half = x.to_dtype(DType::BF16).unwrap();
    refused(rms_norm(&x, &random(&[7]), 1e-5), "[2, 5, 8] with a weight [7]");
    refused(rms_norm(&half, &random(&[8]), 1e-5), "BF16 and F32");
    let (table, short) = (random(&[5, 4]), random(&[4, 4]));
    refused(rope(&x, &table, &table), "[2, 5, 8] with [5, 4], [5, 4]");
    refused(rope(&x.unsqueeze(0).unwrap(), &table, &short), "[4, 4]");
    refused(swiglu(&x, &random(&[2, 5, 7])), "[2, 5, 8] and [2, 5, 7]");
    let attention = Attention::new(4);
    refused(attention.forward(&x, &random(&[2, 4, 8]), &x), "[2, 4, 8]");
    refused(attention.forward(&x, &random(&[2, 5, 12]), &random(&[2, 5, 12])), "[2, 5, 12]");
    refused(attention.forward(&x, &x, &random(&[2, 5, 4])), "[2, 5, 4]");
    refused(Attention::new(0).forward(&x, &x, &x), "heads · 0");
    let empty = x.narrow(0, 0, 0).unwrap();
    refused(attention.forward(&empty, &empty, &empty), "[0, 5, 8]");
    refused(Attention::new(3).forward(&x, &x, &x), "heads · 3");
    let frequencies = Attention::new(4).with_rope(rope_frequencies(6, 10.0));
    refused(frequencies.forward(&x, &x, &x), "3 frequencies");
    let (weight, labels) =
        (random(&[9, 8]), Tensor::zeros((2, 5), DType::U32, x.device()).unwrap());
    refused(linear_cross_entropy(&x, &random(&[9, 7]), &labels), "[9, 7]");
    refused(linear_cross_entropy(&x, &weight, &labels.t().unwrap()), "labels [5, 2]");
    let bytes = labels.to_dtype(DType::U8).unwrap();
    refused(linear_cross_entropy(&x, &weight, &bytes), "labels are U8");
    let far = (labels + 9.0).unwrap();
    refused(linear_cross_entropy(&x, &weight, &far), "gather");
}

const SMALL: &str = r#""vocab_size": 8, "hidden_size": 4, "intermediate_size": 6,
    "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5"#;

#[test]
fn configurations() {
    let read = |extra: &str| Config::from_json(&format!("{{{SMALL}, {extra}}}"));
    let scaled = |scaling: &str| read(&format!(r#""rope_scaling": {{{scaling}}}"#));
    refused(scaled(r#""rope_type": "yarn", "factor": 4.0"#), "rope_scaling is yarn");
    refused(scaled(r#""type": "dynamic""#), "rope_scaling is dynamic");
    refused(scaled(r#""rope_type": "linear""#), "linear has no factor");
    refused(scaled(r#""rope_type": "llama3", "factor": 8.0"#), "has no low_freq_factor");
    refused(read(r#""hidden_act": "gelu""#), "hidden_act is gelu");
    refused(read(r#""model_type": "mistral""#), "model_type is mistral");
    refused(read(r#""num_key_value_heads": 3"#), "3 KV heads");
    refused(read(r#""head_dim": 3"#), "even head_dim, not 3");
    refused(Config::from_json("{}"), "missing field");
    refused(Config::from_file("no/config.json"), "no/config.json");
    // transformers 5 keeps θ with the scaling.
    let parameters = r#""rope_parameters": {"rope_type": "default", "rope_theta": 100.0}"#;
    let new = read(parameters).unwrap().frequencies().unwrap();
    assert_eq!(new, read(r#""rope_theta": 100.0"#).unwrap().frequencies().unwrap());
}

#[test]
fn models() {
    let config = Config::from_json(&format!("{{{SMALL}}}")).unwrap();
    let weights = random_weights(&config).unwrap();
    let vb = || VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
    let lora = |target: &str| Lora::new(AdapterConfig::new(2), [target]);
    refused(Llama::load(&config, vb(), Some(&lora("c_attn"))), "c_attn is no target");
    refused(Llama::load(&config, vb().pp("other"), None), "other.model.embed_tokens.weight");

    let model = Llama::load(&config, vb(), Some(&lora("q_proj"))).unwrap();
    let ids = Tensor::zeros((1, 3), DType::U32, &Device::Cpu).unwrap();
    refused(model.hidden(&ids.flatten_all().unwrap()), "ids are [3]");
    refused(model.loss(&ids, &ids.t().unwrap()), "labels [3, 1]");
    refused(model.generate(&[], 3, &[]), "at least one token");
    refused(
        Llama::load(&config, vb(), None).unwrap().save_peft("no/adapter"),
        "would have no adapter",
    );

    let dir = tempfile::tempdir().unwrap();
    model.save_peft(dir.path()).unwrap();
    let other = Llama::load(&config, vb(), Some(&lora("v_proj"))).unwrap();
    refused(other.load_peft(dir.path()), "has no adapter of model.layers.0.self_attn.v_proj");
    let both = Lora::new(AdapterConfig::new(3), ["q_proj"]);
    let larger = Llama::load(&config, vb(), Some(&both)).unwrap();
    refused(larger.load_peft(dir.path()), "has A [2, 4]");
    let fewer = Llama::load(&config, vb(), None).unwrap();
    refused(fewer.load_peft(dir.path()), "also has an adapter of model.layers.0.self_attn.q_proj");
    let mut loaded = load_peft(dir.path(), &Device::Cpu).unwrap();
    let adapter = loaded.adapters.pop_first().unwrap().1;
    loaded.adapters.insert("model.layers.1.self_attn.q_proj".into(), adapter);
    refused(Llama::with_peft(&config, vb(), loaded), "such as model.layers.1.self_attn.q_proj");
    let mut loaded = load_peft(dir.path(), &Device::Cpu).unwrap();
    let adapter = loaded.adapters.pop_first().unwrap().1;
    loaded.adapters.insert("model.layers.0.mlp.down_proj".into(), adapter);
    refused(Llama::with_peft(&config, vb(), loaded), "down_proj is [4, 6]");
}
