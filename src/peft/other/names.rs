//! The names of tensors in the files of other programs than PEFT.

use crate::peft::file::PREFIX;
use std::fmt;

/// The program that wrote a file of adapters, which decides the names of its tensors and its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// PEFT: `base_model.model.MODULE.lora_A.weight` [r, k] and `....lora_B.weight` [d, r].
    Peft,
    /// mlx-lm: `MODULE.lora_a` [k, r] and `MODULE.lora_b` [r, d]; `scale` in `adapter_config.json`.
    MlxLm,
    /// mistral-finetune: `MODULE.lora_A.weight` [r, k] and `MODULE.lora_B.weight` [d, r], under the
    /// names of Mistral's own checkpoints (`layers.0.attention.wq`); `scaling` in `params.json`.
    MistralFinetune,
    /// kohya's sd-scripts: `NAME.lora_down.weight` [r, k], `NAME.lora_up.weight` [d, r] and
    /// `NAME.alpha`, where NAME is the part of the pipeline and the module's path with `_` for each
    /// dot, as in `lora_te_text_model_encoder_layers_0_mlp_fc1`.
    Kohya,
    /// diffusers: A [r, k] and B [d, r] behind the part of the pipeline, as in
    /// `unet.mid_block.attentions.0.proj_in.lora_A.weight`, or with `lora.down` and `lora.up`.
    Diffusers,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Peft => "PEFT",
            Format::MlxLm => "mlx-lm",
            Format::MistralFinetune => "mistral-finetune",
            Format::Kohya => "kohya's sd-scripts",
            Format::Diffusers => "diffusers",
        })
    }
}

/// What a tensor is of a module's adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    Alpha,
}

/// The parts of a pipeline that diffusers puts in front of a module's path; ComfyUI's
/// `diffusion_model` among them.
const COMPONENTS: [&str; 9] = [
    "controlnet",
    "diffusion_model",
    "prior",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "transformer",
    "transformer_2",
    "unet",
];

/// How models in transformers that call their base model `transformer` go on.
const LANGUAGE_MODELS: [&str; 2] = ["transformer.h.", "transformer.encoder."];

/// How the names of A, B and α end.
const ENDINGS: [(&str, Part); 11] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_A.default.weight", Part::A),
    (".lora_B.default.weight", Part::B),
    (".lora_down.weight", Part::A),
    (".lora_up.weight", Part::B),
    (".lora.down.weight", Part::A),
    (".lora.up.weight", Part::B),
    (".lora_linear_layer.down.weight", Part::A),
    (".lora_linear_layer.up.weight", Part::B),
    (".alpha", Part::Alpha),
];

/// The same for the projections of an attention, in files of early diffusers.
const EARLY_ENDINGS: [(&str, Part); 3] =
    [("_lora.down.weight", Part::A), ("_lora.up.weight", Part::B), ("_lora.alpha", Part::Alpha)];

impl Format {
    /// The format of a file with these names; PEFT's if they are of none.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Self {
        if names.clone().any(|name| name.starts_with(PREFIX)) {
            return Format::Peft;
        }
        names.filter_map(|name| of_name(name)).next().unwrap_or(Format::Peft)
    }

    /// The module of a tensor and what the tensor is of it; the reason, if it is something else.
    pub(super) fn parse(self, name: &str) -> Result<(String, Part), &'static str> {
        let parsed = match self {
            Format::MlxLm => {
                let of = |end, part| Some((name.strip_suffix(end)?.to_string(), part));
                of(".lora_a", Part::A).or_else(|| of(".lora_b", Part::B))
            }
            Format::Kohya => ending(name).filter(|(module, _)| !module.contains('.')),
            Format::Diffusers => early(name).or_else(|| ending(name)),
            Format::MistralFinetune | Format::Peft => ending(name),
        };
        parsed.ok_or_else(|| what_else(self, name))
    }
}

/// The other program that writes a name.
pub(crate) fn of_name(name: &str) -> Option<Format> {
    if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
        return Some(Format::MlxLm);
    }
    let (module, _) = early(name).or_else(|| ending(name))?;
    let is_component = |start: &str| COMPONENTS.contains(&start);
    match module.split_once('.') {
        None if module.starts_with("lora_") => Some(Format::Kohya),
        Some((start, _)) if is_component(start) => {
            let language_model = LANGUAGE_MODELS.iter().any(|start| module.starts_with(start));
            (!language_model).then_some(Format::Diffusers)
        }
        _ if is_mistral_s(&module) => Some(Format::MistralFinetune),
        _ if name.contains(".lora_A.") || name.contains(".lora_B.") => None,
        _ if name.ends_with(".alpha") => None,
        _ => Some(Format::Diffusers),
    }
}

/// Whether a module has a name of Mistral's own checkpoints.
fn is_mistral_s(module: &str) -> bool {
    let mut parts = module.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some("wq" | "wk" | "wv" | "wo"), Some("attention")) => true,
        (Some("w1" | "w2" | "w3"), Some(parent)) => parent != "mlp",
        _ => false,
    }
}

fn ending(name: &str) -> Option<(String, Part)> {
    let of = |(end, part): &(&str, Part)| Some((name.strip_suffix(end)?.to_string(), *part));
    ENDINGS.iter().find_map(of)
}

/// `attn1.processor.to_q_lora.down.weight`, which is of `attn1.to_q`, or of `self_attn.q_proj` in a
/// text encoder.
fn early(name: &str) -> Option<(String, Part)> {
    let of = |(end, part): &(&str, Part)| Some((name.strip_suffix(end)?, *part));
    let (stem, part) = EARLY_ENDINGS.iter().find_map(of)?;
    let (parent, projection) = stem.rsplit_once('.')?;
    let parent = parent.strip_suffix(".processor").unwrap_or(parent);
    let projection = match (projection, name.starts_with("text_encoder")) {
        ("to_q", true) => "q_proj",
        ("to_k", true) => "k_proj",
        ("to_v", true) => "v_proj",
        ("to_out", true) => "out_proj",
        ("to_out", false) => "to_out.0",
        (other, _) => other,
    };
    Some((format!("{parent}.{projection}"), part))
}

/// What a tensor is that is neither A, B nor α.
fn what_else(format: Format, name: &str) -> &'static str {
    let has = |part: &str| name.contains(part);
    if has("dora_scale") || has("lora_magnitude_vector") {
        "a trained magnitude (DoRA)"
    } else if format == Format::MlxLm && name.ends_with(".m") {
        "a trained magnitude (DoRA): mlx_lm.fuse merges it"
    } else if has(".hada_") || has(".lokr_") || has(".oft_") || has(".lora_mid.") {
        "an adapter of LyCORIS (LoHa, LoKr, OFT, LoCon with lora_mid)"
    } else if name.ends_with(".diff") || name.ends_with(".diff_b") {
        "a difference that was saved whole"
    } else if name.ends_with(".bias") {
        "a bias"
    } else {
        "neither A, B nor alpha of an adapter"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names as the programs write them, each with its module.
    #[test]
    fn names_are_read_as_their_programs_do() {
        use Format::{Diffusers, Kohya, MistralFinetune, MlxLm};
        for (name, format, module, part) in [
            ("model.layers.0.mlp.up_proj.lora_a", MlxLm, "model.layers.0.mlp.up_proj", Part::A),
            (
                "layers.31.feed_forward.w2.lora_B.weight",
                MistralFinetune,
                "layers.31.feed_forward.w2",
                Part::B,
            ),
            (
                "layers.0.feed_forward.experts.7.w1.lora_A.weight",
                MistralFinetune,
                "layers.0.feed_forward.experts.7.w1",
                Part::A,
            ),
            ("lora_unet_mid_block_q.lora_down.weight", Kohya, "lora_unet_mid_block_q", Part::A),
            ("lora_te1_text_model_fc1.alpha", Kohya, "lora_te1_text_model_fc1", Part::Alpha),
            (
                "transformer.blocks.0.attn.to_q.lora_A.weight",
                Diffusers,
                "transformer.blocks.0.attn.to_q",
                Part::A,
            ),
            ("unet.a.attn1.to_q.lora.up.weight", Diffusers, "unet.a.attn1.to_q", Part::B),
            (
                "unet.a.attn1.processor.to_out_lora.up.weight",
                Diffusers,
                "unet.a.attn1.to_out.0",
                Part::B,
            ),
            ("a.attn2.processor.to_v_lora.down.weight", Diffusers, "a.attn2.to_v", Part::A),
            (
                "text_encoder.layers.0.self_attn.to_k_lora.down.weight",
                Diffusers,
                "text_encoder.layers.0.self_attn.k_proj",
                Part::A,
            ),
            (
                "text_encoder_2.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
                Diffusers,
                "text_encoder_2.layers.0.self_attn.q_proj",
                Part::B,
            ),
            (
                "diffusion_model.blocks.0.q.lora_down.weight",
                Diffusers,
                "diffusion_model.blocks.0.q",
                Part::A,
            ),
        ] {
            assert_eq!(of_name(name), Some(format), "{name}");
            assert_eq!(format.parse(name), Ok((module.to_string(), part)), "{name}");
        }
    }

    #[test]
    fn names_of_peft_and_of_nobody_are_left_to_peft() {
        for name in [
            "base_model.model.unet.q.lora_A.weight",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "transformer.h.0.attn.c_attn.lora_A.weight",
            "model.layers.0.mlp.w1.lora_A.weight",
            "weight",
            "alpha",
            "q.alpha",
            "",
        ] {
            assert_eq!(Format::of([name.to_string()].iter()), Format::Peft, "{name}");
        }
    }
}
