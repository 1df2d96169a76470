//! Both files of a PEFT directory, written so that `load` sees both of one save.

use super::config::{Config, Defaults, MAX_CONFIG, MAX_KEYS};
use super::file::{malformed, unsupported, unwritable, CONFIG_FILE, WEIGHTS_FILE};
use super::lock::Lock;
use super::pairs::{check_module, key};
use super::tensors::FINGERPRINT;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::layers::{Adapter, Scaling};
use crate::tensor::Tensor;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::SystemTime;

/// Saves adapters, under the paths of their modules, as PEFT does.
///
/// `config` is the one that [`load`](super::load) gave, or `Config::default()`. The ranks and
/// alphas of the adapters are what is written: the file's own `r`, `lora_alpha` and patterns where
/// those still say the same, others where not. `target_modules` stays as it was if the modules are
/// those that were loaded, and otherwise names each module by its whole path. (PEFT takes such a
/// path for the end of one, too: it would put an adapter on `b.a` as well where the model has that
/// beside `a`.)
///
/// The directory is made if it is not there. Both files are written beside their final places,
/// forced to disk and renamed, so that neither is ever seen half written. They are renamed one after
/// the other, the weights first, by one saver at a time; [`load`](super::load) tells a pair of two
/// saves from one ([how](crate::peft#while-another-process-saves)), PEFT does not. Reads the tensors
/// from their devices, one at a time.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if there are no adapters, if a module is there twice
/// or has a name that none can have, or if there are so many that [`load`](super::load) would refuse
/// the configuration; [`Error::Unsupported`](crate::Error::Unsupported) if the
/// adapters have not all the same [`scaling`](Adapter::scaling); [`Error::Io`](crate::Error::Io);
/// [`Error::Driver`](crate::Error::Driver) of the device.
pub fn save<'a>(
    dir: impl AsRef<Path>,
    config: &Config,
    adapters: impl IntoIterator<Item = (&'a str, &'a Adapter)>,
) -> Result<()> {
    let dir = dir.as_ref();
    let (config_path, weights_path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
    let adapters = collect(&weights_path, adapters)?;
    let json = config_json(&config_path, config, &adapters)?;
    let fingerprint = Config::parse(&config_path, json.as_bytes())?.fingerprint();

    fs::create_dir_all(dir).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let reason = "it is a file, or a link to nothing, where the directory is to be";
            unwritable(dir, io::Error::new(error.kind(), reason))
        }
        _ => unwritable(dir, error),
    })?;
    let new = tempfile::Builder::new().prefix(".saving-").tempdir_in(dir);
    let new = new.map_err(|error| unwritable(dir, error))?;
    let (new_config, new_weights) = (new.path().join(CONFIG_FILE), new.path().join(WEIGHTS_FILE));
    write_weights(&new_weights, &weights_path, &adapters, fingerprint)?;
    let written = File::create_new(&new_config).and_then(|mut file| {
        file.write_all(json.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| unwritable(&config_path, error))?;

    replace([(&new_weights, &weights_path), (&new_config, &config_path)], dir)?;
    sync_dir(dir).map_err(|error| unwritable(dir, error))
}

/// Renames both new files to their places, one saver at a time. Before that, they are stamped with
/// the time: the configuration of one save is never newer than the weights of the next.
fn replace([weights, config]: [(&Path, &Path); 2], dir: &Path) -> Result<()> {
    let _lock = Lock::take(dir)?;
    let now = SystemTime::now();
    for (new, path) in [weights, config] {
        if path.is_dir() {
            return Err(unwritable(path, io::Error::other("it is a directory")));
        }
        let stamped = File::options().write(true).open(new).and_then(|file| file.set_modified(now));
        stamped.map_err(|error| unwritable(path, error))?;
    }
    for (new, path) in [weights, config] {
        fs::rename(new, path).map_err(|error| unwritable(path, error))?;
    }
    Ok(())
}

fn collect<'a>(
    path: &Path,
    adapters: impl IntoIterator<Item = (&'a str, &'a Adapter)>,
) -> Result<BTreeMap<&'a str, &'a Adapter>> {
    let mut collected = BTreeMap::new();
    for (module, adapter) in adapters {
        check_module(module).map_err(|reason| malformed(path, &format!("{module:?}"), reason))?;
        if collected.insert(module, adapter).is_some() {
            return Err(malformed(path, module, "is there twice"));
        }
    }
    if collected.is_empty() {
        return Err(malformed(path, "the file", "would have no adapter"));
    }
    Ok(collected)
}

fn config_json(
    path: &Path,
    config: &Config,
    adapters: &BTreeMap<&str, &Adapter>,
) -> Result<String> {
    let mut all = adapters.iter();
    let (first, adapter) = all.next().expect("there is an adapter");
    let scaling = adapter.scaling();
    if let Some((other, _)) = all.find(|(_, adapter)| adapter.scaling() != scaling) {
        let reason = format!("{first} and {other} do not have the same, and PEFT has one for all");
        return Err(unsupported(path, "use_rslora", reason));
    }
    let ranks = config.ranks.fitted(adapters, |adapter| adapter.rank());
    let alphas = config.alphas.fitted(adapters, |adapter| adapter.alpha());

    let mut fields = config.fields.clone();
    let mut set = |key: &str, value| fields.insert(key.to_string(), value);
    set("r", json!(ranks.value));
    set("lora_alpha", number(alphas.value));
    set("use_rslora", json!(scaling == Scaling::RankStabilized));
    let same_modules = adapters.keys().copied().eq(config.modules.iter().map(String::as_str));
    let has_targets = config.fields.get("target_modules").is_some_and(|value| !value.is_null());
    if !same_modules || !has_targets {
        set("target_modules", adapters.keys().copied().collect());
        for key in ["exclude_modules", "layers_pattern", "layers_to_transform"] {
            set(key, Value::Null);
        }
    }
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
    /// These, if they give every module its adapter's value; else the most frequent value and the
    /// modules that have another.
    fn fitted(
        &self,
        adapters: &BTreeMap<&str, &Adapter>,
        value: impl Fn(&Adapter) -> T,
    ) -> Defaults<T> {
        let fits =
            |module: &str, adapter| self.of(module).is_ok_and(|(own, _)| own == value(adapter));
        if adapters.iter().all(|(module, adapter)| fits(module, adapter)) {
            return self.clone();
        }
        let mut counts: Vec<(T, usize)> = Vec::new();
        for adapter in adapters.values() {
            let value = value(adapter);
            match counts.iter_mut().find(|(other, _)| *other == value) {
                Some((_, count)) => *count += 1,
                None => counts.push((value, 1)),
            }
        }
        let (common, _) = *counts.iter().max_by_key(|(_, n)| n).expect("there is an adapter");
        let others = adapters.iter().filter(|(_, adapter)| value(adapter) != common);
        Defaults::with(common, others.map(|(module, adapter)| (*module, value(adapter))))
    }
}

/// Writes the tensors in the format's order, wide element types first, into a new file; errors
/// call it by the name that it will have.
fn write_weights(
    new: &Path,
    path: &Path,
    adapters: &BTreeMap<&str, &Adapter>,
    fingerprint: u64,
) -> Result<()> {
    let mut tensors: Vec<(String, &Tensor)> = Vec::new();
    for (module, adapter) in adapters {
        tensors.push((key(module, 'A'), adapter.a()));
        tensors.push((key(module, 'B'), adapter.b()));
    }
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().bytes()));

    let mut end = 0;
    let infos = tensors.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.bytes();
        let (dtype, shape) = (name_of(tensor.dtype()), tensor.shape().dims().to_vec());
        (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let header = Metadata::new(None, infos.collect())
        .map_err(|error| error.to_string())
        .and_then(|header| serde_json::to_string(&header).map_err(|error| error.to_string()))
        .map_err(|reason| malformed(path, "the header", reason))?;
    // The crate's own metadata is a hash map, of which the order is another each time.
    let metadata = json!({ "format": "pt", FINGERPRINT: format!("{fingerprint:016x}") });
    let mut header =
        header.replacen('{', &format!(r#"{{"__metadata__":{metadata},"#), 1).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let failed = |error: io::Error| unwritable(path, error);
    let mut file = BufWriter::new(File::create_new(new).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    for (_, tensor) in tensors {
        match tensor.dtype() {
            DType::Bf16 => write_elements::<bf16>(&mut file, path, tensor)?,
            DType::F16 => write_elements::<f16>(&mut file, path, tensor)?,
            DType::F32 => write_elements::<f32>(&mut file, path, tensor)?,
        }
    }
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)
}

fn name_of(dtype: DType) -> Dtype {
    match dtype {
        DType::Bf16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
    }
}

/// Writes a tensor's elements as the file has them, the low byte first.
fn write_elements<E: Element>(file: &mut impl Write, path: &Path, tensor: &Tensor) -> Result<()> {
    let mut values = tensor.to_vec::<E>()?;
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(size_of::<E>()).for_each(<[u8]>::reverse);
    }
    file.write_all(bytes).map_err(|error| unwritable(path, error))
}

/// Forces the names in a directory to disk, where a directory can be opened for that.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}
