//! Adapters of parameters that are not the weight of a linear layer (`target_parameters`).

use super::file::{malformed, unsupported};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::layers::{Adapter, Scaling};
use crate::tensor::Tensor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The order in which the models of transformers register the parameters of their experts. PEFT
/// puts the adapter of the first innermost, and the file does not say which it was.
const ORDER: [&str; 6] =
    ["gate_up_proj", "gate_up_proj_bias", "gate_proj", "up_proj", "down_proj", "down_proj_bias"];

/// The adapters of a module's parameters, nested: PEFT's `lora.ParamWrapper`.
///
/// The weights of E experts are one parameter [E, d, k], or [E, k, d] if the module stores them
/// transposed. Its adapter has A [E·r, k], expert after expert, and B [d, r·E], in which the
/// columns of one expert are E apart.
#[derive(Debug, Clone)]
pub struct ParameterAdapters {
    pub(super) path: PathBuf,
    pub(super) module: String,
    /// The innermost first.
    pub(super) levels: Vec<(Arc<Tensor>, Arc<Tensor>)>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) scaling: Scaling,
}

/// A parameter that `target_parameters` may mean, and what the configuration says of it.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub parameter: String,
    pub rank: usize,
    pub alpha: f32,
}

/// The adapter of one parameter: an update s · B A for the weight of each expert.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ParameterAdapter {
    /// The name of the parameter in its module.
    pub parameter: String,
    /// A, [E·r, k].
    pub a: Arc<Tensor>,
    /// B, [d, r·E].
    pub b: Arc<Tensor>,
    /// The number of experts E; 1 for a matrix.
    pub experts: usize,
    /// Whether the parameter is stored as [E, k, d].
    pub transposed: bool,
    /// α.
    pub alpha: f32,
    /// How s follows from α and r.
    pub scaling: Scaling,
}

impl ParameterAdapters {
    /// The pairs of A and B, the innermost first.
    pub fn tensors(&self) -> impl Iterator<Item = (&Tensor, &Tensor)> {
        self.levels.iter().map(|(a, b)| (&**a, &**b))
    }

    /// The names of the parameters that the adapters may belong to.
    pub fn candidates(&self) -> impl Iterator<Item = &str> {
        self.candidates.iter().map(|candidate| candidate.parameter.as_str())
    }

    /// Finds the parameter of each adapter by the shapes of the module's parameters: [E, d, k],
    /// [E, k, d] or [d, k]. Parameters that are not [candidates](Self::candidates) are ignored.
    /// `transposed` says how square weights are stored if no shape shows it; PEFT asks the module.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if the shapes do not fit.
    /// [`Error::Unsupported`](crate::Error::Unsupported) if they fit in several ways and the order
    /// of the parameters is not known by their names, or if `transposed` is needed and `None`.
    pub fn fit(
        &self,
        shapes: &[(&str, &[usize])],
        transposed: Option<bool>,
    ) -> Result<Vec<ParameterAdapter>> {
        let mut there: Vec<(&Candidate, &[usize])> = Vec::new();
        for candidate in &self.candidates {
            let shape = shapes.iter().find(|(name, _)| *name == candidate.parameter);
            there.extend(shape.map(|(_, shape)| (candidate, *shape)));
        }
        let place = |parameter: &str| ORDER.iter().position(|name| *name == parameter);
        there.sort_by_key(|(candidate, _)| place(&candidate.parameter));
        let known = there.iter().all(|(candidate, _)| place(&candidate.parameter).is_some());
        if there.len() != self.levels.len() || there.len() > 6 {
            let (levels, shapes) = (self.levels.len(), describe(&there));
            let reason = format!("has {levels} adapters of parameters, for {shapes}");
            return Err(malformed(&self.path, &self.module, reason));
        }
        // Permutations come in the order of the alphabet: the known order is the first.
        let mut fitting = permutations(there.len()).filter(|order| {
            let mut pairs = self.levels.iter().zip(order);
            pairs.all(|(level, &at)| fits(level, there[at].0.rank, there[at].1).is_some())
        });
        let Some(order) = fitting.next() else {
            let adapters: Vec<String> = self.tensors().map(|(a, b)| shapes_of(a, b)).collect();
            let (adapters, shapes) = (adapters.join(", "), describe(&there));
            let reason = format!("has adapters {adapters}, which do not fit {shapes}");
            return Err(malformed(&self.path, &self.module, reason));
        };
        let in_order = order.iter().enumerate().all(|(level, &at)| level == at);
        if fitting.next().is_some() && !(known && in_order) {
            let shapes = describe(&there);
            let reason = format!(
                "its adapters fit {shapes} in several ways, and the order of the model's \
                 parameters is not known: merge it in PEFT, by merge_and_unload()"
            );
            return Err(unsupported(&self.path, &self.module, reason));
        }
        let of_experts = self.levels.iter().zip(&order).filter(|&(_, &at)| there[at].1.len() == 3);
        let told: Vec<bool> = of_experts
            .filter_map(|(level, &at)| fits(level, there[at].0.rank, there[at].1).flatten())
            .collect();
        // What one parameter shows holds for all of the module.
        let of_module = told.first().filter(|first| told.iter().all(|other| other == *first));
        let mut adapters = Vec::new();
        for ((a, b), &at) in self.levels.iter().zip(&order) {
            let (candidate, shape) = there[at];
            let own = fits(&(a.clone(), b.clone()), candidate.rank, shape).flatten();
            let Some(transposed) = own.or(of_module.copied()).or(transposed) else {
                let reason = format!(
                    "{} {shape:?} is square, and nothing tells whether it is stored transposed",
                    candidate.parameter
                );
                return Err(unsupported(&self.path, &self.module, reason));
            };
            adapters.push(ParameterAdapter {
                parameter: candidate.parameter.clone(),
                a: a.clone(),
                b: b.clone(),
                experts: if shape.len() == 3 { shape[0] } else { 1 },
                transposed,
                alpha: candidate.alpha,
                scaling: self.scaling,
            });
        }
        Ok(adapters)
    }
}

impl ParameterAdapter {
    /// The rank r.
    pub fn rank(&self) -> usize {
        self.a.shape().rows() / self.experts
    }

    /// The factor s of the update: α/r or α/√r.
    pub fn scale(&self) -> f32 {
        self.scaling.scale(self.alpha, self.rank())
    }

    /// A [r, k] and B [d, r] of each expert, row-major.
    ///
    /// # Errors
    /// As for [`Tensor::to_f32_vec`].
    pub fn split(&self) -> Result<Vec<[Vec<f32>; 2]>> {
        let (a, b) = (self.a.to_f32_vec()?, self.b.to_f32_vec()?);
        let of_expert = self.rank() * self.a.shape().cols();
        let experts = a.chunks_exact(of_expert).enumerate().map(|(expert, a)| {
            let b = b.iter().skip(expert).step_by(self.experts).copied();
            [a.to_vec(), b.collect()]
        });
        Ok(experts.collect())
    }

    /// An adapter for each expert's weight [d, k], for a [`LoraLinear`](crate::LoraLinear), with A
    /// and B rounded to `dtype`.
    ///
    /// # Errors
    /// As for [`Adapter::from_tensors`].
    pub fn adapters(&self, device: &Device, dtype: DType) -> Result<Vec<Adapter>> {
        let (r, d, k) = (self.rank(), self.b.shape().rows(), self.a.shape().cols());
        let adapters = self.split()?.into_iter().map(|[a, b]| {
            let a = Tensor::from_f32(device, &a, [r, k], dtype)?;
            let b = Tensor::from_f32(device, &b, [d, r], dtype)?;
            Adapter::from_tensors(a, b, self.alpha, self.scaling)
        });
        adapters.collect()
    }
}

/// Whether a pair is for a parameter of this rank and shape; and if so, whether it is stored
/// transposed, unless it is square.
fn fits((a, b): &(Arc<Tensor>, Arc<Tensor>), rank: usize, shape: &[usize]) -> Option<Option<bool>> {
    let (experts, matrix) = match *shape {
        [experts, rows, cols] => (experts, [rows, cols]),
        [rows, cols] => (1, [rows, cols]),
        _ => return None,
    };
    let (d, k) = (b.shape().rows(), a.shape().cols());
    if experts.checked_mul(rank) != Some(a.shape().rows()) {
        return None;
    }
    match (matrix == [d, k], matrix == [k, d]) {
        (true, true) if shape.len() == 3 => Some(None),
        (true, _) => Some(Some(false)),
        (false, true) if shape.len() == 3 => Some(Some(true)),
        _ => None,
    }
}

fn shapes_of(a: &Tensor, b: &Tensor) -> String {
    format!("A {:?} and B {:?}", a.shape().dims(), b.shape().dims())
}

fn describe(parameters: &[(&Candidate, &[usize])]) -> String {
    let parameters: Vec<String> = parameters
        .iter()
        .map(|(Candidate { parameter, rank, .. }, shape)| {
            format!("{parameter} {shape:?} of rank {rank}")
        })
        .collect();
    match parameters.is_empty() {
        true => "no parameter that target_parameters names".into(),
        false => parameters.join(", "),
    }
}

/// The permutations of 0..n, in the order of the alphabet.
fn permutations(n: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..n {
        let longer = all.into_iter().flat_map(|start: Vec<usize>| {
            let free: Vec<usize> = (0..n).filter(|at| !start.contains(at)).collect();
            free.into_iter().map(move |at| [&start[..], &[at]].concat())
        });
        all = longer.collect();
    }
    all.into_iter()
}

/// The error for an adapter whose A has no multiple of the rank as rows.
pub(super) fn check_rows(
    path: &Path,
    a: &str,
    rows: usize,
    candidates: &[Candidate],
) -> Result<()> {
    if candidates.iter().any(|candidate| rows.is_multiple_of(candidate.rank)) {
        return Ok(());
    }
    let ranks: Vec<String> = candidates
        .iter()
        .map(|candidate| format!("{} for {}", candidate.rank, candidate.parameter))
        .collect();
    let reason = format!("has {rows} rows, but the configuration's rank is {}", ranks.join(", "));
    Err(malformed(path, a, reason))
}
