//! Which layers have adapters.

use candle_core::{Result, bail};
use lora_kernels::AdapterConfig;

/// The linear layers of a layer.
pub(super) const TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// New adapters: their rank, scale and start, and the layers that have them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Lora {
    /// The adapters. Each is made with a seed of its own, which follows from this one.
    pub adapter: AdapterConfig,
    /// Names of layers as PEFT's `target_modules` has them: `q_proj`, or the end of a path, such as
    /// `layers.3.mlp.up_proj`, or `all-linear`.
    pub targets: Vec<String>,
}

impl Lora {
    /// Adapters of these layers.
    pub fn new<T: Into<String>>(
        adapter: AdapterConfig,
        targets: impl IntoIterator<Item = T>,
    ) -> Self {
        Lora { adapter, targets: targets.into_iter().map(Into::into).collect() }
    }

    /// Refuses targets that are no linear layer of a Llama.
    pub(super) fn check(&self) -> Result<()> {
        for target in &self.targets {
            let name = target.rsplit('.').next().unwrap_or(target);
            if target != "all-linear" && !TARGETS.contains(&name) {
                bail!("{target} is no target: expected all-linear or {}", TARGETS.join(", "))
            }
        }
        Ok(())
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        self.targets.iter().any(|target| {
            target == "all-linear"
                || module
                    .strip_suffix(target.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    /// The configuration of the adapter made as the nth.
    pub(super) fn config_of(&self, n: u64) -> AdapterConfig {
        let seed = self.adapter.seed.wrapping_add(n);
        self.adapter.clone().with_seed(seed)
    }
}
