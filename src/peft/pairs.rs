//! The tensors of an adapter file: which belong together, and to what.

use super::file::{PREFIX, WEIGHTS_FILE, malformed, unsupported};
use super::names::{Name, Part, check_module};
use super::pair::{Found, Pair, check_entry};
use super::targets::Targets;
use super::tensors::TensorFile;
use crate::error::Result;
use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

/// What a file holds for a configuration.
#[derive(Debug)]
pub(super) struct Pairs {
    pub modules: BTreeMap<String, Pair>,
    /// Adapters of parameters that `target_parameters` names, by the module that has them, the
    /// innermost first.
    pub parameters: BTreeMap<String, Vec<Pair>>,
    /// Tensors of parameters saved whole, by the parameter's name in the model.
    pub whole: BTreeMap<String, String>,
    /// Tensors of rows of embeddings, by module.
    pub tokens: BTreeMap<String, String>,
    /// The tensors of modules that the configuration leaves out.
    pub left_out: Vec<String>,
    /// Whether `target_modules` names no module of the file, so that it was disregarded.
    pub targets_disregarded: bool,
}

/// All modules that the configuration names and that have an A and a B that fit each other, and all
/// that the file holds besides.
pub(super) fn pairs<R: Read + Seek>(file: &TensorFile<R>, targets: &Targets) -> Result<Pairs> {
    let path = file.path();
    let mut modules: BTreeMap<&str, Found<'_>> = BTreeMap::new();
    let mut parameters: BTreeMap<&str, BTreeMap<usize, Found<'_>>> = BTreeMap::new();
    let (mut whole, mut tokens) = (BTreeMap::new(), BTreeMap::new());
    let targets_disregarded = disregarded(file, targets)?;
    let mut included: BTreeMap<&str, Place<'_>> = BTreeMap::new();
    let mut left_out = Vec::new();
    let mut adapter_name: Option<(&str, &str)> = None;
    for (name, entry) in file.entries() {
        let Name { module, part, adapter } =
            Name::parse(name).map_err(|reason| unsupported(path, name, reason))?;
        let of = match part {
            Part::Whole | Part::Wrapped(_) => &name[PREFIX.len()..],
            _ => module,
        };
        check_module(of).map_err(|reason| malformed(path, name, reason))?;
        one_adapter(path, name, adapter, &mut adapter_name)?;
        if part == Part::Whole {
            check_entry(path, name, entry, part)?;
            whole.insert(of.to_string(), name.clone());
            continue;
        } else if part == Part::Tokens {
            check_entry(path, name, entry, part)?;
            if tokens.insert(module.to_string(), name.clone()).is_some() {
                return Err(malformed(path, name, "is there twice"));
            }
            continue;
        }
        if !included.contains_key(module) {
            included.insert(module, place(module, targets, targets_disregarded)?);
        }
        let found = match included[module] {
            Place::Module => modules.entry(module).or_default(),
            Place::Parameter(of, depth) => {
                parameters.entry(of).or_default().entry(depth).or_default()
            }
            Place::Unnamed => {
                let reason = "an adapter of the parameters of experts, which target_parameters \
                              would have to name; PEFT drops it without";
                return Err(unsupported(path, name, reason));
            }
            Place::LeftOut => {
                left_out.push(name.clone());
                continue;
            }
        };
        check_entry(path, name, entry, part)?;
        found.add(part, (name, entry)).map_err(|reason| malformed(path, name, reason))?;
    }
    for (module, found) in &mut modules {
        for (parameter, (tensor, _)) in std::mem::take(&mut found.wrapped) {
            if found.a.is_none() && found.b.is_none() {
                let reason = "is beneath an adapter that the file has not; PEFT drops it";
                return Err(unsupported(path, tensor, reason));
            }
            whole.insert(format!("{module}.{parameter}"), tensor.to_string());
        }
    }
    for (name, tensor) in &whole {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        if modules.contains_key(module) && !tensor.contains(".base_layer.") {
            let reason = "its module has an adapter, and PEFT drops it: it reads such a parameter \
                          as MODULE.base_layer.NAME";
            return Err(unsupported(path, tensor, reason));
        }
    }
    if modules.is_empty() && parameters.is_empty() && whole.is_empty() && tokens.is_empty() {
        return Err(match left_out.first() {
            None => malformed(path, "the header", "has no adapter"),
            Some(name) => {
                let reason =
                    format!("leaves out all modules of {WEIGHTS_FILE}, such as that of {name}");
                malformed(targets.path(), "exclude_modules or layers_to_transform", reason)
            }
        });
    }
    let modules = modules.into_iter();
    let modules = modules.map(|(module, found)| Ok((module.into(), found.pair(path, module)?)));
    let parameters = parameters.into_iter().map(|(module, levels)| {
        // The outermost has the least depth.
        let levels = levels.into_iter().rev().map(|(depth, found)| {
            let module = format!("{module}{}", ".base_layer".repeat(depth));
            found.pair(path, &module)
        });
        Ok((module.to_string(), levels.collect::<Result<_>>()?))
    });
    let (modules, parameters) =
        (modules.collect::<Result<_>>()?, parameters.collect::<Result<_>>()?);
    Ok(Pairs { modules, parameters, whole, tokens, left_out, targets_disregarded })
}

/// What the configuration makes of an adapter's module.
#[derive(Clone, Copy)]
enum Place<'a> {
    Module,
    /// A parameter of this module, so many levels below the outermost.
    Parameter(&'a str, usize),
    /// A parameter that nothing names.
    Unnamed,
    LeftOut,
}

fn place<'a>(module: &'a str, targets: &Targets, disregarded: bool) -> Result<Place<'a>> {
    let mut owner = module;
    while let Some(outer) = owner.strip_suffix(".base_layer") {
        owner = outer;
    }
    let depth = (module.len() - owner.len()) / ".base_layer".len();
    if !targets.parameters_of(owner).is_empty() {
        return Ok(Place::Parameter(owner, depth));
    }
    let of_experts = depth > 0 || owner.rsplit('.').next() == Some("experts");
    Ok(if !disregarded && depth == 0 && targets.include(module)? {
        Place::Module
    } else if of_experts {
        Place::Unnamed
    } else if disregarded && !targets.saves_whole(module)? {
        Place::Module
    } else {
        Place::LeftOut
    })
}

/// Whether `target_modules` is to be disregarded: it names no module of the file.
fn disregarded<R: Read + Seek>(file: &TensorFile<R>, targets: &Targets) -> Result<bool> {
    let (mut last, mut any) = ("", false);
    for Name { module, part, .. } in file.entries().keys().filter_map(|name| Name::parse(name).ok())
    {
        let adapts = part != Part::Whole && part != Part::Tokens;
        if !adapts || module == last || check_module(module).is_err() {
            continue;
        }
        if targets.name(module)? {
            return Ok(false);
        }
        any |= !module.ends_with(".base_layer") && targets.parameters_of(module).is_empty();
        last = module;
    }
    Ok(any)
}

/// Refuses the keys of a second adapter.
fn one_adapter<'a>(
    path: &Path,
    name: &'a str,
    adapter: Option<&'a str>,
    first: &mut Option<(&'a str, &'a str)>,
) -> Result<()> {
    match (adapter, *first) {
        (Some(adapter), None) => *first = Some((adapter, name)),
        (Some(adapter), Some((other, of))) if adapter != other => {
            let reason = format!(
                "of the adapter {adapter:?}, but {of} is of {other:?}: save each by itself"
            );
            return Err(unsupported(path, name, reason));
        }
        _ => {}
    }
    Ok(())
}
