//! Outputs and gradients of single layers.

use crate::common::{assert_close, assert_same_gradients, layer, loss, named, plain, random, var};
use candle_core::{DType, Module, Result, Tensor, Var};
use lora_kernels_candle::{FrozenLinear, LoraLinear};

/// Compares layer and formula on x, which is computed from `x_var`.
fn compare(layer: &LoraLinear, x_var: &Var, x: impl Fn(&Tensor) -> Result<Tensor>) -> Result<()> {
    let x = x(x_var)?;
    let (got, expected) = (layer.forward(&x)?, plain(layer, &x)?);
    assert_close("H", &got, &expected, 1e-5);
    // dH is a transpose: not contiguous.
    let transposed = |h: &Tensor| loss(&(h.t()?.contiguous()? * 1.5)?);
    for loss in [loss as fn(&Tensor) -> Result<Tensor>, transposed] {
        let (got, expected) = (loss(&got)?.backward()?, loss(&expected)?.backward()?);
        let [a, b] = named(layer);
        assert_same_gradients(&got, &expected, &[("x", x_var), a, b]);
    }
    Ok(())
}

#[test]
fn a_layer_is_the_formula() -> Result<()> {
    compare(&layer([12, 20], 3, DType::F32), &var(&[7, 20]), |x| Ok(x.clone()))
}

#[test]
fn x_may_have_three_dimensions() -> Result<()> {
    let layer = layer([12, 20], 3, DType::F32);
    compare(&layer, &var(&[2, 5, 20]), |x| x * 2.0)?;
    assert_eq!(layer.forward(&random(&[2, 5, 20]))?.dims(), [2, 5, 12]);
    Ok(())
}

#[test]
fn x_need_not_be_contiguous() -> Result<()> {
    let layer = layer([12, 20], 3, DType::F32);
    compare(&layer, &var(&[20, 7]), Tensor::t)?;
    // Contiguous, but not from the start of its storage.
    compare(&layer, &var(&[9, 20]), |x| x.narrow(0, 2, 4))
}

#[test]
fn the_bias_is_added_and_frozen() -> Result<()> {
    let bias = var(&[12]);
    let adapter = crate::common::adapter([12, 20], 3);
    let w0 = random(&[12, 20]);
    let layer = LoraLinear::with_adapter(w0, Some(bias.as_tensor().clone()), "default", adapter)?;
    compare(&layer, &var(&[7, 20]), |x| Ok(x.clone()))?;
    let gradients = loss(&layer.forward(&random(&[7, 20]))?)?.backward()?;
    assert!(gradients.get(&bias).is_none());
    Ok(())
}

#[test]
fn stacked_layers_are_the_formula() -> Result<()> {
    let (one, two) = (layer([16, 20], 3, DType::F32), layer([8, 16], 5, DType::F32));
    let x = var(&[7, 20]);
    let got = loss(&two.forward(&one.forward(&x)?.tanh()?)?)?.backward()?;
    let expected = loss(&plain(&two, &plain(&one, &x)?.tanh()?)?)?.backward()?;
    let ([a1, b1], [a2, b2]) = (named(&one), named(&two));
    assert_same_gradients(&got, &expected, &[("x", &x), a1, b1, a2, b2]);
    Ok(())
}

#[test]
fn frozen_tensors_get_no_gradient() -> Result<()> {
    // W0 as a variable: even then it is frozen.
    let w0 = var(&[12, 20]);
    let adapter = crate::common::adapter([12, 20], 3);
    let layer = LoraLinear::with_adapter(w0.as_tensor().clone(), None, "default", adapter)?;
    let x = random(&[7, 20]);
    let gradients = loss(&layer.forward(&x)?)?.backward()?;
    assert!(gradients.get(&w0).is_none() && gradients.get(layer.w0()).is_none());
    assert!(gradients.get(&x).is_none());
    // A and B, and nothing else.
    assert_eq!(gradients.get_ids().count(), 2);
    let expected = loss(&plain(&layer, &x)?)?.backward()?;
    assert_same_gradients(&gradients, &expected, &named(&layer));
    Ok(())
}

#[test]
fn sixteen_bits_keep_f32_variables() -> Result<()> {
    for (dtype, tolerance) in [(DType::BF16, 2e-2), (DType::F16, 3e-3)] {
        let (layer, x) = (layer([12, 20], 3, dtype), random(&[7, 20]).to_dtype(dtype)?);
        let x = Var::from_tensor(&x)?;
        let h = layer.forward(&x)?;
        assert_eq!(h.dtype(), dtype);
        assert_close("H", &h, &plain(&layer, &x)?, tolerance);
        let (got, expected) = (loss(&h)?.backward()?, loss(&plain(&layer, &x)?)?.backward()?);
        let [a, b] = named(&layer);
        for (name, var, dtype) in [("x", &x, dtype), (a.0, a.1, DType::F32), (b.0, b.1, DType::F32)]
        {
            let (got, expected) = (got.get(var).unwrap(), expected.get(var).unwrap());
            assert_eq!(got.dtype(), dtype, "{name}");
            assert_close(name, got, expected, tolerance);
        }
    }
    Ok(())
}

#[test]
fn a_batch_may_be_empty() -> Result<()> {
    let (layer, x) = (layer([12, 20], 3, DType::F32), var(&[0, 20]));
    let h = layer.forward(&x)?;
    assert_eq!(h.dims(), [0, 12]);
    let gradients = h.sum_all()?.backward()?;
    for (name, var) in named(&layer) {
        let largest = gradients.get(var).unwrap().abs()?.max_all()?.to_scalar::<f32>()?;
        assert_eq!(largest, 0.0, "{name}");
    }
    assert_eq!(FrozenLinear::new(layer.w0().clone(), None)?.forward(&x)?.dims(), [0, 12]);
    Ok(())
}

#[test]
fn a_frozen_layer_has_dx_alone() -> Result<()> {
    let (w0, bias, x) = (var(&[12, 20]), random(&[12]), var(&[2, 5, 20]));
    let layer = FrozenLinear::new(w0.as_tensor().clone(), Some(bias.clone()))?;
    let h = layer.forward(&x)?;
    let expected = x.broadcast_matmul(&w0.as_detached_tensor().t()?)?.broadcast_add(&bias)?;
    assert_close("H", &h, &expected, 1e-5);
    let (got, expected) = (loss(&h)?.backward()?, loss(&expected)?.backward()?);
    assert_same_gradients(&got, &expected, &[("x", &x)]);
    assert_eq!(got.get_ids().count(), 1);
    // Without a graph there is nothing to compute backwards.
    assert!(!layer.forward(&x.as_detached_tensor())?.track_op());
    Ok(())
}
