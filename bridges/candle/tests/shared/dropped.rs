//! Dropout with its mask applied by hand, by candle's own operations in f32.

use crate::compare::{assert_close, difference, loss};
use candle_core::backprop::GradStore;
use candle_core::{DType, Module, Result, Tensor, Var};
use lora_kernels_candle::lora_kernels::Dropout;
use lora_kernels_candle::{LoraGroup, LoraLinear};

pub const P: f32 = 0.3;
/// Rows of the mask from here on carry into the upper word of their number.
pub const OFFSET: u64 = (1 << 32) - 5;

/// x with the elements of the mask, each by 1 / (1 − p).
pub fn drop_by_hand(x: &Tensor, dropout: Option<Dropout<'static>>) -> Result<Tensor> {
    let Some(dropout) = dropout else { return Ok(x.clone()) };
    let k = x.dim(candle_core::D::Minus1)?;
    let kept = dropout.kept([x.elem_count() / k, k]).expect("a mask of the host");
    let factors = kept.iter().map(|&kept| if kept { 1.0 / (1.0 - dropout.p()) } else { 0.0 });
    x * Tensor::from_iter(factors, x.device())?.reshape(x.shape())?
}

/// H = X W0ᵀ + s · ((m ∘ X / (1 − p)) Aᵀ) Bᵀ + bias.
pub fn plain(layer: &LoraLinear, x: &Tensor, dropout: Option<Dropout<'static>>) -> Result<Tensor> {
    let (adapter, x) = (layer.adapter(), x.to_dtype(DType::F32)?);
    let times = |x: &Tensor, w: &Tensor| x.broadcast_matmul(&w.t()?);
    let s = times(&drop_by_hand(&x, dropout)?, adapter.a())?;
    let update = times(&(s * f64::from(adapter.scale()))?, adapter.b())?;
    let h = (times(&x, &layer.w0().to_dtype(DType::F32)?)? + update)?;
    match layer.bias() {
        Some(bias) => h.broadcast_add(bias),
        None => Ok(h),
    }
}

/// Compares the gradients of x, A and B.
fn compare_gradients(
    [got, expected]: [&GradStore; 2],
    x: &Var,
    layers: &[LoraLinear],
    tolerance: f32,
) {
    let adapters = layers.iter().flat_map(|layer| [layer.adapter().a(), layer.adapter().b()]);
    for (i, var) in [x].into_iter().chain(adapters).enumerate() {
        let (got, expected) = (got.get(var), expected.get(var));
        let name = format!("gradient {i} of x, A, B, A, B ..");
        assert_close(&name, got.expect(&name), expected.expect(&name), tolerance);
    }
}

/// Two passes of a layer: outputs and gradients have the masks, and the masks differ.
pub fn check_layer(layer: &mut LoraLinear, x: &Var, tolerance: f32) -> Result<()> {
    let mut outputs = Vec::new();
    layer.train(P, 5, OFFSET)?;
    for _ in 0..2 {
        let dropout = layer.dropout();
        let (h, expected) = (layer.forward(x)?, plain(layer, x, dropout)?);
        assert_close("H", &h, &expected, tolerance);
        // The layer's next pass has begun when this one's backward pass runs.
        outputs.push(layer.forward(x)?);
        let gradients = [&loss(&h)?.backward()?, &loss(&expected)?.backward()?];
        compare_gradients(gradients, x, std::slice::from_ref(layer), tolerance);
        outputs.push(h);
    }
    for (i, a) in outputs.iter().enumerate() {
        assert!(outputs[..i].iter().all(|b| difference(a, b) > 0.05), "two passes have one mask");
    }
    // The same again, and without dropout.
    layer.train(P, 5, OFFSET)?;
    assert_close("H", &layer.forward(x)?, &outputs[1], 0.0);
    layer.eval();
    assert_close("H", &layer.forward(x)?, &plain(layer, x, None)?, tolerance);
    Ok(())
}

/// A pass of a group in training.
pub fn check_group(group: &LoraGroup, x: &Var, tolerance: f32) -> Result<()> {
    let layers = group.layers();
    let expected = layers.iter().map(|layer| plain(layer, x, layer.dropout()));
    let expected = expected.collect::<Result<Vec<_>>>()?;
    let h = group.forward(x)?;
    let mut losses = [Vec::new(), Vec::new()];
    for (h, expected) in h.iter().zip(&expected) {
        assert_close("H", h, expected, tolerance);
        losses[0].push(loss(h)?);
        losses[1].push(loss(expected)?);
    }
    let [got, expected] = losses.map(|losses| Tensor::stack(&losses, 0)?.sum_all()?.backward());
    compare_gradients([&got?, &expected?], x, layers, tolerance);
    Ok(())
}
