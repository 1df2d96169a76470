//! What a directory holds besides adapters of linear layers: kept by load and save.
//!
//! `tests/fixtures/peft/extras.py` made the cases, and with `make.py --check` loads what
//! `LORA_KERNELS_PEFT_OUT=DIR cargo test --features peft --test cpu peft::` leaves in DIR.

use super::files::{A, B, CONFIG, WEIGHTS, assert_refused, config, load, tensors};
use crate::common::assert_same_bits;
use crate::peft_fixtures::{fixture, weights};
use lora_kernels::peft::{self, Adapters, Config, Extras};
use lora_kernels::{DType, Device, Result, Scaling, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn cases() -> Vec<String> {
    let names = fs::read_dir(fixture("extras")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("base-")).collect()
}

pub fn load_case(case: &str) -> Result<Adapters> {
    peft::load(fixture("extras").join(case), &Device::cpu(), None)
}

pub fn save(dir: &Path, config: &Config, adapters: &Adapters) -> Result<()> {
    peft::save(dir, config, adapters.adapters.iter().map(|(module, a)| (module.as_str(), a)))
}

fn config_of(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join(CONFIG)).unwrap()).unwrap()
}

#[test]
fn what_is_saved_untouched_is_what_was_loaded() -> Result<()> {
    let temporary = tempfile::tempdir().unwrap();
    let root = std::env::var_os("LORA_KERNELS_PEFT_OUT").map(PathBuf::from);
    let cases = cases();
    assert_eq!(cases.len(), 29);
    for case in cases {
        let loaded = load_case(&case)?;
        assert!(loaded.left_out.is_empty() && !loaded.targets_disregarded, "{case}");
        let root = root.as_deref().unwrap_or(temporary.path());
        let (own, dir) = (fixture("extras").join(&case), root.join(format!("extras-{case}")));
        save(&dir, &loaded.config, &loaded)?;
        assert!(weights(&dir) == weights(&own), "{case}: the weights");
        assert_eq!(config_of(&dir), config_of(&own), "{case}");
        // As what was saved is loaded: the fingerprint is of the configuration.
        peft::load(&dir, &Device::cpu(), None)?;
    }
    Ok(())
}

/// What is there of each kind, by name.
pub fn names(extras: &Extras) -> [Vec<&str>; 4] {
    fn keys<T>(map: &BTreeMap<String, T>) -> Vec<&str> {
        map.keys().map(String::as_str).collect()
    }
    [keys(&extras.whole), keys(&extras.updates), keys(&extras.parameters), keys(&extras.tokens)]
}

#[test]
fn everything_is_reached_by_name() -> Result<()> {
    let none = Vec::<&str>::new;
    let attention = |part| format!("model.layers.0.self_attn.{part}");
    let (q, v) = (attention("q_proj"), attention("v_proj"));
    for (case, expected) in [
        ("whole", [vec!["lm_head.weight", "model.embed_tokens.weight"], none(), none(), none()]),
        ("head-llama", [vec!["score.weight"], none(), none(), none()]),
        (
            "embedding-tied",
            [vec!["model.embed_tokens.weight"], vec!["model.embed_tokens"], none(), none()],
        ),
        ("dora-bf16", [none(), vec![&*q, &*v], none(), none()]),
        ("tokens", [none(), none(), none(), vec!["model.embed_tokens"]]),
        ("rank-257", [none(), vec!["model.layers.0.mlp.down_proj"], none(), none()]),
        ("experts", [none(), none(), vec!["model.layers.0.mlp.experts"], none()]),
    ] {
        assert_eq!(names(load_case(case)?.config.extras()), expected, "{case}");
    }
    let loaded = load_case("tokens")?;
    let tokens = &loaded.config.extras().tokens["model.embed_tokens"];
    assert_eq!((&tokens.indices[..], tokens.rows.shape().dims()), (&[7, 2][..], &[2, 8][..]));
    let loaded = load_case("head-llama")?;
    assert_eq!(loaded.config.extras().whole["score.weight"].shape().dims(), [3, 8]);
    assert!(loaded.adapters.keys().eq([&q, &v]));
    // A router is an ordinary adapter; the configuration says its rank under another name.
    let loaded = load_case("experts-router")?;
    let router = &loaded.adapters["model.layers.0.mlp.gate"];
    assert_eq!(
        (router.rank(), router.alpha(), router.scaling()),
        (3, 3.0, Scaling::RankStabilized)
    );
    Ok(())
}

/// Other extras than were loaded: the configuration says of them what PEFT needs.
#[test]
fn changed_extras_are_saved() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let mut loaded = load_case("head-llama")?;
    let mut config = loaded.config.clone();
    let tensor = |shape: [usize; 2]| {
        Tensor::from_f32(&Device::cpu(), &vec![0.5; shape[0] * shape[1]], shape, DType::Bf16)
    };
    let extras = config.extras_mut();
    extras.whole.insert("score.weight".into(), Arc::new(tensor([5, 8])?));
    extras.whole.insert("pooler.dense.weight".into(), Arc::new(tensor([8, 8])?));
    save(dir.path(), &config, &loaded)?;
    let saved = config_of(dir.path());
    assert_eq!(saved["modules_to_save"], json!(["score", "pooler.dense"]));
    assert_eq!(saved["target_modules"], config_of(&fixture("extras/head-llama"))["target_modules"]);
    let again = peft::load(dir.path(), &Device::cpu(), None)?;
    let score = &again.config.extras().whole["score.weight"];
    assert_eq!((score.shape().dims(), score.dtype()), (&[5, 8][..], DType::Bf16));
    assert_same_bits("score", &score.to_f32_vec()?, &[0.5; 40]);

    // Without them, nothing is named that would be missed.
    *config.extras_mut() = Extras::default();
    save(dir.path(), &config, &loaded)?;
    assert_eq!(config_of(dir.path())["modules_to_save"], json!([]));
    // Extras of another directory: embeddings, experts, magnitudes.
    for (case, key, value) in [
        ("tokens", "trainable_token_indices", json!({"model.embed_tokens": [7, 2]})),
        ("experts-square", "target_parameters", json!(["model.layers.0.mlp.experts.down_proj"])),
    ] {
        *config.extras_mut() = load_case(case)?.config.extras().clone();
        save(dir.path(), &config, &loaded)?;
        assert_eq!(config_of(dir.path())[key], value);
        let again = peft::load(dir.path(), &Device::cpu(), None)?;
        assert_eq!(names(again.config.extras()), names(config.extras()), "{case}");
    }
    // A module has an adapter, or is saved whole.
    let mut both = load_case("head-llama")?;
    both.adapters.insert("score".into(), both.adapters.values().next().unwrap().try_clone()?);
    let error = save(dir.path(), &both.config, &both).unwrap_err().to_string();
    assert!(error.contains("modules_to_save is not supported: names score"), "{error}");
    // PEFT has magnitudes for all adapters, or for none.
    *config.extras_mut() = load_case("dora-bf16")?.config.extras().clone();
    loaded.adapters.retain(|module, _| module.ends_with("q_proj"));
    assert!(save(dir.path(), &config, &loaded).unwrap_err().to_string().contains("is there twice"));
    config.extras_mut().updates.retain(|module, _| !module.ends_with("q_proj"));
    let error = save(dir.path(), &config, &loaded).unwrap_err().to_string();
    assert!(error.contains("use_dora") && error.contains("magnitudes"), "{error}");
    loaded.adapters.clear();
    save(dir.path(), &config, &loaded)?;
    assert_eq!(config_of(dir.path())["use_dora"], true);
    Ok(())
}

/// Modules of which a part is in `modules_to_save` have no adapter, as in PEFT.
#[test]
fn modules_saved_whole_have_no_adapters() -> Result<()> {
    let name = |module: &str, half| format!("base_model.model.{module}.lora_{half}.weight");
    for (saved, left_out) in [
        (json!(["a"]), vec!["x.a.q"]),
        (json!(["a.q"]), vec!["x.a.q"]),
        (json!(["q"]), vec!["x.a.q", "x.b.q"]),
        (json!(["x"]), vec!["x.a.q", "x.b.q"]),
        (json!(["[bc]"]), vec!["x.b.q"]),
        (json!(["x.", "b.qu", "a.q.weight", ""]), vec![]),
    ] {
        let modules = ["x.a.q", "x.b.q", "z"];
        let names: Vec<String> =
            modules.iter().flat_map(|m| [name(m, 'A'), name(m, 'B')]).collect();
        let shapes: [&[usize]; 2] = [&[2, 3], &[4, 2]];
        let of: Vec<(&str, &[usize])> =
            names.iter().map(String::as_str).zip(shapes.into_iter().cycle()).collect();
        let fields = json!({"target_modules": ["q", "z"], "modules_to_save": saved});
        let loaded = load(&config(fields.clone()), &tensors(&of))?;
        let mut others = fields;
        others["target_modules"] = json!(["nothing"]);
        if !left_out.is_empty() {
            let loaded = load(&config(others), &tensors(&of))?;
            assert!(loaded.targets_disregarded && !loaded.left_out.is_empty(), "{saved}");
        }
        let want: Vec<String> =
            left_out.iter().flat_map(|m| [name(m, 'A'), name(m, 'B')]).collect();
        assert_eq!(loaded.left_out, want, "{saved}");
    }
    let many: Vec<String> = (0..65).map(|i| format!("a{i}|b")).collect();
    let result =
        load(&config(json!({"modules_to_save": many})), &tensors(&[(A, &[2, 3]), (B, &[4, 2])]));
    assert_refused("many", result, "unsupported", CONFIG, "modules_to_save", "more than 64");
    Ok(())
}

/// What PEFT drops without a word, and what does not belong together.
#[test]
fn extras_that_do_not_fit_are_named() {
    let name = |end: &str| format!("base_model.model.{end}");
    let plain: [(&str, &[usize]); 2] = [(A, &[2, 3]), (B, &[4, 2])];
    let dora = json!({"use_dora": true});
    let tokens = json!({"trainable_token_indices": [1]});
    for (end, shape, fields, variant, words) in [
        ("q.lora_magnitude_vector", &[4][..], json!({}), "unsupported", "use_dora is not set"),
        ("q.lora_magnitude_vector", &[3], dora.clone(), "malformed", "does not fit"),
        ("q.lora_magnitude_vector", &[4, 1], dora.clone(), "malformed", "does not fit"),
        ("q.lora_B.bias", &[4], json!({}), "unsupported", "lora_bias is not set"),
        ("q.weight", &[4, 3], json!({}), "unsupported", "base_layer"),
        ("q.bias", &[4], json!({"bias": "all"}), "unsupported", "base_layer"),
        (
            "k.base_layer.weight",
            &[4, 3],
            json!({"target_modules": ["q", "k"]}),
            "unsupported",
            "beneath",
        ),
        ("q.lora_embedding_A", &[2, 3], json!({}), "malformed", "twice"),
        (
            "score.modules_to_save.default.weight",
            &[2, 3],
            json!({}),
            "unsupported",
            "MODULE.weight",
        ),
        ("score.original_module.weight", &[2, 3], json!({}), "unsupported", "MODULE.weight"),
        ("q.lora_diag", &[2], json!({}), "unsupported", "no lora_diag"),
        ("norm.weight", &[], json!({}), "unsupported", "one to six"),
        ("wte.token_adapter.trainable_tokens_delta", &[1, 3], json!({}), "unsupported", "not set"),
        (
            "wte.token_adapter.trainable_tokens_delta",
            &[2, 3],
            tokens.clone(),
            "malformed",
            "2 rows",
        ),
    ] {
        let key = name(end);
        let weights = tensors(&[plain[0], plain[1], (&key, shape)]);
        assert_refused(end, load(&config(fields), &weights), variant, WEIGHTS, &key, words);
    }
    for (case, fields, key, words) in [
        ("no magnitude", dora, "use_dora", "q has no lora_magnitude_vector"),
        ("no rows", tokens, "trainable_token_indices", "no trainable_tokens_delta"),
        ("a text", json!({"modules_to_save": "score"}), "modules_to_save", "list of texts"),
        ("a number", json!({"target_parameters": [1]}), "target_parameters", "list of texts"),
        ("a flag", json!({"use_dora": "false"}), "use_dora", "true or false"),
    ] {
        let result = load(&config(fields), &tensors(&plain));
        assert_refused(case, result, "malformed", CONFIG, key, words);
    }
    let rows = name("wte.token_adapter.trainable_tokens_delta");
    let weights = tensors(&[plain[0], plain[1], (&rows, &[2, 3])]);
    for (indices, words) in [
        (json!([1, 1]), "twice"),
        (json!([-1, 1]), "whole numbers"),
        (json!({"other": [1, 2]}), "does not name"),
        (json!({"wte": [1, 2], "te": [1, 2]}), "names the embedding of a tensor of the file twice"),
    ] {
        let fields = json!({"trainable_token_indices": indices});
        let result = load(&config(fields), &weights);
        assert_refused(words, result, "malformed", CONFIG, "trainable_token_indices", words);
    }
}

/// Adapters of changed base weights are taken with those weights, and refused without.
#[test]
fn changed_base_weights_must_be_in_the_file() -> Result<()> {
    let beneath = "base_model.model.q.base_layer.weight";
    let weights = tensors(&[(A, &[2, 3]), (B, &[4, 2]), (beneath, &[4, 3])]);
    for initial in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "PiSSA"] {
        let config = config(json!({"init_lora_weights": initial}));
        let loaded = load(&config, &weights)?;
        assert_eq!(loaded.config.extras().whole["q.weight"].shape().dims(), [4, 3]);
        let without = tensors(&[(A, &[2, 3]), (B, &[4, 2])]);
        let words = "path_initial_model_for_weight_conversion";
        let result = load(&config, &without);
        assert_refused(initial, result, "unsupported", CONFIG, "init_lora_weights", words);
    }
    Ok(())
}
