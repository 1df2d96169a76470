//! Adapters from the two files of a PEFT directory.

use super::config::{Config, MAX_CONFIG};
use super::extras_read::{self, Source};
use super::file::{CONFIG_FILE, WEIGHTS_FILE};
use super::file::{malformed, open_regular, unreadable, unsupported};
use super::formats;
use super::other::{self, Format, Other};
use super::pair::Pair;
use super::pairs::{Pairs, pairs};
use super::targets::{Targets, undecided};
use super::tensors::TensorFile;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::layers::Adapter;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Seek};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

/// How often the two files are read again while they do not belong together, and after which time:
/// `save` renames one and then the other, and holds a lock in between.
const RETRIES: usize = 100;
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// The last names of modules that may share their weight with another module.
const TIED: [&str; 8] = [
    "lm_head",
    "embed_tokens",
    "embed_in",
    "embed_out",
    "wte",
    "shared",
    "word_embeddings",
    "decoder",
];

/// The contents of a PEFT directory.
#[derive(Debug)]
pub struct Adapters {
    /// The configuration, for [`save`](super::save) to write back.
    pub config: Config,
    /// The adapters of linear layers, by the path of the module in the base model. For
    /// `model.layers.0.self_attn.q_proj` the file has
    /// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` [r, k] and
    /// `...lora_B.weight` [d, r]; the adapted weight is `PATH.weight` [d, k]. Other adapters are in
    /// the [extras](Config::extras) of the configuration.
    pub adapters: BTreeMap<String, Adapter>,
    /// The program that wrote the file. Its [variant](Format) describes the paths in `adapters`.
    /// [`save`](super::save) always writes PEFT's files.
    pub format: Format,
    /// The names of the tensors that `target_modules`, `exclude_modules`, `layers_to_transform` or
    /// `layers_pattern` leave out. PEFT does not load them, and [`save`](super::save) does not
    /// write them.
    pub left_out: Vec<String>,
    /// Whether `target_modules` names no module of the file. PEFT would load nothing then. This
    /// crate ignores it, and `exclude_modules` and `layers_to_transform` with it: every adapter in
    /// the file is loaded, and [`save`](super::save) writes the modules that there are.
    pub targets_disregarded: bool,
    /// The fields of the configuration that are set and that neither PEFT 0.21 nor this crate
    /// knows. PEFT ignores them with a warning. [`save`](super::save) writes them back.
    pub unknown_fields: Vec<String>,
}

impl From<Other> for Adapters {
    fn from(Other { config, adapters, format }: Other) -> Self {
        Adapters {
            config,
            adapters,
            format,
            left_out: Vec::new(),
            targets_disregarded: false,
            unknown_fields: Vec::new(),
        }
    }
}

impl Adapters {
    /// What PEFT computes with the directory, in inference or training, and layers of
    /// [`adapters`](Self::adapters) do not: a line for each kind, none if nothing is missing.
    pub fn not_computed(&self) -> Vec<String> {
        let extras = self.config.extras();
        let mut lines = Vec::new();
        let mut add = |names: &mut dyn Iterator<Item = &String>, what: &str| {
            if let Some(first) = names.next() {
                lines.push(format!("{} {what}, such as {first}", 1 + names.count()));
            }
        };
        add(&mut extras.whole.keys(), "parameters that replace the base's");
        add(
            &mut extras.updates.keys(),
            "adapters of embeddings or convolutions, with magnitudes or biases, or of ranks above 256",
        );
        add(&mut extras.parameters.keys(), "modules with adapters of their parameters");
        add(&mut extras.tokens.keys(), "embeddings with trained rows");
        lines
    }
}

/// Loads the adapters of a PEFT directory, or of the directory or file of
/// [another program](super::Format).
///
/// With a `dtype`, A and B are rounded to it. Without, they keep the element type of the file; if A
/// and B of a module have different types, both become f32. A [`LoraLinear`](crate::LoraLinear)
/// needs the type of the base weight, and a CUDA device computes in bf16 and f16 only.
///
/// The scale s is PEFT's (`LoraLayer.update_layer`): α/r, or α/√r with `use_rslora`, with the α and
/// r that the patterns give the module.
///
/// Everything but plain adapters of linear layers is in the configuration's
/// [extras](Config::extras), and [`Adapters::not_computed`] summarises it.
///
/// As in PEFT, a module has an adapter if the file has its tensors and the configuration names it.
/// Tensors of other modules are not loaded: [`Adapters::left_out`] names them. If `target_modules`
/// is missing, or names [nothing in the file](Adapters::targets_disregarded), every adapter in the
/// file is loaded.
///
/// If [`save`](super::save) replaces the files meanwhile, the adapters are all old or all new. This
/// does not hold for files that PEFT replaces.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::Malformed`](crate::Error::Malformed) if a file is
/// broken, half of a pair is missing, or tensors and configuration disagree or are of two saves;
/// [`Error::Unsupported`](crate::Error::Unsupported) for what this crate does not read, see [the
/// list](crate::peft#what-is-refused); [`Error::OutOfMemory`](crate::Error::OutOfMemory);
/// [`Error::Driver`](crate::Error::Driver).
pub fn load(dir: impl AsRef<Path>, device: &Device, dtype: Option<DType>) -> Result<Adapters> {
    let dir = dir.as_ref();
    if let Some(other) = other::load(dir, device, dtype)? {
        return Ok(other.into());
    }
    let mut retries = 0;
    let (config, weights) = loop {
        let (config, of_config, weights) = open(dir)?;
        if !is_torn(&config, of_config, &weights) {
            break (config, weights);
        }
        if retries == RETRIES {
            let reason = format!(
                "is of another save than {CONFIG_FILE} beside it: a save was interrupted, or the \
                 files come from two places. Save the adapter again, or copy both files from one \
                 place"
            );
            return Err(malformed(weights.path(), "the file", reason));
        }
        retries += 1;
        thread::sleep(RETRY_AFTER);
    };
    read_adapters(config, weights, device, dtype)
}

/// Reads the configuration, with the time of its last change, and opens the weights, in this order:
/// see `is_torn`.
fn open(dir: &Path) -> Result<(Config, Option<SystemTime>, TensorFile)> {
    let (config_path, weights_path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
    if let Err(error) = fs::metadata(&config_path) {
        return Err(formats::no_config(dir, error));
    }
    let mut json = Vec::new();
    let file = open_regular(&config_path)?;
    let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut json)
        .map_err(|error| unreadable(&config_path, error))?;
    let config = parse_config(&config_path, &json)?;
    if let Err(error) = fs::metadata(&weights_path) {
        return Err(formats::no_weights(dir, error));
    }
    Ok((config, modified, TensorFile::open(weights_path)?))
}

/// Whether the weights are of another save than the configuration, which was read first.
///
/// The weights' metadata has the fingerprint of the configuration they were saved with, unless
/// another program wrote them. `save` replaces the weights first and stamps both files with the
/// time, so a configuration that does not belong to the weights is older than they are, or as old.
/// A newer one was edited since. The time is that of the file that was read: the one of its name
/// may be of the next save.
fn is_torn(config: &Config, of_config: Option<SystemTime>, weights: &TensorFile) -> bool {
    let same = weights.fingerprint().is_none_or(|of_weights| of_weights == config.fingerprint());
    let edited = || of_config.zip(weights.modified().ok()).is_some_and(|(one, other)| one > other);
    !same && !edited()
}

/// Loads adapters from the contents of the two files of a PEFT directory, or of the files of
/// [another program](super::Format). `config` is empty for a program that writes none.
///
/// # Errors
/// As for [`load`].
pub fn load_from_bytes(
    config: &[u8],
    weights: &[u8],
    device: &Device,
    dtype: Option<DType>,
) -> Result<Adapters> {
    if let Some(other) = other::load_from_bytes(config, weights, device, dtype)? {
        return Ok(other.into());
    }
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
    let config_path = file.path().with_file_name(CONFIG_FILE);
    let targets = Targets::new(&config_path, &config.fields)?;
    let mut found = pairs(&file, &targets)?;
    let weights = extras_read::weights_of(&config, &config_path, &targets, &mut found)?;
    config.loaded.weights = weights;
    for (module, pair) in &found.modules {
        check_rank(file.path(), &config, module, pair)?;
    }
    if config.ties_weights() {
        let tied = |module: &&String| TIED.contains(&module.rsplit('.').next().unwrap_or_default());
        if let Some(module) = found.modules.keys().find(tied) {
            let reason = format!(
                "adapters shared by layers that share a weight, as {module} may do: merge \
                         them in PEFT, by merge_and_unload()"
            );
            return Err(unsupported(&config_path, "ensure_weight_tying", reason));
        }
    }
    config.loaded.modules = found.modules.keys().cloned().collect();
    config.loaded.whole = found.whole.keys().cloned().collect();
    let Pairs { modules, left_out, targets_disregarded, .. } = {
        let source = Source { config: &config, targets: &targets, dtype };
        config.extras = extras_read::read(source, &mut file, &mut found)?;
        found
    };
    let mut adapters = BTreeMap::new();
    for (module, pair) in modules {
        let dtype = Some(dtype.unwrap_or(pair.dtype));
        let a = file.tensor(&pair.a, device, dtype)?;
        let b = file.tensor(&pair.b, device, dtype)?;
        let path = config.pattern_path(&module);
        let (_, alpha) = extras_read::rank_and_alpha(&config, &config_path, &path)?;
        let adapter = Adapter::from_tensors(a, b, alpha, config.scaling)
            .map_err(|error| malformed(file.path(), &module, error.to_string()))?;
        adapters.insert(module, adapter);
    }
    if targets_disregarded {
        config.fields.remove("target_modules");
    }
    let unknown_fields = config.unknown_fields();
    let format = Format::Peft;
    Ok(Adapters { config, adapters, format, left_out, targets_disregarded, unknown_fields })
}

/// The rank must be the one of the configuration, which is what PEFT would make room for.
fn check_rank(path: &Path, config: &Config, module: &str, pair: &Pair) -> Result<()> {
    let Pair { a: name, rank, .. } = pair;
    let (expected, from) = config.ranks.of(&config.pattern_path(module)).map_err(|key| {
        let path = path.with_file_name(CONFIG_FILE);
        undecided(&path, &format!("rank_pattern {key:?}"), module)
    })?;
    if *rank != expected {
        let from = from.map_or("r".into(), |key| format!("rank_pattern {key:?}"));
        let reason = format!("has rank {rank}, but {from} in {CONFIG_FILE} says {expected}");
        return Err(malformed(path, name, reason));
    }
    Ok(())
}
