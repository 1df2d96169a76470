//! The PEFT directory.

use crate::Result;
use lora_kernels::peft::{self, Adapters};
use lora_kernels::Device;
use serde_json::Value;
use std::fs;
use std::path::Path;

pub const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Loads the adapters, and whether `fan_in_fan_out` is set.
///
/// `peft::load` refuses that field: how a weight is stored is for the caller to know. `layout.rs`
/// knows it here, so the field is taken out before the rest is read.
pub fn load(dir: &Path) -> Result<(Adapters, bool)> {
    let [config, weights] = FILES.map(|file| dir.join(file));
    let plain = || Ok((peft::load(dir, &Device::cpu(), None)?, false));
    let size = fs::metadata(&config).map(|metadata| metadata.len()).unwrap_or(0);
    if !config.is_file() || size > 4 << 20 {
        return plain();
    }
    let Some(json) = without_fan_in_fan_out(&fs::read_to_string(&config)?) else { return plain() };
    let weights = fs::read(&weights).map_err(|error| format!("{}: {error}", weights.display()))?;
    let adapters = peft::load_from_bytes(json.as_bytes(), &weights, &Device::cpu(), None)
        .map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok((adapters, true))
}

/// The text with `"fan_in_fan_out": false` where it has `true`; `None` if it has not. All else,
/// the order of patterns too, stays as it is.
fn without_fan_in_fan_out(json: &str) -> Option<String> {
    const KEY: &str = "\"fan_in_fan_out\"";
    let config: Value = serde_json::from_str(json).ok()?;
    if config.get("fan_in_fan_out") != Some(&Value::Bool(true)) {
        return None;
    }
    let (before, after) = json.split_once(KEY)?;
    let value = after.trim_start().strip_prefix(':')?.trim_start().strip_prefix("true")?;
    let json = format!("{before}{KEY}: false{value}");
    let changed: Value = serde_json::from_str(&json).ok()?;
    (changed.get("fan_in_fan_out") == Some(&Value::Bool(false))).then_some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_field_changes() {
        let text = |value| format!("{{\"r\": 2,\n \"fan_in_fan_out\" :\t{value}, \"b\": true}}");
        let changed = without_fan_in_fan_out(&text("true"));
        assert_eq!(
            changed.as_deref(),
            Some("{\"r\": 2,\n \"fan_in_fan_out\": false, \"b\": true}")
        );
        for other in ["false", "null", "1", "truely"] {
            assert_eq!(without_fan_in_fan_out(&text(other)), None, "{other}");
        }
    }
}
