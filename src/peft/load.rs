//! Adapters from `adapter_model.safetensors`.

use super::config::{Config, MAX_CONFIG};
use super::file::{malformed, open_regular, unreadable, unsupported};
use super::file::{CONFIG_FILE, PREFIX, WEIGHTS_FILE};
use super::tensors::{not_numbers, TensorFile};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layers::Adapter;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read, Seek};
use std::path::Path;

/// What a PEFT directory holds.
#[derive(Debug)]
pub struct Adapters {
    /// The configuration, for [`save`](super::save) to write back.
    pub config: Config,
    /// The adapters, by the path of the module in the base model: `model.layers.0.self_attn.q_proj`
    /// for the tensors `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` [r, k] and
    /// `...lora_B.weight` [d, r]. The weight that it adapts is `PATH.weight` [d, k].
    pub adapters: BTreeMap<String, Adapter>,
}

/// Loads all adapters of a PEFT directory.
///
/// With a `dtype`, A and B are rounded to it; without, they keep the element type of the file.
/// [`LoraLinear`](crate::LoraLinear) wants that of the base weight, and a CUDA device computes with
/// bf16 or f16 only.
///
/// The tensors decide which modules have adapters; `target_modules` is only kept for saving.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] if a file is broken, half of a pair is missing, or tensors
/// and configuration disagree; [`Error::Unsupported`] for what this crate does not compute, see
/// [the list](crate::peft#what-is-refused); [`Error::OutOfMemory`], and [`Error::Driver`] of the device.
pub fn load(dir: impl AsRef<Path>, device: &Device, dtype: Option<DType>) -> Result<Adapters> {
    let dir = dir.as_ref();
    let (config_path, weights_path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
    let mut json = Vec::new();
    open_regular(&config_path)?
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut json)
        .map_err(|error| unreadable(&config_path, error))?;
    let config = parse_config(&config_path, &json)?;
    let pickle = dir.join("adapter_model.bin");
    if !weights_path.exists() && pickle.exists() {
        let reason = format!("a pickle file; have PEFT save the adapter as {WEIGHTS_FILE}");
        return Err(unsupported(&pickle, "the file", reason));
    }
    read_adapters(config, TensorFile::open(weights_path)?, device, dtype)
}

/// Loads adapters from the contents of the two files of a PEFT directory.
///
/// # Errors
/// As for [`load`].
pub fn load_from_bytes(
    config: &[u8],
    weights: &[u8],
    device: &Device,
    dtype: Option<DType>,
) -> Result<Adapters> {
    let config = parse_config(Path::new(CONFIG_FILE), config)?;
    read_adapters(config, TensorFile::new(WEIGHTS_FILE, Cursor::new(weights))?, device, dtype)
}

fn parse_config(path: &Path, json: &[u8]) -> Result<Config> {
    if json.len() as u64 > MAX_CONFIG {
        return Err(malformed(path, "the file", format!("has more than {MAX_CONFIG} bytes")));
    }
    Config::parse(path, json)
}

fn read_adapters<R: Read + Seek>(
    mut config: Config,
    mut file: TensorFile<R>,
    device: &Device,
    dtype: Option<DType>,
) -> Result<Adapters> {
    // All that can be wrong is looked for before anything is read.
    let modules = pairs(&file)?;
    for (module, rank) in &modules {
        check_rank(file.path(), &config, module, *rank)?;
        if dtype.is_none() {
            check_types(&file, module)?;
        }
    }
    let mut adapters = BTreeMap::new();
    for module in modules.keys() {
        let (name_a, name_b) = (key(module, 'A'), key(module, 'B'));
        let a = file.tensor(&name_a, device, dtype)?;
        let b = file.tensor(&name_b, device, dtype)?;
        let (alpha, _) = config.alphas.of(module);
        let adapter = Adapter::from_tensors(a, b, alpha, config.scaling)
            .map_err(|error| malformed(file.path(), module, error.to_string()))?;
        adapters.insert(module.clone(), adapter);
    }
    config.modules = adapters.keys().cloned().collect();
    Ok(Adapters { config, adapters })
}

/// All modules that have an A and a B that fit each other, with their ranks.
fn pairs<R: Read + Seek>(file: &TensorFile<R>) -> Result<BTreeMap<String, usize>> {
    let path = file.path();
    let mut modules = BTreeSet::new();
    for (name, entry) in file.entries() {
        let module = module_of(name).map_err(|reason| unsupported(path, name, reason))?;
        check_module(module).map_err(|reason| malformed(path, name, reason))?;
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
        modules.insert(module);
    }
    if modules.is_empty() {
        return Err(malformed(path, "the header", "has no adapter"));
    }
    let shape = |name: String, other: String| match file.entries().get(&name) {
        Some(entry) => Ok((entry.shape.clone(), name)),
        None => Err(malformed(path, &name, format!("is missing, but {other} is there"))),
    };
    let mut pairs = BTreeMap::new();
    for module in modules {
        let (a, name_a) = shape(key(module, 'A'), key(module, 'B'))?;
        let (b, name_b) = shape(key(module, 'B'), key(module, 'A'))?;
        if a[0] != b[1] {
            let reason = format!("has shape {b:?}, which does not fit {name_a} of {a:?}");
            return Err(malformed(path, &name_b, reason));
        }
        pairs.insert(module.to_string(), a[0]);
    }
    Ok(pairs)
}

/// The rank must be the one of the configuration, which is what PEFT would make room for.
fn check_rank(path: &Path, config: &Config, module: &str, rank: usize) -> Result<()> {
    let name = key(module, 'A');
    if !(1..=256).contains(&rank) {
        return Err(unsupported(path, &name, Error::Rank { r: rank }.to_string()));
    }
    let (expected, from) = config.ranks.of(module);
    if rank != expected {
        let from = from.map_or("r".into(), |key| format!("rank_pattern {key:?}"));
        let reason = format!("has rank {rank}, but {from} in {CONFIG_FILE} says {expected}");
        return Err(malformed(path, &name, reason));
    }
    Ok(())
}

fn check_types<R: Read + Seek>(file: &TensorFile<R>, module: &str) -> Result<()> {
    let (name_a, name_b) = (key(module, 'A'), key(module, 'B'));
    let (a, b) = (&file.entries()[&name_a], &file.entries()[&name_b]);
    if a.dtype != b.dtype {
        let (a, b) = (&a.dtype_name, &b.dtype_name);
        let reason = format!("holds {b}, but {name_a} {a}; load them as one element type");
        return Err(malformed(file.path(), &name_b, reason));
    }
    Ok(())
}

/// The name of a module's A or B in the file.
pub(super) fn key(module: &str, half: char) -> String {
    format!("{PREFIX}{module}.lora_{half}.weight")
}

/// The module of a name, or what the name stands for instead.
pub(super) fn module_of(name: &str) -> Result<&str, &'static str> {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return Err("its name does not begin with base_model.model.");
    };
    let ends = [".lora_A.weight", ".lora_B.weight"];
    if let Some(module) = ends.iter().find_map(|end| rest.strip_suffix(end)) {
        return Ok(module);
    }
    Err(if rest.contains("lora_embedding_") {
        "an adapter of an embedding"
    } else if rest.contains("lora_magnitude_vector") {
        "a trained magnitude (DoRA)"
    } else if rest.ends_with(".lora_B.bias") || rest.ends_with(".lora_A.bias") {
        "a bias of an adapter (lora_bias)"
    } else if rest.contains(".lora_A.") || rest.contains(".lora_B.") {
        "a name other than MODULE.lora_A.weight and MODULE.lora_B.weight"
    } else {
        "neither A nor B of an adapter (modules_to_save, or embeddings saved along)"
    })
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
