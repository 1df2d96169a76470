//! Dropout against candle's own operations, with the mask applied by hand.

use crate::common::{assert_close, assert_same_gradients, layer, loss, named, random};
use crate::dropped::{self, OFFSET, P, check_group, check_layer};
use crate::plain::Plain;
use crate::small::{batch, config, model};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use lora_kernels_candle::llama::{Llama, random_weights};
use lora_kernels_candle::lora_kernels::Dropout;
use lora_kernels_candle::{LoraGroup, LoraLinear};
use std::collections::HashMap;

const TYPES: [(DType, f32); 3] = [(DType::F32, 1e-5), (DType::BF16, 2e-2), (DType::F16, 3e-3)];

fn x_of(dtype: DType) -> Result<Var> {
    Var::from_tensor(&random(&[2, 9, 70]).to_dtype(dtype)?)
}

fn group(dtype: DType) -> Result<LoraGroup> {
    let sizes = [([16, 70], 3), ([8, 70], 4), ([12, 70], 2)];
    LoraGroup::new(sizes.map(|(sizes, r)| layer(sizes, r, dtype)).into())
}

fn place(dropout: Option<Dropout<'static>>) -> Option<(u64, u64)> {
    dropout?.seed_and_offset()
}

#[test]
fn layers_drop_what_the_mask_says() -> Result<()> {
    for (dtype, tolerance) in TYPES {
        check_layer(&mut layer([24, 70], 5, dtype), &x_of(dtype)?, tolerance)?;
    }
    Ok(())
}

#[test]
fn layers_of_a_group_share_a_mask_or_have_one_each() -> Result<()> {
    let places = |group: &LoraGroup| -> Vec<_> {
        group.layers().iter().map(|layer| place(layer.dropout()).unwrap()).collect()
    };
    for (dtype, tolerance) in TYPES {
        let (mut group, x) = (group(dtype)?, x_of(dtype)?);
        group.train(P, 5, OFFSET)?;
        check_group(&group, &x, tolerance)?;
        check_group(&group, &x, tolerance)?;
        assert_eq!(places(&group), [(5, OFFSET + 36); 3]);

        group.train_each(P, 5, OFFSET)?;
        let each = [0, 1 << 48, 2 << 48];
        assert_eq!(places(&group), each.map(|rows| (5, OFFSET + rows)));
        check_group(&group, &x, tolerance)?;
        check_group(&group, &x, tolerance)?;
        assert_eq!(places(&group), each.map(|rows| (5, OFFSET + rows + 36)));

        // One layer with a mask of its own, and one with none.
        group.train(P, 5, 0)?;
        group.layers_mut()[1].train(0.1, 7, 0)?;
        group.layers_mut()[2].eval();
        check_group(&group, &x, tolerance)?;
        group.eval();
        check_group(&group, &x, tolerance)?;
    }
    Ok(())
}

#[test]
fn masks_of_a_group_differ() -> Result<()> {
    let mut group = group(DType::F32)?;
    let masks = |group: &LoraGroup| -> Vec<_> {
        let layers = group.layers().iter();
        layers.map(|layer| layer.dropout().unwrap().kept([18, 70]).unwrap()).collect()
    };
    group.train(P, 5, OFFSET)?;
    let shared = masks(&group);
    assert!(shared[1] == shared[0] && shared[2] == shared[0]);
    group.train_each(P, 5, OFFSET)?;
    let each = masks(&group);
    assert!(each[0] == shared[0]);
    for [a, b] in [[0, 1], [0, 2], [1, 2]] {
        // Independent masks agree with probability p² + (1 − p)² = 0.58; 0.07 is five standard
        // errors of 1260 elements.
        let agree = each[a].iter().zip(&each[b]).filter(|(a, b)| a == b).count();
        assert!((agree as f32 / 1260.0 - 0.58).abs() < 0.07, "{agree}");
    }
    Ok(())
}

#[test]
fn nothing_is_dropped_with_p_zero_or_merged() -> Result<()> {
    let (mut layer, x) = (layer([24, 70], 5, DType::F32), x_of(DType::F32)?);
    let whole = layer.forward(&x)?;
    layer.train(0.0, 5, 0)?;
    assert!(layer.dropout().is_none());
    assert_close("H", &layer.forward(&x)?, &whole, 0.0);
    layer.train(P, 5, 0)?;
    layer.merge()?;
    assert_close("H", &layer.forward(&x)?, &whole, 1e-5);
    Ok(())
}

#[test]
fn what_is_no_probability_is_refused() -> Result<()> {
    let mut layer: LoraLinear = layer([24, 70], 5, DType::F32);
    layer.train(P, 5, 0)?;
    for p in [1.0, -0.1, f32::NAN] {
        let message = layer.train(p, 5, 0).unwrap_err().to_string();
        assert!(message.contains("0 <= p < 1"), "{message}");
    }
    // A call that was refused changes nothing; a forward pass that was refused drops no row.
    assert!(layer.forward(&random(&[3, 69])).is_err());
    assert_eq!(place(layer.dropout()), Some((5, 0)));
    Ok(())
}

/// Loss and gradients of a step.
fn step(model: &Llama, [ids, labels]: [&Tensor; 2]) -> Result<(f32, GradStore)> {
    let loss = model.loss(ids, labels)?;
    Ok((loss.to_scalar()?, loss.backward()?))
}

#[test]
fn steps_of_a_llama_follow_from_seed_and_offset() -> Result<()> {
    let mut model = model(&config(""), &["all-linear"], DType::F32, &Device::Cpu)?;
    let (ids, labels) = batch(2, 11)?;
    let data = [&ids, &labels];
    let (whole, _) = step(&model, data)?;
    for each in [false, true] {
        let train = if each { Llama::train_each } else { Llama::train };
        train(&mut model, P, 5, 0)?;
        let (first, gradients) = step(&model, data)?;
        let (second, _) = step(&model, data)?;
        assert!(first != whole && second != whole && first != second);
        assert_eq!(place(model.dropout()), Some((5, 2 * 22)));
        train(&mut model, P, 5, 22)?;
        assert_eq!(step(&model, data)?.0, second);
        train(&mut model, P, 6, 0)?;
        assert_ne!(step(&model, data)?.0, first);
        train(&mut model, P, 5, 0)?;
        let (again, same) = step(&model, data)?;
        assert_eq!(again, first);
        for (name, var) in model.vars() {
            assert_close(&name, same.get(&var).unwrap(), gradients.get(&var).unwrap(), 0.0);
        }
        model.eval();
        assert!(model.dropout().is_none());
        assert_eq!(step(&model, data)?.0, whole);
    }
    Ok(())
}

/// The backward pass computes the inputs of most layers again, with the mask of the forward pass.
#[test]
fn a_llama_drops_what_the_masks_say() -> Result<()> {
    let (config, (ids, labels)) = (config(""), batch(2, 11)?);
    let weights = random_weights(&config)?;
    let mut model = model(&config, &["all-linear"], DType::F32, &Device::Cpu)?;
    let vars = model.vars();
    let vars: Vec<_> = vars.iter().map(|(name, var)| (name.as_str(), var)).collect();
    let groups: [&[&str]; 4] = [
        &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        &["self_attn.o_proj"],
        &["mlp.gate_proj", "mlp.up_proj"],
        &["mlp.down_proj"],
    ];
    for each in [false, true] {
        match each {
            true => model.train_each(P, 5, OFFSET)?,
            false => model.train(P, 5, OFFSET)?,
        }
        let mut dropouts = HashMap::new();
        for (n, group) in (0..2).flat_map(|layer| groups.map(|group| (layer, group))).enumerate() {
            let (layer, names) = group;
            for (i, name) in names.iter().enumerate() {
                let rows = (n as u64) << 50 | if each { (i as u64) << 48 } else { 0 };
                let dropout = Dropout::new(P, 5, OFFSET + rows).unwrap();
                dropouts.insert(format!("model.layers.{layer}.{name}"), dropout);
            }
        }
        let plain = Plain { config: &config, weights: &weights, model: &model, dropouts };
        let (got, expected) = (model.loss(&ids, &labels)?, plain.loss(&ids, &labels)?);
        assert_close("loss", &got, &expected, 1e-6);
        let (got, expected) = (got.backward()?, expected.backward()?);
        assert_same_gradients(&got, &expected, &vars);
    }
    Ok(())
}

/// p of an adapter's file, and in the file that is saved.
#[test]
fn a_directory_keeps_the_p_of_its_training() -> Result<()> {
    let mut model = model(&config(""), &["q_proj"], DType::F32, &Device::Cpu)?;
    let saved = model.peft_config().clone().with_dropout(0.1).unwrap();
    *model.peft_config_mut() = saved;
    let dir = tempfile::tempdir()?;
    model.save_peft(dir.path())?;
    let loaded = lora_kernels_candle::load_peft(dir.path(), &Device::Cpu)?;
    model.train(loaded.config.dropout() as f32, 1, 0)?;
    assert_eq!(model.dropout().unwrap().p(), 0.1);
    Ok(())
}

/// A variable is not needed for x: the first layer of a model.
#[test]
fn an_x_outside_of_the_graph_is_dropped_too() -> Result<()> {
    let (mut layer, x) = (layer([24, 70], 5, DType::F32), random(&[9, 70]));
    layer.train(P, 5, 0)?;
    let expected = dropped::plain(&layer, &x, layer.dropout())?;
    let h = layer.forward(&x)?;
    assert_close("H", &h, &expected, 1e-5);
    let (got, expected) = (loss(&h)?.backward()?, loss(&expected)?.backward()?);
    assert_same_gradients(&got, &expected, &named(&layer));
    Ok(())
}
