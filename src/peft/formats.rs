//! What a directory holds that is not PEFT's two files, and what to do about it.

use super::file::{CONFIG_FILE, WEIGHTS_FILE, unreadable, unsupported};
use super::other::names::{self, Format};
use crate::error::Error;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// How many names of a directory are looked at, and how many sub-folders are named.
const MAX_NAMES: usize = 10_000;
const MAX_FOLDERS: usize = 8;

/// The error for a directory that has no `adapter_config.json`.
pub(super) fn no_config(dir: &Path, error: io::Error) -> Error {
    let path = dir.join(CONFIG_FILE);
    if dir.is_file() {
        let reason =
            format!("it is a file; name the directory of {CONFIG_FILE} and {WEIGHTS_FILE}");
        return unreadable(dir, with_reason(&error, reason));
    }
    if error.kind() != io::ErrorKind::NotFound {
        return unreadable(&path, error);
    }
    let reason = if dir.join(WEIGHTS_FILE).exists() {
        format!("{error}; PEFT writes it beside {WEIGHTS_FILE}: copy it from where that comes from")
    } else {
        match folders(dir, CONFIG_FILE) {
            Some(folders) => {
                format!("{error}; adapters are in its sub-folders: name one of {folders}")
            }
            None => error.to_string(),
        }
    };
    unreadable(&path, with_reason(&error, reason))
}

/// The error for a directory that has an `adapter_config.json`, but no weights.
pub(super) fn no_weights(dir: &Path, error: io::Error) -> Error {
    let path = dir.join(WEIGHTS_FILE);
    if error.kind() != io::ErrorKind::NotFound {
        return unreadable(&path, error);
    }
    let index = dir.join(format!("{WEIGHTS_FILE}.index.json"));
    let pickle = dir.join("adapter_model.bin");
    if index.exists() || names(dir).any(|name| is_shard(&name)) {
        let reason = "an adapter in several files, which PEFT does not load either; join them: \
                      python -c 'import glob, safetensors.torch as s; s.save_file({k: v for f in \
                      glob.glob(\"adapter_model-*.safetensors\") for k, v in s.load_file(f).items()}, \
                      \"adapter_model.safetensors\", {\"format\": \"pt\"})'";
        return unsupported(if index.exists() { &index } else { dir }, "the adapter", reason);
    }
    if pickle.exists() {
        let reason = "a pickle file; convert it: python -c 'import torch, safetensors.torch as s; \
                      s.save_file({k: v.clone().contiguous() for k, v in \
                      torch.load(\"adapter_model.bin\", map_location=\"cpu\", \
                      weights_only=True).items()}, \"adapter_model.safetensors\", \
                      {\"format\": \"pt\"})'";
        return unsupported(&pickle, "the file", reason);
    }
    let reason = match folders(dir, WEIGHTS_FILE) {
        Some(folders) => format!("{error}; adapters are in its sub-folders: name one of {folders}"),
        None => error.to_string(),
    };
    unreadable(&path, with_reason(&error, reason))
}

/// What a configuration without `peft_type` is, if that can be told.
pub(super) fn of_config(fields: &BTreeMap<String, Value>) -> Option<&'static str> {
    let of_mlx = ["fine_tune_type", "lora_parameters", "num_layers", "lora_layers"];
    of_mlx.iter().any(|key| fields.contains_key(*key)).then_some(
        "mlx-lm's configuration, whose weights are adapters.safetensors with names that end in \
         lora_a and lora_b",
    )
}

/// What the name of a tensor among PEFT's says of the format that it is of.
pub(super) fn of_tensor(name: &str) -> Option<&'static str> {
    Some(match names::of_name(name)? {
        Format::MlxLm => "a name of mlx-lm among PEFT's",
        Format::MistralFinetune => "a name of mistral-finetune among PEFT's",
        Format::Kohya | Format::Diffusers => "a name of kohya's scripts or diffusers among PEFT's",
        Format::Peft => return None,
    })
}

/// The sub-folders that hold a file, in words.
fn folders(dir: &Path, file: &str) -> Option<String> {
    let holds = |name: &String| !name.starts_with('.') && dir.join(name).join(file).is_file();
    let mut folders: Vec<String> = names(dir).filter(holds).collect();
    folders.sort();
    let more = folders.len().saturating_sub(MAX_FOLDERS);
    folders.truncate(MAX_FOLDERS);
    match (folders.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(folders.join(", ")),
        (false, more) => Some(format!("{} and {more} more", folders.join(", "))),
    }
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().take(MAX_NAMES);
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

fn is_shard(name: &str) -> bool {
    name.strip_prefix("adapter_model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .is_some_and(|rest| rest.contains("-of-"))
}

fn with_reason(error: &io::Error, reason: String) -> io::Error {
    io::Error::new(error.kind(), reason)
}
