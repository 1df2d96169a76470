//! Which modules a configuration gives adapters: `target_modules`, `exclude_modules`,
//! `layers_to_transform` and `layers_pattern`.

use super::file::{malformed, unsupported};
use super::regex::{Budget, Budgeted, TooCostly};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The last names of heads that PEFT leaves out of `all-linear`. It asks the model for its output
/// embedding; the file does not say which module that is.
const HEADS: [&str; 2] = ["lm_head", "embed_out"];

/// The choice of modules of one configuration.
#[derive(Debug)]
pub(super) struct Targets {
    path: PathBuf,
    modules: Modules,
    excluded: Modules,
    /// `layers_to_transform`, unless it is empty.
    layers: BTreeSet<i64>,
    /// `layers_pattern`.
    patterns: Vec<Budgeted>,
    budget: Budget,
}

#[derive(Debug)]
enum Modules {
    /// The field is missing: PEFT asks the model.
    Unsaid,
    AllLinear,
    /// Whole paths, or their ends.
    Names(BTreeSet<String>),
    Regex(Budgeted),
}

impl Targets {
    pub fn new(path: &Path, fields: &BTreeMap<String, Value>) -> Result<Self> {
        let wrong = |key, what| malformed(path, key, format!("is not {what}"));
        let modules = |key| match fields.get(key) {
            None | Some(Value::Null) => Ok(Modules::Unsaid),
            Some(Value::String(text)) if key == "target_modules" && is_all_linear(text) => {
                Ok(Modules::AllLinear)
            }
            Some(Value::String(text)) if key == "exclude_modules" && text.is_empty() => {
                Ok(Modules::Unsaid)
            }
            Some(Value::String(text)) => {
                Budgeted::new(text).map(Modules::Regex).map_err(|why| unsupported(path, key, why))
            }
            Some(value) => Ok(Modules::Names(
                texts(value).ok_or_else(|| wrong(key, "a text or a list of texts"))?,
            )),
        };
        let layers = match fields.get("layers_to_transform") {
            None | Some(Value::Null) => Some(BTreeSet::new()),
            Some(Value::Array(layers)) => layers.iter().map(Value::as_i64).collect(),
            Some(layer) => layer.as_i64().map(|layer| BTreeSet::from([layer])),
        };
        let layers = layers
            .ok_or_else(|| wrong("layers_to_transform", "a whole number or a list of them"))?;
        let key = "layers_pattern";
        let patterns = match fields.get(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) if text.is_empty() => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(value) => {
                in_order(value).ok_or_else(|| wrong(key, "a text or a list of texts"))?
            }
        };
        let patterns = patterns
            .iter()
            .map(|text| Budgeted::new(&format!(r"(?:.*\.)?(?:{text})\.")))
            .collect::<Result<_, _>>()
            .map_err(|reason| unsupported(path, key, reason))?;
        Ok(Targets {
            path: path.into(),
            modules: modules("target_modules")?,
            excluded: modules("exclude_modules")?,
            layers,
            patterns,
            budget: Budget::default(),
        })
    }

    /// The path of the configuration.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `target_modules` names the module, in whichever layer.
    pub fn name(&self, module: &str) -> Result<bool> {
        Ok(match &self.modules {
            Modules::Unsaid => true,
            Modules::AllLinear => !HEADS.contains(&module.rsplit('.').next().unwrap_or_default()),
            Modules::Regex(regex) => regex
                .matches(module, &self.budget)
                .map_err(|error| self.undecided("target_modules", module, error))?,
            Modules::Names(names) => is_or_ends_in(module, names),
        })
    }

    /// Whether PEFT gives the module an adapter.
    pub fn include(&self, module: &str) -> Result<bool> {
        let excluded = match &self.excluded {
            Modules::Names(names) => is_or_ends_in(module, names),
            Modules::Regex(regex) => regex
                .matches(module, &self.budget)
                .map_err(|error| self.undecided("exclude_modules", module, error))?,
            Modules::Unsaid | Modules::AllLinear => false,
        };
        if excluded || !self.name(module)? {
            return Ok(false);
        }
        match &self.modules {
            // A module that is named in full is there whatever its layer.
            Modules::Names(names) if !names.contains(module) && !self.layers.is_empty() => {
                let layer = self.layer(module);
                let layer =
                    layer.map_err(|error| self.undecided("layers_pattern", module, error))?;
                Ok(layer.is_some_and(|layer| self.layers.contains(&layer)))
            }
            _ => Ok(true),
        }
    }

    fn undecided(&self, key: &str, module: &str, TooCostly: TooCostly) -> Error {
        undecided(&self.path, key, module)
    }

    /// The index of a module's layer: the first number that is a part of its path, in the middle of
    /// it, and that one of the patterns leads up to.
    fn layer(&self, module: &str) -> Result<Option<i64>, TooCostly> {
        let number = |start: usize| -> Option<i64> {
            let (digits, _) = module[start..].split_once('.')?;
            let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            whole.then(|| digits.parse().unwrap_or(i64::MAX))
        };
        let starts = || module.match_indices('.').map(|(dot, _)| dot + 1);
        if self.patterns.is_empty() {
            // Two parts come before it.
            return Ok(starts().skip(1).find_map(number));
        }
        for pattern in &self.patterns {
            for start in starts() {
                let Some(layer) = number(start) else { continue };
                if pattern.matches(&module[..start], &self.budget)? {
                    return Ok(Some(layer));
                }
            }
        }
        Ok(None)
    }
}

/// The error for an expression that takes too long.
pub(super) fn undecided(path: &Path, key: &str, module: &str) -> Error {
    let reason = format!("a regular expression that takes too long to match with {module}");
    unsupported(path, key, reason)
}

fn is_all_linear(text: &str) -> bool {
    text.eq_ignore_ascii_case("all-linear")
}

fn is_or_ends_in(module: &str, names: &BTreeSet<String>) -> bool {
    let mut ends = module.match_indices('.').map(|(dot, _)| &module[dot + 1..]);
    names.contains(module) || ends.any(|end| names.contains(end))
}

fn in_order(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(String::from)).collect()
}

fn texts(value: &Value) -> Option<BTreeSet<String>> {
    in_order(value).map(|texts| texts.into_iter().collect())
}
