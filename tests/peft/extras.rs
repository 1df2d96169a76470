//! What a directory holds besides adapters of linear layers: kept by load and save.
//!
//! `tests/fixtures/peft/extras.py` made the cases, and with `make.py --check` loads what
//! `LORA_KERNELS_PEFT_OUT=DIR cargo test --features peft --test peft` leaves in DIR.

use crate::common::peft::fixture;
use crate::common::{assert_same_bits, relative_error};
use crate::files::{A, B, CONFIG, WEIGHTS, assert_refused, good_config, load, tensors};
use lora_kernels::peft::{self, Adapters, Config, Extras, TensorFile};
use lora_kernels::{DType, Device, LoraLinear, Result, Scaling, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn cases() -> Vec<String> {
    let names = fs::read_dir(fixture("extras")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("base-")).collect()
}

fn load_case(case: &str) -> Result<Adapters> {
    peft::load(fixture("extras").join(case), &Device::cpu(), None)
}

fn save(dir: &Path, config: &Config, adapters: &Adapters) -> Result<()> {
    peft::save(dir, config, adapters.adapters.iter().map(|(module, a)| (module.as_str(), a)))
}

/// The header of a file without its metadata, and the data.
fn contents(dir: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    header.as_object_mut().unwrap().remove("__metadata__");
    (header, bytes[end..].to_vec())
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
        assert!(contents(&dir) == contents(&own), "{case}: the weights");
        assert_eq!(config_of(&dir), config_of(&own), "{case}");
        // As what was saved is loaded: the fingerprint is of the configuration.
        peft::load(&dir, &Device::cpu(), None)?;
    }
    Ok(())
}

/// What is there of each kind, by name.
fn names(extras: &Extras) -> [Vec<&str>; 4] {
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

/// The numbers of a tensor of a case's base, or of PEFT's merged model.
fn numbers(path: &str, name: &str) -> Vec<f32> {
    let mut file = TensorFile::open(fixture("extras").join(path)).unwrap();
    file.tensor(name, &Device::cpu(), Some(DType::F32)).unwrap().to_f32_vec().unwrap()
}

/// The experts' adapters are adapters of linear layers that compute what PEFT's merged experts do.
#[test]
fn experts_become_layers() -> Result<()> {
    let cpu = Device::cpu();
    // Case, base, shape of down_proj [E, ..], and d, k.
    for (case, base, transposed) in
        [("experts-transposed", "base-gpt-oss", true), ("experts-square", "base-gpt-oss", true)]
    {
        let loaded = load_case(case)?;
        let experts = &loaded.config.extras().parameters["model.layers.0.mlp.experts"];
        let shapes: [(&str, &[usize]); 2] =
            [("gate_up_proj", &[3, 8, 16]), ("down_proj", &[3, 8, 8])];
        let fitted = experts.fit(&shapes, Some(transposed))?;
        for parameter in fitted {
            let name = format!("model.layers.0.mlp.experts.{}", parameter.parameter);
            let old = numbers(&format!("{base}/model.safetensors"), &name);
            let new = numbers(&format!("{case}/merged.safetensors"), &name);
            assert_eq!((parameter.experts, parameter.transposed, parameter.rank()), (3, true, 2));
            for (expert, adapter) in parameter.adapters(&cpu, DType::F32)?.into_iter().enumerate() {
                let (d, k) = (adapter.b().shape().rows(), adapter.a().shape().cols());
                // [k, d] in the file.
                let matrix = |all: &[f32]| -> Vec<f32> {
                    let all = &all[expert * d * k..(expert + 1) * d * k];
                    (0..d * k).map(|at| all[(at % k) * d + at / k]).collect()
                };
                let w0 = Tensor::from_f32(&cpu, &matrix(&old), [d, k], DType::F32)?;
                let layer = LoraLinear::new(w0, adapter)?;
                let identity: Vec<f32> =
                    (0..k * k).map(|at| f32::from(u8::from(at / k == at % k))).collect();
                let x = Tensor::from_f32(&cpu, &identity, [k, k], DType::F32)?;
                let h = layer.forward(&x)?.h.remove(0).to_f32_vec()?;
                let want = matrix(&new);
                let transposed: Vec<f32> =
                    (0..k * d).map(|at| want[(at % d) * k + at / d]).collect();
                let error = relative_error(&h, &transposed);
                assert!(error < 4.0 / (1 << 24) as f64, "{name} {expert}: {error:e}");
            }
        }
    }
    Ok(())
}

/// Shapes that fit in no way, in several, or square ones of which nothing is known.
#[test]
fn experts_that_do_not_fit_are_named() -> Result<()> {
    let loaded = load_case("experts-transposed")?;
    let experts = &loaded.config.extras().parameters["model.layers.0.mlp.experts"];
    assert!(experts.candidates().eq(["down_proj", "gate_up_proj"]));
    let fit = |shapes: &[(&str, &[usize])]| experts.fit(shapes, None).map(|fitted| fitted.len());
    // The square one is stored as the other.
    assert_eq!(fit(&[("gate_up_proj", &[3, 8, 16]), ("down_proj", &[3, 8, 8])])?, 2);
    for shapes in [
        [("gate_up_proj", &[3, 8, 17][..]), ("down_proj", &[3, 8, 8][..])],
        [("gate_up_proj", &[2, 8, 16]), ("down_proj", &[2, 8, 8])],
        [("gate_up_proj", &[3, 8, 16]), ("down_proj", &[24, 8])],
        [("gate_up_proj", &[3, 8, 16]), ("other", &[3, 8, 8])],
    ] {
        let error = fit(&shapes).unwrap_err().to_string();
        assert!(error.contains("model.layers.0.mlp.experts"), "{error}");
        assert!(error.contains("gate_up_proj"), "{error}");
    }
    let loaded = load_case("experts-square")?;
    let experts = &loaded.config.extras().parameters["model.layers.0.mlp.experts"];
    let error = experts.fit(&[("down_proj", &[3, 8, 8])], None).unwrap_err().to_string();
    assert!(error.contains("is square"), "{error}");
    for transposed in [false, true] {
        let fitted = experts.fit(&[("down_proj", &[3, 8, 8])], Some(transposed))?;
        assert_eq!(fitted[0].transposed, transposed);
    }
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

/// Names without a module are of experts, others of the modules that they name.
#[test]
fn target_parameters_name_modules() -> Result<()> {
    let name = |module: &str, half| format!("base_model.model.{module}.lora_{half}.weight");
    let load = |module: &str, targets: Value| {
        let (a, b) = (name(module, 'A'), name(module, 'B'));
        let fields = json!({"target_modules": [], "target_parameters": targets});
        load(&config(fields), &tensors(&[(&a, &[4, 3]), (&b, &[4, 4])]))
    };
    for (module, targets, candidates) in [
        ("l.experts", json!(["down", "up"]), vec!["down", "up"]),
        ("l.experts", json!(["experts.down", "l.experts.down"]), vec!["down"]),
        ("l.moe", json!(["moe.down", "up"]), vec!["down"]),
        ("moe", json!(["moe.down", "oe.up"]), vec!["down"]),
    ] {
        let loaded = load(module, targets.clone())?;
        let parameters = &loaded.config.extras().parameters[module];
        assert!(parameters.candidates().eq(candidates), "{module}, {targets}");
    }
    let result = load("l.experts", json!(["router.weight"]));
    let key = name("l.experts", 'A');
    assert_refused("others", result, "unsupported", WEIGHTS, &key, "target_parameters");
    let many: Vec<String> = (0..17).map(|i| format!("p{i}")).collect();
    let result = load("l.experts", json!(many));
    assert_refused("many", result, "unsupported", CONFIG, "target_parameters", "more than 16");
    Ok(())
}

fn config(fields: Value) -> Vec<u8> {
    let mut config = good_config();
    for (key, value) in fields.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string().into_bytes()
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

/// A number below n, of a generator that is the same on every run.
fn next(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*state >> 33) as usize) % n
}

/// PEFT's own files with bytes changed in the header or the configuration: an error that names the
/// file, or something that is saved and loaded again as it is.
#[test]
fn mutated_files_never_panic() -> Result<()> {
    const INTERESTING: &[u8] = b"\"{}[],:0123-. ABbw_wleghtruf";
    let dir = tempfile::tempdir().unwrap();
    let (mut state, mut taken, mut refused) = (7, 0, 0);
    for case in cases() {
        let from = fixture("extras").join(&case);
        let (config, weights) =
            (fs::read(from.join(CONFIG)).unwrap(), fs::read(from.join(WEIGHTS)).unwrap());
        for round in 0..100 {
            let mut files = [config.clone(), weights.clone()];
            for _ in 0..=next(&mut state, 3) {
                let bytes = &mut files[round % 2];
                let header = bytes.len().min(1500);
                let at = next(&mut state, header);
                match next(&mut state, 4) {
                    0 => bytes[at] ^= 1 << next(&mut state, 8),
                    1 | 2 => bytes[at] = INTERESTING[next(&mut state, INTERESTING.len())],
                    _ => {
                        let other = next(&mut state, header);
                        bytes.swap(at, other);
                    }
                }
            }
            match load(&files[0], &files[1]) {
                Ok(loaded) => {
                    taken += 1;
                    save(dir.path(), &loaded.config, &loaded)?;
                    let again = peft::load(dir.path(), &Device::cpu(), None)?;
                    assert!(again.adapters.keys().eq(loaded.adapters.keys()), "{case}");
                    let (one, other) = (loaded.config.extras(), again.config.extras());
                    assert_eq!(names(one), names(other), "{case}");
                    for parameters in one.parameters.values() {
                        let shape: &[usize] = &[3, 8, 8];
                        let shapes: Vec<_> = parameters.candidates().map(|p| (p, shape)).collect();
                        let _ = parameters.fit(&shapes, Some(false));
                    }
                }
                Err(error) => {
                    refused += 1;
                    let message = error.to_string();
                    assert!(message.contains(CONFIG) || message.contains(WEIGHTS), "{message}");
                }
            }
        }
    }
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
    Ok(())
}
