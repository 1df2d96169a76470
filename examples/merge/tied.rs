//! Heads that share the weight of the input embedding (`tie_word_embeddings`).
//!
//! A model that ties them loads one weight for both. PEFT merges a head's adapter into it, so the
//! embedding changes as well; what is written here gives the same when it is loaded again.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::model::Model;
use crate::packed::Reader;
use std::io::{Read, Seek, SeekFrom};

pub const HEADS: [&str; 2] = ["embed_out", "lm_head"];
pub const EMBEDDINGS: [&str; 6] =
    ["embed_in", "embed_tokens", "shared", "tok_embeddings", "word_embeddings", "wte"];

/// The weights that the adapter of a module goes to.
#[derive(Debug, PartialEq)]
pub struct Weights {
    pub names: Vec<String>,
    /// What the user should know of it.
    pub note: Option<String>,
    /// Whether the model of the output must not tie them.
    pub untie: bool,
}

impl Weights {
    /// A module's weights, if it is a head of an embedding of a shape that fits.
    pub fn of(
        checkpoint: &Checkpoint,
        model: &Model,
        module: &str,
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Self> {
        let own = format!("{module}.weight");
        let plain = |own| Weights { names: vec![own], note: None, untie: false };
        if !HEADS.contains(&last(module)) || model.ties_embeddings() != Some(true) {
            return Ok(plain(own));
        }
        let is_embedding = |name: &&str| {
            name.strip_suffix(".weight").is_some_and(|name| EMBEDDINGS.contains(&last(name)))
                && checkpoint.find(name).is_some_and(|(_, entry)| fits(&entry.shape))
        };
        let mut embeddings = checkpoint.names().filter(is_embedding);
        let (Some(embedding), None) = (embeddings.next(), embeddings.next()) else {
            return Ok(plain(own));
        };
        let embedding = embedding.to_string();
        if checkpoint.find(&own).is_none() {
            let note = Some(format!(
                "{own} is tied to {embedding}: merged into that, so the embedding changes too, as \
                 in PEFT"
            ));
            return Ok(Weights { names: vec![embedding], note, untie: false });
        }
        if same_bytes(checkpoint, &own, &embedding)? {
            let note = Some(format!("{own} is tied to {embedding}: both change, as in PEFT"));
            return Ok(Weights { names: vec![own, embedding], note, untie: false });
        }
        let note = Some(format!(
            "{own} is not the same as {embedding}: tie_word_embeddings becomes false in config.json"
        ));
        Ok(Weights { names: vec![own], note, untie: true })
    }
}

/// The weights that an adapter of an embedding goes to: its own, and that of a head that is tied to
/// it and is in the file as well.
pub fn weights_of_embedding(
    checkpoint: &Checkpoint,
    model: &Model,
    module: &str,
) -> Result<Weights> {
    let own = format!("{module}.weight");
    let mut weights = Weights { names: vec![own.clone()], note: None, untie: false };
    let embedding = EMBEDDINGS.contains(&last(module)) && checkpoint.find(&own).is_some();
    if !embedding || model.ties_embeddings() != Some(true) {
        return Ok(weights);
    }
    let is_head =
        |name: &&str| name.strip_suffix(".weight").is_some_and(|name| HEADS.contains(&last(name)));
    for head in checkpoint.names().filter(is_head) {
        if same_bytes(checkpoint, head, &own)? {
            weights.note = Some(format!("{head} is tied to {own}: both change, as in PEFT"));
            weights.names.push(head.to_string());
        } else {
            weights.note = Some(format!(
                "{head} is not the same as {own}: tie_word_embeddings becomes false in config.json"
            ));
            weights.untie = true;
        }
    }
    Ok(weights)
}

/// The last part of a module's path.
pub fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

fn same_bytes(checkpoint: &Checkpoint, one: &str, other: &str) -> Result<bool> {
    let open = |name: &str| -> Result<(Reader, String, u64)> {
        let (shard, entry) = checkpoint.find(name).ok_or("a tensor is missing")?;
        let mut file = checkpoint.shards[shard].reader()?;
        file.seek(SeekFrom::Start(entry.bytes.start))?;
        Ok((file, entry.dtype_name.clone(), entry.bytes.end - entry.bytes.start))
    };
    let ((mut one, dtype, mut left), (mut other, other_dtype, length)) = (open(one)?, open(other)?);
    if dtype != other_dtype || left != length {
        return Ok(false);
    }
    let mut parts = [vec![0; 1 << 20], vec![0; 1 << 20]];
    while left > 0 {
        let length = left.min(1 << 20) as usize;
        let [first, second] = &mut parts;
        one.read_exact(&mut first[..length])?;
        other.read_exact(&mut second[..length])?;
        if first[..length] != second[..length] {
            return Ok(false);
        }
        left -= length as u64;
    }
    Ok(true)
}
