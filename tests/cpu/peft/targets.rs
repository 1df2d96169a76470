//! Which tensors of a file become adapters: the configuration names their modules.

use super::files::{CONFIG, WEIGHTS, assert_refused, config, load, tensors};
use lora_kernels::peft;
use lora_kernels::{Device, Result};
use serde_json::json;

const MODULES: [&str; 6] = [
    "lm_head",
    "model.layers.0.attn.q_proj",
    "model.layers.0.attn.v_proj",
    "model.layers.1.mlp.experts.3.up_proj",
    "model.layers.11.attn.q_proj",
    "vision.blocks.1.attn.q_proj",
];

fn weights() -> Vec<u8> {
    let names: Vec<String> = MODULES
        .iter()
        .flat_map(|module| {
            ['A', 'B'].map(|half| format!("base_model.model.{module}.lora_{half}.weight"))
        })
        .collect();
    let shapes = [[2usize, 3], [4, 2]];
    let named: Vec<(&str, &[usize])> = names
        .iter()
        .zip(shapes.iter().cycle())
        .map(|(name, shape)| (name.as_str(), &shape[..]))
        .collect();
    tensors(&named)
}

/// What `check_target_module_exists` of PEFT 0.21.2 says of the six modules.
#[test]
fn modules_are_chosen_as_in_peft() -> Result<()> {
    for (fields, included) in [
        (json!({"target_modules": null}), vec![0, 1, 2, 3, 4, 5]),
        (json!({"target_modules": "all-linear"}), vec![1, 2, 3, 4, 5]),
        (json!({"target_modules": "All-Linear"}), vec![1, 2, 3, 4, 5]),
        (json!({"target_modules": ["q_proj"]}), vec![1, 4, 5]),
        (json!({"target_modules": ["attn.q_proj", "lm_head"]}), vec![0, 1, 4, 5]),
        (json!({"target_modules": ["_proj", "v_proj"]}), vec![2]),
        (json!({"target_modules": ["model.layers.0.attn.q_proj"]}), vec![1]),
        (json!({"target_modules": ".*[qv]_proj"}), vec![1, 2, 4, 5]),
        (json!({"target_modules": "^(?!.*vision).*(q|v)_proj$"}), vec![1, 2, 4]),
        (
            json!({"target_modules": r"(?:.*?(?:model|text).*?(?:attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bvision\.blocks\.[\d]{1,}\.attn\.q_proj)"}),
            vec![1, 3, 4, 5],
        ),
        (
            json!({"target_modules": ["q_proj"], "exclude_modules": ["blocks.1.attn.q_proj"]}),
            vec![1, 4],
        ),
        (json!({"target_modules": ["q_proj"], "exclude_modules": "vision.*"}), vec![1, 4]),
        (json!({"target_modules": ["q_proj"], "exclude_modules": ""}), vec![1, 4, 5]),
        (json!({"target_modules": ["q_proj"], "exclude_modules": "vision"}), vec![1, 4, 5]),
        (json!({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}), vec![3, 5]),
        (json!({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 11}), vec![4]),
        (
            json!({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": []}),
            vec![1, 3, 4, 5],
        ),
        (
            json!({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers"}),
            vec![3],
        ),
        (
            json!({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [3], "layers_pattern": ["experts"]}),
            vec![3],
        ),
        (
            json!({"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["layers", "blocks"]}),
            vec![1, 5],
        ),
        // A module that is named in full is there whatever its layer.
        (
            json!({"target_modules": ["lm_head", "model.layers.0.attn.q_proj"], "layers_to_transform": [5]}),
            vec![0, 1],
        ),
    ] {
        let loaded = load(&config(fields.clone()), &weights())?;
        let want: Vec<&str> = included.iter().map(|&i| MODULES[i]).collect();
        let got: Vec<&str> = loaded.adapters.keys().map(String::as_str).collect();
        assert_eq!(got, want, "{fields}");
        assert_eq!(loaded.left_out.len(), 2 * (MODULES.len() - want.len()), "{fields}");
        for name in &loaded.left_out {
            assert!(
                !want.iter().any(|module| name.contains(&format!(".{module}.lora_"))),
                "{name}"
            );
        }

        // What is saved is what was loaded.
        let dir = tempfile::tempdir().unwrap();
        let adapters = loaded.adapters.iter().map(|(module, a)| (module.as_str(), a));
        peft::save(dir.path(), &loaded.config, adapters)?;
        let again = peft::load(dir.path(), &Device::cpu(), None)?;
        assert!(again.adapters.keys().eq(loaded.adapters.keys()) && again.left_out.is_empty());
    }
    Ok(())
}

#[test]
fn a_configuration_that_leaves_out_everything_is_refused() {
    for (key, value) in [
        ("exclude_modules", json!(".*")),
        ("layers_to_transform", json!([77])),
        ("layers_pattern", json!("nowhere")),
    ] {
        let mut fields = json!({"target_modules": ["q_proj"], "layers_to_transform": [0]});
        fields[key] = value;
        let result = load(&config(fields), &weights());
        let named = "exclude_modules or layers_to_transform";
        assert_refused(key, result, "malformed", CONFIG, named, "leaves out all");
    }
}

/// A configuration that names nothing in the file is of other names: the tensors decide, and it is
/// said.
#[test]
fn targets_of_another_file_are_disregarded() -> Result<()> {
    for targets in [json!([]), json!(["k_proj"]), json!("language_model.*")] {
        let loaded = load(&config(json!({"target_modules": targets})), &weights())?;
        assert!(loaded.targets_disregarded && loaded.left_out.is_empty());
        assert!(loaded.adapters.keys().eq(MODULES.iter()));
        let dir = tempfile::tempdir().unwrap();
        let adapters = loaded.adapters.iter().map(|(module, a)| (module.as_str(), a));
        peft::save(dir.path(), &loaded.config, adapters)?;
        assert!(!peft::load(dir.path(), &Device::cpu(), None)?.targets_disregarded);
    }
    Ok(())
}

/// A tensor that is left out is not looked at; others that PEFT drops are refused.
#[test]
fn only_what_the_configuration_leaves_out_is_skipped() -> Result<()> {
    let (a, b) = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight");
    let with =
        |name| load(&config(json!({})), &tensors(&[(a, &[2, 3]), (b, &[4, 2]), (name, &[0])]));
    let name = "base_model.model.k.lora_A.weight";
    assert_eq!(with(name)?.left_out, [name]);
    for (name, why) in [
        ("k.lora_A.weight", "does not begin with"),
        ("base_model.k.lora_A.weight", "does not begin with"),
        ("base_model.model.base_model.model.q.lora_A.weight", "twice"),
        ("base_model.model.mlp.experts.lora_A.weight", "target_parameters"),
        ("base_model.model.mlp.experts.base_layer.lora_B.weight", "target_parameters"),
    ] {
        assert_refused(name, with(name), "unsupported", WEIGHTS, name, why);
    }
    Ok(())
}

/// The tensors decide whether something tied has an adapter.
#[test]
fn shared_adapters_are_refused_where_there_may_be_some() -> Result<()> {
    let load = |targets| {
        let fields = json!({"ensure_weight_tying": true, "target_modules": targets});
        load(&config(fields), &weights())
    };
    load(["q_proj"])?;
    let key = "ensure_weight_tying";
    assert_refused("lm_head", load(["lm_head"]), "unsupported", CONFIG, key, "lm_head");
    Ok(())
}
