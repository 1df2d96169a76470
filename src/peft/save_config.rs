//! The configuration of a directory that is saved.

use super::config::{Config, Defaults, MAX_CONFIG, MAX_KEYS};
use super::fields::is_set;
use super::file::{malformed, unsupported};
use super::targets::Targets;
use super::tokens::indices_of;
use crate::error::Result;
use crate::layers::{Adapter, Scaling};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What is written of an adapter, under the path that patterns are matched with.
struct Entry {
    path: String,
    rank: usize,
    alpha: f32,
}

pub(super) fn config_json(
    path: &Path,
    config: &Config,
    adapters: &BTreeMap<&str, &Adapter>,
) -> Result<String> {
    let (entries, scaling) = entries(path, config, adapters)?;
    let ranks = config.ranks.fitted(&entries, |entry| entry.rank);
    let alphas = config.alphas.fitted(&entries, |entry| entry.alpha);

    let mut fields = config.fields.clone();
    fields.insert("r".into(), json!(ranks.value));
    fields.insert("lora_alpha".into(), number(alphas.value));
    fields.insert("use_rslora".into(), json!(scaling == Scaling::RankStabilized));
    set_extras(path, config, adapters, &mut fields)?;
    set_targets(path, config, adapters, &mut fields)?;
    for (key, n) in
        [("rank_pattern", ranks.exceptions.len()), ("alpha_pattern", alphas.exceptions.len())]
    {
        if n > MAX_KEYS {
            return Err(malformed(path, key, format!("would have more than {MAX_KEYS} keys")));
        }
    }
    let ranks = ranks.exceptions.into_iter().map(|e| (e.key, json!(e.value))).collect();
    let alphas = alphas.exceptions.into_iter().map(|e| (e.key, number(e.value))).collect();
    let mut all: BTreeMap<String, ConfigValue> =
        fields.into_iter().map(|(key, value)| (key, ConfigValue::Plain(value))).collect();
    all.insert("rank_pattern".into(), ConfigValue::Ordered(ranks));
    all.insert("alpha_pattern".into(), ConfigValue::Ordered(alphas));
    let json = serde_json::to_string_pretty(&all)
        .map_err(|error| malformed(path, "the file", error.to_string()))?;
    if json.len() as u64 > MAX_CONFIG {
        return Err(malformed(
            path,
            "the file",
            format!("would have more than {MAX_CONFIG} bytes"),
        ));
    }
    Ok(json)
}

/// The number as PEFT writes it: whole where it is, in f32's digits where not.
fn number(alpha: f32) -> Value {
    if alpha.fract() == 0.0 && alpha.abs() < 16_777_216.0 {
        json!(alpha as i64)
    } else {
        json!(alpha.to_string().parse::<f64>().expect("a number"))
    }
}

/// A field, or a pattern, whose order counts.
enum ConfigValue {
    Plain(Value),
    Ordered(Vec<(String, Value)>),
}

impl Serialize for ConfigValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ConfigValue::Plain(value) => value.serialize(serializer),
            ConfigValue::Ordered(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<T: Copy + PartialEq> Defaults<T> {
    /// These, if they give every entry its value; else the most frequent value and the paths that
    /// have another.
    fn fitted(&self, entries: &[Entry], value: impl Fn(&Entry) -> T) -> Defaults<T> {
        let fits = |entry: &Entry| self.of(&entry.path).is_ok_and(|(own, _)| own == value(entry));
        if entries.iter().all(fits) {
            return self.clone();
        }
        let mut counts: Vec<(T, usize)> = Vec::new();
        for value in entries.iter().map(&value) {
            match counts.iter_mut().find(|(other, _)| *other == value) {
                Some((_, count)) => *count += 1,
                None => counts.push((value, 1)),
            }
        }
        let (common, _) = *counts.iter().max_by_key(|(_, n)| n).expect("there is an entry");
        let others = entries.iter().filter(|entry| value(entry) != common);
        Defaults::with(common, others.map(|entry| (entry.path.as_str(), value(entry))))
    }
}

/// All adapters, and the scaling that they have in common.
fn entries(
    path: &Path,
    config: &Config,
    adapters: &BTreeMap<&str, &Adapter>,
) -> Result<(Vec<Entry>, Scaling)> {
    let extras = &config.extras;
    let mut entries = Vec::new();
    let mut scalings: Vec<(&str, Scaling)> = Vec::new();
    for (module, adapter) in adapters {
        let path = config.pattern_path(module).into_owned();
        entries.push(Entry { path, rank: adapter.rank(), alpha: adapter.alpha() });
        scalings.push((module, adapter.scaling()));
    }
    for (module, update) in &extras.updates {
        let path = config.pattern_path(module).into_owned();
        entries.push(Entry { path, rank: update.rank(), alpha: update.alpha });
        scalings.push((module, update.scaling));
    }
    for (module, parameters) in &extras.parameters {
        for candidate in &parameters.candidates {
            let path = format!("{module}.{}", candidate.parameter);
            entries.push(Entry { path, rank: candidate.rank, alpha: candidate.alpha });
        }
        scalings.push((module, parameters.scaling));
    }
    let Some(&(first, scaling)) = scalings.first() else { return Ok((entries, config.scaling)) };
    match scalings.iter().find(|(_, other)| *other != scaling) {
        None => Ok((entries, scaling)),
        Some((other, _)) => {
            let reason =
                format!("{first} and {other} do not have the same, and PEFT has one for all");
            Err(unsupported(path, "use_rslora", reason))
        }
    }
}

/// `target_modules` and `target_parameters`, if they do not name what is saved.
fn set_targets(
    path: &Path,
    config: &Config,
    adapters: &BTreeMap<&str, &Adapter>,
    fields: &mut BTreeMap<String, Value>,
) -> Result<()> {
    let extras = &config.extras;
    let updates = extras.updates.keys().map(String::as_str);
    let modules: BTreeSet<&str> = adapters.keys().copied().chain(updates).collect();
    let (loaded, weights) = (&config.loaded.modules, &config.loaded.weights);
    let same = modules.iter().copied().eq(loaded.iter().map(String::as_str));
    let has_targets = config.fields.get("target_modules").is_some_and(|value| !value.is_null());
    if !same || !has_targets {
        let linear = modules.iter().filter(|module| !weights.contains(**module));
        fields.insert("target_modules".into(), linear.copied().collect());
        for key in ["exclude_modules", "layers_pattern", "layers_to_transform"] {
            fields.insert(key.into(), Value::Null);
        }
    }
    let targets = Targets::new(path, fields)?;
    for module in &modules {
        if targets.saves_whole(module)? {
            let reason = format!("names {module}, which has an adapter that PEFT would drop");
            return Err(unsupported(path, "modules_to_save", reason));
        }
    }
    let parameters_are_named = extras.parameters.iter().all(|(module, parameters)| {
        targets.parameters_of(module).into_iter().eq(parameters.candidates())
    });
    let weights = || modules.iter().filter(|module| weights.contains(**module));
    let weights_are_named = weights().all(|module| targets.parameters_of(module) == ["weight"]);
    let none = extras.parameters.is_empty() && weights().next().is_none();
    let key = "target_parameters";
    if none && fields.get(key).is_some_and(is_set) {
        fields.insert(key.into(), Value::Null);
    } else if !parameters_are_named || !weights_are_named {
        let parameters = extras.parameters.iter().flat_map(|(module, parameters)| {
            parameters.candidates().map(move |parameter| format!("{module}.{parameter}"))
        });
        let weights = weights().map(|module| format!("{module}.weight"));
        fields.insert(key.into(), parameters.chain(weights).collect());
    }
    Ok(())
}

/// The fields that say of the extras that they are there.
fn set_extras(
    path: &Path,
    config: &Config,
    adapters: &BTreeMap<&str, &Adapter>,
    fields: &mut BTreeMap<String, Value>,
) -> Result<()> {
    let extras = &config.extras;
    let with_magnitude = extras.updates.iter().find(|(_, update)| update.magnitude.is_some());
    if let Some((module, _)) = with_magnitude {
        let updates = extras.updates.iter().filter(|(_, update)| update.magnitude.is_none());
        let without = updates.map(|(module, _)| module.as_str()).chain(adapters.keys().copied());
        if let Some(other) = without.into_iter().next() {
            let reason = format!("{module} has magnitudes and {other} has none; PEFT wants all");
            return Err(unsupported(path, "use_dora", reason));
        }
        fields.insert("use_dora".into(), json!(true));
    } else if fields.get("use_dora").is_some_and(is_set) {
        fields.insert("use_dora".into(), json!(false));
    }
    if extras.updates.values().any(|update| update.bias.is_some()) {
        fields.insert("lora_bias".into(), json!(true));
    }

    if !extras.whole.keys().eq(&config.loaded.whole) {
        let named = config.fields.get("modules_to_save").and_then(Value::as_array);
        let used = |name: &&Value| {
            let name = name.as_str().unwrap_or_default();
            let mut modules = extras.whole.keys().filter_map(|whole| whole.rsplit_once('.'));
            modules.any(|(module, _)| format!("{module}.").contains(&format!("{name}.")))
        };
        let mut modules: Vec<Value> = named.into_iter().flatten().filter(used).cloned().collect();
        for name in extras.whole.keys().filter(|name| !config.loaded.whole.contains(*name)) {
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            let beneath = adapters.contains_key(module) || extras.updates.contains_key(module);
            let module = json!(module);
            if !beneath && !config.saves_whole(name) && !modules.contains(&module) {
                modules.push(module);
            }
        }
        fields.insert("modules_to_save".into(), Value::Array(modules));
    }

    let key = "trainable_token_indices";
    let named = fields.get(key).filter(|field| is_set(field));
    let fits = |field: &Value| {
        let mut tokens = extras.tokens.iter();
        let count = extras.tokens.len();
        count > 0
            && tokens.all(|(module, rows)| {
                indices_of(field, module, count).is_ok_and(|indices| indices == rows.indices)
            })
    };
    if !named.map_or(extras.tokens.is_empty(), fits) {
        let tokens =
            extras.tokens.iter().map(|(module, rows)| (module.clone(), json!(rows.indices)));
        let tokens: serde_json::Map<_, _> = tokens.collect();
        let value = if tokens.is_empty() { Value::Null } else { Value::Object(tokens) };
        fields.insert(key.into(), value);
    }
    Ok(())
}
