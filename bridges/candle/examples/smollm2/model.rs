//! The model that is trained: on the kernels, or the contender.

use crate::Result;
use crate::args::Settings;
use crate::plain::Plain;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use lora_kernels_candle::llama::{Config, Llama, Lora};
use lora_kernels_candle::lora_kernels::AdapterConfig;
use lora_kernels_candle::{load_peft, save_peft};
use std::path::Path;

pub enum Model {
    Kernels(Box<Llama>),
    Plain(Box<Plain>),
}

impl Model {
    /// A model with a new adapter, which it saves in `initial`.
    pub fn load(
        dir: &Path,
        initial: &Path,
        settings: &Settings,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let config = Config::from_file(dir.join("config.json"))?;
        let adapter = AdapterConfig::new(settings.rank).with_alpha(settings.alpha);
        let lora = Lora::new(adapter.with_seed(settings.seed), &settings.targets);
        let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), device)?;
        let vb = VarBuilder::from_tensors(tensors, dtype, device);
        let mut llama = Llama::load(&config, vb, Some(&lora))?;
        let peft_config = llama.peft_config().clone().with_base_model(dir.to_string_lossy());
        let peft_config = peft_config.with_dropout(settings.dropout)?;
        *llama.peft_config_mut() = peft_config;
        llama.save_peft(initial)?;
        if !settings.plain {
            return Ok(Model::Kernels(Box::new(llama)));
        }
        // The same adapter; the model itself has served.
        drop(llama);
        let adapter = load_peft(initial, device)?;
        Ok(Model::Plain(Box::new(Plain::load(dir, adapter, config, dtype, device)?)))
    }

    /// The mean cross-entropy of the next tokens, of ids and targets [B, T].
    pub fn loss(&self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Model::Kernels(llama) => llama.loss(ids, targets)?,
            Model::Plain(plain) => plain.loss(ids, targets)?,
        })
    }

    /// From now on the adapters' input has dropout, with masks that begin with this row. Masks
    /// of the contender follow from no seed.
    pub fn train(&mut self, settings: &Settings, row: usize) -> Result<()> {
        let p = settings.dropout as f32;
        match self {
            Model::Kernels(llama) => llama.train(p, settings.seed, row as u64)?,
            Model::Plain(plain) => plain.dropout = p,
        }
        Ok(())
    }

    /// From now on it has none.
    pub fn eval(&mut self) {
        match self {
            Model::Kernels(llama) => llama.eval(),
            Model::Plain(plain) => plain.dropout = 0.0,
        }
    }

    /// The trainable variables by name.
    pub fn vars(&self) -> Vec<(String, Var)> {
        match self {
            Model::Kernels(llama) => llama.vars(),
            Model::Plain(plain) => {
                let adapters = plain.adapter.adapters.iter();
                let vars = adapters.map(|(name, adapter)| {
                    let var = |part: &str, var: &Var| {
                        (format!("base_model.model.{name}.{part}.weight"), var.clone())
                    };
                    [var("lora_A", adapter.a()), var("lora_B", adapter.b())]
                });
                vars.flatten().collect()
            }
        }
    }

    /// After every change of the variables.
    pub fn refresh(&self) -> Result<()> {
        match self {
            Model::Kernels(llama) => Ok(llama.refresh()?),
            Model::Plain(_) => Ok(()),
        }
    }

    /// Saves a directory that PEFT loads.
    pub fn save(&self, out: &Path) -> Result<()> {
        match self {
            Model::Kernels(llama) => Ok(llama.save_peft(out)?),
            Model::Plain(plain) => {
                let adapters = plain.adapter.adapters.iter();
                let adapters = adapters.map(|(name, adapter)| (name.as_str(), adapter));
                Ok(save_peft(out, &plain.adapter.config, adapters)?)
            }
        }
    }
}
