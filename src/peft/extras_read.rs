//! The extras of an adapter file: checked against the configuration, and read.

use super::config::Config;
use super::experts::{Candidate, ParameterAdapters, check_rows};
use super::extras::{Extras, TokenRows, Update};
use super::fields;
use super::file::{malformed, unsupported};
use super::pair::Pair;
use super::pairs::Pairs;
use super::targets::{Targets, undecided};
use super::tensors::TensorFile;
use super::tokens;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

/// How many parameters of a module may be named; real ones have two, or four with biases.
const MAX_PARAMETERS: usize = 16;

/// What says how an adapter file is read.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub config: &'a Config,
    pub targets: &'a Targets,
    pub dtype: Option<DType>,
}

/// Makes ordinary adapters where the parameter is one matrix `weight`, as a router's, and returns
/// their modules.
pub(super) fn weights_of(
    config: &Config,
    path: &Path,
    targets: &Targets,
    found: &mut Pairs,
) -> Result<BTreeSet<String>> {
    let mut weights = BTreeSet::new();
    for (module, levels) in &found.parameters {
        if targets.parameters_of(module) != ["weight"] || levels.len() != 1 {
            continue;
        }
        let (rank, _) = rank_and_alpha(config, path, &format!("{module}.weight"))?;
        if levels[0].rank == rank {
            weights.insert(module.clone());
        }
    }
    for module in &weights {
        if let Some(pair) = found.parameters.remove(module).and_then(|mut levels| levels.pop()) {
            found.modules.insert(module.clone(), pair);
        }
    }
    Ok(weights)
}

/// Takes the extras out of what was found, and reads them.
pub(super) fn read<R: Read + Seek>(
    Source { config, targets, dtype }: Source<'_>,
    file: &mut TensorFile<R>,
    found: &mut Pairs,
) -> Result<Extras> {
    let path = targets.path();
    check_flags(config, path, file.path(), found)?;
    check_initial(config, path, found)?;
    let plain = |pair: &Pair| {
        let of_more = pair.embedding || pair.convolution || pair.rank > 256;
        !of_more && pair.bias.is_none() && pair.magnitude.is_none()
    };
    let (adapters, others): (BTreeMap<_, _>, _) =
        std::mem::take(&mut found.modules).into_iter().partition(|(_, pair)| plain(pair));
    found.modules = adapters;
    let named = tokens::named(config, path, file, &found.tokens)?;
    let mut candidates = BTreeMap::new();
    for (module, levels) in &found.parameters {
        candidates
            .insert(module, candidates_of(config, path, file.path(), targets, module, levels)?);
    }

    let cpu = Device::cpu();
    let mut extras = Extras::default();
    for (module, pair) in others {
        let dtype = Some(dtype.unwrap_or(pair.dtype));
        let (_, alpha) = rank_and_alpha(config, path, &config.pattern_path(&module))?;
        let mut vector = |name: Option<String>| -> Result<Option<Arc<Tensor>>> {
            name.map(|name| Ok(Arc::new(file.tensor(&name, &cpu, None)?))).transpose()
        };
        let (bias, magnitude) = (vector(pair.bias)?, vector(pair.magnitude)?);
        let a = Arc::new(file.tensor(&pair.a, &cpu, dtype)?);
        let b = Arc::new(file.tensor(&pair.b, &cpu, dtype)?);
        let (scaling, embedding) = (config.scaling, pair.embedding);
        extras.updates.insert(module, Update { a, b, alpha, scaling, embedding, bias, magnitude });
    }
    for (module, candidates) in candidates {
        let mut levels = Vec::new();
        for pair in &found.parameters[module] {
            let dtype = Some(dtype.unwrap_or(pair.dtype));
            let a = file.tensor(&pair.a, &cpu, dtype)?;
            let b = file.tensor(&pair.b, &cpu, dtype)?;
            levels.push((Arc::new(a), Arc::new(b)));
        }
        let (path, scaling) = (file.path().to_path_buf(), config.scaling);
        let module = module.clone();
        let adapters =
            ParameterAdapters { path, module: module.clone(), levels, candidates, scaling };
        extras.parameters.insert(module, adapters);
    }
    for (name, tensor) in &found.whole {
        extras.whole.insert(name.clone(), Arc::new(file.tensor(tensor, &cpu, None)?));
    }
    for (module, indices) in named {
        let rows = file.tensor(&found.tokens[&module], &cpu, None)?;
        extras.tokens.insert(module, TokenRows::new(indices, rows)?);
    }
    Ok(extras)
}

/// Magnitudes and biases of B count if the configuration switches them on; without, PEFT drops them.
fn check_flags(config: &Config, path: &Path, file: &Path, found: &Pairs) -> Result<()> {
    let is_on = |key: &str| config.fields.get(key).is_some_and(fields::is_set);
    let (dora, biases) = (is_on("use_dora"), is_on("lora_bias"));
    for (module, pair) in &found.modules {
        if let (Some(name), false) = (&pair.magnitude, dora) {
            let reason = "a magnitude (DoRA), which PEFT drops because use_dora is not set";
            return Err(unsupported(file, name, reason));
        }
        if let (Some(name), false) = (&pair.bias, biases) {
            let reason = "a bias of an adapter, which PEFT drops because lora_bias is not set";
            return Err(unsupported(file, name, reason));
        }
        if pair.magnitude.is_none() && dora {
            let reason = format!("is set, but {module} has no lora_magnitude_vector in the file");
            return Err(malformed(path, "use_dora", reason));
        }
    }
    for pair in found.parameters.values().flatten() {
        if let Some(name) = pair.magnitude.as_ref().or(pair.bias.as_ref()) {
            return Err(unsupported(file, name, "of an adapter of a parameter, which has none"));
        }
        if pair.embedding || pair.convolution {
            let reason =
                "an adapter of an embedding or convolution, but target_parameters names it";
            return Err(unsupported(file, &pair.a, reason));
        }
    }
    Ok(())
}

/// Adapters of base weights that were changed need those weights in the file.
fn check_initial(config: &Config, path: &Path, found: &Pairs) -> Result<()> {
    let Some(initial) = fields::changing_weights(&config.fields) else { return Ok(()) };
    let has_weight = |module: &&String| found.whole.contains_key(&format!("{module}.weight"));
    let modules = found.modules.keys().chain(found.parameters.keys());
    let Some(module) = modules.clone().find(|module| !has_weight(module)) else { return Ok(()) };
    let reason = format!(
        "{initial:?}: the adapters belong to base weights that were changed at the start, and the \
         file has no {module}.base_layer.weight. PEFT's save_pretrained makes a plain adapter of it \
         with path_initial_model_for_weight_conversion; or merge the initial adapter with a scale \
         of -1 and take the result as the base, or the checkpoint of the changed weights if there \
         is one, with init_lora_weights set to true in the configuration"
    );
    Err(unsupported(path, "init_lora_weights", reason))
}

fn candidates_of(
    config: &Config,
    path: &Path,
    file: &Path,
    targets: &Targets,
    module: &str,
    levels: &[Pair],
) -> Result<Vec<Candidate>> {
    let parameters = targets.parameters_of(module);
    if parameters.len() > MAX_PARAMETERS {
        let reason = format!("more than {MAX_PARAMETERS} parameters of {module}");
        return Err(unsupported(path, "target_parameters", reason));
    }
    let mut candidates = Vec::new();
    for parameter in parameters {
        let (rank, alpha) = rank_and_alpha(config, path, &format!("{module}.{parameter}"))?;
        candidates.push(Candidate { parameter: parameter.to_string(), rank, alpha });
    }
    if levels.len() > candidates.len() {
        let reason = format!(
            "names {} parameters of {module}, but the file has {} adapters of it",
            candidates.len(),
            levels.len()
        );
        return Err(malformed(path, "target_parameters", reason));
    }
    for level in levels {
        check_rows(file, &level.a, level.rank, &candidates)?;
    }
    Ok(candidates)
}

/// The rank and α of a module or parameter.
pub(super) fn rank_and_alpha(config: &Config, path: &Path, of: &str) -> Result<(usize, f32)> {
    let (rank, _) =
        config.ranks.of(of).map_err(|key| undecided(path, &format!("rank_pattern {key:?}"), of))?;
    let (alpha, _) = config
        .alphas
        .of(of)
        .map_err(|key| undecided(path, &format!("alpha_pattern {key:?}"), of))?;
    Ok((rank, alpha))
}
