//! Adapters whose modules have other names than the checkpoint.

use super::{Setting, adapter, assert_merged, weight, write};
use crate::Result;
use lora_kernels::DType;
use safetensors::Dtype;
use std::fs;

/// A checkpoint of weights of [6, 4], and an adapter of modules of that shape.
fn setting(weights: &[&'static str], modules: &[&str], model_type: Option<&str>) -> Setting {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    let weights: Vec<_> = weights.iter().map(|name| weight(name, Dtype::F32, &[6, 4])).collect();
    write(&setting.path("model.safetensors"), &weights);
    let adapters: Vec<_> =
        modules.iter().map(|module| (*module, adapter(6, 4, 2, DType::F32))).collect();
    setting.save_adapter(&adapters);
    if let Some(model_type) = model_type {
        let config = format!(r#"{{"model_type": "{model_type}"}}"#);
        fs::write(setting.path("config.json"), config).unwrap();
    }
    setting
}

/// Fails unless the only adapter goes to the weight.
#[track_caller]
fn assert_goes_to(setting: &Setting, module: &str, more: &[&str]) {
    let said = setting.run("model.safetensors", "out.safetensors", more).unwrap();
    assert!(said.contains("merged   1 of"), "{said}");
    let (base, out) = (setting.path("model.safetensors"), setting.path("out.safetensors"));
    assert_merged(&base, &out, &[(module, adapter(6, 4, 2, DType::F32))], 1.0);
}

/// Names as in transformers 5.24 and in checkpoints on the hub.
#[test]
fn names_of_transformers_lead_to_the_checkpoint_s() {
    for (model_type, of_model, of_checkpoint) in [
        ("qwen2_vl", "model.language_model.layers.0.q", "model.layers.0.q.weight"),
        ("qwen2_5_vl", "model.visual.blocks.0.qkv", "visual.blocks.0.qkv.weight"),
        ("qwen2_vl", "model.layers.0.q", "model.language_model.layers.0.q.weight"),
        ("qwen2_vl", "language_model.layers.0.q", "model.layers.0.q.weight"),
        ("llava", "model.language_model.layers.0.q", "language_model.model.layers.0.q.weight"),
        ("llava", "language_model.model.layers.0.q", "model.language_model.layers.0.q.weight"),
        ("gemma3", "lm_head", "language_model.lm_head.weight"),
        ("gemma3", "model.layers.0.q", "language_model.model.layers.0.q.weight"),
        ("qwen3_5", "model.layers.0.q", "model.language_model.layers.0.q.weight"),
        (
            "mistral3",
            "model.vision_tower.encoder.layers.1.q",
            "vision_tower.vision_model.encoder.layers.1.q.weight",
        ),
        ("mllama", "model.vision_model.layers.0.q", "vision_model.layers.0.q.weight"),
        ("mixtral", "model.layers.0.mlp.gate", "model.layers.0.block_sparse_moe.gate.weight"),
        ("gpt_neox", "lm_head", "embed_out.weight"),
        // AutoModel and a model with a head.
        ("llama", "layers.0.q", "model.layers.0.q.weight"),
        ("llama", "model.layers.0.q", "layers.0.q.weight"),
        ("gpt2", "transformer.h.0.q", "h.0.q.weight"),
        ("bert", "encoder.layer.0.q", "bert.encoder.layer.0.q.weight"),
    ] {
        let module = of_checkpoint.strip_suffix(".weight").unwrap();
        for model_type in [Some(model_type), None] {
            let setting = setting(&[of_checkpoint, "norm.weight"], &[of_model], model_type);
            assert_goes_to(&setting, module, &[]);
        }
    }
}

#[test]
fn a_name_that_the_checkpoint_has_is_taken_as_it_is() {
    let weights = ["model.layers.0.q.weight", "model.language_model.layers.0.q.weight"];
    for (model_type, module) in [
        (Some("qwen2_vl"), "model.layers.0.q"),
        (None, "model.language_model.layers.0.q"),
        (Some("llama"), "model.language_model.layers.0.q"),
    ] {
        assert_goes_to(&setting(&weights, &[module], model_type), module, &[]);
    }
}

#[test]
fn the_user_s_names_come_first() {
    let weights = ["a.layers.0.wq.weight", "layers.0.q.weight"];
    let setting = setting(&weights, &["layers.0.q"], None);
    assert_goes_to(&setting, "layers.0.q", &[]);
    assert_goes_to(&setting, "a.layers.0.wq", &["--rename", "=a.", "--rename", ".q=.wq"]);
    let run = |renames: &[&str]| setting.run("model.safetensors", "out", renames);
    let error = run(&["--rename", "model.=a."]).unwrap_err().to_string();
    assert!(error.contains("fits no module of the adapter, such as layers.0.q"), "{error}");
}

#[test]
fn what_is_not_certain_is_refused() -> Result<()> {
    for (weights, modules, words) in [
        // Encoder and decoder, or two models in one.
        (
            &["bert.layers.0.q.weight", "model.layers.0.q.weight"][..],
            &["layers.0.q"][..],
            "but bert.layers.0.q and model.layers.0.q: say which is meant by --rename",
        ),
        // Two names of one module.
        (
            &["visual.0.q.weight", "model.visual.0.q.weight"],
            &["language_model.visual.0.q"],
            "--rename",
        ),
        (
            &["model.layers.0.q.weight"],
            &["layers.0.q", "model.layers.0.q"],
            "are both model.layers.0.q",
        ),
        (
            &["thing.layers.0.q.weight", "thing.layers.1.q.weight"],
            &["model.layers.1.q"],
            "it has thing.layers.1.q.weight; if that is meant, say --rename model.=thing.",
        ),
        (
            &["model.layers.0.qkv_proj.weight"],
            &["model.layers.0.q_proj"],
            "it has model.layers.0.qkv_proj.weight instead",
        ),
        (
            &["layers.0.gate_proj.weight", "layers.0.up_proj.weight"],
            &["layers.0.gate_up_proj"],
            "it has layers.0.gate_proj.weight, layers.0.up_proj.weight instead",
        ),
    ] {
        let error = setting(weights, modules, None).error("model.safetensors", "out");
        assert!(error.contains(words), "{error}");
    }
    Ok(())
}
