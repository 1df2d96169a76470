//! The tensors of an adapter file: their names, and which A and B belong together.

use super::file::{malformed, unsupported, PREFIX, WEIGHTS_FILE};
use super::formats;
use super::targets::Targets;
use super::tensors::{not_numbers, TensorEntry, TensorFile};
use crate::dtype::DType;
use crate::error::Result;
use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

/// The tensors of a module's adapter.
#[derive(Debug)]
pub(super) struct Pair {
    pub a: String,
    pub b: String,
    pub rank: usize,
    /// The wider of the element types of A and B.
    pub dtype: DType,
}

/// What a file holds for a configuration.
#[derive(Debug)]
pub(super) struct Pairs {
    pub modules: BTreeMap<String, Pair>,
    /// The tensors of modules that the configuration leaves out.
    pub left_out: Vec<String>,
    /// Whether `target_modules` names no module of the file, so that it was disregarded.
    pub targets_disregarded: bool,
}

#[derive(Default)]
struct Halves<'a> {
    a: Option<(&'a str, &'a TensorEntry)>,
    b: Option<(&'a str, &'a TensorEntry)>,
}

/// All modules that the configuration names and that have an A and a B that fit each other.
pub(super) fn pairs<R: Read + Seek>(file: &TensorFile<R>, targets: &Targets) -> Result<Pairs> {
    let path = file.path();
    let mut modules: BTreeMap<&str, Halves<'_>> = BTreeMap::new();
    let targets_disregarded = !names_any(file, targets)?;
    let mut included: BTreeMap<&str, bool> = BTreeMap::new();
    let mut left_out = Vec::new();
    let mut adapter_name: Option<(&str, &str)> = None;
    for (name, entry) in file.entries() {
        let Name { module, half, adapter } =
            name_of(name).map_err(|reason| unsupported(path, name, reason))?;
        check_module(module).map_err(|reason| malformed(path, name, reason))?;
        if !included.contains_key(module) {
            included.insert(module, targets_disregarded || targets.include(module)?);
        }
        if (targets_disregarded || !included[module]) && is_of_parameters(module) {
            let reason = "an adapter of the parameters of experts, which target_parameters would \
                          have to name; PEFT drops it without";
            return Err(unsupported(path, name, reason));
        }
        if !included[module] {
            left_out.push(name.clone());
            continue;
        }
        match (adapter, adapter_name) {
            (Some(adapter), None) => adapter_name = Some((adapter, name)),
            (Some(adapter), Some((other, of))) if adapter != other => {
                let reason = format!(
                    "of the adapter {adapter:?}, but {of} is of {other:?}: save each by itself"
                );
                return Err(unsupported(path, name, reason));
            }
            _ => {}
        }
        check_entry(path, name, entry)?;
        let halves = modules.entry(module).or_default();
        let place = if half == 'A' { &mut halves.a } else { &mut halves.b };
        if let Some((other, _)) = place.replace((name, entry)) {
            return Err(malformed(path, name, format!("is there twice: {other} is the same")));
        }
    }
    if modules.is_empty() {
        return Err(match left_out.first() {
            None => malformed(path, "the header", "has no adapter"),
            Some(name) => {
                let reason =
                    format!("leaves out all modules of {WEIGHTS_FILE}, such as that of {name}");
                malformed(targets.path(), "exclude_modules or layers_to_transform", reason)
            }
        });
    }
    let pair = |module: &str, halves: Halves<'_>| match (halves.a, halves.b) {
        (Some((a, of_a)), Some((b, of_b))) => {
            if of_a.shape[0] != of_b.shape[1] {
                let (a_shape, b_shape) = (&of_a.shape, &of_b.shape);
                let reason =
                    format!("has shape {b_shape:?}, which does not fit {a} of {a_shape:?}");
                return Err(malformed(path, b, reason));
            }
            let dtype = wider(of_a.dtype, of_b.dtype);
            let dtype = dtype.ok_or_else(|| unsupported(path, a, not_numbers(of_a)))?;
            Ok(Pair { a: a.into(), b: b.into(), rank: of_a.shape[0], dtype })
        }
        (a, b) => {
            let other = a.or(b).map_or("", |(name, _)| name);
            let missing = if a.is_none() { 'A' } else { 'B' };
            let reason = format!("is missing, but {other} is there");
            Err(malformed(path, &key(module, missing), reason))
        }
    };
    let modules = modules
        .into_iter()
        .map(|(module, halves)| Ok((module.to_string(), pair(module, halves)?)))
        .collect::<Result<_>>()?;
    Ok(Pairs { modules, left_out, targets_disregarded })
}

/// Whether a module is not a linear layer but holds the weights of all experts: its adapters lie
/// one within the other, each but the last under `base_layer`.
fn is_of_parameters(module: &str) -> bool {
    let last = module.rsplit('.').next();
    last.is_some_and(|last| last == "experts" || last == "base_layer")
}

/// Whether `target_modules` names a module of the file.
fn names_any<R: Read + Seek>(file: &TensorFile<R>, targets: &Targets) -> Result<bool> {
    let mut last = "";
    for Name { module, .. } in file.entries().keys().filter_map(|name| name_of(name).ok()) {
        if module != last && check_module(module).is_ok() && targets.name(module)? {
            return Ok(true);
        }
        last = module;
    }
    Ok(false)
}

fn check_entry(path: &Path, name: &str, entry: &TensorEntry) -> Result<()> {
    if entry.shape == [0] {
        let reason = "is empty (shape [0]), as DeepSpeed ZeRO-3 leaves parameters that are not \
                      gathered for saving: save again with \
                      stage3_gather_16bit_weights_on_model_save, or take the weights from \
                      zero_to_fp32.py of the checkpoint";
        return Err(malformed(path, name, reason));
    }
    if entry.dtype.is_none() {
        return Err(unsupported(path, name, not_numbers(entry)));
    }
    let dims = entry.shape.len();
    if dims > 2 {
        let reason = format!("it has {dims} dimensions, as an adapter of a convolution");
        return Err(unsupported(path, name, reason));
    }
    if dims < 2 || entry.shape.contains(&0) {
        let reason = format!("is no matrix: its shape is {:?}", entry.shape);
        return Err(malformed(path, name, reason));
    }
    Ok(())
}

/// The element type that holds the values of both.
fn wider(a: Option<DType>, b: Option<DType>) -> Option<DType> {
    let (a, b) = (a?, b?);
    Some(if a == b { a } else { DType::F32 })
}

/// The name of a module's A or B in the file.
pub(super) fn key(module: &str, half: char) -> String {
    format!("{PREFIX}{module}.lora_{half}.weight")
}

/// The parts of a tensor's name.
struct Name<'a> {
    module: &'a str,
    half: char,
    /// The adapter's name, which some programs leave inside.
    adapter: Option<&'a str>,
}

/// The parts of a name, or what the name stands for instead.
fn name_of(name: &str) -> Result<Name<'_>, String> {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        let format = formats::of_tensor(name).map_or(String::new(), |format| format!("; {format}"));
        return Err(format!("its name does not begin with {PREFIX}{format}"));
    };
    if rest.starts_with(PREFIX) {
        return Err(format!("its name begins with {PREFIX} twice, and PEFT drops it"));
    }
    if let Some(stem) = rest.strip_suffix(".weight") {
        if let Some((module, half)) = half_of(stem) {
            return Ok(Name { module, half, adapter: None });
        }
        if let Some((stem, adapter)) = stem.rsplit_once('.') {
            if let Some((module, half)) = half_of(stem) {
                return Ok(Name { module, half, adapter: Some(adapter) });
            }
        }
    }
    Err(if rest.contains("lora_embedding_") {
        "an adapter of an embedding".into()
    } else if rest.contains("lora_magnitude_vector") {
        "a trained magnitude (DoRA)".into()
    } else if rest.ends_with(".bias") && (rest.contains(".lora_B.") || rest.contains(".lora_A.")) {
        "a bias of an adapter (lora_bias)".into()
    } else if rest.contains(".lora_A.") || rest.contains(".lora_B.") {
        "a name other than MODULE.lora_A.weight and MODULE.lora_B.weight".into()
    } else if let Some(format) = formats::of_tensor(rest) {
        format!("neither A nor B of an adapter; {format}")
    } else if rest.ends_with(".bias") {
        "a bias that was trained (bias, modules_to_save)".into()
    } else {
        "neither A nor B of an adapter (modules_to_save, or embeddings saved along)".into()
    })
}

fn half_of(stem: &str) -> Option<(&str, char)> {
    let of = |end, half| Some((stem.strip_suffix(end)?, half));
    of(".lora_A", 'A').or_else(|| of(".lora_B", 'B'))
}

/// Refuses what is not the path of a module: names with dots between them.
pub(super) fn check_module(module: &str) -> Result<(), &'static str> {
    if module.len() > 1024 {
        return Err("has a module name of more than 1024 bytes");
    }
    if !module.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has a module name with spaces or characters that are not ASCII");
    }
    if module.split('.').any(str::is_empty) {
        return Err("has a module name with nothing before, between or after its dots");
    }
    Ok(())
}
