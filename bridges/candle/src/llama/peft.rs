//! The adapters of a model as one PEFT directory.

use super::model::Llama;
use crate::peft::{load_peft, save_peft};
use candle_core::{Result, bail};
use lora_kernels::peft;
use std::path::Path;

impl Llama {
    /// Saves every adapter as a directory that PEFT loads, in f32.
    ///
    /// # Errors
    /// If there are no adapters; as for [`save_peft`].
    pub fn save_peft(&self, dir: impl AsRef<Path>) -> Result<()> {
        save_peft(dir, &self.peft, self.adapters())
    }

    /// Overwrites the variables with a PEFT directory's, which must have the same modules,
    /// ranks and scales: a checkpoint, say. Variables that an optimiser has stay the same.
    ///
    /// # Errors
    /// If the directory does not fit; as for [`load_peft`].
    pub fn load_peft(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref().display();
        let mut loaded = load_peft(dir.to_string(), self.device())?;
        let mut pairs = Vec::new();
        for (module, own) in self.adapters() {
            let Some(adapter) = loaded.adapters.remove(module) else {
                bail!("{dir} has no adapter of {module}")
            };
            let shapes = |of: &crate::LoraAdapter| (of.a().shape().clone(), of.b().shape().clone());
            if shapes(own) != shapes(&adapter) || own.scale() != adapter.scale() {
                bail!(
                    "{module}: {dir} has A {:?}, B {:?} and scale {}, the model A {:?}, B {:?} and \
                     scale {}",
                    adapter.a().shape(),
                    adapter.b().shape(),
                    adapter.scale(),
                    own.a().shape(),
                    own.b().shape(),
                    own.scale()
                )
            }
            pairs.push((own, adapter));
        }
        if let Some(module) = loaded.adapters.keys().next() {
            bail!("{dir} also has an adapter of {module}")
        }
        for (own, adapter) in pairs {
            own.a().set(adapter.a())?;
            own.b().set(adapter.b())?;
            own.forget();
        }
        Ok(())
    }

    /// What `save_peft` writes besides adapters: the name of the base model, say.
    pub fn peft_config(&self) -> &peft::Config {
        &self.peft
    }

    /// The same, to change it.
    pub fn peft_config_mut(&mut self) -> &mut peft::Config {
        &mut self.peft
    }
}
