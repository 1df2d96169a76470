//! Adapters that are more than pairs of linear layers: merged as PEFT merged them.
//!
//! `tests/fixtures/peft/extras.py` made them: the bases, PEFT's adapters, and the tensors that
//! differ from the base's in what PEFT and transformers saved of the merged model.

use super::{Setting, values};
use crate::Result;
use approx::abs_diff_eq;
use lora_kernels::DType;
use lora_kernels::peft::TensorFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn extras() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft/extras")
}

/// The names of all cases.
fn cases() -> Vec<String> {
    let names = fs::read_dir(extras()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with("base-")).collect();
    names.sort();
    assert_eq!(names.len(), 29);
    names
}

/// The base of a case, and what PEFT's `config.json` says.
fn metadata(merged: &Path) -> (PathBuf, Value) {
    let bytes = fs::read(merged).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = metadata.metadata().as_ref().unwrap();
    let config: Value = serde_json::from_str(&metadata["config"]).unwrap();
    let base = config["base"].as_str().unwrap();
    (extras().join(format!("base-{base}")), config)
}

/// A setting with a copy of a case's adapter and base.
fn setting(case: &str) -> (Setting, Value) {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    let (base, config) = metadata(&extras().join(case).join("merged.safetensors"));
    for (from, to) in [(base, "base"), (extras().join(case), "adapter")] {
        fs::create_dir(setting.path(to)).unwrap();
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), setting.path(to).join(file.file_name())).unwrap();
        }
    }
    (setting, config)
}

/// Shapes, element types and numbers of all tensors of a file.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, DType, Vec<f32>)> {
    let file = TensorFile::open(path).unwrap();
    let entries = file.entries().iter();
    entries
        .map(|(name, entry)| {
            let of = (entry.shape.clone(), entry.dtype.unwrap(), values(path, name));
            (name.clone(), of)
        })
        .collect()
}

/// PEFT adds the products of A and B in f32, up to 257 of them one after the other, and the numbers
/// are at most about 4; in 16 bits it rounds the sum and each of its parts.
fn bound(dtype: DType, want: f32) -> f32 {
    match dtype {
        DType::Bf16 => want.abs() * 2f32.powi(-8),
        _ => 2f32.powi(-21),
    }
}

#[test]
fn merged_as_by_peft() -> Result<()> {
    for case in cases() {
        let (setting, config) = setting(&case);
        setting.run("base", "out", &[])?;
        let mut want = tensors(&setting.path("base/model.safetensors"));
        let changed = tensors(&extras().join(&case).join("merged.safetensors"));
        let names: Vec<String> = changed.keys().cloned().collect();
        want.extend(changed);
        let got = tensors(&setting.path("out/model.safetensors"));
        assert!(got.keys().eq(want.keys()), "{case}: {:?}", got.keys());
        for (name, (shape, dtype, want)) in want {
            let (got_shape, got_dtype, got) = &got[&name];
            assert_eq!((got_shape, *got_dtype), (&shape, dtype), "{case}: {name}");
            let exact = !names.contains(&name);
            for (at, (&want, &got)) in want.iter().zip(got).enumerate() {
                let bound = if exact { 0.0 } else { bound(dtype, want) };
                let near = abs_diff_eq!(got, want, epsilon = bound);
                assert!(near, "{case}: {name}[{at}] is {got}, but {want} in PEFT");
            }
        }
        let saved: Value = serde_json::from_slice(&fs::read(setting.path("out/config.json"))?)?;
        for key in ["tie_word_embeddings", "vocab_size"] {
            assert_eq!(saved[key], config[key], "{case}: {key} in config.json");
        }
    }
    Ok(())
}

/// What has no weight of its own is in the way of taking an adapter out.
#[test]
fn only_updates_are_taken_out() -> Result<()> {
    for (case, what) in [
        ("whole", Some("modules saved whole")),
        ("head-llama", Some("modules saved whole")),
        ("tokens", Some("rows of embeddings")),
        ("dora-bf16", Some("magnitudes (DoRA)")),
        ("embedding", Some("modules saved whole")),
        ("lora-bias", None),
        ("experts", None),
        ("experts-transposed", None),
    ] {
        let (setting, _) = setting(case);
        let result = setting.run("base", "out", &["--scale", "-1"]);
        match what {
            Some(what) => assert!(result.unwrap_err().to_string().contains(what), "{case}"),
            None => {
                result?;
                fs::rename(setting.path("out"), setting.path("merged-out"))?;
                setting.run("merged-out", "back", &[])?;
                let back = tensors(&setting.path("back/model.safetensors"));
                for (name, (_, _, want)) in tensors(&setting.path("base/model.safetensors")) {
                    let near = abs_diff_eq!(want[..], back[&name].2[..], epsilon = 1e-6);
                    assert!(near, "{case}: {name}");
                }
            }
        }
    }
    Ok(())
}

/// In shards, what is new goes to the last one, and the index names it.
#[test]
fn new_tensors_are_in_the_index() -> Result<()> {
    let (setting, _) = setting("head-llama");
    let index = serde_json::json!({
        "metadata": {"total_size": 1},
        "weight_map": tensors(&setting.path("base/model.safetensors"))
            .into_keys()
            .map(|name| (name, "model.safetensors".to_string()))
            .collect::<BTreeMap<_, _>>(),
    });
    fs::write(setting.path("base/model.safetensors.index.json"), index.to_string())?;
    setting.run("base", "out", &[])?;
    let index = fs::read(setting.path("out/model.safetensors.index.json"))?;
    let index: Value = serde_json::from_slice(&index)?;
    assert_eq!(index["weight_map"]["score.weight"], "model.safetensors");
    let merged = tensors(&setting.path("out/model.safetensors"));
    let bytes: usize = merged.values().map(|(_, dtype, values)| values.len() * dtype.bytes()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), merged.len());
    Ok(())
}

/// What PEFT would drop or refuse is refused, and named.
#[test]
fn what_does_not_fit_the_base_is_named() {
    let change = |case: &str, config: &dyn Fn(&mut Value)| {
        let (setting, _) = setting(case);
        let path = setting.path("adapter/adapter_config.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config(&mut value);
        fs::write(path, value.to_string()).unwrap();
        setting
    };
    // A head that modules_to_save does not name is no parameter of the model.
    let setting = change("head-llama", &|config| {
        config["modules_to_save"] = Value::Null;
        config["task_type"] = "CAUSAL_LM".into();
    });
    let error = setting.error("base", "out");
    assert!(error.contains("has no score.weight") && error.contains("PEFT drops it"), "{error}");
    // A module that is named, but not in the adapter's file.
    let setting =
        change("whole-bf16", &|config| config["modules_to_save"] = ["mlp"].as_slice().into());
    let error = setting.error("base", "out");
    assert!(error.contains("model.layers.0.mlp.down_proj.weight"), "{error}");
    assert!(error.contains("modules_to_save"), "{error}");
    // A parameter of a vocabulary of another size, alone.
    let (setting, _) = self::setting("resized");
    let mut weights = fs::read(setting.path("adapter/adapter_model.safetensors")).unwrap();
    rename(&mut weights, "base_model.model.lm_head.weight", "base_model.model.lm_heap.weight");
    fs::write(setting.path("adapter/adapter_model.safetensors"), weights).unwrap();
    let error = setting.error("base", "out");
    assert!(error.contains("has no lm_heap.weight"), "{error}");
    // Experts of another model.
    let (setting, _) = self::setting("experts");
    let (other, _) = self::setting("experts-mixtral");
    fs::rename(setting.path("base"), setting.path("own")).unwrap();
    fs::rename(other.path("base"), setting.path("base")).unwrap();
    let error = setting.error("base", "out");
    assert!(
        error.contains("model.layers.0.mlp.experts") && error.contains("do not fit"),
        "{error}"
    );
    // A bias of B where the layer has none.
    let (setting, _) = self::setting("lora-bias");
    let mut weights = fs::read(setting.path("base/model.safetensors")).unwrap();
    rename(&mut weights, "layer.0.attention.self.query.bias", "layer.0.attention.self.query.bios");
    fs::write(setting.path("base/model.safetensors"), weights).unwrap();
    let error = setting.error("base", "out");
    assert!(error.contains("query.bias") && error.contains("lora_bias"), "{error}");
    // A row beyond the vocabulary.
    let setting =
        change("tokens", &|config| config["trainable_token_indices"] = [7, 10].as_slice().into());
    let error = setting.error("base", "out");
    assert!(error.contains("model.embed_tokens.weight has shape [10, 8]"), "{error}");
}

/// Another name of the same length in a file's header.
fn rename(file: &mut [u8], from: &str, to: &str) {
    let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
}

/// Headers with bytes changed: an error, or an output that can be read.
#[test]
fn mutated_files_never_panic() -> Result<()> {
    let mut state = 5u64;
    let mut next = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % n
    };
    let (mut merged, mut refused) = (0, 0);
    for case in cases() {
        let (setting, _) = setting(&case);
        let files = ["adapter/adapter_model.safetensors", "base/model.safetensors"];
        for round in 0..60 {
            let file = setting.path(files[round % 2]);
            let good = fs::read(&file)?;
            let mut bytes = good.clone();
            let length = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
            for _ in 0..=next(3) {
                bytes[8 + next(length)] = b"0123456789[],qwol._"[next(19)];
            }
            fs::write(&file, bytes)?;
            let out = format!("out-{round}");
            match setting.run("base", &out, &[]) {
                Ok(_) => {
                    merged += 1;
                    tensors(&setting.path(&out).join("model.safetensors"));
                }
                Err(_) => refused += 1,
            }
            fs::write(&file, good)?;
        }
    }
    assert!(merged > 100 && refused > 100, "{merged} merged, {refused} refused");
    Ok(())
}
