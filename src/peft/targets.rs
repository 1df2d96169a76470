//! Which modules a configuration gives adapters: `target_modules`, `exclude_modules`,
//! `layers_to_transform` and `layers_pattern`.

use super::fields;
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
    whole: Whole,
    /// `target_parameters`: the parameters of modules whose paths end in the key.
    parameters: BTreeMap<String, BTreeSet<String>>,
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

/// `modules_to_save`: these have no adapters, nor has what is within them.
#[derive(Debug)]
struct Whole {
    /// Paths, or parts of them between dots.
    names: BTreeSet<String>,
    regexes: Vec<Budgeted>,
}

/// How many parts a path of `modules_to_save` has that is taken as text.
const MAX_PARTS: usize = 16;

/// How many names of `modules_to_save` may be more than text.
const MAX_REGEXES: usize = 64;

impl Whole {
    fn new(path: &Path, fields: &BTreeMap<String, Value>) -> Result<Self> {
        let is_text = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let is_short = |name: &str| name.split('.').count() <= MAX_PARTS;
        let (names, others): (Vec<&str>, Vec<&str>) = fields::modules_to_save(fields)
            .partition(|name| name.bytes().all(is_text) && is_short(name));
        let key = "modules_to_save";
        if others.len() > MAX_REGEXES {
            let reason = format!("more than {MAX_REGEXES} of its names are regular expressions");
            return Err(unsupported(path, key, reason));
        }
        let regexes = others
            .iter()
            .map(|text| Budgeted::new(&format!(r"(?:.*\.)?(?:{text})(?:\..*)?")))
            .collect::<Result<_, _>>()
            .map_err(|reason| unsupported(path, key, reason))?;
        Ok(Whole { names: names.into_iter().map(String::from).collect(), regexes })
    }

    /// Whether a name is a part of the path.
    fn names(&self, module: &str) -> bool {
        let starts = || module.match_indices('.').map(|(dot, _)| dot + 1).chain([0]);
        let ends = |start: usize| {
            let dots = module[start..].match_indices('.').map(move |(dot, _)| start + dot);
            dots.chain([module.len()]).take(MAX_PARTS)
        };
        !self.names.is_empty()
            && starts().any(|start| ends(start).any(|end| self.names.contains(&module[start..end])))
    }
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
        let mut parameters: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let key = "target_parameters";
        if let Some(value) = fields.get(key).filter(|value| fields::is_set(value)) {
            for target in texts(value).ok_or_else(|| wrong(key, "a list of texts"))? {
                let (owner, parameter) = target.rsplit_once('.').unwrap_or(("", &target));
                parameters.entry(owner.into()).or_default().insert(parameter.into());
            }
        }
        Ok(Targets {
            path: path.into(),
            modules: modules("target_modules")?,
            excluded: modules("exclude_modules")?,
            layers,
            patterns,
            whole: Whole::new(path, fields)?,
            parameters,
            budget: Budget::default(),
        })
    }

    /// The names of parameters of a module that `target_parameters` may mean. It gives no module,
    /// or the end of its path: `down_proj`, `gate.weight`. Without one it means modules of experts,
    /// here those with `experts` in their path.
    pub fn parameters_of(&self, module: &str) -> Vec<&str> {
        let owners = module.match_indices('.').map(|(dot, _)| &module[dot + 1..]);
        let named = owners.chain([module]).filter_map(|owner| self.parameters.get(owner));
        let of_experts = module.split('.').any(|part| part == "experts");
        let of_any = self.parameters.get("").filter(|_| of_experts).into_iter().flatten();
        // A linear layer of this name, of one expert, is no parameter.
        let of_any = of_any.filter(|parameter| last(module) != parameter.as_str());
        let parameters: BTreeSet<&str> =
            named.flatten().chain(of_any).map(String::as_str).collect();
        parameters.into_iter().collect()
    }

    /// The path of the configuration.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `target_modules` names the module, in whichever layer.
    pub fn name(&self, module: &str) -> Result<bool> {
        Ok(match &self.modules {
            Modules::Unsaid => true,
            Modules::AllLinear => !HEADS.contains(&last(module)),
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
        if self.saves_whole(module)? {
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

    /// Whether the module, or one that it is in, is in `modules_to_save`, so that it has no adapter.
    pub fn saves_whole(&self, module: &str) -> Result<bool> {
        if self.whole.names(module) {
            return Ok(true);
        }
        for whole in &self.whole.regexes {
            let matches = whole.matches(module, &self.budget);
            if matches.map_err(|error| self.undecided("modules_to_save", module, error))? {
                return Ok(true);
            }
        }
        Ok(false)
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

/// The last part of a module's path.
fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or_default()
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
