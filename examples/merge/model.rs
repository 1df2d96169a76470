//! What the checkpoint's `config.json` says of its model.

use crate::Result;
use lora_kernels::DType;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub const CONFIG: &str = "config.json";
/// The largest configuration that is read; most have a few KB.
const MAX_CONFIG: u64 = 16 << 20;

/// Models whose class in transformers has `Conv1D` modules.
const CONV1D_MODELS: [&str; 7] = [
    "clvp",
    "clvp_decoder",
    "clvp_encoder",
    "decision_transformer",
    "gpt2",
    "imagegpt",
    "openai-gpt",
];

/// Models whose experts are stored as [E, k, d]: in the model, or in its files only.
const TRANSPOSED_EXPERTS: [&str; 6] =
    ["aria", "aria_text", "gpt_oss", "openai_privacy_filter", "qwen3_vl_moe", "qwen3_vl_moe_text"];

const VOCABULARY: &str = "vocab_size";
const TIE: &str = "tie_word_embeddings";
/// Models that tie them where their configuration does not say.
const TIED_MODELS: [&str; 9] =
    ["bloom", "cohere", "cohere2", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "opt"];

pub struct Model {
    config: Option<Value>,
}

impl Model {
    /// Reads the `config.json` of a folder, if it has one.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        if !path.exists() {
            return Ok(Model { config: None });
        }
        let config = read_json(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Model { config: Some(config) })
    }

    /// A whole number of the language model's configuration.
    pub fn number(&self, key: &str) -> Option<usize> {
        let config = self.config.as_ref()?;
        let text = config.get("text_config").and_then(|text| text.get(key));
        text.or(config.get(key))?.as_u64().map(|number| number as usize)
    }

    /// The type of the whole model, as transformers calls it.
    pub fn model_type(&self) -> Option<&str> {
        self.config.as_ref()?.get("model_type")?.as_str()
    }

    /// Whether there is a `config.json`.
    pub fn is_known(&self) -> bool {
        self.config.is_some()
    }

    /// Whether the model, or one of its parts, has `Conv1D` modules; `None` if that is unknown.
    pub fn has_conv1d(&self) -> Option<bool> {
        let mut types = Vec::new();
        model_types(self.config.as_ref()?, &mut types);
        match types.is_empty() {
            true => None,
            false => Some(types.iter().any(|name| CONV1D_MODELS.contains(name))),
        }
    }
}

impl Model {
    /// Whether the head shares the embedding's weight; `None` if nothing tells.
    pub fn ties_embeddings(&self) -> Option<bool> {
        let config = self.config.as_ref()?;
        let text = config.get("text_config");
        let field = |key: &str| text.and_then(|text| text.get(key)).or(config.get(key));
        if let Some(ties) = config.get(TIE).or(field(TIE)).and_then(Value::as_bool) {
            return Some(ties);
        }
        let model_type = field("model_type")?.as_str()?;
        TIED_MODELS.contains(&model_type).then_some(true)
    }

    /// Whether the parameters of experts are stored as [E, k, d]; `None` if that is unknown.
    pub fn has_transposed_experts(&self) -> Option<bool> {
        let mut types = Vec::new();
        model_types(self.config.as_ref()?, &mut types);
        match types.is_empty() {
            true => None,
            false => Some(types.iter().any(|name| TRANSPOSED_EXPERTS.contains(name))),
        }
    }

    /// The configuration of the same model, perhaps with weights of their own for head and
    /// embedding, and with another size of the vocabulary.
    pub fn changed(&self, untie: bool, vocabulary: Option<usize>) -> Result<Vec<u8>> {
        let mut config = self.config.clone().ok_or("there is no config.json")?;
        let fields = config.as_object_mut().ok_or("config.json is no object")?;
        let mut set = |key: &str, value: Value, always: bool| {
            if always || fields.contains_key(key) {
                fields.insert(key.into(), value.clone());
            }
            if let Some(text) = fields.get_mut("text_config").and_then(Value::as_object_mut)
                && (always || text.contains_key(key))
            {
                text.insert(key.into(), value);
            }
        };
        if untie {
            set(TIE, Value::Bool(false), true);
        }
        if let Some(rows) = vocabulary {
            set(VOCABULARY, rows.into(), false);
        }
        Ok(serde_json::to_vec_pretty(&config)?)
    }

    /// Takes out what is said of quantised weights.
    pub fn forget_quantisation(&mut self) {
        if let Some(fields) = self.config.as_mut().and_then(Value::as_object_mut) {
            fields.remove("quantization_config");
            fields.remove("compression_config");
        }
    }

    /// The configuration as it is now.
    pub fn json(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.config.as_ref().map(serde_json::to_vec_pretty).transpose()?)
    }

    /// The element type of the model.
    pub fn dtype(&self) -> Option<DType> {
        let config = self.config.as_ref()?;
        let fields = [Some(config), config.get("text_config")].into_iter().flatten();
        let name = |fields: &'_ Value| {
            Some(fields.get("dtype").or(fields.get("torch_dtype"))?.as_str()?.to_string())
        };
        match &*fields.filter_map(name).next()? {
            "bfloat16" => Some(DType::Bf16),
            "float16" => Some(DType::F16),
            "float32" => Some(DType::F32),
            _ => None,
        }
    }

    /// The rows and columns that share a scale in FP8.
    pub fn weight_block(&self) -> Option<[usize; 2]> {
        let quantised = self.config.as_ref()?.get("quantization_config")?;
        let sizes = quantised.get("weight_block_size")?.as_array()?;
        let size = |at: usize| sizes.get(at)?.as_u64().map(|size| size as usize);
        Some([size(0)?, size(1)?])
    }

    /// The method of quantisation, if the configuration names one.
    pub fn quantised_by(&self) -> Option<&str> {
        self.config.as_ref()?.get("quantization_config")?.get("quant_method")?.as_str()
    }
}

/// The `model_type` of a configuration and of those within it.
fn model_types<'a>(config: &'a Value, types: &mut Vec<&'a str>) {
    let Some(fields) = config.as_object() else { return };
    types.extend(fields.get("model_type").and_then(Value::as_str));
    fields.values().for_each(|field| model_types(field, types));
}

fn read_json(path: &Path) -> Result<Value> {
    let mut json = Vec::new();
    File::open(path)?.take(MAX_CONFIG + 1).read_to_end(&mut json)?;
    if json.len() as u64 > MAX_CONFIG {
        return Err(format!("has more than {MAX_CONFIG} bytes").into());
    }
    Ok(serde_json::from_slice(&json)?)
}
