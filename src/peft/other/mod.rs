//! Adapters as mlx-lm, mistral-finetune, kohya's sd-scripts and diffusers keep them.

pub(super) mod names;
mod scales;

pub use names::Format;

use super::config::{Config, MAX_CONFIG};
use super::file::{CONFIG_FILE, WEIGHTS_FILE, malformed, open_regular, unreadable, unsupported};
use super::names::check_module;
use super::tensors::{TensorFile, not_numbers};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::layers::Adapter;
use crate::tensor::Tensor;
use names::Part;
use scales::{Scales, Source};
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek};
use std::path::{Path, PathBuf};

/// The files of the programs that have a name of their own for it.
const FILES: [&str; 3] =
    ["adapters.safetensors", "lora.safetensors", "pytorch_lora_weights.safetensors"];
/// mistral-finetune's arguments.
const PARAMS_FILE: &str = "params.json";

/// What another program's directory or file holds.
pub(super) struct Other {
    pub config: Config,
    pub adapters: BTreeMap<String, Adapter>,
    pub format: Format,
}

/// Loads a directory or file of another program; `None` if it is PEFT's, or nobody's.
pub(super) fn load(path: &Path, device: &Device, dtype: Option<DType>) -> Result<Option<Other>> {
    let (dir, weights) = if path.is_file() {
        (path.parent().unwrap_or(Path::new("")), path.to_path_buf())
    } else if path.join(WEIGHTS_FILE).exists() {
        (path, path.join(WEIGHTS_FILE))
    } else {
        match FILES.iter().map(|name| path.join(name)).find(|path| path.is_file()) {
            Some(weights) => (path, weights),
            None => return Ok(None),
        }
    };
    let file = match TensorFile::open(&weights) {
        Ok(file) => file,
        // The error is PEFT's affair, if the file is.
        Err(_) if weights.ends_with(WEIGHTS_FILE) => return Ok(None),
        Err(error) => return Err(error),
    };
    let format = Format::of(file.entries().keys());
    if format == Format::Peft {
        return match weights.ends_with(WEIGHTS_FILE) || path.is_file() {
            true => Ok(None),
            false => {
                let reason = "has names of no format that is known here";
                Err(unsupported(&weights, "the header", reason))
            }
        };
    }
    let config = match format {
        Format::MistralFinetune if !dir.join(CONFIG_FILE).exists() => dir.join(PARAMS_FILE),
        _ => dir.join(CONFIG_FILE),
    };
    let config = if config.exists() { Some((config.clone(), read(&config)?)) } else { None };
    let source = Source { format, config, metadata: file.adapter_metadata().map(String::from) };
    read_adapters(source, file, device, dtype).map(Some)
}

/// The same from the contents of the files.
pub(super) fn load_from_bytes(
    config: &[u8],
    weights: &[u8],
    device: &Device,
    dtype: Option<DType>,
) -> Result<Option<Other>> {
    let Ok(file) = TensorFile::new(WEIGHTS_FILE, Cursor::new(weights)) else { return Ok(None) };
    let format = Format::of(file.entries().keys());
    if format == Format::Peft {
        return Ok(None);
    }
    let config = (!config.is_empty()).then(|| (PathBuf::from(CONFIG_FILE), config.to_vec()));
    let source = Source { format, config, metadata: file.adapter_metadata().map(String::from) };
    read_adapters(source, file, device, dtype).map(Some)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut json = Vec::new();
    let file = open_regular(path)?.take(MAX_CONFIG + 1);
    { file }.read_to_end(&mut json).map_err(|error| unreadable(path, error))?;
    Ok(json)
}

/// The names and shapes of a module's A and B, and its α if the file has one.
#[derive(Default)]
struct Found {
    a: Option<(String, [usize; 2])>,
    b: Option<(String, [usize; 2])>,
    alpha: Option<f32>,
}

fn read_adapters<R: Read + Seek>(
    source: Source,
    mut file: TensorFile<R>,
    device: &Device,
    dtype: Option<DType>,
) -> Result<Other> {
    let format = source.format;
    let modules = find(format, &mut file)?;
    let has_alphas = modules.values().any(|found| found.alpha.is_some());
    let scales = Scales::new(source, has_alphas, file.path())?;
    let mut adapters = BTreeMap::new();
    for (module, Found { a, b, alpha }) in modules {
        let (Some((a, of_a)), Some((b, of_b))) = (a.clone(), b.clone()) else {
            let there = a.or(b).map_or("its alpha".into(), |(name, _)| name);
            let reason = format!("lacks A or B, but {there} is there");
            return Err(malformed(file.path(), &module, reason));
        };
        let transposed = format == Format::MlxLm;
        let (rank, rank_of_b) = match transposed {
            true => (of_a[1], of_b[0]),
            false => (of_a[0], of_b[1]),
        };
        if rank != rank_of_b {
            let reason = format!("has shape {of_b:?}, which does not fit {a} of {of_a:?}");
            return Err(malformed(file.path(), &b, reason));
        }
        let (alpha, scaling) = scales.of(&module, rank, alpha, file.path())?;
        let types = [&a, &b].map(|name| file.entries()[name].dtype);
        let own = if types[0] == types[1] { types[0] } else { Some(DType::F32) };
        let dtype = dtype.or(own);
        let a = matrix(&mut file, &a, of_a, transposed, device, dtype)?;
        let b = matrix(&mut file, &b, of_b, transposed, device, dtype)?;
        let adapter = Adapter::from_tensors(a, b, alpha, scaling)
            .map_err(|error| malformed(file.path(), &module, error.to_string()))?;
        adapters.insert(module, adapter);
    }
    let mut config = Config::default();
    config.loaded.modules = adapters.keys().cloned().collect();
    Ok(Other { config, adapters, format })
}

/// The modules of a file.
fn find<R: Read + Seek>(
    format: Format,
    file: &mut TensorFile<R>,
) -> Result<BTreeMap<String, Found>> {
    let mut modules: BTreeMap<String, Found> = BTreeMap::new();
    let names: Vec<String> = file.entries().keys().cloned().collect();
    for name in names {
        let path = file.path().to_path_buf();
        let (module, part) =
            format.parse(&name).map_err(|reason| unsupported(&path, &name, reason))?;
        check_module(&module).map_err(|reason| malformed(&path, &name, reason))?;
        let found = modules.entry(module).or_default();
        let place = match part {
            Part::A => &mut found.a,
            Part::B => &mut found.b,
            Part::Alpha => {
                found.alpha = Some(file.scalar(&name)?);
                continue;
            }
        };
        let entry = &file.entries()[&name];
        if entry.dtype.is_none() {
            return Err(unsupported(&path, &name, not_numbers(entry)));
        }
        let shape = match entry.shape[..] {
            [_, _, height, width] if height > 1 || width > 1 => {
                let reason =
                    format!("its shape is {:?}: a convolution of {height}x{width}", entry.shape);
                return Err(unsupported(&path, &name, reason));
            }
            // A convolution of 1x1 is a linear layer.
            [rows, cols] | [rows, cols, 1, 1] if rows > 0 && cols > 0 => [rows, cols],
            _ => {
                let reason = format!("is no matrix: its shape is {:?}", entry.shape);
                return Err(malformed(&path, &name, reason));
            }
        };
        if let Some((other, _)) = place.replace((name.clone(), shape)) {
            return Err(malformed(&path, &name, format!("is there twice: {other} is the same")));
        }
    }
    Ok(modules)
}

/// Reads a matrix, and transposes it.
fn matrix<R: Read + Seek>(
    file: &mut TensorFile<R>,
    name: &str,
    shape: [usize; 2],
    transposed: bool,
    device: &Device,
    dtype: Option<DType>,
) -> Result<Tensor> {
    if !transposed {
        return file.matrix(name, shape, device, dtype);
    }
    let tensor = file.matrix(name, shape, &Device::cpu(), dtype)?;
    let (values, [rows, cols]) = (tensor.to_f32_vec()?, shape);
    let turned: Vec<f32> = (0..cols)
        .flat_map(|col| (0..rows).map(move |row| (row, col)))
        .map(|(row, col)| values[row * cols + col])
        .collect();
    Tensor::from_f32(device, &turned, [cols, rows], tensor.dtype())
}
