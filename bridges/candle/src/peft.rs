//! Adapters as Hugging Face PEFT keeps them.

use crate::adapter::LoraAdapter;
use crate::linear::{DEFAULT_ADAPTER, LoraLinear};
use crate::memory::err;
use candle_core::{Device, Result, Tensor, bail};
use lora_kernels::{self as lk, peft};
use std::collections::BTreeMap;
use std::path::Path;

/// The contents of a PEFT directory.
#[derive(Debug)]
#[non_exhaustive]
pub struct PeftAdapters {
    /// Adapters by the paths of their modules, such as `model.layers.0.self_attn.q_proj`.
    pub adapters: BTreeMap<String, LoraAdapter>,
    /// The configuration, for [`save_peft`] to write back. Its `dropout` is a p for
    /// [`LoraLinear::train`].
    pub config: peft::Config,
    /// What PEFT computes with the directory and these adapters do not, a line for each kind:
    /// trained embeddings, say.
    pub not_computed: Vec<String>,
}

/// Loads every adapter of a PEFT directory, in f32 variables on `device`.
///
/// # Errors
/// As for [`lora_kernels::peft::load`].
pub fn load_peft(dir: impl AsRef<Path>, device: &Device) -> Result<PeftAdapters> {
    let loaded = peft::load(dir, &lk::Device::cpu(), Some(lk::DType::F32)).map_err(err)?;
    let not_computed = loaded.not_computed();
    let adapters = loaded
        .adapters
        .iter()
        .map(|(module, adapter)| Ok((module.clone(), LoraAdapter::from_core(adapter, device)?)));
    let adapters = adapters.collect::<Result<_>>()?;
    Ok(PeftAdapters { adapters, config: loaded.config, not_computed })
}

/// Saves adapters by the paths of their modules, in f32, as a directory that PEFT loads. `config`
/// comes from [`load_peft`], or is the default.
///
/// # Errors
/// As for [`lora_kernels::peft::save`].
pub fn save_peft<'a>(
    dir: impl AsRef<Path>,
    config: &peft::Config,
    adapters: impl IntoIterator<Item = (&'a str, &'a LoraAdapter)>,
) -> Result<()> {
    let adapters = adapters
        .into_iter()
        .map(|(module, adapter)| Ok((module, adapter.to_core()?)))
        .collect::<Result<Vec<_>>>()?;
    let adapters = adapters.iter().map(|(module, adapter)| (*module, adapter));
    peft::save(dir, config, adapters).map_err(err)
}

impl LoraLinear {
    /// The layer of W0 [d, k] and bias `[d]` with the adapter of `module` in a PEFT directory, named
    /// [`DEFAULT_ADAPTER`]. It reads the whole directory: for several layers see [`load_peft`].
    ///
    /// # Errors
    /// If the directory has no adapter of this module; as for [`load_peft`] and
    /// [`LoraLinear::with_adapter`].
    pub fn from_peft(
        dir: impl AsRef<Path>,
        module: &str,
        w0: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Self> {
        let mut loaded = load_peft(&dir, w0.device())?;
        let Some(adapter) = loaded.adapters.remove(module) else {
            bail!("{} has no adapter of {module}", dir.as_ref().display())
        };
        LoraLinear::with_adapter(w0, bias, DEFAULT_ADAPTER, adapter)
    }
}
