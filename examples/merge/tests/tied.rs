//! Heads that share the embedding's weight.

use super::{Setting, adapter, assert_merged, values, weight, write};
use crate::Result;
use lora_kernels::DType;
use safetensors::Dtype;
use std::fs;

const TIED: &str = r#"{"model_type": "llama", "tie_word_embeddings": true}"#;

/// A base of an embedding and perhaps a head, the same or another, and an adapter of the head.
fn setting(config: &str, head: Option<bool>) -> Setting {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    fs::create_dir(setting.path("base")).unwrap();
    let mut weights = vec![weight("model.embed_tokens.weight", Dtype::F32, &[6, 4])];
    if let Some(same) = head {
        weights.push(weight("lm_head.weight", Dtype::F32, &[6, 4]));
        if !same {
            weights[1].bytes.rotate_left(4);
        }
    }
    write(&setting.path("base/model.safetensors"), &weights);
    fs::write(setting.path("base/config.json"), config).unwrap();
    setting.save_adapter(&[("lm_head", adapter(6, 4, 2, DType::F32))]);
    setting
}

#[test]
fn tied_heads_give_what_peft_gives() -> Result<()> {
    let adapter = || adapter(6, 4, 2, DType::F32);
    for config in [TIED, r#"{"model_type": "gemma"}"#] {
        let setting = setting(config, None);
        let said = setting.run("base", "out", &[])?;
        assert!(said.contains("lm_head.weight is tied to model.embed_tokens.weight"), "{said}");
        let [base, out] = ["base", "out"].map(|dir| setting.path(dir).join("model.safetensors"));
        assert_merged(&base, &out, &[("model.embed_tokens", adapter())], 1.0);
        assert_eq!(fs::read_to_string(setting.path("out/config.json"))?, config);

        let setting = self::setting(config, Some(true));
        setting.run("base", "out", &[])?;
        let [base, out] = ["base", "out"].map(|dir| setting.path(dir).join("model.safetensors"));
        let both = [("model.embed_tokens", adapter()), ("lm_head", adapter())];
        assert_merged(&base, &out, &both, 1.0);
        let out = |name| values(&setting.path("out/model.safetensors"), name);
        assert_eq!(out("lm_head.weight"), out("model.embed_tokens.weight"));
    }
    Ok(())
}

#[test]
fn heads_that_differ_are_untied() -> Result<()> {
    let setting = setting(TIED, Some(false));
    setting.run("base", "out", &[])?;
    let [base, out] = ["base", "out"].map(|dir| setting.path(dir).join("model.safetensors"));
    assert_merged(&base, &out, &[("lm_head", adapter(6, 4, 2, DType::F32))], 1.0);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(setting.path("out/config.json"))?)?;
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(config["model_type"], "llama");
    let error = setting.error("base", "out.safetensors");
    assert!(error.contains("a folder as --out"), "{error}");
    Ok(())
}

/// One after the other into the same weight, as PEFT does.
#[test]
fn two_adapters_of_one_weight_are_both_added() -> Result<()> {
    let setting = setting(TIED, None);
    let adapters = || ["lm_head", "model.embed_tokens"].map(|m| (m, adapter(6, 4, 2, DType::F32)));
    setting.save_adapter(&adapters());
    setting.run("base", "both", &[])?;
    for (adapter, (base, out)) in adapters().into_iter().zip([("base", "one"), ("one", "two")]) {
        setting.save_adapter(&[adapter]);
        setting.run(base, out, &[])?;
    }
    let merged = |out: &str| {
        values(&setting.path(out).join("model.safetensors"), "model.embed_tokens.weight")
    };
    assert_eq!(merged("both"), merged("two"));
    assert_ne!(merged("one"), merged("two"));
    Ok(())
}

#[test]
fn heads_of_their_own_are_merged_alone() -> Result<()> {
    let config = r#"{"model_type": "llama"}"#;
    assert!(setting(config, None).error("base", "out").contains("has no lm_head.weight"));
    let setting = setting(config, Some(true));
    setting.run("base", "out", &[])?;
    let [base, out] = ["base", "out"].map(|dir| setting.path(dir).join("model.safetensors"));
    assert_merged(&base, &out, &[("lm_head", adapter(6, 4, 2, DType::F32))], 1.0);
    Ok(())
}
