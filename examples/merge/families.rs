//! What transformers renames when it loads a checkpoint: the name in the file, and in the model.
//!
//! Adapters have the names of the model that they were trained with, which may be older or newer
//! than the checkpoint's, so both are renamed before they are compared. From transformers
//! 5.24 (`conversion_mapping.py`), as far as it moves whole modules of language models.

/// The first rule whose first half fits applies, see [`replace`].
pub type Rules = &'static [(&'static str, &'static str)];

/// A language model with towers for images or sounds, each of which was at the top once.
const TOWERS: Rules = &[
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("text_model.lm_head.", "lm_head."),
    ("text_model.model.", "model.text_model."),
    ("text_model.", "model.text_model."),
    ("vqmodel.", "model.vqmodel."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("vision_model.", "model.vision_model."),
    ("image_tower.", "model.image_tower."),
    ("video_tower.", "model.video_tower."),
    ("audio_tower.", "model.audio_tower."),
    ("acoustic_tokenizer_encoder.", "model.acoustic_tokenizer_encoder."),
    ("semantic_tokenizer_encoder.", "model.semantic_tokenizer_encoder."),
    ("vision_embed_tokens.", "model.vision_embed_tokens."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("encoder.", "model.encoder."),
    ("projector.", "model.projector."),
    // The language model by itself, with the weights of the whole.
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
];

/// A language model at the top with a tower beside it.
const VISUAL: Rules = &[
    ("visual.", "model.visual."),
    ("mlp_AR.", "model.projector."),
    ("vit_large_projector.", "model.multi_modal_projector."),
    ("vision_model.", "model.vision_model."),
    ("model.visual.", "model.visual."),
    ("model.projector.", "model.projector."),
    ("model.multi_modal_projector.", "model.multi_modal_projector."),
    ("model.vision_model.", "model.vision_model."),
    ("model.language_model.", "model.language_model."),
    ("model.", "model.language_model."),
];

const NONE: Rules = &[];
const MIXTRAL: Rules = &[(".block_sparse_moe.", ".mlp.")];
const NEOX: Rules = &[("embed_out.", "lm_head.")];
const NEMOTRON: Rules = &[("backbone.", "model.")];

const FAMILIES: [(&[&str], Rules); 5] = [
    (
        &[
            "aria",
            "audioflamingo3",
            "aya_vision",
            "emu3",
            "fuyu",
            "gemma3",
            "gemma3n",
            "gemma4",
            "glmasr",
            "got_ocr2",
            "granite_speech",
            "granite_speech_plus",
            "internvl",
            "llava",
            "llava_next",
            "llava_next_video",
            "llava_onevision",
            "mistral3",
            "mllama",
            "musicflamingo",
            "paligemma",
            "pp_chart2table",
            "qwen2_audio",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_vl",
            "qwen3_vl_moe",
            "vibevoice_asr",
            "video_llava",
            "vipllava",
            "voxtral",
            "voxtral_realtime",
        ],
        TOWERS,
    ),
    (&["paddleocr_vl", "qwen2_5_vl", "qwen2_vl", "step3p7"], VISUAL),
    (&["minimax", "minimax_m2", "mixtral"], MIXTRAL),
    (&["gpt_neox"], NEOX),
    (&["nemotron_h"], NEMOTRON),
];

/// The rules for a type of model; all there are if the type is not known.
pub fn of(model_type: Option<&str>) -> Vec<Rules> {
    let Some(model_type) = model_type else {
        return [NONE].into_iter().chain(FAMILIES.iter().map(|(_, rules)| *rules)).collect();
    };
    let family = FAMILIES.iter().find(|(types, _)| types.contains(&model_type));
    vec![family.map_or(NONE, |(_, rules)| *rules)]
}

/// The name that the model has for what may be a checkpoint's name.
pub fn canonical(rules: Rules, name: &str) -> String {
    let mut renamed = rules.iter().filter_map(|(from, to)| replace(name, from, to));
    renamed.next().unwrap_or_else(|| name.to_string())
}

/// `to` in place of `from` at the beginning, or of the first `from` anywhere if it begins with a
/// dot; `None` if there is none.
pub fn replace(name: &str, from: &str, to: &str) -> Option<String> {
    if from.starts_with('.') {
        let (start, end) = name.split_once(from)?;
        return Some(format!("{start}{to}{end}"));
    }
    Some(format!("{to}{}", name.strip_prefix(from)?))
}
