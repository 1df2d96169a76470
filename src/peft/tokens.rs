//! Which rows of an embedding were trained: `trainable_token_indices`.

use super::config::Config;
use super::fields::is_set;
use super::file::{malformed, unsupported};
use super::tensors::TensorFile;
use crate::error::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};
use std::path::Path;

const KEY: &str = "trainable_token_indices";

/// The rows of each embedding that the file has rows of, by the embedding's path.
pub(super) fn named<R: Read + Seek>(
    config: &Config,
    path: &Path,
    file: &TensorFile<R>,
    found: &BTreeMap<String, String>,
) -> Result<Vec<(String, Vec<usize>)>> {
    let field = config.fields.get(KEY).filter(|field| is_set(field));
    let Some(field) = field else {
        return match found.values().next() {
            None => Ok(Vec::new()),
            Some(name) => {
                let reason =
                    format!("rows of an embedding, which PEFT drops because {KEY} is not set");
                Err(unsupported(file.path(), name, reason))
            }
        };
    };
    if found.is_empty() {
        return Err(malformed(path, KEY, "is set, but the file has no trainable_tokens_delta"));
    }
    let mut named = Vec::new();
    for (module, name) in found {
        let indices = indices_of(field, module, found.len())
            .map_err(|reason| malformed(path, KEY, format!("{reason}: {name}")))?;
        let rows = file.entries()[name].shape[0];
        if indices.len() != rows {
            let count = indices.len();
            let reason = format!("has {rows} rows, but {KEY} names {count}");
            return Err(malformed(file.path(), name, reason));
        }
        if indices.iter().collect::<BTreeSet<_>>().len() != indices.len() {
            return Err(malformed(path, KEY, format!("names a row of {module} twice")));
        }
        named.push((module.clone(), indices));
    }
    Ok(named)
}

/// What the field says of a module, or why it says nothing.
pub(super) fn indices_of(
    field: &Value,
    module: &str,
    modules: usize,
) -> Result<Vec<usize>, &'static str> {
    let indices = |value: &Value| -> Option<Vec<usize>> {
        let index = |index: &Value| usize::try_from(index.as_u64()?).ok();
        value.as_array()?.iter().map(index).collect()
    };
    const NO_LIST: &str = "is not a list of whole numbers from 0 up";
    match field {
        Value::Object(of) => {
            let mut of = of.iter().filter(|(name, _)| module.ends_with(name.as_str()));
            match (of.next(), of.next()) {
                (Some((_, list)), None) => indices(list).ok_or(NO_LIST),
                (None, _) => Err("does not name the embedding of a tensor of the file"),
                _ => Err("names the embedding of a tensor of the file twice"),
            }
        }
        // A list is for the input embedding, which is the only one there may be.
        list if modules == 1 => indices(list).ok_or(NO_LIST),
        _ => Err("does not say which of several embeddings it is for"),
    }
}
