//! `config.json`.

use crate::nn::rope_frequencies;
use candle_core::{Error, Result, bail};
use serde::Deserialize;
use std::f64::consts::PI;
use std::path::Path;

/// The sizes of a Llama, as Hugging Face's `config.json` has them. Fields that are not here have
/// no effect on what the model computes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of the queries.
    pub num_attention_heads: usize,
    /// Heads of the keys and values; as many as of the queries if it is missing.
    pub num_key_value_heads: Option<usize>,
    /// Elements of a head; `hidden_size / num_attention_heads` if it is missing.
    pub head_dim: Option<usize>,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// θ of the rotary embeddings.
    #[serde(default = "ten_thousand")]
    pub rope_theta: f64,
    /// How rotary embeddings are scaled for long contexts. transformers 5 also keeps θ here.
    #[serde(default, alias = "rope_parameters")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have biases.
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether gate, up and down have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// The activation: `silu`.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// The architecture: `llama`.
    #[serde(default = "llama")]
    pub model_type: String,
}

/// `rope_scaling` of `config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct RopeScaling {
    /// `default`, `linear` or `llama3`.
    #[serde(alias = "type", default = "default_type")]
    pub rope_type: String,
    /// θ, instead of that of the configuration.
    pub rope_theta: Option<f64>,
    /// By how much the context is longer (`linear`, `llama3`).
    pub factor: Option<f64>,
    /// Of `llama3`.
    pub low_freq_factor: Option<f64>,
    /// Of `llama3`.
    pub high_freq_factor: Option<f64>,
    /// Of `llama3`.
    pub original_max_position_embeddings: Option<usize>,
}

fn ten_thousand() -> f64 {
    10_000.0
}

fn silu() -> String {
    "silu".to_string()
}

fn llama() -> String {
    "llama".to_string()
}

fn default_type() -> String {
    "default".to_string()
}

impl Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// If it is not one of a model that this crate computes.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Config = serde_json::from_str(json).map_err(Error::wrap)?;
        config.check()?;
        Ok(config)
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// If it cannot be read; as for [`Config::from_json`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let read = std::fs::read_to_string(path).map_err(Error::wrap);
        let config = read.and_then(|json| Config::from_json(&json));
        config.map_err(|error| error.with_path(path))
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Heads of the keys and values.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.model_type != "llama" {
            bail!("model_type is {}: expected llama", self.model_type)
        }
        if self.hidden_act != "silu" {
            bail!("hidden_act is {}: expected silu", self.hidden_act)
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("{heads} heads cannot share {kv_heads} KV heads")
        }
        if self.head_dim() == 0 || !self.head_dim().is_multiple_of(2) {
            bail!("rotary embeddings need an even head_dim, not {}", self.head_dim())
        }
        self.frequencies().map(drop)
    }

    /// The frequencies of the rotary embeddings, scaled.
    ///
    /// # Errors
    /// If the scaling is not supported, or lacks a number.
    pub fn frequencies(&self) -> Result<Vec<f32>> {
        let Some(scaling) = &self.rope_scaling else {
            return Ok(rope_frequencies(self.head_dim(), self.rope_theta));
        };
        let theta = scaling.rope_theta.unwrap_or(self.rope_theta);
        let frequencies = rope_frequencies(self.head_dim(), theta);
        match scaling.rope_type.as_str() {
            "default" => Ok(frequencies),
            "linear" => {
                let factor = scaling.number("factor", scaling.factor)?;
                Ok(frequencies.iter().map(|f| (f64::from(*f) / factor) as f32).collect())
            }
            "llama3" => scaling.llama3(&frequencies),
            other => bail!("rope_scaling is {other}: expected default, linear or llama3"),
        }
    }
}

impl RopeScaling {
    fn number(&self, name: &str, value: Option<f64>) -> Result<f64> {
        match value {
            Some(value) => Ok(value),
            None => bail!("rope_scaling {} has no {name}", self.rope_type),
        }
    }

    /// Waves longer than the original context are stretched by the factor, waves much shorter are
    /// kept, and between the two the change is linear.
    fn llama3(&self, frequencies: &[f32]) -> Result<Vec<f32>> {
        let factor = self.number("factor", self.factor)?;
        let low = self.number("low_freq_factor", self.low_freq_factor)?;
        let high = self.number("high_freq_factor", self.high_freq_factor)?;
        let context = self.original_max_position_embeddings.map(|context| context as f64);
        let context = self.number("original_max_position_embeddings", context)?;
        let scaled = |&frequency: &f32| {
            let frequency = f64::from(frequency);
            let waves = context * frequency / (2.0 * PI);
            let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
            (frequency * (kept + (1.0 - kept) / factor)) as f32
        };
        Ok(frequencies.iter().map(scaled).collect())
    }
}
