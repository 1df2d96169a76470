//! The names of the tensors in an adapter file.

use super::file::PREFIX;
use super::formats;

/// The parts of a tensor's name.
#[derive(Debug)]
pub(super) struct Name<'a> {
    /// The path of the module; empty for a parameter of the model itself.
    pub module: &'a str,
    pub part: Part<'a>,
    /// The adapter's name, which some programs leave inside.
    pub adapter: Option<&'a str>,
}

/// What a tensor is of its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    /// The bias of B (`lora_bias`).
    BiasOfB,
    /// The magnitudes of DoRA.
    Magnitude,
    /// The rows of an embedding (`trainable_token_indices`).
    Tokens,
    /// A parameter of the module beneath an adapter, such as `weight`.
    Wrapped(&'a str),
    /// A parameter of a module without adapter.
    Whole,
}

impl<'a> Name<'a> {
    /// The parts of a name, or what the name stands for instead.
    pub fn parse(name: &'a str) -> Result<Self, String> {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            let format = formats::of_tensor(name);
            let format = format.map_or(String::new(), |format| format!("; {format}"));
            return Err(format!("its name does not begin with {PREFIX}{format}"));
        };
        if rest.starts_with(PREFIX) {
            return Err(format!("its name begins with {PREFIX} twice, and PEFT drops it"));
        }
        let parts: Vec<&str> = rest.split('.').collect();
        let (length, part, adapter) = match parts[..] {
            [.., "lora_A", "weight"] => (2, Part::A, None),
            [.., "lora_B", "weight"] => (2, Part::B, None),
            [.., "lora_B", "bias"] => (2, Part::BiasOfB, None),
            [.., "lora_A", name, "weight"] => (3, Part::A, Some(name)),
            [.., "lora_B", name, "weight"] => (3, Part::B, Some(name)),
            [.., "lora_B", name, "bias"] => (3, Part::BiasOfB, Some(name)),
            [.., "lora_embedding_A"] => (1, Part::EmbeddingA, None),
            [.., "lora_embedding_B"] => (1, Part::EmbeddingB, None),
            [.., "lora_embedding_A", name] => (2, Part::EmbeddingA, Some(name)),
            [.., "lora_embedding_B", name] => (2, Part::EmbeddingB, Some(name)),
            [.., "lora_magnitude_vector"] => (1, Part::Magnitude, None),
            [.., "lora_magnitude_vector", "weight"] => (2, Part::Magnitude, None),
            [.., "lora_magnitude_vector", name, "weight"] => (3, Part::Magnitude, Some(name)),
            [.., "token_adapter", "trainable_tokens_delta"] => (2, Part::Tokens, None),
            [.., "token_adapter", "trainable_tokens_delta", name] => (3, Part::Tokens, Some(name)),
            [.., "base_layer", parameter] => (2, Part::Wrapped(parameter), None),
            _ => {
                refuse_whole(rest, &parts)?;
                (1, Part::Whole, None)
            }
        };
        let tail: usize = parts[parts.len() - length..].iter().map(|part| part.len() + 1).sum();
        let module = &rest[..rest.len().saturating_sub(tail)];
        Ok(Name { module, part, adapter })
    }
}

/// Refuses names that are not of a parameter of the base model.
fn refuse_whole(rest: &str, parts: &[&str]) -> Result<(), String> {
    if parts.iter().any(|part| ["lora_A", "lora_B"].contains(part)) {
        Err("a name other than MODULE.lora_A.weight and MODULE.lora_B.weight".into())
    } else if let Some(format) = formats::of_tensor(rest) {
        Err(format!("neither A nor B of an adapter; {format}"))
    } else if let Some(part) = parts.iter().find(|part| part.starts_with("lora_")) {
        Err(format!("PEFT 0.21 has no {part} in a LoRA adapter, and drops it"))
    } else if parts.iter().any(|part| ["modules_to_save", "original_module"].contains(part)) {
        Err("PEFT's own name of a module saved whole, which it does not load: rename it to \
             MODULE.weight, without modules_to_save and the adapter's name"
            .into())
    } else if parts.contains(&"base_layer") || parts.contains(&"token_adapter") {
        Err("a name that PEFT gives to no parameter, and drops".into())
    } else {
        Ok(())
    }
}

/// The name of a module's A or B in the file.
pub(super) fn key(module: &str, half: char) -> String {
    format!("{PREFIX}{module}.lora_{half}.weight")
}

/// Refuses what is not the path of a module: names with dots between them.
pub(super) fn check_module(module: &str) -> Result<(), &'static str> {
    if module.len() > 1024 {
        return Err("has a module name of more than 1024 bytes");
    }
    if !module.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has a module name with spaces or characters that are not ASCII");
    }
    if module.split('.').any(str::is_empty) {
        return Err("has a module name with nothing before, between or after its dots");
    }
    Ok(())
}
