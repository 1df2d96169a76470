//! Adapters of the parameters of experts (`target_parameters`), merged into the parameters or, where
//! the checkpoint has each expert by itself, into the experts' weights.

use crate::Result;
use crate::args::{Options, Transposed};
use crate::change::{Change, Factors, Kind, Update};
use crate::checkpoint::Checkpoint;
use crate::model::Model;
use crate::plan::{Plan, UNKNOWN, check_finite, find, scale_of};
use lora_kernels::DType;
use lora_kernels::peft::{Extras, TensorEntry};
use std::rc::Rc;

/// The weights of one expert that are rows of a parameter, one below the other, by the parameter's
/// name: in the checkpoints of most models, and of Mixtral and its like.
const PARTS: [(&str, &[&[&str]]); 3] = [
    ("gate_up_proj", &[&["gate_proj", "up_proj"], &["w1", "w3"]]),
    ("up_proj", &[&["up_proj"]]),
    ("down_proj", &[&["down_proj"], &["w2"]]),
];

/// The parameters that a checkpoint has as a weight beside the experts' module: of GraniteMoe.
const BESIDE: [(&str, &str); 2] =
    [("gate_up_proj", "input_linear.weight"), ("down_proj", "output_linear.weight")];

/// A parameter as the checkpoint has it.
#[derive(Debug, PartialEq)]
struct Stored {
    parameter: String,
    /// The name of its tensor, if it is one.
    name: String,
    /// [E, d, k], [E, k, d], or [d, k].
    shape: Vec<usize>,
    /// The names of the experts' weights, if each has its own, and their rows in the parameter.
    experts: Vec<Vec<(String, usize)>>,
}

pub fn plan<'a>(
    checkpoint: &Checkpoint,
    extras: &'a Extras,
    model: &Model,
    options: &Options,
    plan: &mut Plan<'a>,
) -> Result<()> {
    let transposed = match options.transposed {
        Transposed::Yes => Some(true),
        Transposed::No => Some(false),
        Transposed::Auto => model.has_transposed_experts(),
    };
    for (module, adapters) in &extras.parameters {
        if !options.allow_non_finite {
            for (a, b) in adapters.tensors() {
                check_finite(module, "A", a)?;
                check_finite(module, "B", b)?;
            }
        }
        let stored: Vec<Stored> = adapters
            .candidates()
            .filter_map(|parameter| stored(checkpoint, module, parameter))
            .collect();
        if stored.is_empty() {
            let names: Vec<String> =
                adapters.candidates().map(|name| format!("{module}.{name}")).collect();
            // Explains a quantised or wrapped base.
            find(checkpoint, model, &names.join(" or "), module, UNKNOWN)?;
        }
        let shapes: Vec<(&str, &[usize])> =
            stored.iter().map(|s| (s.parameter.as_str(), &s.shape[..])).collect();
        // The weight of one expert is never transposed.
        let by_itself = stored.iter().any(|stored| !stored.experts.is_empty());
        let transposed = if by_itself { Some(false) } else { transposed };
        for adapter in adapters.fit(&shapes, transposed)? {
            let stored = stored.iter().find(|stored| stored.parameter == adapter.parameter);
            let stored = stored.ok_or("a parameter is missing")?;
            if by_itself && adapter.transposed {
                let (a, b) = (adapter.a.shape(), adapter.b.shape());
                return Err(format!(
                    "the experts' weights of {module} make {} {:?}, but its adapter has A {:?} and \
                     B {:?}",
                    stored.parameter,
                    stored.shape,
                    a.dims(),
                    b.dims()
                )
                .into());
            }
            let scale = scale_of(module, adapter.scale(), options)?;
            let adapter = Rc::new(adapter);
            let update = |expert, rows| {
                let factors = Factors::Expert { of: adapter.clone(), expert, rows };
                let transposed = adapter.transposed;
                let update = Update { factors, scale, transposed, magnitude: None };
                Kind::Update { base: None, updates: vec![update] }
            };
            let d = adapter.b.shape().rows();
            let mut matrices = Vec::new();
            if stored.experts.is_empty() {
                let weight = || stored.name.clone();
                matrices.extend((0..adapter.experts).map(|e| (weight(), e, update(e, 0..d))));
            }
            for (expert, parts) in stored.experts.iter().enumerate() {
                let mut row = 0;
                for (weight, rows) in parts {
                    matrices.push((weight.clone(), 0, update(expert, row..row + rows)));
                    row += rows;
                }
            }
            for (weight, at, kind) in matrices {
                let (shard, entry, dtype) = find(checkpoint, model, &weight, module, UNKNOWN)?;
                let entry = matrix(entry, at, dtype);
                let (shape, allow_non_finite) = (entry.shape.clone(), options.allow_non_finite);
                let change = Change { weight, entry, dtype, shape, kind, allow_non_finite };
                plan.changes[shard].push(change);
            }
        }
    }
    Ok(())
}

/// One of the matrices of a tensor.
fn matrix(entry: &TensorEntry, at: usize, dtype: DType) -> TensorEntry {
    let mut entry = entry.clone();
    let dims = entry.shape.len();
    entry.shape.drain(..dims - 2);
    let bytes = (entry.shape[0] * entry.shape[1] * dtype.bytes()) as u64;
    let start = entry.bytes.start + at as u64 * bytes;
    entry.bytes = start..start + bytes;
    entry
}

/// A parameter of a module, or the experts' weights that it is made of.
fn stored(checkpoint: &Checkpoint, module: &str, parameter: &str) -> Option<Stored> {
    let beside = BESIDE.iter().find(|(name, _)| *name == parameter);
    let beside =
        beside.and_then(|(_, name)| Some(format!("{}.{name}", module.strip_suffix(".experts")?)));
    for name in [Some(format!("{module}.{parameter}")), beside].into_iter().flatten() {
        if let Some((_, entry)) = checkpoint.find(&name) {
            let (parameter, shape) = (parameter.to_string(), entry.shape.clone());
            return Some(Stored { parameter, name, shape, experts: Vec::new() });
        }
    }
    // transformers calls the MLP of Mixtral block_sparse_moe in files only.
    let paths = [module.to_string(), module.replace(".mlp.", ".block_sparse_moe.")];
    let (_, ways) = PARTS.iter().find(|(name, _)| *name == parameter)?;
    paths.iter().flat_map(|path| ways.iter().map(move |parts| (path, *parts))).find_map(
        |(path, parts)| {
            let weight = |expert: usize, part: &str| format!("{path}.{expert}.{part}.weight");
            let rows_and_cols = |name: &str| match checkpoint.find(name)?.1.shape[..] {
                [rows, cols] => Some((rows, cols)),
                _ => None,
            };
            let mut experts = Vec::new();
            let (mut rows, mut cols) = (0, 0);
            while checkpoint.find(&weight(experts.len(), parts[0])).is_some() {
                let expert = parts.iter().map(|part| {
                    let name = weight(experts.len(), part);
                    let (rows, cols) = rows_and_cols(&name)?;
                    Some((name, rows, cols))
                });
                let expert: Vec<_> = expert.collect::<Option<_>>()?;
                let sum = expert.iter().map(|(_, rows, _)| rows).sum();
                if experts.is_empty() {
                    (rows, cols) = (sum, expert[0].2);
                }
                if sum != rows || expert.iter().any(|(_, _, other)| *other != cols) {
                    return None;
                }
                experts.push(expert.into_iter().map(|(name, rows, _)| (name, rows)).collect());
            }
            let (parameter, shape) = (parameter.to_string(), vec![experts.len(), rows, cols]);
            let name = String::new();
            (!experts.is_empty()).then_some(Stored { parameter, name, shape, experts })
        },
    )
}
