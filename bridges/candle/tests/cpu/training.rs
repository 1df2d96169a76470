//! Training with candle's optimiser.

use crate::common::{layer, loss, random, var};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{AdamW, Optimizer};
use lora_kernels_candle::{LoraGroup, LoraLinear, check_gradients};

/// Losses of 40 steps towards outputs that a low-rank change of W0 reaches.
fn train(dtype: DType, refresh: bool) -> Result<[f32; 2]> {
    let (student, x) = (layer([12, 20], 3, dtype), random(&[32, 20]).to_dtype(dtype)?);
    let target = {
        let adapter = crate::common::adapter([12, 20], 3);
        let teacher = LoraLinear::with_adapter(student.w0().clone(), None, "default", adapter)?;
        teacher.forward(&x)?.detach().to_dtype(DType::F32)?
    };
    let mut optimiser = AdamW::new_lr(student.vars(), 0.05)?;
    let mut losses = [0.0; 2];
    for step in 0..40 {
        if refresh {
            student.refresh()?;
        }
        let h = student.forward(&x)?.to_dtype(DType::F32)?;
        let loss = (h - &target)?.sqr()?.mean_all()?;
        losses[usize::from(step > 0)] = loss.to_scalar()?;
        optimiser.backward_step(&loss)?;
    }
    Ok(losses)
}

#[test]
fn adamw_lowers_the_loss() -> Result<()> {
    for (dtype, refresh) in [(DType::F32, false), (DType::BF16, false), (DType::BF16, true)] {
        let [first, last] = train(dtype, refresh)?;
        assert!(last < 0.1 * first, "{dtype:?}: from {first} to {last}");
    }
    Ok(())
}

#[test]
fn variables_without_a_gradient_are_named() -> Result<()> {
    let (one, two) = (layer([16, 20], 3, DType::F32), layer([8, 16], 3, DType::F32));
    let vars = [
        ("one.a", one.adapter().a()),
        ("one.b", one.adapter().b()),
        ("two.a", two.adapter().a()),
        ("two.b", two.adapter().b()),
    ];
    let h = one.forward(&random(&[7, 20]))?;
    check_gradients(&loss(&two.forward(&h)?)?.backward()?, &vars)?;
    // The graph ends between the layers, as at an operation without a backward pass.
    let cut = loss(&two.forward(&h.detach())?)?.backward()?;
    let message = check_gradients(&cut, &vars).unwrap_err().to_string();
    assert!(message.contains("2 of 4 variables have no gradient: one.a, one.b"), "{message}");
    Ok(())
}

#[test]
fn groups_train() -> Result<()> {
    let group = LoraGroup::new(vec![layer([8, 20], 2, DType::F32), layer([4, 20], 2, DType::F32)])?;
    let x = var(&[16, 20]);
    let total = |h: &[Tensor]| h[0].sqr()?.mean_all()? + h[1].sqr()?.mean_all()?;
    let mut optimiser = AdamW::new_lr(group.vars(), 0.05)?;
    let first = total(&group.forward(&x)?)?.to_scalar::<f32>()?;
    for _ in 0..40 {
        optimiser.backward_step(&total(&group.forward(&x)?)?)?;
    }
    let last = total(&group.forward(&x)?)?.to_scalar::<f32>()?;
    assert!(last < 0.8 * first, "from {first} to {last}");
    Ok(())
}
