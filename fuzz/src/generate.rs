//! Inputs that look like what programs write, and then have something changed.

use crate::random::Random;
use serde_json::{Map, Value, json};

/// What takes the place of a number or a text.
const VALUES: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "255",
    "256",
    "257",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e39",
    "1e-46",
    "-0.0",
    "0.5",
    "null",
    "true",
    "false",
    "NaN",
    "Infinity",
    "\"\"",
    "\"q\"",
    "[]",
    "{}",
    "[null]",
    "[1,2,3,4,5,6,7]",
    "{\"a\":1}",
];

/// What is put in anywhere.
const TOKENS: &[&str] = &[
    "base_model.model.",
    ".lora_A.weight",
    ".lora_B.weight",
    ".default",
    ".lora_a",
    ".lora_b",
    ".lora_down.weight",
    ".lora_up.weight",
    ".lora_mid.weight",
    ".alpha",
    ".bias",
    ".dora_scale",
    "lora_unet_",
    "lora_te_",
    "unet.",
    "text_encoder.",
    "transformer.",
    "processor.",
    "to_q_lora",
    ".attention.wq",
    ".feed_forward.w1",
    "lora_embedding_A",
    "lora_magnitude_vector",
    "__metadata__",
    "\"dtype\":\"BF16\"",
    "\"dtype\":\"I64\"",
    "\"dtype\":\"F8_E4M3\"",
    "\"shape\":[",
    "[1,1]",
    "\"data_offsets\":[",
    "\"peft_type\":\"LORA\",",
    "\"r\":",
    "\"lora_alpha\":",
    "\"use_rslora\":true",
    "\"rank_pattern\":{",
    "\"alpha_pattern\":{",
    "\"target_modules\":",
    "\"modules_to_save\":",
    "\"use_dora\":true",
    "(?:",
    "(?=",
    "(?<!",
    "\\\\d",
    "[a-z]",
    "{1,2}",
    "+?",
    ".*",
    "^",
    "$",
    "|",
    "\\",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\u{0}",
    "é",
    "\u{1f600}",
];

const MODULES: &[&str] = &[
    "q",
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.mlp.up_proj",
    "a.b.c",
    "lm_head",
    "layers.1.attention.wq",
    "layers.1.feed_forward.w2",
    "mid_block.attn1.to_q",
    "experts",
];

const PATTERNS: &[&str] = &[
    "q",
    ".*q_proj",
    "model\\.layers\\.\\d+\\..*",
    "(q|up)_proj",
    "^q$",
    "(a|aa)+c",
    "all-linear",
    "(?!x).*",
    "((((a*a*)*a)*a)*(?=a*b)a)*c",
    "[^.]+",
    "x{2,3}",
];

/// An input of `peft_load`.
pub fn adapters(random: &mut Random) -> Vec<u8> {
    let kind = random.below(6);
    let mut tensors = Tensors::default();
    let mut modules = Vec::new();
    for _ in 0..1 + random.below(3) {
        let module = random.pick(MODULES);
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    let rank = 1 + random.below(3);
    for module in &modules {
        let (d, k) = (1 + random.below(4), 1 + random.below(4));
        let dtype = random.pick(&["F32", "F32", "F16", "BF16"]);
        let shapes = [vec![rank, k], vec![d, rank]];
        let turned = [vec![k, rank], vec![rank, d]];
        let with_alpha = random.once_in(2);
        let (names, shapes, alpha) = match kind {
            0 => (["lora_a", "lora_b"].map(|end| format!("{module}.{end}")), turned, None),
            1 => {
                let name = format!("lora_unet_{}", module.replace('.', "_"));
                let names = ["lora_down", "lora_up"].map(|end| format!("{name}.{end}.weight"));
                (names, shapes, with_alpha.then(|| format!("{name}.alpha")))
            }
            2 => {
                let part = random.pick(&["unet", "transformer", "text_encoder", "prior"]);
                let ends = [
                    ["lora_A.weight", "lora_B.weight"],
                    ["lora.down.weight", "lora.up.weight"],
                    ["lora_linear_layer.down.weight", "lora_linear_layer.up.weight"],
                    ["processor.to_q_lora.down.weight", "processor.to_q_lora.up.weight"],
                ][random.below(4)];
                let alpha = with_alpha.then(|| format!("{part}.{module}.alpha"));
                (ends.map(|end| format!("{part}.{module}.{end}")), shapes, alpha)
            }
            3 => (["lora_A", "lora_B"].map(|end| format!("{module}.{end}.weight")), shapes, None),
            _ => {
                let name = format!("base_model.model.{module}");
                let adapter = if random.once_in(4) { ".default" } else { "" };
                let names = ["lora_A", "lora_B"].map(|end| format!("{name}.{end}{adapter}.weight"));
                (names, shapes, None)
            }
        };
        for (name, shape) in names.into_iter().zip(shapes) {
            let shape = if random.once_in(12) { [shape, vec![1, 1]].concat() } else { shape };
            tensors.add(name, dtype, &shape);
        }
        if let Some(alpha) = alpha {
            tensors.add(alpha, random.pick(&["F32", "F16", "I64"]), &[]);
        }
    }
    if kind == 2 && random.once_in(3) {
        let metadata = json!({"unet.r": rank, "unet.lora_alpha": 4, "transformer.r": rank,
            "text_encoder.alpha_pattern": {random.pick(PATTERNS): 2}});
        tensors.metadata = json!({ "lora_adapter_metadata": metadata.to_string() });
    }
    let config = config(random, kind, rank, &modules);
    let mut header = tensors.header();
    let mut config = config.to_string().into_bytes();
    for _ in 0..random.below(3) {
        let text = if random.once_in(2) { &mut header } else { &mut config };
        mutate(random, text);
    }
    config.retain(|&byte| byte != 0);
    let mut flags = (random.below(4) << 6) as u8;
    if random.once_in(16) {
        // The file itself, with its length and data.
        let length = (header.len() as u64).to_le_bytes();
        let mut file = [&length[..], &header, &vec![0x3c; tensors.end]].concat();
        mutate(random, &mut file);
        return [&[flags, 0], &config[..], &[0], &file].concat();
    }
    flags |= 1;
    [&[flags, tensors.end.div_ceil(2) as u8], &config[..], &[0], &header].concat()
}

/// An input of `tensor_file`.
pub fn tensor_file(random: &mut Random) -> Vec<u8> {
    let mut tensors = Tensors::default();
    for at in 0..1 + random.below(6) {
        let dtype =
            random.pick(&["F32", "BF16", "F16", "I64", "U8", "F8_E4M3", "F64", "BOOL", "F4"]);
        let shape: Vec<usize> = (0..random.below(5)).map(|_| random.below(4)).collect();
        let name = format!("{}.{at}", random.pick(MODULES));
        tensors.add(name, dtype, &shape);
    }
    if tensors.end % 2 == 1 {
        tensors.add("odd".into(), "U8", &[1]);
    }
    let mut header = tensors.header();
    for _ in 0..random.below(3) {
        mutate(random, &mut header);
    }
    [&[1, tensors.end.div_ceil(2) as u8], &header[..]].concat()
}

#[derive(Default)]
struct Tensors {
    infos: Vec<(String, Value)>,
    metadata: Value,
    end: usize,
}

impl Tensors {
    fn add(&mut self, name: String, dtype: &str, shape: &[usize]) {
        let bits = match dtype {
            "F64" | "I64" => 64,
            "F32" => 32,
            "BF16" | "F16" => 16,
            "F4" => 4,
            _ => 8,
        };
        let start = self.end;
        self.end += (shape.iter().product::<usize>() * bits).div_ceil(8);
        let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, self.end]});
        self.infos.push((name, info));
    }

    /// The JSON, in the order in which they were added, and twice where they were added twice.
    fn header(&self) -> Vec<u8> {
        let mut parts = Vec::new();
        if !self.metadata.is_null() {
            parts.push(format!("\"__metadata__\":{}", self.metadata));
        }
        parts.extend(self.infos.iter().map(|(name, info)| format!("{}:{info}", json!(name))));
        format!("{{{}}}", parts.join(",")).into_bytes()
    }
}

fn config(random: &mut Random, kind: usize, rank: usize, modules: &[&str]) -> Value {
    match kind {
        0 if !random.once_in(4) => {
            return json!({"fine_tune_type": "lora", "num_layers": 1,
                "lora_parameters": {"rank": rank, "scale": 20.0, "dropout": 0.0}});
        }
        3 => return json!({"dim": 8, "lora": {"enable": true, "rank": rank, "scaling": 2.0}}),
        1 | 2 if random.once_in(2) => return Value::Null,
        _ => {}
    }
    let mut fields = Map::new();
    let mut set = |key: &str, value: Value| fields.insert(key.into(), value);
    set("peft_type", "LORA".into());
    set("r", rank.into());
    set("lora_alpha", json!(random.below(64) as f64 / 4.0));
    match random.below(4) {
        0 => set("target_modules", random.pick(PATTERNS).into()),
        1 => set("target_modules", Value::Null),
        _ => set("target_modules", modules.into()),
    };
    for (key, value) in [
        ("rank_pattern", json!({random.pick(PATTERNS): rank, random.pick(PATTERNS): rank})),
        ("alpha_pattern", json!({random.pick(PATTERNS): 3, random.pick(PATTERNS): 0.1})),
        ("use_rslora", json!(true)),
        ("exclude_modules", json!(random.pick(PATTERNS))),
        ("layers_to_transform", json!([0, 1])),
        ("layers_pattern", json!(random.pick(PATTERNS))),
        ("bias", json!("all")),
        ("init_lora_weights", json!("gaussian")),
        ("modules_to_save", json!(["lm_head"])),
        ("use_dora", json!(true)),
        ("target_parameters", json!(["experts"])),
        ("trainable_token_indices", json!([1, 2])),
        ("ensure_weight_tying", json!(true)),
        ("peft_version", json!("0.21.2")),
        ("unknown", json!({"a": [1]})),
    ] {
        if random.once_in(8) {
            set(key, value);
        }
    }
    Value::Object(fields)
}

/// Changes a text or file in one place.
fn mutate(random: &mut Random, text: &mut Vec<u8>) {
    let at = random.below(text.len() + 1);
    let end = (at + 1 + random.below(16)).min(text.len());
    match random.below(7) {
        // A number or text becomes another value.
        0 | 1 => {
            let is_start = |byte: u8| byte.is_ascii_digit() || byte == b'"';
            let Some(start) = text[at..].iter().position(|&byte| is_start(byte)) else { return };
            let start = at + start;
            let inside = &text[start + 1..];
            let length = match text[start] {
                b'"' => inside.iter().position(|&byte| byte == b'"').map_or(0, |end| end + 1),
                _ => inside.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(0),
            };
            let value = random.pick(VALUES).bytes();
            text.splice(start..=start + length, value);
        }
        2 | 3 => {
            let token = random.pick(TOKENS).bytes();
            text.splice(at..at, token);
        }
        4 => drop(text.splice(at..end, [])),
        5 => {
            let part = text[at..end].to_vec();
            text.splice(at..at, part);
        }
        _ => {
            if let Some(byte) = text.get_mut(at) {
                *byte = random.number() as u8;
            }
        }
    }
}
