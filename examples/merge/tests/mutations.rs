//! Bases, configurations and adapters with something changed: an error or an output, never a panic.

use super::{Setting, adapter};
use crate::args::Options;
use crate::run;
use lora_kernels::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::ffi::OsString;
use std::fs;

/// How many inputs, unless `LORA_KERNELS_MUTATIONS` says another number.
const INPUTS: usize = 500;

const TOKENS: [&str; 30] = [
    "0",
    "1",
    "-1",
    "4294967296",
    "18446744073709551615",
    "1e400",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "model.",
    "language_model.",
    "visual.",
    ".weight",
    ".absmax",
    ".SCB",
    "_scale_inv",
    "_scale",
    ".quant_state.bitsandbytes__nf4",
    "\"F8_E4M3\"",
    "\"I8\"",
    "\"U8\"",
    "\"BF16\"",
    "\"shape\":[",
    "\"blocksize\":",
    "\"weight_block_size\":[1,1]",
    "\\",
    "\"",
    "\u{e9}",
];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % end
    }

    /// Changes bytes from `from` on, in one place.
    fn change(&mut self, bytes: &mut Vec<u8>, from: usize) {
        let at = from + self.below(bytes.len() - from + 1);
        let end = (at + 1 + self.below(12)).min(bytes.len());
        match self.below(4) {
            0 => drop(bytes.splice(at..end, [])),
            1 => {
                let digits = bytes[at..].iter().position(u8::is_ascii_digit).map(|by| at + by);
                let Some(start) = digits else { return };
                let rest = bytes[start..].iter().position(|byte| !byte.is_ascii_digit());
                let end = rest.map_or(bytes.len(), |by| start + by);
                bytes.splice(start..end, TOKENS[self.below(11)].bytes());
            }
            2 => drop(bytes.splice(at..at, TOKENS[self.below(TOKENS.len())].bytes())),
            _ => {
                let byte = self.below(256) as u8;
                bytes.splice(at..(at + 1).min(bytes.len()), [byte]);
            }
        }
    }
}

type Tensor = (&'static str, Dtype, Vec<usize>, usize);

fn base(tensors: &[Tensor], state: &str) -> Vec<u8> {
    let bytes: Vec<_> = tensors
        .iter()
        .map(|(name, .., bytes)| match name.contains("quant_state") {
            true => state.as_bytes().to_vec(),
            false => vec![0x38; *bytes],
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dtype, shape, _), bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn changed_inputs_never_panic() {
    let inputs = std::env::var("LORA_KERNELS_MUTATIONS").map_or(INPUTS, |n| n.parse().unwrap());
    let state = json!({"blocksize": 8, "dtype": "bfloat16", "shape": [6, 4], "nested_blocksize": 2,
        "nested_offset": 0.5})
    .to_string();
    let nf4 = "q.weight.quant_state.bitsandbytes__nf4";
    let bases = [
        base(&[("q.weight", Dtype::F32, vec![6, 4], 96), ("odd", Dtype::U8, vec![3], 3)], ""),
        base(
            &[
                ("q.weight", Dtype::U8, vec![12, 1], 12),
                ("q.weight.absmax", Dtype::U8, vec![3], 3),
                ("q.weight.quant_map", Dtype::F32, vec![16], 64),
                ("q.weight.nested_absmax", Dtype::F32, vec![2], 8),
                ("q.weight.nested_quant_map", Dtype::F32, vec![256], 1024),
                (nf4, Dtype::U8, vec![state.len()], state.len()),
            ],
            &state,
        ),
        base(&[("q.weight", Dtype::I8, vec![6, 4], 24), ("q.SCB", Dtype::F32, vec![6], 24)], ""),
        base(
            &[
                ("model.language_model.q.weight", Dtype::F8_E4M3, vec![6, 4], 24),
                ("model.language_model.q.weight_scale_inv", Dtype::F32, vec![3, 2], 24),
            ],
            "",
        ),
    ];
    let config = json!({"model_type": "qwen2_vl", "dtype": "bfloat16", "tie_word_embeddings": true,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}})
    .to_string();
    let index = json!({"weight_map": {"q.weight": "model.safetensors"}}).to_string();
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    fs::create_dir(setting.path("base")).unwrap();
    setting.save_adapter(&[("q", adapter(6, 4, 2, DType::F32))]);
    let (mut random, mut written) = (Random(7), 0);
    for input in 0..inputs {
        let mut weights = bases[input % bases.len()].clone();
        let (mut config, mut index) = (config.clone().into_bytes(), index.clone().into_bytes());
        for _ in 0..random.below(3) {
            match random.below(4) {
                0 => random.change(&mut config, 0),
                1 => random.change(&mut index, 0),
                // Behind the length of the header, which is then made to fit.
                _ => {
                    random.change(&mut weights, 8);
                    if let Some(end) = weights.windows(2).rposition(|pair| pair == b"}}") {
                        let length = (end as u64 + 2 - 8).to_le_bytes();
                        weights[..8].copy_from_slice(&length);
                    }
                }
            }
        }
        fs::write(setting.path("base/model.safetensors"), &weights).unwrap();
        fs::write(setting.path("base/config.json"), &config).unwrap();
        let base = match random.below(4) {
            0 => {
                fs::write(setting.path("base/model.safetensors.index.json"), &index).unwrap();
                "base"
            }
            _ => "base/model.safetensors",
        };
        let out = setting.path("out.safetensors");
        let args: Vec<OsString> = vec![
            "--base".into(),
            setting.path(base).into(),
            "--adapter".into(),
            setting.path("adapter").into(),
            "--device=cpu".into(),
            "--out".into(),
            out.into(),
        ];
        let options = Options::parse(args).unwrap().unwrap();
        written += usize::from(run(&options, &mut Vec::new()).is_ok());
        let _ = fs::remove_file(setting.path("base/model.safetensors.index.json"));
        let _ = fs::remove_file(setting.path("out.safetensors"));
    }
    assert!(written * 10 > inputs, "{written} of {inputs} inputs were merged");
    println!("{written} of {inputs} inputs were merged, all others refused");
}
