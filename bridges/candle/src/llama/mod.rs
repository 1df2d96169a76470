//! Llama models in Hugging Face's layout, with LoRA on any of their linear layers.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::VarBuilder;
//! use lora_kernels_candle::llama::{Config, Llama, Lora};
//! use lora_kernels_candle::lora_kernels::AdapterConfig;
//!
//! # fn main() -> candle_core::Result<()> {
//! # let json = r#"{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
//! #   "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5,
//! #   "tie_word_embeddings": true}"#;
//! let config = Config::from_json(json)?;
//! # let weights = lora_kernels_candle::llama::random_weights(&config)?;
//! let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
//! let lora = Lora::new(AdapterConfig::new(4), ["q_proj", "v_proj"]);
//! let model = Llama::load(&config, vb, Some(&lora))?;
//! let ids = Tensor::new(&[[1u32, 2, 3, 4]], &Device::Cpu)?;
//! let labels = Tensor::new(&[[2u32, 3, 4, 5]], &Device::Cpu)?;
//! let gradients = model.loss(&ids, &labels)?.backward()?;
//! assert!(model.vars().iter().all(|(_, var)| gradients.get(var).is_some()));
//! # Ok(())
//! # }
//! ```

mod config;
mod layer;
mod model;
mod peft;
mod projections;
mod random;
mod targets;

pub use config::{Config, RopeScaling};
pub use model::Llama;
pub use random::random_weights;
pub use targets::Lora;
