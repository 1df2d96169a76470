//! The tensors of a directory that is saved: their names, and the file.

use super::config::Config;
use super::extras::Update;
use super::file::{PREFIX, malformed, unwritable};
use super::names::{check_module, key};
use super::tensors::FINGERPRINT;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::layers::Adapter;
use crate::tensor::Tensor;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// All tensors of the adapters and of the extras, with their names, in the format's order: wide
/// element types first, then by name.
pub(super) fn all_tensors<'a>(
    path: &Path,
    config: &'a Config,
    adapters: &BTreeMap<&str, &'a Adapter>,
) -> Result<Vec<(String, &'a Tensor)>> {
    let extras = &config.extras;
    let mut tensors: Vec<(String, &Tensor)> = Vec::new();
    for (module, adapter) in adapters {
        tensors.push((key(module, 'A'), adapter.a()));
        tensors.push((key(module, 'B'), adapter.b()));
    }
    for (module, update) in &extras.updates {
        check_update(path, module, update)?;
        if adapters.contains_key(module.as_str()) {
            return Err(malformed(path, module, "is there twice"));
        }
        let names = match update.embedding {
            true => ['A', 'B'].map(|half| format!("{PREFIX}{module}.lora_embedding_{half}")),
            false => ['A', 'B'].map(|half| key(module, half)),
        };
        tensors.extend(names.into_iter().zip([&*update.a, &*update.b]));
        if let Some(bias) = &update.bias {
            tensors.push((format!("{PREFIX}{module}.lora_B.bias"), bias));
        }
        if let Some(magnitude) = &update.magnitude {
            tensors.push((format!("{PREFIX}{module}.lora_magnitude_vector"), magnitude));
        }
    }
    for (module, parameters) in &extras.parameters {
        let count = parameters.tensors().count();
        for (level, (a, b)) in parameters.tensors().enumerate() {
            let module = format!("{module}{}", ".base_layer".repeat(count - 1 - level));
            tensors.extend([(key(&module, 'A'), a), (key(&module, 'B'), b)]);
        }
    }
    for (name, tensor) in &extras.whole {
        let checked = check_module(name);
        checked.map_err(|reason| malformed(path, &format!("{name:?}"), reason))?;
        tensors.push((whole_name(config, adapters, name), tensor));
    }
    for (module, tokens) in &extras.tokens {
        let name = format!("{PREFIX}{module}.token_adapter.trainable_tokens_delta");
        tensors.push((name, &tokens.rows));
    }
    tensors.sort_by(|(one, a), (other, b)| {
        (Reverse(a.dtype().bytes()), one).cmp(&(Reverse(b.dtype().bytes()), other))
    });
    Ok(tensors)
}

/// The name of a parameter saved whole: beneath an adapter if its module has one.
fn whole_name(config: &Config, adapters: &BTreeMap<&str, &Adapter>, name: &str) -> String {
    match name.rsplit_once('.') {
        Some((module, parameter))
            if adapters.contains_key(module) || config.extras.updates.contains_key(module) =>
        {
            format!("{PREFIX}{module}.base_layer.{parameter}")
        }
        _ => format!("{PREFIX}{name}"),
    }
}

fn check_update(path: &Path, module: &str, update: &Update) -> Result<()> {
    check_module(module).map_err(|reason| malformed(path, &format!("{module:?}"), reason))?;
    let (a, b) = (update.a.shape(), update.b.shape());
    let vectors = [&update.bias, &update.magnitude];
    let fit = a.dims().len() >= 2
        && a.dims().len() == b.dims().len()
        && a.dims()[0] == b.dims()[1]
        && b.dims()[2..].iter().all(|&dim| dim == 1)
        && (a.dims().len() == 2 || !update.embedding)
        && vectors.into_iter().flatten().all(|vector| vector.shape().elements() == b.dims()[0]);
    match fit && update.scale().is_finite() {
        true => Ok(()),
        false => {
            let reason = format!(
                "has A {:?} and B {:?}, which do not fit each other, its bias or its magnitudes, \
                 or a scale that is not finite",
                a.dims(),
                b.dims()
            );
            Err(malformed(path, module, reason))
        }
    }
}

/// Writes the tensors, in this order, into a new file; errors call it by the name that it will have.
pub(super) fn write_weights(
    new: &Path,
    path: &Path,
    tensors: &[(String, &Tensor)],
    fingerprint: u64,
) -> Result<()> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.bytes();
        let (dtype, shape) = (name_of(tensor.dtype()), tensor.shape().dims().to_vec());
        (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let header = Metadata::new(None, infos.collect())
        .map_err(|error| error.to_string())
        .and_then(|header| serde_json::to_string(&header).map_err(|error| error.to_string()))
        .map_err(|reason| malformed(path, "the header", reason))?;
    // The crate's own metadata is a hash map, of which the order is another each time.
    let metadata = json!({ "format": "pt", FINGERPRINT: format!("{fingerprint:016x}") });
    let mut header =
        header.replacen('{', &format!(r#"{{"__metadata__":{metadata},"#), 1).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let failed = |error: io::Error| unwritable(path, error);
    let mut file = BufWriter::new(File::create_new(new).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    for (_, tensor) in tensors {
        match tensor.dtype() {
            DType::Bf16 => write_elements::<bf16>(&mut file, path, tensor)?,
            DType::F16 => write_elements::<f16>(&mut file, path, tensor)?,
            DType::F32 => write_elements::<f32>(&mut file, path, tensor)?,
        }
    }
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)
}

fn name_of(dtype: DType) -> Dtype {
    match dtype {
        DType::Bf16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
    }
}

/// Writes a tensor's elements as the file has them, the low byte first.
fn write_elements<E: Element>(file: &mut impl Write, path: &Path, tensor: &Tensor) -> Result<()> {
    let mut values = tensor.to_vec::<E>()?;
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(size_of::<E>()).for_each(<[u8]>::reverse);
    }
    file.write_all(bytes).map_err(|error| unwritable(path, error))
}
