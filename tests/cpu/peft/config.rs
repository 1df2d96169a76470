//! `adapter_config.json` as it may be, and as it should not.

use super::files::{CONFIG, assert_refused, config_with, good_config, good_weights, load};
use lora_kernels::Result;
use lora_kernels::peft;
use serde_json::{Value, json};
use std::fs;

#[test]
fn what_changes_the_numbers_is_refused() {
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", json!("IA3")),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("alora_invocation_tokens", json!([1, 2])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("velora_config", json!({"groups": 4})),
        ("megatron_config", json!({"tensor_model_parallel_size": 2})),
        ("enable_lora", json!([true, false, true])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("init_lora_weights", json!({"a": 1})),
        ("init_lora_weights", json!("unheard_of")),
        ("r", json!(65_537)),
    ] {
        let result = load(&config_with(key, value.clone()), &good_weights());
        assert_refused(&format!("{key} = {value}"), result, "unsupported", CONFIG, key, "");
    }
}

#[test]
fn what_changes_nothing_is_taken_and_kept() -> Result<()> {
    for (key, value) in [
        ("bias", json!("none")),
        ("bias", Value::Null),
        ("fan_in_fan_out", json!(false)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", Value::Null),
        ("modules_to_save", json!([])),
        ("modules_to_save", json!("")),
        ("modules_to_save", json!(["classifier"])),
        ("layer_replication", Value::Null),
        ("init_lora_weights", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("init_lora_weights", json!("orthogonal")),
        ("eva_config", json!({"rho": 2.0})),
        ("loftq_config", json!({})),
        ("corda_config", Value::Null),
        ("megatron_core", json!("megatron.core")),
        ("qalora_group_size", json!(16)),
        ("lora_dropout", json!(0.05)),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!(".*q")),
        ("auto_mapping", json!({"base_model_class": "M"})),
        ("base_model_name_or_path", json!("meta-llama/Llama-3.1-8B")),
        ("task_type", json!("CAUSAL_LM")),
        ("inference_mode", json!(true)),
        ("peft_version", json!("99.0")),
        // Set, but without effect: no bias in the file, nothing tied, nothing that PEFT knows.
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("ensure_weight_tying", json!(true)),
        ("use_something_new", json!(true)),
        ("something_new_config", json!({"n": 0})),
        ("new_modules", json!(["q"])),
        ("use_something_new", json!(false)),
        ("something_new_config", Value::Null),
        ("something_new_size", json!(32)),
        ("something_new_name", json!("x")),
    ] {
        let loaded = load(&config_with(key, value.clone()), &good_weights())?;
        let dir = tempfile::tempdir().unwrap();
        let adapters = loaded.adapters.iter().map(|(module, a)| (module.as_str(), a));
        peft::save(dir.path(), &loaded.config, adapters)?;
        let saved = fs::read(dir.path().join(CONFIG)).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&saved).unwrap()[key], value, "{key}");
    }
    Ok(())
}

#[test]
fn broken_configurations_are_named() {
    let text = |json: &str| json.as_bytes().to_vec();
    let pattern = |field, key: &str, value| config_with(field, json!({ key: value }));
    let huge = [vec![b' '; 4 << 20], text("{}")].concat();
    let keys = |key: fn(usize) -> String, n| -> Vec<u8> {
        let ranks: serde_json::Map<_, _> = (0..n).map(|i| (key(i), json!(2))).collect();
        config_with("rank_pattern", Value::Object(ranks))
    };
    for (case, config, variant, key, words) in [
        ("empty", text(""), "malformed", "the JSON", "EOF"),
        ("no object", text("[]"), "malformed", "the JSON", "an object"),
        ("cut off", text(r#"{"peft_type":"LORA","#), "malformed", "the JSON", "EOF"),
        ("garbage behind", text("{} {}"), "malformed", "the JSON", "trailing"),
        ("not UTF-8", b"{\"\xff\":1}".to_vec(), "malformed", "the JSON", "is not UTF-8"),
        ("deep", text(&"[".repeat(100_000)), "malformed", "the JSON", ""),
        ("huge", huge, "malformed", "the file", "4194304 bytes"),
        ("a key twice", text(r#"{"r":2,"r":4}"#), "malformed", "the JSON", "\"r\" twice"),
        ("no type", text(r#"{"r":2}"#), "malformed", "peft_type", "missing"),
        ("NaN", text(r#"{"peft_type":"LORA","lora_alpha":NaN}"#), "malformed", "lora_alpha", "NaN"),
        ("a key NaN", text(r#"{NaN:1}"#), "malformed", "the JSON", "key"),
        ("NaN behind", text(r#"{"a":1NaN}"#), "malformed", "the JSON", "col"),
        ("bias", config_with("bias", json!("some")), "malformed", "bias", "some"),
        (
            "layers",
            config_with("layers_to_transform", json!([0.5])),
            "malformed",
            "layers_to_transform",
            "whole",
        ),
        (
            "exclude",
            config_with("exclude_modules", json!({})),
            "malformed",
            "exclude_modules",
            "texts",
        ),
        (
            "target",
            config_with("target_modules", json!("(q")),
            "unsupported",
            "target_modules",
            "parenthesis",
        ),
        ("1e999", text(r#"{"lora_alpha":1e999}"#), "malformed", "the JSON", "out of range"),
        ("1e39", config_with("lora_alpha", json!(1e39)), "malformed", "lora_alpha", "f32"),
        ("text", config_with("lora_alpha", json!("16")), "malformed", "lora_alpha", "\"16\""),
        ("null", config_with("lora_alpha", Value::Null), "malformed", "lora_alpha", "null"),
        ("rank 0", config_with("r", json!(0)), "malformed", "r", "0"),
        ("rank -1", config_with("r", json!(-1)), "malformed", "r", "-1"),
        ("rank 2.5", config_with("r", json!(2.5)), "malformed", "r", "2.5"),
        ("rank true", config_with("r", json!(true)), "malformed", "r", "true"),
        ("rslora 1", config_with("use_rslora", json!(1)), "malformed", "use_rslora", "1"),
        ("dropout 2", config_with("lora_dropout", json!(2)), "malformed", "lora_dropout", "2"),
        ("targets", config_with("target_modules", json!([1])), "malformed", "target_modules", "1"),
        ("no map", config_with("rank_pattern", json!([])), "malformed", "rank_pattern", "object"),
        (
            "a rank that is none",
            pattern("rank_pattern", "q", json!("4")),
            "malformed",
            "rank_pattern \"q\"",
            "\"4\"",
        ),
        (
            "an alpha that is none",
            pattern("alpha_pattern", "q", json!(false)),
            "malformed",
            "alpha_pattern \"q\"",
            "false",
        ),
        (
            "a rank of 100 000",
            pattern("rank_pattern", "q", json!(100_000)),
            "unsupported",
            "rank_pattern \"q\"",
            "1..=65536",
        ),
        (
            "a key that only Python understands",
            pattern("rank_pattern", "(?>a)q", json!(2)),
            "unsupported",
            "rank_pattern \"(?>a)q\"",
            "a regular expression with a group of flags",
        ),
        (
            "ten thousand and one keys",
            keys(|i| i.to_string(), 10_001),
            "malformed",
            "rank_pattern",
            "more than 10000 keys",
        ),
        (
            "many regular expressions",
            keys(|i| format!("{i}a{{1000}}"), 257),
            "unsupported",
            "rank_pattern",
            "more than 256",
        ),
        (
            "a key twice in a pattern",
            text(r#"{"peft_type":"LORA","alpha_pattern":{"q":1,"q":2}}"#),
            "malformed",
            "the JSON",
            "\"q\" twice",
        ),
    ] {
        assert_refused(case, load(&config, &good_weights()), variant, CONFIG, key, words);
    }
}

/// A configuration without targets gets the modules that the tensors name.
#[test]
fn missing_targets_are_written() -> Result<()> {
    for config in
        [config_with("target_modules", Value::Null), br#"{"peft_type":"LORA","r":2}"#.into()]
    {
        let loaded = load(&config, &good_weights())?;
        let dir = tempfile::tempdir().unwrap();
        let adapters = loaded.adapters.iter().map(|(module, a)| (module.as_str(), a));
        peft::save(dir.path(), &loaded.config, adapters)?;
        let saved = fs::read(dir.path().join(CONFIG)).unwrap();
        let saved: Value = serde_json::from_slice(&saved).unwrap();
        assert_eq!(saved["target_modules"], json!(["q"]));
    }
    Ok(())
}

/// PEFT ignores what it does not know. In a file of a newer PEFT it may be what that one computes.
#[test]
fn unknown_fields_are_reported() -> Result<()> {
    let mut config = good_config();
    for (key, value) in [
        ("match_all_linear", json!(true)),
        ("trained_layers", json!([0])),
        ("off", json!(false)),
        ("empty", json!([])),
        ("name", json!("x")),
        ("lora_bias", json!(true)),
    ] {
        config[key] = value;
    }
    for version in [Value::Null, json!("0.21.2"), json!("0.3.0.dev0"), json!("none")] {
        config["peft_version"] = version;
        let loaded = load(config.to_string().as_bytes(), &good_weights())?;
        assert_eq!(loaded.unknown_fields, ["match_all_linear", "trained_layers"]);
    }
    for version in ["0.22.0", "1.0.0", "1"] {
        config["peft_version"] = json!(version);
        let result = load(config.to_string().as_bytes(), &good_weights());
        let key = "match_all_linear";
        assert_refused(version, result, "unsupported", CONFIG, key, "newer PEFT");
    }
    Ok(())
}

/// PEFT leaves biases of B as they are at first: 0, or at random.
#[test]
fn a_flag_without_its_tensors_counts_if_they_would_be_random() {
    let mut config = good_config();
    config["lora_bias"] = json!(true);
    config["init_lora_weights"] = json!(false);
    let result = load(config.to_string().as_bytes(), &good_weights());
    assert_refused("random", result, "unsupported", CONFIG, "lora_bias", "at random");
}

/// Python writes and reads numbers that JSON has not.
#[test]
fn nan_counts_where_it_is_used() -> Result<()> {
    let with = |field: &str| {
        format!(
            r#"{{"peft_type":"LORA","r":2,"task_type":"a \" NaN","x":[NaN, -Infinity],{field}}}"#
        )
    };
    let loaded = load(with(r#""loss":NaN,"best":Infinity"#).as_bytes(), &good_weights())?;
    assert_eq!(loaded.config.task_type(), Some("a \" NaN"));
    for (field, key) in [
        (r#""lora_alpha":-Infinity"#, "lora_alpha"),
        (r#""lora_dropout":NaN"#, "lora_dropout"),
        (r#""rank_pattern":{"q":NaN}"#, "rank_pattern \"q\""),
    ] {
        let result = load(with(field).as_bytes(), &good_weights());
        assert_refused(field, result, "malformed", CONFIG, key, "\"");
    }
    Ok(())
}
