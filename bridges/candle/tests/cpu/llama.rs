//! A small Llama with GQA against the same model of candle's own operations.

use crate::common::{assert_close, assert_same_gradients, difference};
use crate::compare::distance;
use crate::plain::Plain;
use crate::small::{self, batch, config};
use candle_core::{CpuStorage, DType, Device, IndexOp, Result, Storage, Tensor, Var};
use candle_nn::{AdamW, Optimizer, VarBuilder};
use lora_kernels_candle::llama::{Config, Llama, Lora, random_weights};
use lora_kernels_candle::lora_kernels::AdapterConfig;
use lora_kernels_candle::{check_gradients, load_peft};
use std::collections::HashMap;

fn vb(weights: &HashMap<String, Tensor>, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights.clone(), dtype, device)
}

fn model(config: &Config, targets: &[&str], dtype: DType) -> Result<Llama> {
    small::model(config, targets, dtype, &Device::Cpu)
}

fn named(vars: &[(String, Var)]) -> Vec<(&str, &Var)> {
    vars.iter().map(|(name, var)| (name.as_str(), var)).collect()
}

fn compare(extra: &str, targets: &[&str]) -> Result<()> {
    let config = config(extra);
    let (model, weights) = (model(&config, targets, DType::F32)?, random_weights(&config)?);
    let dropouts = HashMap::new();
    let plain = Plain { config: &config, weights: &weights, model: &model, dropouts };
    let (ids, labels) = batch(2, 11)?;
    assert_close("logits", &model.forward(&ids)?, &plain.logits(&ids)?, 1e-5);
    let (got, expected) = (model.loss(&ids, &labels)?, plain.loss(&ids, &labels)?);
    assert_close("loss", &got, &expected, 1e-6);
    let vars = model.vars();
    assert_eq!(vars.len(), 2 * 2 * if targets == ["all-linear"] { 7 } else { targets.len() });
    assert_same_gradients(&got.backward()?, &expected.backward()?, &named(&vars));
    Ok(())
}

#[test]
fn gradients_are_those_of_candle() -> Result<()> {
    compare("", &["all-linear"])?;
    compare(r#", "tie_word_embeddings": true"#, &["all-linear"])?;
    compare(r#", "attention_bias": true, "mlp_bias": true"#, &["all-linear"])?;
    for targets in [&["q_proj", "v_proj"][..], &["o_proj"], &["k_proj", "down_proj", "up_proj"]] {
        compare("", targets)?;
    }
    Ok(())
}

/// The results that candle's graph keeps are those that the README names: the memory of all others
/// has been freed.
#[test]
fn the_graph_keeps_what_the_backward_pass_reads() -> Result<()> {
    let (config, (ids, labels)) = (config(""), batch(2, 11)?);
    let loss = model(&config, &["all-linear"], DType::F32)?.loss(&ids, &labels)?;
    let kept =
        loss.sorted_nodes().into_iter().filter(|node| !node.is_variable()).map(|node| match &*node
            .storage_and_layout()
            .0
        {
            Storage::Cpu(CpuStorage::F32(values)) => values.len(),
            _ => 0,
        });
    let (n, wide) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (6 * config.head_dim(), 2 * config.head_dim());
    // Both sums, q, k, v and the heads' outputs, gate and up; and the last norm.
    let layer = 2 * n + q + 2 * kv + q + 2 * wide;
    let activations = ids.elem_count() * (2 * layer + n);
    // The tokens of two groups a layer, and the loss.
    assert_eq!(kept.sum::<usize>(), activations + 2 * (4 + 3) + 1);
    Ok(())
}

/// candle's graph would keep dW0 of every frozen weight.
#[test]
fn only_variables_have_gradients_after_the_backward_pass() -> Result<()> {
    let model = model(&config(""), &["all-linear"], DType::F32)?;
    let (ids, labels) = batch(2, 11)?;
    let gradients = model.loss(&ids, &labels)?.backward()?;
    let elements = |id| gradients.get_id(id).map_or(0, Tensor::elem_count);
    let alive: usize = gradients.get_ids().map(|id| elements(*id)).sum();
    let trained: usize = model.vars().iter().map(|(_, var)| var.elem_count()).sum();
    assert_eq!(alive, trained);
    Ok(())
}

#[test]
fn sixteen_bits_are_as_near_to_f32_as_those_of_candle() -> Result<()> {
    let (config, (ids, labels)) = (config(""), batch(2, 11)?);
    let exact = model(&config, &["all-linear"], DType::F32)?;
    let loss = exact.loss(&ids, &labels)?;
    for (dtype, tolerance) in [(DType::BF16, 4e-2), (DType::F16, 5e-3)] {
        let half = model(&config, &["all-linear"], dtype)?;
        let vars = half.vars();
        let mut expected = loss.backward()?;
        for ((_, var), (_, exact)) in vars.iter().zip(exact.vars()) {
            let gradient = expected.remove(&exact).expect("a gradient");
            expected.insert(var, gradient);
        }
        half.refresh()?;
        let got = half.loss(&ids, &labels)?;
        assert_close("loss", &got, &loss, tolerance);
        let got = distance(&got.backward()?, &expected, &vars)?;
        let weights = random_weights(&config)?.into_iter();
        let weights = weights.map(|(name, weight)| Ok((name, weight.to_dtype(dtype)?)));
        let weights = weights.collect::<Result<_>>()?;
        let dropouts = HashMap::new();
        let plain = Plain { config: &config, weights: &weights, model: &half, dropouts };
        let plain = distance(&plain.loss(&ids, &labels)?.backward()?, &expected, &vars)?;
        assert!(got < tolerance && got < 1.1 * plain, "{dtype:?}: {got}, candle {plain}");
    }
    Ok(())
}

#[test]
fn training_lowers_the_loss() -> Result<()> {
    for (dtype, refresh) in [(DType::F32, false), (DType::BF16, true)] {
        let model = model(&config(""), &["all-linear"], dtype)?;
        let vars = model.vars();
        let mut optimiser = AdamW::new_lr(vars.iter().map(|(_, var)| var.clone()).collect(), 1e-2)?;
        let (ids, labels) = batch(2, 11)?;
        let mut losses = Vec::new();
        for _ in 0..20 {
            if refresh {
                model.refresh()?;
            }
            let loss = model.loss(&ids, &labels)?;
            let gradients = loss.backward()?;
            check_gradients(&gradients, &named(&vars))?;
            optimiser.step(&gradients)?;
            losses.push(loss.to_scalar::<f32>()?);
        }
        assert!(losses[19] < 0.3 * losses[0], "{dtype:?}: {losses:?}");
    }
    Ok(())
}

#[test]
fn adapters_are_saved_and_loaded() -> Result<()> {
    let (config, targets) = (config(""), ["q_proj", "v_proj", "layers.1.mlp.down_proj"]);
    let (mut model, dir) = (model(&config, &targets, DType::F32)?, tempfile::tempdir()?);
    *model.peft_config_mut() = model.peft_config().clone().with_base_model("a/model");
    model.save_peft(dir.path())?;
    let names: Vec<_> = model.vars().into_iter().map(|(name, _)| name).collect();
    let file = dir.path().join("adapter_model.safetensors");
    let mut saved: Vec<_> =
        candle_core::safetensors::load(file, &Device::Cpu)?.into_keys().collect();
    let mut expected = names.clone();
    saved.sort();
    expected.sort();
    assert_eq!(saved, expected);
    assert_eq!(names[1], "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");

    let (ids, _) = batch(1, 7)?;
    let logits = model.forward(&ids)?;
    let weights = random_weights(&config)?;
    let vb = || vb(&weights, DType::F32, &Device::Cpu);
    let again = Llama::with_peft(&config, vb(), load_peft(dir.path(), &Device::Cpu)?)?;
    assert_close("logits", &again.forward(&ids)?, &logits, 0.0);
    assert_eq!(again.peft_config().base_model(), Some("a/model"));
    assert_eq!(again.vars().len(), 2 * (2 + 2 + 1));

    // Into variables that exist.
    let lora = Lora::new(AdapterConfig::new(3).with_alpha(4.5), targets);
    let other = Llama::load(&config, vb(), Some(&lora))?;
    assert!(difference(&other.forward(&ids)?, &logits) > 1e-2);
    let vars = other.vars();
    other.load_peft(dir.path())?;
    assert_close("logits", &other.forward(&ids)?, &logits, 0.0);
    assert_close("B", &vars[1].1, &model.vars()[1].1, 0.0);
    Ok(())
}

#[test]
fn new_adapters_differ_and_change_nothing() -> Result<()> {
    let (config, (ids, _)) = (config(""), batch(1, 7)?);
    let weights = random_weights(&config)?;
    let load =
        |lora: Option<&Lora>| Llama::load(&config, vb(&weights, DType::F32, &Device::Cpu), lora);
    let (frozen, adapted) =
        (load(None)?, load(Some(&Lora::new(AdapterConfig::new(2), ["up_proj"])))?);
    assert_close("logits", &adapted.forward(&ids)?, &frozen.forward(&ids)?, 0.0);
    let vars = adapted.vars();
    assert!(difference(&vars[0].1, &vars[2].1) > 0.1, "the layers have one A");
    assert_eq!(frozen.vars().len(), 0);
    // Nothing of a frozen model is part of a graph.
    assert!(!frozen.hidden(&ids)?.track_op());
    Ok(())
}

#[test]
fn generation_is_greedy() -> Result<()> {
    let model = model(&config(""), &["all-linear"], DType::F32)?;
    let prompt = [3, 1, 4];
    let tokens = model.generate(&prompt, 4, &[])?;
    assert_eq!(tokens.len(), 4);
    let all = [&prompt[..], &tokens].concat();
    let logits = model.forward(&Tensor::new(all.as_slice(), &Device::Cpu)?.unsqueeze(0)?)?;
    let best = logits.argmax(2)?.i(0)?.to_vec1::<u32>()?;
    assert_eq!(best[2..6], tokens);
    // It ends before a token among `stop`.
    let end = tokens.iter().position(|token| *token == tokens[2]).unwrap();
    assert_eq!(model.generate(&prompt, 4, &[tokens[2]])?, tokens[..end]);
    Ok(())
}

/// transformers' formula, written as it is there.
#[test]
fn llama3_scales_long_waves() -> Result<()> {
    use std::f64::consts::PI;
    let scaling = r#", "head_dim": 64, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256}"#;
    let plain = config(r#", "head_dim": 64"#).frequencies()?;
    let scaled = config(scaling).frequencies()?;
    let mut kinds = [0; 3];
    for (plain, scaled) in plain.into_iter().map(f64::from).zip(scaled.into_iter().map(f64::from)) {
        let wavelength = 2.0 * PI / plain;
        let (kind, expected) = if wavelength < 256.0 / 4.0 {
            (0, plain)
        } else if wavelength > 256.0 / 1.0 {
            (1, plain / 8.0)
        } else {
            let smooth = (256.0 / wavelength - 1.0) / (4.0 - 1.0);
            (2, (1.0 - smooth) * plain / 8.0 + smooth * plain)
        };
        kinds[kind] += 1;
        assert!((scaled - expected).abs() < 1e-6 * expected, "{scaled} {expected}");
    }
    assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}");
    Ok(())
}
