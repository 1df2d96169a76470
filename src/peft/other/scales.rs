//! The scale of adapters in the formats of other programs.

use super::names::Format;
use crate::error::Result;
use crate::layers::Scaling;
use crate::peft::config::Config;
use crate::peft::fields;
use crate::peft::file::{CONFIG_FILE, malformed, unsupported};
use crate::peft::targets::undecided;
use crate::peft::text;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The scale of mistral-finetune where nothing says another.
const MISTRAL_SCALE: f32 = 2.0;

/// What a file of adapters comes with.
pub(super) struct Source {
    pub format: Format,
    /// The configuration beside the file, and its path.
    pub config: Option<(PathBuf, Vec<u8>)>,
    /// The configuration in the file's metadata, as diffusers writes it.
    pub metadata: Option<String>,
}

/// Where the scales of a file come from.
pub(super) enum Scales {
    /// s, and the rank if that is said, too.
    Same { s: f32, rank: Option<u64>, path: PathBuf },
    /// α of each module in the file; α = r where it has none, if that is allowed.
    InFile { all: bool },
    /// PEFT's configuration beside the file.
    Config(PathBuf, Box<Config>),
    /// The configurations of a pipeline's parts.
    Metadata(BTreeMap<String, Config>),
}

impl Scales {
    pub fn new(source: Source, has_alphas: bool, weights: &Path) -> Result<Self> {
        let Source { format, config, metadata } = source;
        match (has_alphas, metadata) {
            (true, Some(_)) if format == Format::Diffusers => {
                let reason = "has alphas and lora_adapter_metadata, which diffusers refuses";
                return Err(unsupported(weights, "the header", reason));
            }
            (true, _) => return Ok(Scales::InFile { all: format == Format::Diffusers }),
            (false, Some(json)) if format == Format::Diffusers => {
                return Ok(Scales::Metadata(of_metadata(weights, &json)?));
            }
            _ => {}
        }
        let Some((path, json)) = config else {
            return match format {
                Format::MlxLm => {
                    let reason = format!(
                        "has no {CONFIG_FILE} beside it, in which mlx-lm keeps the scale \
                         (lora_parameters)"
                    );
                    Err(malformed(weights, "the file", reason))
                }
                Format::MistralFinetune => {
                    Ok(Scales::Same { s: MISTRAL_SCALE, rank: None, path: weights.into() })
                }
                _ => Ok(Scales::InFile { all: false }),
            };
        };
        let fields = object(&path, &json)?;
        if fields.contains_key("peft_type") {
            return Ok(Scales::Config(path.clone(), Box::new(plain(&path, &json)?)));
        }
        match format {
            Format::MlxLm => of_mlx(&path, &fields),
            Format::MistralFinetune => of_mistral(&path, &fields),
            _ => {
                let reason = "is missing: the scale of the adapters is not known; remove the file \
                              if it does not belong to them";
                Err(malformed(&path, "peft_type", reason))
            }
        }
    }

    /// α and scaling of a module's adapter, of which the file says `alpha`.
    pub fn of(
        &self,
        module: &str,
        rank: usize,
        alpha: Option<f32>,
        weights: &Path,
    ) -> Result<(f32, Scaling)> {
        let expected = |path: &Path, what: &str, expected: u64| match expected == rank as u64 {
            true => Ok(()),
            false => {
                let reason =
                    format!("has rank {rank}, but {what} in {} says {expected}", path.display());
                Err(malformed(weights, module, reason))
            }
        };
        match self {
            Scales::Same { s, rank: of_config, path } => {
                if let Some(of_config) = of_config {
                    expected(path, "rank", *of_config)?;
                }
                Ok((s * rank as f32, Scaling::Standard))
            }
            Scales::InFile { all } => match alpha {
                Some(0.0) => {
                    let reason = "is 0: in training that stands for the rank, in merging for 0";
                    Err(unsupported(weights, &format!("{module}.alpha"), reason))
                }
                Some(alpha) => Ok((alpha, Scaling::Standard)),
                None if *all => {
                    let reason = "has no alpha, but other modules have one";
                    Err(malformed(weights, module, reason))
                }
                None => Ok((rank as f32, Scaling::Standard)),
            },
            Scales::Config(path, config) => {
                // PEFT's modules have no part of a pipeline in front.
                let path_in_part = module.split_once('.').map_or(module, |(_, rest)| rest);
                of_config(path, config, [module, path_in_part], &expected)
            }
            Scales::Metadata(parts) => {
                let (part, path_in_part) = module.split_once('.').unwrap_or((module, ""));
                let Some(config) = parts.get(part) else {
                    let reason = format!("lora_adapter_metadata says nothing of {part}");
                    return Err(malformed(weights, module, reason));
                };
                of_config(weights, config, [path_in_part; 2], &expected)
            }
        }
    }
}

/// What asks for more than A, B and their scale, of which these files have nothing.
const NOT_PLAIN: [&str; 5] =
    ["lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices", "use_dora"];
/// Initial weights that leave other base weights behind, by the beginnings of their names.
const CHANGED_BASE: [&str; 5] = ["corda", "loftq", "lora_ga", "olora", "pissa"];

/// A configuration of PEFT, which must be one of plain adapters.
fn plain(path: &Path, json: &[u8]) -> Result<Config> {
    let config = Config::parse(path, json)?;
    let set = |key: &&str| config.fields.get(*key).is_some_and(fields::is_set);
    if let Some(key) = NOT_PLAIN.iter().find(|key| set(key)) {
        let reason = "beside adapters with the names of another program, which has no such tensors";
        return Err(unsupported(path, key, reason));
    }
    let initial = config.fields.get("init_lora_weights").and_then(Value::as_str).unwrap_or("");
    let initial = initial.to_ascii_lowercase();
    if CHANGED_BASE.iter().any(|start| initial.starts_with(start)) {
        let reason = format!("{initial}: the base weights would have to change");
        return Err(unsupported(path, "init_lora_weights", reason));
    }
    Ok(config)
}

/// α and scaling by PEFT's rules; of the two paths of a module, the first that a pattern matches.
fn of_config(
    path: &Path,
    config: &Config,
    paths: [&str; 2],
    expected: &dyn Fn(&Path, &str, u64) -> Result<()>,
) -> Result<(f32, Scaling)> {
    let [module, other] = paths;
    let costly = |key: &str| undecided(path, key, module);
    let (mut own_rank, key) = config.ranks.of(module).map_err(costly)?;
    if key.is_none() {
        own_rank = config.ranks.of(other).map_err(costly)?.0;
    }
    expected(path, "r or rank_pattern", own_rank as u64)?;
    let (mut alpha, key) = config.alphas.of(module).map_err(costly)?;
    if key.is_none() {
        alpha = config.alphas.of(other).map_err(costly)?.0;
    }
    Ok((alpha, config.scaling))
}

fn object(path: &Path, json: &[u8]) -> Result<Map<String, Value>> {
    let json = text::json(path, json)?;
    match serde_json::from_slice(&json) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(malformed(path, "the JSON", "is no object")),
        Err(error) => Err(malformed(path, "the JSON", error.to_string())),
    }
}

fn of_mlx(path: &Path, fields: &Map<String, Value>) -> Result<Scales> {
    match fields.get("fine_tune_type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "lora" => {}
        Some(kind) => {
            let reason = format!("{kind}, only \"lora\" is; mlx_lm.fuse merges it");
            return Err(unsupported(path, "fine_tune_type", reason));
        }
    }
    let key = "lora_parameters";
    let parameters = fields.get(key).and_then(Value::as_object);
    let parameters = parameters.ok_or_else(|| malformed(path, key, "is missing, or no object"))?;
    let s = number(path, "lora_parameters.scale", parameters.get("scale"))?;
    let rank = parameters.get("rank").and_then(Value::as_u64);
    match parameters.get("alpha") {
        None | Some(Value::Null) => {}
        Some(alpha) if alpha.as_f64() == rank.map(|rank| rank as f64) => {}
        Some(alpha) => {
            let reason = format!(
                "{alpha}: mlx-lm before 0.20 multiplied scale by alpha / rank, and later ones \
                 ignore alpha; remove alpha, with the scale that was trained with in scale"
            );
            return Err(unsupported(path, "lora_parameters.alpha", reason));
        }
    }
    Ok(Scales::Same { s, rank, path: path.into() })
}

fn of_mistral(path: &Path, fields: &Map<String, Value>) -> Result<Scales> {
    let Some(lora) = fields.get("lora").and_then(Value::as_object) else {
        return Ok(Scales::Same { s: MISTRAL_SCALE, rank: None, path: path.into() });
    };
    let s = match lora.get("scaling") {
        None => MISTRAL_SCALE,
        scaling => number(path, "lora.scaling", scaling)?,
    };
    Ok(Scales::Same { s, rank: lora.get("rank").and_then(Value::as_u64), path: path.into() })
}

fn number(path: &Path, key: &str, value: Option<&Value>) -> Result<f32> {
    let number = value.and_then(Value::as_f64).map(|number| number as f32);
    number
        .filter(|number| number.is_finite())
        .ok_or_else(|| malformed(path, key, "is not a number that f32 can hold"))
}

/// The configurations of the parts of a pipeline: fields with the part and a dot in front.
fn of_metadata(path: &Path, json: &str) -> Result<BTreeMap<String, Config>> {
    let mut parts: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (key, value) in object(path, json.as_bytes())? {
        // diffusers ignores what has no part of a pipeline in front.
        let Some((part, field)) = key.split_once('.') else { continue };
        parts.entry(part.into()).or_default().insert(field.into(), value);
    }
    let config = |(part, mut fields): (String, Map<String, Value>)| {
        fields.entry("peft_type").or_insert("LORA".into());
        Ok((part, plain(path, Value::Object(fields).to_string().as_bytes())?))
    };
    parts.into_iter().map(config).collect()
}
