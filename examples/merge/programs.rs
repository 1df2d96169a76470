//! Where the adapters of mistral-finetune, kohya's scripts and diffusers belong in a checkpoint.
//!
//! Files for a pipeline hold adapters for several models, a checkpoint is mostly one of them.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::mistral;
use crate::model::Model;
use crate::names::Names;
use lora_kernels::Adapter;
use lora_kernels::peft::{Adapters, Format};
use std::collections::BTreeMap;

/// The parts of a pipeline as kohya's scripts name them, and the folders of diffusers.
const KOHYA_PARTS: [(&str, &[&str]); 6] = [
    ("lora_unet_", &["unet", "transformer"]),
    ("lora_te_", &["text_encoder"]),
    ("lora_te1_", &["text_encoder"]),
    ("lora_te2_", &["text_encoder_2"]),
    ("lora_te3_", &["text_encoder_3"]),
    ("lora_transformer_", &["transformer"]),
];

/// What single files of a whole pipeline have in front of the names of a part.
const CONTAINERS: [&str; 7] = [
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "text_encoders.clip_l.transformer.",
    "transformer.",
];

/// The modules of a part of a pipeline: the path of each in the adapter's file and in the part.
struct Part {
    name: String,
    folders: Vec<&'static str>,
    paths: BTreeMap<String, String>,
}

/// Gives the adapters of another program paths that `Names` leads on from; says what was left out.
pub fn place(
    checkpoint: &Checkpoint,
    model: &Model,
    adapters: &mut Adapters,
) -> Result<Vec<String>> {
    let parts = match adapters.format {
        Format::Kohya => kohya_parts(checkpoint, &adapters.adapters),
        Format::Diffusers => diffusers_parts(&adapters.adapters),
        Format::MistralFinetune => {
            mistral::place(checkpoint, model, &mut adapters.adapters)?;
            return Ok(Vec::new());
        }
        _ => return Ok(Vec::new()),
    };
    let mut fits = Vec::new();
    for part in &parts {
        let paths = part.paths.values().map(String::as_str);
        let names = Names::new(checkpoint, model, &[], paths)?;
        let found = part.paths.iter().filter(|(own, path)| {
            let adapter = &adapters.adapters[*own];
            let shape = [adapter.b().shape().rows(), adapter.a().shape().cols()];
            checkpoint.has_weight(&names.of(path), shape)
        });
        let count = found.count();
        fits.push(count);
    }
    let most = fits.iter().copied().max().unwrap_or(0);
    let whole = |at: &usize| fits[*at] == parts[*at].paths.len();
    let mut chosen: Vec<usize> = (0..parts.len()).filter(whole).collect();
    if chosen.is_empty() {
        // An error follows, of a module of this one.
        chosen.extend(fits.iter().position(|&fits| fits == most));
    }
    if clash(&parts, &chosen) {
        // The folders of a pipeline have the names of its parts.
        let folder = checkpoint.folder().file_name().and_then(|name| name.to_str()).unwrap_or("");
        let names: Vec<_> = chosen.iter().map(|&at| parts[at].name.clone()).collect();
        chosen.retain(|&at| parts[at].folders.contains(&folder));
        if chosen.len() != 1 {
            return Err(format!(
                "the checkpoint fits {}: give it in a folder with the name of the part \
                 (text_encoder, text_encoder_2)",
                names.join(" and ")
            )
            .into());
        }
    }
    let mut notes = Vec::new();
    let mut placed = BTreeMap::new();
    for (at, part) in parts.into_iter().enumerate() {
        if chosen.contains(&at) {
            for (own, path) in part.paths {
                placed.extend(adapters.adapters.remove(&own).map(|adapter| (path, adapter)));
            }
        } else {
            let (count, name) = (part.paths.len(), part.name);
            notes
                .push(format!("{count} modules of {name} are left out: the checkpoint is another"));
        }
    }
    adapters.adapters = placed;
    Ok(notes)
}

/// Whether two of the parts have a path in common.
fn clash(parts: &[Part], chosen: &[usize]) -> bool {
    let mut paths: Vec<&String> = chosen.iter().flat_map(|&at| parts[at].paths.values()).collect();
    let count = paths.len();
    paths.sort();
    paths.dedup();
    paths.len() < count
}

fn diffusers_parts(adapters: &BTreeMap<String, Adapter>) -> Vec<Part> {
    let mut parts: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for module in adapters.keys() {
        let (part, path) = module.split_once('.').unwrap_or(("", module));
        // Early files of a U-Net have its own names.
        let early = ["down_blocks", "mid_block", "up_blocks"].contains(&part);
        let (part, path) = if early { ("unet", &**module) } else { (part, path) };
        parts.entry(part).or_default().insert(module.clone(), path.into());
    }
    let part =
        |(name, paths): (&str, _)| Part { name: name.into(), folders: folders_of(name), paths };
    parts.into_iter().map(part).collect()
}

fn folders_of(part: &str) -> Vec<&'static str> {
    const FOLDERS: [&str; 8] = [
        "controlnet",
        "prior",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "transformer",
        "transformer_2",
        "unet",
    ];
    FOLDERS.into_iter().filter(|folder| *folder == part).collect()
}

/// Underscores stand for dots, or for themselves: the checkpoint's names tell.
fn kohya_parts(checkpoint: &Checkpoint, adapters: &BTreeMap<String, Adapter>) -> Vec<Part> {
    let mut modules: BTreeMap<String, Option<&str>> = BTreeMap::new();
    for module in checkpoint.names().filter_map(|name| name.strip_suffix(".weight")) {
        for path in CONTAINERS.iter().filter_map(|container| module.strip_prefix(container)) {
            let place = modules.entry(path.replace('.', "_")).or_insert(Some(module));
            // Two of one name: neither.
            *place = place.filter(|other| *other == module);
        }
    }
    let mut parts: BTreeMap<&str, Part> = BTreeMap::new();
    for module in adapters.keys() {
        let known = KOHYA_PARTS.iter().find(|(start, _)| module.starts_with(start));
        let (start, folders) = known.copied().unwrap_or(("", &[]));
        let own = &module[start.len()..];
        // transformers 5 has no text_model around a text encoder.
        let names = [Some(own), own.strip_prefix("text_model_")];
        let found = names.into_iter().flatten().find_map(|name| *modules.get(name)?);
        let path = found.unwrap_or(module);
        let part = parts.entry(start).or_insert_with(|| Part {
            name: start.trim_end_matches('_').into(),
            folders: folders.to_vec(),
            paths: BTreeMap::new(),
        });
        part.paths.insert(module.clone(), path.into());
    }
    parts.into_values().collect()
}
