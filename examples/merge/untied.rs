//! Heads and embeddings that an adapter's file holds in full, where the base ties them.

use crate::Result;
use crate::change::Kind;
use crate::plan::{Plan, UNKNOWN, find};
use crate::tied::{EMBEDDINGS, HEADS, last};
use crate::whole::Given;
use lora_kernels::Tensor;

impl<'a> Given<'_, 'a> {
    /// The names that a head or embedding goes to where both are tied; `None` if they are not.
    ///
    /// PEFT unties what `modules_to_save` names, and loads all else into the weight that both share.
    pub fn tied_names(
        &self,
        name: &str,
        tensor: &Tensor,
        plan: &mut Plan<'a>,
    ) -> Result<Option<Vec<String>>> {
        let Given { checkpoint, adapters, model, .. } = *self;
        let (config, extras) = (&adapters.config, adapters.config.extras());
        let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
        let (head, embedding) = (HEADS.contains(&last(module)), EMBEDDINGS.contains(&last(module)));
        if model.ties_embeddings() != Some(true) || !(head || embedding) {
            return Ok(None);
        }
        let is_other = |other: &&str| {
            let last = other.strip_suffix(".weight").map_or("", last);
            if head { EMBEDDINGS.contains(&last) } else { HEADS.contains(&last) }
        };
        let saved = extras.whole.keys().map(String::as_str).find(is_other);
        let other = saved.or(checkpoint.names().find(is_other));
        let by_itself = self.saved.contains(name) && !config.ties_weights();
        let same = match saved.and_then(|other| extras.whole.get(other)) {
            Some(other) => Some(same_numbers(tensor, other)?),
            None => None,
        };
        match (by_itself, same) {
            // Both are in the file, and the same: tied they stay.
            (_, Some(true)) => Ok(Some(match checkpoint.find(name).is_some() || embedding {
                true => vec![name.to_string()],
                false => Vec::new(),
            })),
            (false, Some(false)) => Err(format!(
                "the adapter's file has two numbers for {name} and {}, which share a weight",
                saved.unwrap_or_default()
            )
            .into()),
            (false, None) => {
                let shared = other.filter(|other| checkpoint.find(other).is_some());
                let own = checkpoint.find(name).is_some().then_some(name);
                Ok(Some(own.into_iter().chain(shared).map(String::from).collect()))
            }
            (true, _) if last(module) == "shared" => Err(format!(
                "{name} is of encoder and decoder; in PEFT they keep what was there, which no file \
                 can say: run the adapter unmerged, in PEFT"
            )
            .into()),
            (true, _) => {
                plan.untie = true;
                plan.notes.push(format!(
                    "{name} has a weight of its own: tie_word_embeddings becomes false in \
                     config.json"
                ));
                if embedding && other.is_none() {
                    self.keep_head(name, plan)?;
                }
                Ok(Some(vec![name.to_string()]))
            }
        }
    }

    /// Adds the head that was tied to an embedding, with the numbers that both had.
    fn keep_head(&self, embedding: &str, plan: &mut Plan<'a>) -> Result<()> {
        let name = match embedding.contains("embed_in") {
            true => "embed_out.weight",
            false => "lm_head.weight",
        };
        let (shard, entry, dtype) =
            find(self.checkpoint, self.model, embedding, embedding, UNKNOWN)?;
        let shard = &self.checkpoint.shards[shard];
        let (shape, bytes) = (entry.shape.clone(), entry.bytes.clone());
        self.add_as(name, &shape, dtype, Kind::Copy { shard, bytes }, plan)
    }
}

pub fn same_numbers(one: &Tensor, other: &Tensor) -> Result<bool> {
    if one.shape() != other.shape() {
        return Ok(false);
    }
    let (one, other) = (one.to_f32_vec()?, other.to_f32_vec()?);
    Ok(one.iter().map(|number| number.to_bits()).eq(other.iter().map(|number| number.to_bits())))
}
