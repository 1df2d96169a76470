//! Groups that share x: their gradients equal the gradients of separate layers.

use crate::common::{assert_close, assert_same_gradients, layer, loss, named, plain, random, var};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use lora_kernels_candle::LoraGroup;

/// q, k and v with different sizes and ranks.
fn qkv(dtype: DType) -> Result<LoraGroup> {
    let [q, k, v] =
        [([16, 20], 3), ([8, 20], 4), ([12, 20], 2)].map(|(sizes, r)| layer(sizes, r, dtype));
    LoraGroup::new(vec![q, k, v])
}

/// The variables of a group and x.
fn vars<'a>(group: &'a LoraGroup, x: &'a Var) -> Vec<(&'static str, &'a Var)> {
    let mut vars = vec![("x", x)];
    vars.extend(group.layers().iter().flat_map(named));
    vars
}

#[test]
fn a_group_is_its_layers() -> Result<()> {
    let (group, x_var) = (qkv(DType::F32)?, var(&[2, 5, 20]));
    let x = (x_var.as_tensor() * 1.5)?;
    let got = group.forward(&x)?;
    let expected =
        group.layers().iter().map(|layer| plain(layer, &x)).collect::<Result<Vec<_>>>()?;
    for (got, expected) in got.iter().zip(&expected) {
        assert_close("H", got, expected, 1e-5);
    }
    // x has another consumer, and one dH is a transpose.
    let total = |h: &[Tensor]| {
        let k = h[1].transpose(1, 2)?.contiguous()?;
        loss(&h[0])? + loss(&k)? + loss(&(&h[2] * 3.0)?)? + loss(&x)?
    };
    let (got, expected) = (total(&got)?.backward()?, total(&expected)?.backward()?);
    assert_same_gradients(&got, &expected, &vars(&group, &x_var));
    Ok(())
}

/// Gradients of a loss that uses some of the outputs, which are all alive.
fn only(group: &LoraGroup, x_var: &Var, x: &Tensor, used: &[usize]) -> Result<()> {
    let h = group.forward(x)?;
    let total = |h: &[Tensor]| {
        let losses = used.iter().map(|&i| loss(&h[i])).collect::<Result<Vec<_>>>()?;
        Tensor::stack(&losses, 0)?.sum_all()
    };
    let expected =
        group.layers().iter().map(|layer| plain(layer, x)).collect::<Result<Vec<_>>>()?;
    let (got, expected) = (total(&h)?.backward()?, total(&expected)?.backward()?);
    let mut vars = if x.track_op() { vec![("x", x_var)] } else { Vec::new() };
    vars.extend(used.iter().flat_map(|&i| named(&group.layers()[i])));
    assert_same_gradients(&got, &expected, &vars);
    // The others have a gradient of zero: so has the loss.
    for (i, layer) in group.layers().iter().enumerate() {
        for (name, var) in named(layer) {
            let largest = got.get(var).unwrap().abs()?.max_all()?.to_scalar::<f32>()?;
            assert_eq!(largest == 0.0, !used.contains(&i), "{name} of layer {i}");
        }
    }
    Ok(())
}

#[test]
fn an_unused_output_counts_as_zero() -> Result<()> {
    let (group, x) = (qkv(DType::F32)?, var(&[7, 20]));
    for used in [&[0][..], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2]] {
        only(&group, &x, &x, used)?;
        only(&group, &x, &(x.as_tensor() * 2.0)?, used)?;
        only(&group, &x, &x.as_detached_tensor(), used)?;
    }
    Ok(())
}

#[test]
fn backward_passes_of_one_graph_are_independent() -> Result<()> {
    let (group, x) = (qkv(DType::F32)?, var(&[7, 20]));
    let h = group.forward(&x)?;
    for i in [2, 0, 1, 2] {
        let expected = loss(&plain(&group.layers()[i], &x)?)?.backward()?;
        let [a, b] = named(&group.layers()[i]);
        assert_same_gradients(&loss(&h[i])?.backward()?, &expected, &[("x", &x), a, b]);
    }
    Ok(())
}

/// An operation without a backward pass.
struct Forwards;

impl CustomOp1 for Forwards {
    fn name(&self) -> &'static str {
        "forwards"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }
}

#[test]
fn a_backward_pass_after_one_that_failed_is_refused() -> Result<()> {
    let (group, x) = (qkv(DType::F32)?, var(&[7, 20]));
    let h = group.forward(&x)?;
    // candle visits the right operand first: dH of q has arrived when that of k fails.
    let total = (loss(&h[1].apply_op1(Forwards)?)? + loss(&h[0])?)?;
    assert!(total.backward().unwrap_err().to_string().contains("forwards"));
    let message = loss(&h[0])?.backward().unwrap_err().to_string();
    assert!(message.contains("repeat the forward pass"), "{message}");
    let again = group.forward(&x)?;
    loss(&again[0])?.backward().map(drop)
}

#[test]
fn sixteen_bits_are_those_of_the_layers() -> Result<()> {
    let group = qkv(DType::BF16)?;
    let x = Var::from_tensor(&random(&[7, 20]).to_dtype(DType::BF16)?)?;
    let one_by_one: Vec<_> =
        group.layers().iter().map(|layer| layer.forward(&x)).collect::<Result<_>>()?;
    let h = group.forward(&x)?;
    for (h, alone) in h.iter().zip(&one_by_one) {
        assert_eq!(h.dtype(), DType::BF16);
        assert_close("H", h, alone, 0.0);
    }
    let total = |h: &[Tensor]| loss(&h[0])? + loss(&h[1])? + loss(&h[2])?;
    let (got, expected) = (total(&h)?.backward()?, total(&one_by_one)?.backward()?);
    for (name, var) in vars(&group, &x) {
        // dX of a group is rounded once, that of layers once each.
        let tolerance = if name == "x" { 1e-2 } else { 1e-6 };
        assert_close(name, got.get(var).unwrap(), expected.get(var).unwrap(), tolerance);
    }
    Ok(())
}

#[test]
fn a_merged_layer_does_not_change_the_others() -> Result<()> {
    let (mut group, x) = (qkv(DType::F32)?, random(&[7, 20]));
    let before = group.forward(&x)?;
    group.layers_mut()[1].merge()?;
    for (before, after) in before.iter().zip(group.forward(&x)?) {
        assert_close("H", &after, before, 1e-5);
    }
    Ok(())
}

#[test]
fn groups_of_what_does_not_fit_are_refused() {
    let layers = |count| (0..count).map(|_| layer([8, 20], 2, DType::F32)).collect::<Vec<_>>();
    let message = |layers| LoraGroup::new(layers).unwrap_err().to_string();
    assert!(message(layers(0)).contains("at least one"));
    assert!(message(layers(5)).contains("at most 4"));
    let mut other_k = layers(1);
    other_k.push(layer([8, 16], 2, DType::F32));
    assert!(message(other_k).contains("one k"));
    let mut other_type = layers(1);
    other_type.push(layer([8, 20], 2, DType::BF16));
    assert!(message(other_type).contains("one type"));
    let group = LoraGroup::new(layers(2)).unwrap();
    let x = Tensor::zeros((3, 19), DType::F32, &Device::Cpu).unwrap();
    assert!(group.forward(&x).unwrap_err().to_string().contains("[..., 20]"));
}
