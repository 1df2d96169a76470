//! A PEFT directory as bytes, good but for what a test changes, and what its error must say.

use lora_kernels::peft::{self, Adapters};
use lora_kernels::{Device, Error, Result};
use serde_json::{Value, json};

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";
pub const A: &str = "base_model.model.q.lora_A.weight";
pub const B: &str = "base_model.model.q.lora_B.weight";

/// A file of the header and so many bytes of data.
pub fn file(header: &str, data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0x3c; data]].concat()
}

/// An adapter of rank 2 for a weight of [4, 3], in f32.
pub fn good_header() -> String {
    let (a, b) = (info("F32", "[2,3]", "[0,24]"), info("F32", "[4,2]", "[24,56]"));
    format!(r#"{{"__metadata__":{{"format":"pt"}},"{A}":{a},"{B}":{b}}}"#)
}

pub fn good_weights() -> Vec<u8> {
    file(&good_header(), 56)
}

pub fn good_config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]})
}

/// The good configuration with these fields.
pub fn config(fields: Value) -> Vec<u8> {
    let mut config = good_config();
    for (key, value) in fields.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string().into_bytes()
}

pub fn config_with(key: &str, value: Value) -> Vec<u8> {
    config(json!({ key: value }))
}

pub fn load(config: &[u8], weights: &[u8]) -> Result<Adapters> {
    peft::load_from_bytes(config, weights, &Device::cpu(), None)
}

pub fn load_weights(weights: &[u8]) -> Result<Adapters> {
    load(good_config().to_string().as_bytes(), weights)
}

/// Which variant an error is of, the key it names, and its words.
pub fn parts(error: &Error) -> (&'static str, String, String) {
    match error {
        Error::Malformed { key, .. } => ("malformed", key.clone(), error.to_string()),
        Error::Unsupported { key, .. } => ("unsupported", key.clone(), error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub fn assert_refused(
    case: &str,
    result: Result<Adapters>,
    variant: &str,
    file: &str,
    key: &str,
    words: &str,
) {
    let error = result.err().unwrap_or_else(|| panic!("{case} was taken"));
    let (got, named, message) = parts(&error);
    assert_eq!((got, named.as_str()), (variant, key), "{case}: {message}");
    assert!(message.contains(file) && message.contains(words), "{case}: {message}");
}

/// A header with one tensor of rank 2 and the B that belongs to it, but for the given parts.
pub fn header(a: &str, b: &str) -> String {
    format!(r#"{{"{A}":{a},"{B}":{b}}}"#)
}

pub fn info(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

/// A file of f32 tensors with the given names and shapes.
pub fn tensors(of: &[(&str, &[usize])]) -> Vec<u8> {
    let mut end = 0;
    let entries: Vec<String> = of
        .iter()
        .map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            let info = info("F32", &format!("{shape:?}"), &format!("[{start},{end}]"));
            format!("{}:{info}", json!(name))
        })
        .collect();
    file(&format!("{{{}}}", entries.join(",")), end)
}
