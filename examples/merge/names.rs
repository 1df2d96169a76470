//! The names that a checkpoint has for an adapter's modules.
//!
//! A path that the checkpoint has is taken as it is. Otherwise the tables of `families.rs` and the
//! prefix of the base model, which transformers adds or strips for a model with another head, lead
//! from one name to the other. `--rename` comes before all of that.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::families::{self, Rules};
use crate::model::Model;
use std::collections::{BTreeMap, BTreeSet};

/// The attributes under which models in transformers hold their base model (`base_model_prefix`).
const BASE_PREFIXES: [&str; 23] = [
    "albert",
    "backbone",
    "bert",
    "biogpt",
    "canine",
    "convbert",
    "data2vec_text",
    "deberta",
    "distilbert",
    "electra",
    "ernie",
    "esm",
    "gpt_neox",
    "longformer",
    "model",
    "mpnet",
    "nomic_bert",
    "roberta",
    "text_model",
    "transformer",
    "vision_model",
    "vit",
    "wav2vec2",
];

/// `--rename FROM=TO`: TO in place of FROM at the beginning of a module's path, or of the first
/// FROM anywhere if it begins with a dot.
#[derive(Debug, Clone, PartialEq)]
pub struct Rename {
    pub from: String,
    pub to: String,
}

impl Rename {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((from, to)) if from != to => Ok(Rename { from: from.into(), to: to.into() }),
            _ => Err(format!("--rename must be FROM=TO, not {text:?}")),
        }
    }

    fn apply(&self, module: &str) -> Option<String> {
        families::replace(module, &self.from, &self.to)
    }
}

/// From the paths of an adapter's modules to the checkpoint's.
pub struct Names<'a> {
    checkpoint: &'a Checkpoint,
    renames: &'a [Rename],
    family: Index<'a>,
    prefix: Option<&'static str>,
}

impl<'a> Names<'a> {
    /// The way that leads from the most modules to the checkpoint.
    pub fn new<'m>(
        checkpoint: &'a Checkpoint,
        model: &Model,
        renames: &'a [Rename],
        modules: impl Iterator<Item = &'m str>,
    ) -> Result<Self> {
        let modules: Vec<&str> = modules.collect();
        for rename in renames {
            if !modules.iter().any(|module| rename.apply(module).is_some()) {
                let Rename { from, to } = rename;
                let first = modules.first().unwrap_or(&"");
                return Err(format!(
                    "--rename {from}={to} fits no module of the adapter, such as {first}"
                )
                .into());
            }
        }
        let mut found: Vec<(Self, Vec<Option<String>>)> = Vec::new();
        for rules in families::of(model.model_type()) {
            let family = Index::new(checkpoint, rules);
            let mut names = Names { checkpoint, renames, family, prefix: None };
            names.prefix = names.find_prefix(&modules)?;
            let paths = modules.iter().map(|module| names.find(module)).collect();
            found.push((names, paths));
        }
        let count = |paths: &[Option<String>]| paths.iter().flatten().count();
        let most = found.iter().map(|(_, paths)| count(paths)).max().unwrap_or(0);
        found.retain(|(_, paths)| count(paths) == most);
        let (names, paths) = found.swap_remove(0);
        for (_, other) in &found {
            if let Some(at) = (0..modules.len()).find(|&at| paths[at] != other[at]) {
                let shown = |path: &Option<String>| path.clone().unwrap_or("nothing".into());
                return Err(ambiguous(modules[at], &shown(&paths[at]), &shown(&other[at])).into());
            }
        }
        Ok(names)
    }

    /// The checkpoint's path of a module; the path itself, renamed as was asked for, if there is
    /// none.
    pub fn of(&self, module: &str) -> String {
        self.find(module).unwrap_or_else(|| self.renamed(module))
    }

    /// Gives adapters, or whatever belongs to modules, the checkpoint's paths; and what is to be
    /// said of it.
    pub fn rename<T>(&self, modules: &mut BTreeMap<String, T>) -> Result<Option<String>> {
        let (mut renamed, mut count, mut example) = (BTreeMap::new(), 0, None);
        for (module, value) in std::mem::take(modules) {
            let path = self.of(&module);
            if renamed.insert(path.clone(), value).is_some() {
                return Err(format!("{module} and another module are both {path}").into());
            }
            if path != module {
                count += 1;
                example.get_or_insert((module, path));
            }
        }
        *modules = renamed;
        let note = |(module, path)| {
            format!(
                "{count} modules have other names in the checkpoint, such as {path} for {module}"
            )
        };
        Ok(example.map(note))
    }

    fn renamed(&self, module: &str) -> String {
        self.renames
            .iter()
            .fold(module.to_string(), |module, rename| rename.apply(&module).unwrap_or(module))
    }

    fn find(&self, module: &str) -> Option<String> {
        let module = self.renamed(module);
        if self.checkpoint.has_module(&module) {
            return Some(module);
        }
        let other = || self.family.find(&with_or_without(self.prefix?, &module));
        self.family.find(&module).or_else(other)
    }

    /// The only prefix of a base model that leads on where nothing else does.
    fn find_prefix(&self, modules: &[&str]) -> Result<Option<&'static str>> {
        let mut found: Option<(&'static str, String)> = None;
        for module in modules.iter().filter(|module| self.find(module).is_none()) {
            let renamed = self.renamed(module);
            for prefix in BASE_PREFIXES {
                let Some(path) = self.family.find(&with_or_without(prefix, &renamed)) else {
                    continue;
                };
                match &found {
                    Some((_, path_of_other)) if *path_of_other == path => {}
                    Some((other, path_of_other)) if *other != prefix => {
                        return Err(ambiguous(module, path_of_other, &path).into());
                    }
                    _ => found = Some((prefix, path)),
                }
            }
        }
        Ok(found.map(|(prefix, _)| prefix))
    }
}

fn ambiguous(module: &str, one: &str, other: &str) -> String {
    format!(
        "the checkpoint has no {module}, but {one} and {other}: say which is meant by --rename \
         FROM=TO"
    )
}

/// The path without the prefix that it has, or with the one that it has not.
fn with_or_without(prefix: &str, module: &str) -> String {
    match module.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => rest.to_string(),
        None => format!("{prefix}.{module}"),
    }
}

/// The tensors of a checkpoint, under the names that the model has for them.
struct Index<'a> {
    rules: Rules,
    names: BTreeMap<String, &'a str>,
}

impl<'a> Index<'a> {
    fn new(checkpoint: &'a Checkpoint, rules: Rules) -> Self {
        let (mut names, mut twice) = (BTreeMap::new(), BTreeSet::new());
        for name in checkpoint.names() {
            let canonical = families::canonical(rules, name);
            if names.insert(canonical.clone(), name).is_some() {
                twice.insert(canonical);
            }
        }
        names.retain(|name, _| !twice.contains(name));
        Index { rules, names }
    }

    /// The checkpoint's path of a module that it has tensors of.
    fn find(&self, module: &str) -> Option<String> {
        let canonical = families::canonical(self.rules, &format!("{module}."));
        let (name, own) = self.names.range(canonical.clone()..).next()?;
        let end = name.strip_prefix(&canonical)?;
        Some(own.strip_suffix(end)?.strip_suffix('.')?.to_string())
    }
}

/// The `--rename` that would lead from a module to a weight of the checkpoint that has its shape
/// and most of its path.
pub fn suggestion(checkpoint: &Checkpoint, module: &str, shape: [usize; 2]) -> Option<String> {
    let own: Vec<&str> = module.split('.').collect();
    let mut best: Option<(usize, &str)> = None;
    for name in checkpoint.names() {
        let Some(path) = name.strip_suffix(".weight") else { continue };
        if !checkpoint.has_weight(path, shape) {
            continue;
        }
        let same = path.rsplit('.').zip(own.iter().rev()).take_while(|(one, other)| one == *other);
        let same = same.count();
        // The same module of the same layer, at least.
        let has_layer = path.rsplit('.').take(same).any(|part| part.parse::<u32>().is_ok());
        if has_layer && best.is_none_or(|(most, _)| same > most) {
            best = Some((same, path));
        }
    }
    let (same, path) = best?;
    let start = |parts: &[&str]| match parts.len() {
        0 => String::new(),
        _ => format!("{}.", parts.join(".")),
    };
    let theirs: Vec<&str> = path.split('.').collect();
    let (from, to) = (start(&own[..own.len() - same]), start(&theirs[..theirs.len() - same]));
    Some(format!("it has {path}.weight; if that is meant, say --rename {from}={to}"))
}
