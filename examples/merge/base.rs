//! Bases that an adapter cannot be merged into as they are: what they are, and what to do.

use crate::checkpoint::Checkpoint;
use crate::model::Model;
use std::fs::File;
use std::io::Read;
use std::path::Path;

const TAKE_16_BITS: &str = "merge into the 16-bit checkpoint that it was made from, or save it \
                            dequantised before (transformers: model.dequantize())";

/// Why the weight of a module is missing or of no type that can be merged, where names tell.
pub fn explain(checkpoint: &Checkpoint, model: &Model, module: &str) -> Option<String> {
    if let Some(format) = quantised(checkpoint, model, module) {
        return Some(format!("the base is quantised ({format}): {TAKE_16_BITS}"));
    }
    let has = |name: String| checkpoint.find(&name).is_some();
    if has(format!("{module}.base_layer.weight"))
        || has(format!("base_model.model.{module}.weight"))
        || has(format!("base_model.model.{module}.base_layer.weight"))
    {
        return Some(
            "the base was saved with an adapter's layers around its weights; save the model that \
             PEFT's unload() or merge_and_unload() returns, and take that as the base"
                .into(),
        );
    }
    if module.starts_with("lora_") {
        return Some(
            "kohya's scripts write an underscore for each dot of a module's path, and no path of \
             the checkpoint gives that name: take the model under the names that it was trained \
             with (diffusers' for SD 1 and 2, Stability's own for SDXL)"
                .into(),
        );
    }
    fused(checkpoint, module)
}

/// The projections of which some models have one weight, and the names of that.
const FUSED: [(&[&str], &[&str]); 2] = [
    (
        &["q_proj", "k_proj", "v_proj", "query", "key", "value"],
        &["qkv_proj", "query_key_value", "qkv", "c_attn", "Wqkv", "W_pack", "in_proj"],
    ),
    (&["gate_proj", "up_proj"], &["gate_up_proj", "dense_h_to_4h"]),
];

/// Whether adapter and checkpoint differ in that one has a fused projection.
fn fused(checkpoint: &Checkpoint, module: &str) -> Option<String> {
    let (parent, last) = module.rsplit_once('.')?;
    for (separate, fused) in FUSED {
        let others = match (separate.contains(&last), fused.contains(&last)) {
            (true, _) => fused,
            (_, true) => separate,
            _ => continue,
        };
        let others = others.iter().map(|other| format!("{parent}.{other}.weight"));
        let there: Vec<_> = others.filter(|name| checkpoint.find(name).is_some()).collect();
        if !there.is_empty() {
            return Some(format!(
                "it has {} instead, and a model of that form has no {last} for PEFT either: take \
                 the checkpoint that the adapter was trained on",
                there.join(", ")
            ));
        }
    }
    None
}

/// The format of a module's quantised weight.
fn quantised(checkpoint: &Checkpoint, model: &Model, module: &str) -> Option<String> {
    let has = |end: &str| checkpoint.find(&format!("{module}.{end}")).is_some();
    let starts = |start: &str| {
        let start = format!("{module}.{start}");
        checkpoint.names().any(|name| name.starts_with(&start))
    };
    let dtype = checkpoint.find(&format!("{module}.weight")).map(|(_, entry)| &*entry.dtype_name);
    if starts("weight.quant_state.") || has("weight.absmax") {
        return Some("bitsandbytes, 4 bits, without its quant_state".into());
    } else if has("weight_format") {
        return Some("bitsandbytes, 8 bits, without its SCB".into());
    } else if has("scales") && has("biases") {
        return Some("MLX; mlx_lm.convert --dequantize makes a plain one".into());
    } else if has("qweight") {
        let method = model.quantised_by().unwrap_or("GPTQ or AWQ");
        return Some(method.to_string());
    } else if has("weight_packed") {
        return Some("compressed-tensors".into());
    } else if has("W_q") {
        return Some("HQQ".into());
    }
    match (dtype, model.quantised_by()) {
        (Some(dtype), _) if dtype.starts_with("F8") => {
            Some(format!("FP8, {dtype}, without a scale"))
        }
        (Some("I8" | "U8" | "I32" | "F4") | None, Some(method)) => Some(method.to_string()),
        _ => None,
    }
}

/// Whether a file is only the pointer that Git LFS leaves for one.
pub fn is_lfs_pointer(path: &Path) -> bool {
    const START: &[u8] = b"version https://git-lfs.github.com/spec/";
    let mut start = Vec::new();
    path.is_file()
        && File::open(path)
            .and_then(|file| file.take(START.len() as u64).read_to_end(&mut start))
            .is_ok()
        && start == START
}
