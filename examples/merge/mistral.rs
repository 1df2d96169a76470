//! Adapters of mistral-finetune in a checkpoint of transformers.
//!
//! Mistral's own checkpoints have other names, and the rows of wq and wk in another order: rotary
//! embeddings turn neighbours there, and halves of a head in transformers.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::model::Model;
use lora_kernels::{Adapter, Device, Tensor};
use std::collections::BTreeMap;

/// Gives modules that the checkpoint has not the names and the order of rows of transformers.
pub fn place(
    checkpoint: &Checkpoint,
    model: &Model,
    adapters: &mut BTreeMap<String, Adapter>,
) -> Result<()> {
    if adapters.keys().any(|module| checkpoint.has_module(module)) {
        return Ok(());
    }
    for (module, adapter) in std::mem::take(adapters) {
        let Some((path, heads)) = in_transformers(&module) else {
            adapters.insert(module, adapter);
            continue;
        };
        let adapter = match heads {
            None => adapter,
            Some(key) => {
                let Some(heads) = model.number(key) else {
                    return Err(format!(
                        "{module} is for Mistral's own checkpoint, of which transformers has the \
                         rows in another order: that takes {key} from config.json beside the \
                         checkpoint"
                    )
                    .into());
                };
                reordered(&module, &adapter, heads)?
            }
        };
        adapters.insert(path, adapter);
    }
    Ok(())
}

/// The path in transformers, and the number of heads that the order of rows depends on.
fn in_transformers(module: &str) -> Option<(String, Option<&'static str>)> {
    let (layer, rest) = module.strip_prefix("layers.")?.split_once('.')?;
    let (path, heads) = match rest {
        "attention.wq" => ("self_attn.q_proj".into(), Some("num_attention_heads")),
        "attention.wk" => ("self_attn.k_proj".into(), Some("num_key_value_heads")),
        "attention.wv" => ("self_attn.v_proj".into(), None),
        "attention.wo" => ("self_attn.o_proj".into(), None),
        "feed_forward.w1" => ("mlp.gate_proj".into(), None),
        "feed_forward.w2" => ("mlp.down_proj".into(), None),
        "feed_forward.w3" => ("mlp.up_proj".into(), None),
        "feed_forward.gate" => ("block_sparse_moe.gate".into(), None),
        _ => (format!("block_sparse_moe.{}", rest.strip_prefix("feed_forward.")?), None),
    };
    Some((format!("model.layers.{layer}.{path}"), heads))
}

/// The same with the rows of B, two neighbours after the other, in two halves of each head.
fn reordered(module: &str, adapter: &Adapter, heads: usize) -> Result<Adapter> {
    let (b, d, r) = (adapter.b().to_f32_vec()?, adapter.b().shape().rows(), adapter.rank());
    if heads == 0 || d % (2 * heads) != 0 {
        return Err(format!("{module} has {d} rows, which {heads} heads do not share").into());
    }
    let half = d / heads / 2;
    let rows = (0..d).map(|row| {
        let (head, at) = (row / (2 * half), row % (2 * half));
        2 * (head * half + at % half) + at / half
    });
    let b: Vec<f32> = rows.flat_map(|row| b[row * r..(row + 1) * r].iter().copied()).collect();
    let cpu = Device::cpu();
    let b = Tensor::from_f32(&cpu, &b, [d, r], adapter.b().dtype())?;
    let (a, k) = (adapter.a().to_f32_vec()?, adapter.a().shape().cols());
    let a = Tensor::from_f32(&cpu, &a, [r, k], adapter.a().dtype())?;
    Ok(Adapter::from_tensors(a, b, adapter.alpha(), adapter.scaling())?)
}
