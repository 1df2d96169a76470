//! `adapter_config.json`.

use super::extras::Extras;
use super::fields::{self, Field};
use super::file::{malformed, unsupported};
use super::pattern::Pattern;
use super::regex::TooCostly;
use super::targets::Targets;
use super::text;
use super::unique::Entries;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::layers::Scaling;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The largest configuration that is read. Most have some KB, one that names 50 000 modules has 3
/// MB.
pub(super) const MAX_CONFIG: u64 = 4 << 20;

/// How many keys a pattern may have, and how many of them may be more than text; real ones have one
/// for each module at most. It bounds the memory and time that reading takes.
pub(super) const MAX_KEYS: usize = 10_000;
const MAX_REGEXES: usize = 256;

/// The fields of `adapter_config.json` (PEFT's `LoraConfig`), and the [extras](Extras) of the
/// weights' file.
///
/// [`load`](super::load) returns one, and [`save`](super::save) writes it back, also the fields
/// that this crate does not use. `Config::default()` is for new adapters.
#[derive(Debug, Clone)]
pub struct Config {
    /// All fields but the patterns, which are ordered.
    pub(super) fields: BTreeMap<String, Value>,
    pub(super) ranks: Defaults<usize>,
    pub(super) alphas: Defaults<f32>,
    pub(super) scaling: Scaling,
    pub(super) extras: Extras,
    pub(super) loaded: Loaded,
}

/// What was loaded with a configuration, which says the same of it when it is saved.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    /// The modules with adapters, also those among the extras.
    pub modules: BTreeSet<String>,
    /// The parameters saved whole.
    pub whole: BTreeSet<String>,
    /// The modules that are adapted as they are because `target_parameters` names their weight.
    pub weights: BTreeSet<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            fields: fields::of_new_adapters(),
            ranks: Defaults { value: 8, exceptions: Vec::new() },
            alphas: Defaults { value: 8.0, exceptions: Vec::new() },
            scaling: Scaling::Standard,
            extras: Extras::default(),
            loaded: Loaded::default(),
        }
    }
}

impl Config {
    /// The name or path of the base model (`base_model_name_or_path`), if the file has it.
    pub fn base_model(&self) -> Option<&str> {
        self.fields.get("base_model_name_or_path")?.as_str()
    }

    /// The same with another base model: PEFT's `AutoPeftModel` loads it.
    pub fn with_base_model(mut self, name: impl Into<String>) -> Self {
        self.fields.insert("base_model_name_or_path".into(), Value::String(name.into()));
        self
    }

    /// The kind of model (`task_type`), such as `CAUSAL_LM`, if the file has it.
    pub fn task_type(&self) -> Option<&str> {
        self.fields.get("task_type")?.as_str()
    }

    /// The same with another kind of model.
    pub fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
        self.fields.insert("task_type".into(), Value::String(task_type.into()));
        self
    }

    /// The share of an adapter's inputs that PEFT drops in training (`lora_dropout`), 0 to 1:
    /// for [`LoraLinear::train`](crate::LoraLinear::train).
    pub fn dropout(&self) -> f64 {
        self.fields.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0)
    }

    /// The same with another share: that of [`LoraLinear::train`](crate::LoraLinear::train), say.
    ///
    /// # Errors
    /// [`Error::Dropout`](crate::Error::Dropout) unless 0 ≤ p < 1.
    pub fn with_dropout(mut self, p: f64) -> Result<Self> {
        Dropout::new(p as f32, 0, 0)?;
        self.fields.insert("lora_dropout".into(), p.into());
        Ok(self)
    }

    /// Whether the base weights are stored as [k, d], as GPT-2's `Conv1D` stores them. PEFT has one
    /// setting for all weights, which is wrong for a model with both kinds. A and B are the same
    /// either way; a [`LoraLinear`](crate::LoraLinear) takes W0 as [d, k].
    pub fn fan_in_fan_out(&self) -> bool {
        self.fields.get("fan_in_fan_out") == Some(&Value::Bool(true))
    }

    /// The contents of the directory besides adapters of [`LoraLinear`](crate::LoraLinear).
    pub fn extras(&self) -> &Extras {
        &self.extras
    }

    /// The same, to change what is saved.
    pub fn extras_mut(&mut self) -> &mut Extras {
        &mut self.extras
    }

    /// Whether `modules_to_save` names the module of a parameter, or a module around it. PEFT adds
    /// the names of heads for some kinds of models.
    pub fn saves_whole(&self, parameter: &str) -> bool {
        let modules = || parameter.match_indices('.').map(|(dot, _)| &parameter[..dot]);
        let mut named = fields::modules_to_save(&self.fields);
        named.any(|name| modules().any(|path| path.ends_with(name)))
    }

    /// Whether layers that share a weight also share its replacement (`ensure_weight_tying`).
    pub fn ties_weights(&self) -> bool {
        self.fields.get("ensure_weight_tying").is_some_and(fields::is_set)
    }

    /// Reads a configuration and refuses what it asks for that this crate does not compute.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let broken = |error: serde_json::Error| malformed(path, "the JSON", error.to_string());
        let json = &*text::json(path, json)?;
        let Entries(fields) = serde_json::from_slice::<Entries<Value>>(json).map_err(broken)?;
        let mut fields: BTreeMap<String, Value> = fields.into_iter().collect();
        fields::check(path, &fields)?;
        let field = |key| Field { path, key, value: fields.get(key) };

        let scaling = match field("use_rslora").flag()? {
            true => Scaling::RankStabilized,
            false => Scaling::Standard,
        };
        field("fan_in_fan_out").flag()?;
        let (rank, alpha) = (field("r").rank()?, field("lora_alpha").alpha()?);
        field("rank_pattern").object()?;
        field("alpha_pattern").object()?;
        // Once more, because the order of these two matters: the first match counts.
        let patterns: Patterns = serde_json::from_slice(json).map_err(broken)?;
        let ranks =
            Defaults::new(rank, path, "rank_pattern", patterns.ranks, |field| field.rank())?;
        let alphas =
            Defaults::new(alpha, path, "alpha_pattern", patterns.alphas, |field| field.alpha())?;
        fields.remove("rank_pattern");
        fields.remove("alpha_pattern");
        Targets::new(path, &fields)?;
        let (extras, loaded) = (Extras::default(), Loaded::default());
        Ok(Config { fields, ranks, alphas, scaling, extras, loaded })
    }

    /// The path that patterns are matched with: that of the module, or of its weight.
    pub(super) fn pattern_path<'a>(&self, module: &'a str) -> Cow<'a, str> {
        match self.loaded.weights.contains(module) {
            true => format!("{module}.weight").into(),
            false => module.into(),
        }
    }

    /// The fields that are set and that PEFT ignores.
    pub(super) fn unknown_fields(&self) -> Vec<String> {
        let unknown = self.fields.iter().filter(|(key, value)| fields::is_unknown(key, value));
        unknown.map(|(key, _)| key.clone()).collect()
    }

    /// A number that differs between configurations of which adapters compute different things:
    /// 64 bits of FNV-1a.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        let mut add = |text: String| hash.add(text.as_bytes());
        add(format!("{:?} {} {:08x}", self.scaling, self.ranks.value, self.alphas.value.to_bits()));
        for Exception { key, value, .. } in &self.ranks.exceptions {
            add(format!("rank {key:?} {value}"));
        }
        for Exception { key, value, .. } in &self.alphas.exceptions {
            add(format!("alpha {key:?} {:08x}", value.to_bits()));
        }
        for key in ["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"] {
            add(self.fields.get(key).map_or(String::new(), Value::to_string));
        }
        for key in ["target_parameters", "trainable_token_indices", "use_dora"] {
            if let Some(value) = self.fields.get(key).filter(|value| fields::is_set(value)) {
                add(format!("{key} {value}"));
            }
        }
        hash.0
    }
}

struct Fnv(u64);

impl Fnv {
    /// Adds bytes and an end, so that two parts are not the same as their sum.
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().copied().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[derive(Deserialize)]
struct Patterns {
    #[serde(default, rename = "rank_pattern")]
    ranks: Option<Entries<Value>>,
    #[serde(default, rename = "alpha_pattern")]
    alphas: Option<Entries<Value>>,
}

/// A value for all modules, and other values for some.
#[derive(Debug, Clone)]
pub(super) struct Defaults<T> {
    pub value: T,
    pub exceptions: Vec<Exception<T>>,
}

/// The value of the modules that a key matches and none before it did.
#[derive(Debug, Clone)]
pub(super) struct Exception<T> {
    pub key: String,
    pattern: Pattern,
    pub value: T,
}

impl<T: Copy> Defaults<T> {
    fn new(
        value: T,
        path: &Path,
        field: &str,
        entries: Option<Entries<Value>>,
        read: impl Fn(&Field<'_>) -> Result<T>,
    ) -> Result<Self> {
        let mut exceptions = Vec::new();
        let mut regexes = 0;
        let Entries(entries) = entries.unwrap_or(Entries(Vec::new()));
        if entries.len() > MAX_KEYS {
            return Err(malformed(path, field, format!("has more than {MAX_KEYS} keys")));
        }
        for (key, value) in entries {
            let name = format!("{field} {key:?}");
            let pattern = Pattern::new(&key).map_err(|reason| unsupported(path, &name, reason))?;
            regexes += usize::from(pattern.is_regex());
            if regexes > MAX_REGEXES {
                let reason = format!("more than {MAX_REGEXES} of its keys are regular expressions");
                return Err(unsupported(path, field, reason));
            }
            let value = read(&Field { path, key: &name, value: Some(&value) })?;
            exceptions.push(Exception { key, pattern, value });
        }
        Ok(Defaults { value, exceptions })
    }

    /// A value for all modules, and other values for some, under keys that match no others.
    pub fn with<'a>(value: T, exceptions: impl IntoIterator<Item = (&'a str, T)>) -> Self {
        let exceptions = exceptions.into_iter().map(|(module, value)| {
            let key = Pattern::for_module(module);
            let pattern = Pattern::new(&key).expect("an escaped path");
            Exception { key, pattern, value }
        });
        Defaults { value, exceptions: exceptions.collect() }
    }

    /// The value of a module, and the key that it has it from; or the key that was not decided.
    pub fn of(&self, module: &str) -> Result<(T, Option<&str>), &str> {
        for Exception { key, pattern, value } in &self.exceptions {
            match pattern.matches(module) {
                Ok(true) => return Ok((*value, Some(key))),
                Ok(false) => {}
                Err(TooCostly) => return Err(key),
            }
        }
        Ok((self.value, None))
    }
}
