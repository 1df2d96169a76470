//! Which tensors change.

use crate::Result;
use crate::args::Options;
use crate::base;
use crate::change::{Change, Factors, Kind, Update};
use crate::checkpoint::{Checkpoint, matrix};
use crate::experts;
use crate::layout::Layouts;
use crate::model::Model;
use crate::names;
use crate::tied::{self, Weights};
use crate::untied;
use crate::whole::{self, Given};
use lora_kernels::peft::{Adapters, TensorEntry};
use lora_kernels::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

pub struct Plan<'a> {
    /// The changes of each file, in the order of the file.
    pub changes: Vec<Vec<Change<'a>>>,
    pub notes: Vec<String>,
    /// Whether the output's `config.json` must not tie head and embedding.
    pub untie: bool,
    /// The rows of embedding and head, if they change.
    pub vocabulary: Option<usize>,
}

/// An adapter, and what belongs to it.
struct Target<'a> {
    module: &'a str,
    a: &'a Tensor,
    b: &'a Tensor,
    scale: f32,
    embedding: bool,
    magnitude: Option<&'a Tensor>,
}

/// What changes in each file of a checkpoint; an adapter that has no weight to go to is an error.
/// `saved` names the parameters that `modules_to_save` means.
pub fn plan<'a>(
    checkpoint: &'a Checkpoint,
    adapters: &'a Adapters,
    saved: &BTreeSet<String>,
    model: &Model,
    layouts: &Layouts,
    options: &Options,
) -> Result<Plan<'a>> {
    let extras = adapters.config.extras();
    let changes = checkpoint.shards.iter().map(|_| Vec::new()).collect();
    let mut plan = Plan { changes, notes: Vec::new(), untie: false, vocabulary: None };
    let plain = adapters.adapters.iter().map(|(module, adapter)| {
        let (a, b, scale) = (adapter.a(), adapter.b(), adapter.scale());
        Target { module, a, b, scale, embedding: false, magnitude: None }
    });
    let updates = extras.updates.iter().map(|(module, update)| {
        let (a, b, scale, embedding) = (&*update.a, &*update.b, update.scale(), update.embedding);
        Target { module, a, b, scale, embedding, magnitude: update.magnitude.as_deref() }
    });
    // Where in its file's changes the one of a weight is.
    let mut planned: BTreeMap<String, usize> = BTreeMap::new();
    for target in plain.chain(updates) {
        let Target { module, a, b, magnitude, .. } = target;
        let factors = Factors::Pair { a, b };
        let [d, k] = factors.shape();
        let base = extras.whole.get(&format!("{module}.weight")).map(|tensor| &**tensor);
        let stored = base.map(|base| base.shape().dims().to_vec());
        let scale = scale_of(module, target.scale, options)?;
        if !options.allow_non_finite {
            check_finite(module, "A", a)?;
            check_finite(module, "B", b)?;
        }
        let weights = match target.embedding {
            true => tied::weights_of_embedding(checkpoint, model, module)?,
            false => Weights::of(checkpoint, model, module, |shape| shape == [d, k])?,
        };
        plan.notes.extend(weights.note);
        plan.untie |= weights.untie;
        for weight in weights.names {
            let (shard, entry, dtype) = find(checkpoint, model, &weight, module, [d, k])?;
            let shape = stored.clone().unwrap_or_else(|| entry.shape.clone());
            let transposed = match (target.embedding, a.shape().dims()) {
                (true, _) => (shape == [k, d]).then_some(true),
                (_, [_, _]) => {
                    let stored = matrix(&shape).map_or(shape.clone(), Vec::from);
                    layouts.transposed(module, &stored, [d, k])?
                }
                (_, kernel) => (shape[0] == d && shape[1..] == kernel[1..]).then_some(false),
            };
            let Some(transposed) = transposed else {
                let shard = checkpoint.shards[shard].path().display();
                let of = match (target.embedding, a.shape().dims()) {
                    (true, _) => vec![k, d],
                    (_, kernel) => [&[d], &kernel[1..]].concat(),
                };
                return Err(format!(
                    "{shard}: {weight} has shape {shape:?}, but the adapter {module} is for {of:?}"
                )
                .into());
            };
            if shape != entry.shape {
                whole::may_be_resized(&weight, saved, entry, &shape)?;
            }
            let factors = factors.clone();
            let update = Update { factors, scale, transposed, magnitude };
            if let Some(&at) = planned.get(&weight) {
                let other: &mut Change<'_> = &mut plan.changes[shard][at];
                share(other, base, update, module)?;
                continue;
            }
            planned.insert(weight.clone(), plan.changes[shard].len());
            let kind = Kind::Update { base, updates: vec![update] };
            let (entry, allow_non_finite) = (entry.clone(), options.allow_non_finite);
            let change = Change { weight, entry, dtype, shape, kind, allow_non_finite };
            plan.changes[shard].push(change);
        }
    }
    experts::plan(checkpoint, extras, model, options, &mut plan)?;
    whole::plan(Given { checkpoint, adapters, saved, model, options }, &mut plan)?;
    for changes in &mut plan.changes {
        changes.sort_by(|one, other| {
            let key = |c: &Change<'_>| (c.entry.bytes.start, c.entry.bytes.end);
            key(one).cmp(&key(other)).then_with(|| one.weight.cmp(&other.weight))
        });
        let overlap = |pair: &&[Change<'_>]| pair[0].entry.bytes.end > pair[1].entry.bytes.start;
        if let Some(pair) = changes.windows(2).find(overlap) {
            let weight = &pair[0].weight;
            return Err(format!("two parts of the adapter's file are for {weight}").into());
        }
    }
    Ok(plan)
}

/// Adds the update of a second adapter to a weight: of a head and the embedding that is tied to it.
fn share<'a>(
    change: &mut Change<'a>,
    base: Option<&'a Tensor>,
    update: Update<'a>,
    module: &str,
) -> Result<()> {
    let weight = &change.weight;
    let Kind::Update { base: other, updates } = &mut change.kind else {
        return Err(format!("two parts of the adapter's file are for {weight}").into());
    };
    if update.magnitude.is_some() || updates.iter().any(|other| other.magnitude.is_some()) {
        return Err(format!(
            "two adapters with magnitudes (DoRA) are for {weight}, as {module} is tied to it: merge \
             them in PEFT, by merge_and_unload()"
        )
        .into());
    }
    match (base, *other) {
        (Some(one), Some(other)) if !untied::same_numbers(one, other)? => {
            return Err(format!(
                "the adapter's file has two numbers for {weight}, which {module} shares"
            )
            .into());
        }
        (one, other_base) => *other = one.or(other_base),
    }
    updates.push(update);
    Ok(())
}

/// The shape of a weight of which the adapter does not say it.
pub const UNKNOWN: [usize; 2] = [0, 0];

/// Where a weight of this shape is, and its element type; or why it cannot be changed.
pub fn find<'a>(
    checkpoint: &'a Checkpoint,
    model: &Model,
    weight: &str,
    module: &str,
    shape: [usize; 2],
) -> Result<(usize, &'a TensorEntry, DType)> {
    let explain = || match base::explain(checkpoint, model, module) {
        Some(why) => format!("; {why}"),
        None => String::new(),
    };
    let Some((shard, entry)) = checkpoint.find(weight) else {
        let why = match names::suggestion(checkpoint, module, shape) {
            Some(why) if explain().is_empty() => format!("; {why}"),
            _ => explain(),
        };
        return Err(format!("the checkpoint has no {weight} for the adapter {module}{why}").into());
    };
    let Some(dtype) = entry.dtype else {
        let (shard, got) = (checkpoint.shards[shard].path().display(), &entry.dtype_name);
        let why = explain();
        return Err(format!("{shard}: {weight} holds {got}, not F32, F16 or BF16{why}").into());
    };
    Ok((shard, entry, dtype))
}

/// s, times what the user asked for.
pub fn scale_of(module: &str, scale: f32, options: &Options) -> Result<f32> {
    let scale = scale * options.scale;
    match scale.is_finite() {
        true => Ok(scale),
        false => Err(format!("the scale of the adapter {module} would be {scale}").into()),
    }
}

pub fn check_finite(module: &str, half: &str, tensor: &Tensor) -> Result<()> {
    match tensor.to_f32_vec()?.iter().find(|number| !number.is_finite()) {
        Some(number) => Err(format!(
            "{half} of the adapter {module} holds {number}; --allow-non-finite merges it all the \
             same"
        )
        .into()),
        None => Ok(()),
    }
}
