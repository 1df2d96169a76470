//! The fields of `adapter_config.json`: which are read, which are kept, and which are refused.

use super::file::{malformed, unsupported};
use super::formats;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Fields that change what an adapter computes, where they are set, and what they then ask for.
const REFUSED: [(&str, &str); 10] = [
    ("alora_invocation_tokens", "adapters that act from certain tokens on (aLoRA)"),
    ("arrow_config", "adapters that a router chooses among (Arrow)"),
    ("enable_lora", "adapters of a part of a fused layer"),
    ("kasa_config", "base weights without their smallest singular values (KaSA)"),
    ("layer_replication", "layers that are there several times"),
    ("megatron_config", "layers of Megatron"),
    ("monteclora_config", "adapters that are sampled (MonteCLoRA)"),
    ("use_bdlora", "block-diagonal adapters (BD-LoRA)"),
    ("use_qalora", "inputs pooled in groups (QALoRA)"),
    ("velora_config", "gradients from compressed activations (VeLoRA)"),
];

/// Fields that change nothing of what the tensors say, or that are read elsewhere.
/// `ensure_weight_tying` counts where a tied module has an adapter.
const KNOWN: [&str; 34] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// The initial weights that leave the base weights as they are.
const INITIAL_WEIGHTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Beginnings of initialisations that change the base weights, also when PEFT loads the adapter.
const CHANGING_WEIGHTS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// The largest rank that is read.
const MAX_RANK: u64 = 1 << 16;

/// What PEFT needs to be told of an adapter that was made here.
pub(super) fn of_new_adapters() -> BTreeMap<String, Value> {
    [
        ("base_model_name_or_path", Value::Null),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("lora_dropout", json!(0.0)),
        ("modules_to_save", Value::Null),
        ("peft_type", json!("LORA")),
        ("task_type", Value::Null),
        ("use_dora", json!(false)),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into()
}

/// The version of PEFT whose fields this crate knows.
const PEFT_VERSION: (u64, u64) = (0, 21);

/// Refuses fields that ask for what this crate does not compute. PEFT ignores fields that it does
/// not know, and so does this crate, unless a newer PEFT wrote the file: then a field that is
/// `true`, or a list or object with something in it, may be how that one switches something on.
pub(super) fn check(path: &Path, fields: &BTreeMap<String, Value>) -> Result<()> {
    let field = |key| Field { path, key, value: fields.get(key) };
    let peft_type = field("peft_type");
    match peft_type.value {
        Some(Value::String(name)) if name == "LORA" => {}
        Some(Value::String(name)) => return peft_type.refuse(format!("{name}, only LORA is")),
        None => match formats::of_config(fields) {
            Some(format) => return Err(unsupported(path, "the file", format)),
            None => {
                let reason =
                    "is missing: this is no configuration that PEFT's save_pretrained wrote";
                return Err(malformed(path, "peft_type", reason));
            }
        },
        _ => return Err(peft_type.wrong("is not \"LORA\" or another name")),
    }
    let bias = field("bias");
    match bias.value {
        None | Some(Value::Null) => {}
        Some(Value::String(which)) if ["none", "all", "lora_only"].contains(&which.as_str()) => {}
        Some(_) => return Err(bias.wrong("is not \"none\", \"all\" or \"lora_only\"")),
    }
    let initial = field("init_lora_weights");
    match initial.value {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(Value::String(name))
            if INITIAL_WEIGHTS.contains(&name.to_ascii_lowercase().as_str())
                || changes_weights(name) => {}
        Some(name) => return initial.refuse(format!("{name}: PEFT 0.21 has no such")),
    }
    for key in ["modules_to_save", "target_parameters"] {
        let names = field(key);
        let is_list = |value: &Value| !value.is_string() && is_text_or_texts(value);
        if !names.value.is_none_or(|value| !is_set(value) || is_list(value)) {
            return Err(names.wrong("is not a list of texts"));
        }
    }
    field("use_dora").flag()?;
    field("lora_bias").flag()?;
    let dropout = field("lora_dropout");
    if !dropout.value.is_none_or(|value| value.as_f64().is_some_and(|p| (0.0..=1.0).contains(&p))) {
        return Err(dropout.wrong("is not a number from 0 to 1"));
    }
    let targets = field("target_modules");
    if !targets.value.is_none_or(is_text_or_texts) {
        return Err(targets.wrong("is not a text or a list of texts"));
    }
    for (key, reason) in REFUSED {
        if fields.get(key).is_some_and(is_set) {
            return field(key).refuse(reason);
        }
    }
    let random_biases = field("lora_bias").value.is_some_and(is_set)
        && field("init_lora_weights").value == Some(&Value::Bool(false));
    if random_biases {
        return field("lora_bias").refuse("with init_lora_weights of false: biases of B at random");
    }
    if is_newer(fields)
        && let Some((key, _)) = fields.iter().find(|(key, value)| is_unknown(key, value))
    {
        let reason = "a setting that PEFT 0.21 does not know, in a file of a newer PEFT";
        return field(key).refuse(reason);
    }
    Ok(())
}

/// The names of modules saved whole: PEFT adds the heads of some kinds of models.
pub(super) fn modules_to_save(fields: &BTreeMap<String, Value>) -> impl Iterator<Item = &str> {
    let of_task: &[&str] = match fields.get("task_type").and_then(Value::as_str) {
        Some("SEQ_CLS" | "TOKEN_CLS") => &["classifier", "score"],
        Some("QUESTION_ANS") => &["qa_outputs"],
        _ => &[],
    };
    let named = fields.get("modules_to_save").and_then(Value::as_array);
    named.into_iter().flatten().filter_map(Value::as_str).chain(of_task.iter().copied())
}

fn changes_weights(initial: &str) -> bool {
    let initial = initial.to_ascii_lowercase();
    CHANGING_WEIGHTS.iter().any(|start| initial.starts_with(start))
}

/// What `init_lora_weights` says where the adapters belong to base weights that were changed.
pub(super) fn changing_weights(fields: &BTreeMap<String, Value>) -> Option<&str> {
    fields.get("init_lora_weights")?.as_str().filter(|initial| changes_weights(initial))
}

/// Whether PEFT ignores a field that is on.
pub(super) fn is_unknown(key: &str, value: &Value) -> bool {
    let known = KNOWN.contains(&key) || REFUSED.iter().any(|(refused, _)| *refused == key);
    !known && !value.is_string() && !value.is_number() && is_set(value)
}

/// Whether a newer PEFT wrote the file than the one whose fields this crate knows.
fn is_newer(fields: &BTreeMap<String, Value>) -> bool {
    let version = fields.get("peft_version").and_then(Value::as_str).unwrap_or_default();
    let mut parts = version.split('.').map_while(|part| part.parse::<u64>().ok());
    parts.next().is_some_and(|major| (major, parts.next().unwrap_or(0)) > PEFT_VERSION)
}

pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn is_text_or_texts(value: &Value) -> bool {
    match value {
        Value::Null | Value::String(_) => true,
        Value::Array(values) => values.iter().all(Value::is_string),
        _ => false,
    }
}

/// A field that is being read, with what an error must name.
pub(super) struct Field<'a> {
    pub path: &'a Path,
    pub key: &'a str,
    pub value: Option<&'a Value>,
}

impl Field<'_> {
    fn wrong(&self, reason: &str) -> Error {
        let got = self.value.map_or("it is missing".into(), brief);
        malformed(self.path, self.key, format!("{reason}: {got}"))
    }

    fn refuse<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(unsupported(self.path, self.key, reason))
    }

    /// A flag, which may be missing.
    pub fn flag(&self) -> Result<bool> {
        match self.value {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong("is not true or false")),
        }
    }

    /// Makes sure of an object, which may be missing.
    pub fn object(&self) -> Result<()> {
        match self.value {
            None | Some(Value::Null | Value::Object(_)) => Ok(()),
            Some(_) => Err(self.wrong("is not an object")),
        }
    }

    /// A rank; 8 if it is missing, as in PEFT.
    pub fn rank(&self) -> Result<usize> {
        let Some(value) = self.value else { return Ok(8) };
        match value.as_u64() {
            Some(rank @ 1..=MAX_RANK) => Ok(rank as usize),
            Some(rank) if rank > MAX_RANK => {
                self.refuse(format!("rank {rank} is outside 1..={MAX_RANK}"))
            }
            _ => Err(self.wrong("is not a whole number from 1 up")),
        }
    }

    /// An α; 8 if it is missing, as in PEFT.
    pub fn alpha(&self) -> Result<f32> {
        let Some(value) = self.value else { return Ok(8.0) };
        match value.as_f64().map(|alpha| alpha as f32) {
            Some(alpha) if alpha.is_finite() => Ok(alpha),
            _ => Err(self.wrong("is not a number that f32 can hold")),
        }
    }
}

/// The beginning of a value's text.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
