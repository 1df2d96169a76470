//! Parameters that an adapter replaces: of modules saved whole, biases, and rows of embeddings.

use crate::Result;
use crate::args::Options;
use crate::change::{Change, Kind};
use crate::checkpoint::Checkpoint;
use crate::header;
use crate::model::Model;
use crate::plan::{Plan, UNKNOWN, find, scale_of};
use crate::tied::{EMBEDDINGS, HEADS, Weights, last, weights_of_embedding};
use lora_kernels::peft::{Adapters, Extras, TensorEntry, TokenRows};
use lora_kernels::{DType, Tensor};
use std::collections::BTreeSet;

/// What is given.
pub struct Given<'p, 'a> {
    pub checkpoint: &'a Checkpoint,
    pub adapters: &'a Adapters,
    /// The parameters that `modules_to_save` names, under the checkpoint's names.
    pub saved: &'p BTreeSet<String>,
    pub model: &'p Model,
    pub options: &'p Options,
}

pub fn plan<'a>(given: Given<'_, 'a>, plan: &mut Plan<'a>) -> Result<()> {
    let Given { adapters, options, .. } = given;
    let extras = adapters.config.extras();
    if options.scale < 0.0
        && let Some(what) = not_taken_out(extras)
    {
        return Err(format!(
            "--scale {}: {what} cannot be taken out of a checkpoint; what was there before is \
             not known",
            options.scale
        )
        .into());
    }
    for (name, tensor) in &extras.whole {
        given.replace(name, tensor, plan)?;
    }
    for (module, update) in &extras.updates {
        if let Some(bias) = &update.bias {
            given.add_bias(module, bias, update.scale(), plan)?;
        }
    }
    for (module, tokens) in &extras.tokens {
        given.rows(module, tokens, plan)?;
    }
    given.check_missing()?;
    given.check_vocabulary(plan)
}

/// What of an adapter leaves no way back.
fn not_taken_out(extras: &Extras) -> Option<&'static str> {
    if !extras.whole.is_empty() {
        Some("modules saved whole")
    } else if !extras.tokens.is_empty() {
        Some("rows of embeddings")
    } else if extras.updates.values().any(|update| update.magnitude.is_some()) {
        Some("magnitudes (DoRA)")
    } else {
        None
    }
}

/// Whether a parameter may have another shape than in the checkpoint: of a head, or of an embedding
/// of another vocabulary.
pub fn may_be_resized(
    name: &str,
    saved: &BTreeSet<String>,
    entry: &TensorEntry,
    shape: &[usize],
) -> Result<()> {
    let module = name.strip_suffix(".weight").map_or("", last);
    if EMBEDDINGS.contains(&module) || HEADS.contains(&module) || saved.contains(name) {
        return Ok(());
    }
    Err(format!(
        "{name} has shape {:?} in the checkpoint, but {shape:?} in the adapter's file",
        entry.shape
    )
    .into())
}

impl<'a> Given<'_, 'a> {
    /// Plans for a parameter that the adapter's file holds.
    fn replace(&self, name: &str, tensor: &'a Tensor, plan: &mut Plan<'a>) -> Result<()> {
        let Given { checkpoint, adapters, model, .. } = *self;
        let extras = adapters.config.extras();
        let (module, parameter) = name.rsplit_once('.').unwrap_or(("", name));
        let update = extras.updates.get(module);
        if adapters.adapters.contains_key(module) || update.is_some() {
            let has_bias = update.is_some_and(|update| update.bias.is_some());
            if parameter == "weight" || (parameter == "bias" && has_bias) {
                // With the update.
                return Ok(());
            }
        }
        let shape = tensor.shape().dims().to_vec();
        let names = match self.tied_names(name, tensor, plan)? {
            Some(names) => names,
            None => vec![name.to_string()],
        };
        for name in names {
            if checkpoint.find(&name).is_some() {
                self.push(&name, module, &shape, plan, || Kind::Replace(tensor))?;
            } else if self.saved.contains(&name) {
                plan.notes.push(format!("{name} {shape:?} is new in the checkpoint"));
                self.add(&name, &shape, tensor.dtype(), Kind::Replace(tensor), plan)?;
            } else {
                // Explains a quantised or wrapped base.
                let missing = find(checkpoint, model, &name, module, UNKNOWN).err();
                let missing = missing.map_or(String::new(), |error| error.to_string());
                return Err(format!(
                    "{missing}, which its file holds; PEFT drops it without a word"
                )
                .into());
            }
        }
        Ok(())
    }

    /// Plans for the bias of a module, to which the bias of B is added.
    fn add_bias(
        &self,
        module: &str,
        bias: &'a Tensor,
        scale: f32,
        plan: &mut Plan<'a>,
    ) -> Result<()> {
        let name = format!("{module}.bias");
        let Some((_, entry)) = self.checkpoint.find(&name) else {
            return Err(format!(
                "the checkpoint has no {name} for the bias of the adapter {module} (lora_bias), \
                 and PEFT cannot merge it either: run it unmerged, in PEFT"
            )
            .into());
        };
        let base = self.adapters.config.extras().whole.get(&name).map(|tensor| &**tensor);
        let shape = bias.shape().dims().to_vec();
        if entry.shape != shape || base.is_some_and(|base| base.shape().dims() != shape) {
            return Err(format!(
                "{name} has shape {:?}, but the bias of the adapter {module} is for {shape:?}",
                entry.shape
            )
            .into());
        }
        let scale = scale_of(module, scale, self.options)?;
        self.push(&name, module, &shape, plan, || Kind::AddBias { base, bias, scale })
    }

    /// Plans for the rows of an embedding, or of a head, which may be tied to one.
    fn rows(&self, module: &str, tokens: &'a TokenRows, plan: &mut Plan<'a>) -> Result<()> {
        let Given { checkpoint, model, .. } = *self;
        let rows = tokens.rows.shape();
        let own = format!("{module}.weight");
        let weights = match HEADS.contains(&last(module)) {
            true => Weights::of(
                checkpoint,
                model,
                module,
                |shape| matches!(shape, [_, cols] if *cols == rows.cols()),
            )?,
            false => weights_of_embedding(checkpoint, model, module)?,
        };
        let first = weights.names.first().unwrap_or(&own);
        let (_, entry, _) = find(checkpoint, model, first, module, UNKNOWN)?;
        let shape = entry.shape.clone();
        let most = tokens.indices.iter().max().copied().unwrap_or(0);
        if shape.len() != 2 || shape[1] != rows.cols() || most >= shape[0] {
            return Err(format!(
                "{first} has shape {shape:?}, but the adapter has rows {:?} for it, the last one at \
                 {most}",
                rows.dims()
            )
            .into());
        }
        plan.notes.extend(weights.note);
        plan.untie |= weights.untie;
        for weight in weights.names {
            self.push(&weight, module, &shape, plan, || Kind::Rows(tokens))?;
        }
        Ok(())
    }

    /// Plans for a tensor of the checkpoint.
    fn push(
        &self,
        name: &str,
        module: &str,
        shape: &[usize],
        plan: &mut Plan<'a>,
        kind: impl FnOnce() -> Kind<'a>,
    ) -> Result<()> {
        let (shard, entry, dtype) = find(self.checkpoint, self.model, name, module, UNKNOWN)?;
        if entry.shape != shape {
            may_be_resized(name, self.saved, entry, shape)?;
            plan.notes.push(format!("{name} {:?} becomes {shape:?}", entry.shape));
        }
        let (weight, entry, shape) = (name.to_string(), entry.clone(), shape.to_vec());
        let (kind, allow_non_finite) = (kind(), self.options.allow_non_finite);
        let change = Change { weight, entry, dtype, shape, kind, allow_non_finite };
        plan.changes[shard].push(change);
        Ok(())
    }

    /// Plans for a new tensor, in the element type of the checkpoint if that has only one.
    fn add(
        &self,
        name: &str,
        shape: &[usize],
        own: DType,
        kind: Kind<'a>,
        plan: &mut Plan<'a>,
    ) -> Result<()> {
        let entries = self.checkpoint.shards.iter().flat_map(|shard| shard.entries().values());
        let mut dtypes = entries.filter_map(|entry| entry.dtype);
        let dtype = dtypes.next().filter(|first| dtypes.all(|other| other == *first));
        self.add_as(name, shape, dtype.unwrap_or(own), kind, plan)
    }

    pub fn add_as(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        kind: Kind<'a>,
        plan: &mut Plan<'a>,
    ) -> Result<()> {
        let last = self.checkpoint.shards.len() - 1;
        let shard = &self.checkpoint.shards[last];
        let at = header::place(shard, dtype)?;
        let mut entry = shard.entries().values().next().ok_or("a file has no tensors")?.clone();
        (entry.shape, entry.bytes) = (shape.to_vec(), at..at);
        entry.dtype_name = header::name_of(dtype).into();
        let (weight, shape) = (name.to_string(), shape.to_vec());
        let allow_non_finite = self.options.allow_non_finite;
        let change = Change { weight, entry, dtype, shape, kind, allow_non_finite };
        plan.changes[last].push(change);
        Ok(())
    }

    /// Refuses an adapter that lacks a module that `modules_to_save` names and the base has.
    fn check_missing(&self) -> Result<()> {
        let config = &self.adapters.config;
        let whole = &config.extras().whole;
        let tied = |name: &str| {
            let last = name.strip_suffix(".weight").map_or("", last);
            // Models of transformers 5 have the name lm_head for the head that files call embed_out.
            last == "embed_out"
                || self.model.ties_embeddings() == Some(true)
                    && (HEADS.contains(&last) || EMBEDDINGS.contains(&last))
        };
        let missing = self
            .checkpoint
            .names()
            .find(|name| config.saves_whole(name) && !whole.contains_key(*name) && !tied(name));
        match missing {
            None => Ok(()),
            Some(name) => Err(format!(
                "modules_to_save names the module of {name}, but the adapter's file has no such \
                 tensor, and PEFT does not load it either"
            )
            .into()),
        }
    }

    /// Head and embedding must have the same number of rows.
    fn check_vocabulary(&self, plan: &mut Plan<'a>) -> Result<()> {
        let is_of_words = |name: &str| {
            let last = name.strip_suffix(".weight").map_or("", last);
            HEADS.contains(&last) || EMBEDDINGS.contains(&last)
        };
        let changes = || plan.changes.iter().flatten().filter(|change| is_of_words(&change.weight));
        let Some(resized) =
            changes().find(|change| change.shape != change.entry.shape && change.shape.len() == 2)
        else {
            return Ok(());
        };
        let rows = resized.shape[0];
        for name in self.checkpoint.names().filter(|name| is_of_words(name)) {
            let changed = changes().find(|change| change.weight == name);
            let entry = self.checkpoint.find(name).map(|(_, entry)| &entry.shape);
            let shape = changed.map(|change| &change.shape).or(entry);
            if shape.is_some_and(|shape| shape.len() == 2 && shape[0] != rows) {
                return Err(format!(
                    "{} would have {rows} rows, but {name} stays as it is: the adapter's file must \
                     hold both",
                    resized.weight
                )
                .into());
            }
        }
        plan.vocabulary = Some(rows);
        Ok(())
    }
}
