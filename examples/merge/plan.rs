//! Which tensors change.

use crate::args::Options;
use crate::base;
use crate::checkpoint::{matrix, Checkpoint};
use crate::layout::Layouts;
use crate::model::Model;
use crate::names;
use crate::tied::Weights;
use crate::Result;
use lora_kernels::peft::{Adapters, TensorEntry};
use lora_kernels::{Adapter, DType, Tensor};

/// A weight and the update that it gets.
pub struct Change<'a> {
    pub weight: String,
    pub entry: TensorEntry,
    pub dtype: DType,
    pub adapter: &'a Adapter,
    /// s, times what the user asked for.
    pub scale: f32,
    /// Whether the weight is stored as [k, d].
    pub transposed: bool,
    pub allow_non_finite: bool,
}

pub struct Plan<'a> {
    /// The changes of each file, in the order of the file.
    pub changes: Vec<Vec<Change<'a>>>,
    pub notes: Vec<String>,
    /// Whether the output's `config.json` must not tie head and embedding.
    pub untie: bool,
}

/// What changes in each file of a checkpoint; an adapter that has no weight to go to is an error.
pub fn plan<'a>(
    checkpoint: &Checkpoint,
    adapters: &'a Adapters,
    model: &Model,
    layouts: &Layouts,
    options: &Options,
) -> Result<Plan<'a>> {
    let explain = |module: &str| match base::explain(checkpoint, model, module) {
        Some(why) => format!("; {why}"),
        None => String::new(),
    };
    let mut changes: Vec<Vec<Change>> = checkpoint.shards.iter().map(|_| Vec::new()).collect();
    let (mut notes, mut untie, mut targets) = (Vec::new(), false, Vec::new());
    for (module, adapter) in &adapters.adapters {
        let shape = [adapter.b().shape().rows(), adapter.a().shape().cols()];
        let weights = Weights::of(checkpoint, model, module, shape)?;
        notes.extend(weights.note);
        untie |= weights.untie;
        targets.extend(weights.names.into_iter().map(|weight| (module, adapter, weight)));
    }
    for (module, adapter, weight) in targets {
        let Some((shard, entry)) = checkpoint.find(&weight) else {
            let shape = [adapter.b().shape().rows(), adapter.a().shape().cols()];
            let why = match names::suggestion(checkpoint, module, shape) {
                Some(why) if explain(module).is_empty() => format!("; {why}"),
                _ => explain(module),
            };
            return Err(
                format!("the checkpoint has no {weight} for the adapter {module}{why}").into()
            );
        };
        let shard_path = checkpoint.shards[shard].path().display();
        let Some(dtype) = entry.dtype else {
            let got = &entry.dtype_name;
            let why = explain(module);
            return Err(
                format!("{shard_path}: {weight} holds {got}, not F32, F16 or BF16{why}").into()
            );
        };
        let shape = [adapter.b().shape().rows(), adapter.a().shape().cols()];
        let stored = matrix(entry).map_or(entry.shape.clone(), Vec::from);
        let Some(transposed) = layouts.transposed(module, &stored, shape)? else {
            let (is, is_for) = (&entry.shape, shape);
            return Err(format!(
                "{shard_path}: {weight} has shape {is:?}, but the adapter {module} is for \
                 {is_for:?}"
            )
            .into());
        };
        let scale = adapter.scale() * options.scale;
        if !scale.is_finite() {
            return Err(format!("the scale of the adapter {module} would be {scale}").into());
        }
        let allow_non_finite = options.allow_non_finite;
        if !allow_non_finite {
            check_finite(module, "A", adapter.a())?;
            check_finite(module, "B", adapter.b())?;
        }
        let entry = entry.clone();
        changes[shard].push(Change {
            weight,
            entry,
            dtype,
            adapter,
            scale,
            transposed,
            allow_non_finite,
        });
    }
    for changes in &mut changes {
        changes.sort_by_key(|change| change.entry.bytes.start);
        if let Some(pair) = changes.windows(2).find(|pair| pair[0].weight == pair[1].weight) {
            return Err(format!(
                "two adapters are for {}: that of the head, which is tied to it, and its own",
                pair[0].weight
            )
            .into());
        }
    }
    Ok(Plan { changes, notes, untie })
}

fn check_finite(module: &str, half: &str, tensor: &Tensor) -> Result<()> {
    match tensor.to_f32_vec()?.iter().find(|number| !number.is_finite()) {
        Some(number) => Err(format!(
            "{half} of the adapter {module} holds {number}; --allow-non-finite merges it all the \
             same"
        )
        .into()),
        None => Ok(()),
    }
}
