//! The same layer by candle's own operations, and comparisons.

pub use crate::compare::{assert_close, difference, loss, random};
use crate::dropped;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use lora_kernels_candle::lora_kernels::AdapterConfig;
use lora_kernels_candle::{LoraAdapter, LoraLinear};

pub fn var(shape: &[usize]) -> Var {
    Var::from_tensor(&random(shape)).unwrap()
}

/// An adapter with a B that is not zero.
pub fn adapter([d, k]: [usize; 2], rank: usize) -> LoraAdapter {
    let config = AdapterConfig::new(rank).with_alpha(1.5 * rank as f32);
    let adapter = LoraAdapter::new([d, k], &config, &Device::Cpu).unwrap();
    adapter.b().set(&random(&[d, rank])).unwrap();
    adapter
}

/// A layer in `dtype`, without a bias.
pub fn layer([d, k]: [usize; 2], rank: usize, dtype: DType) -> LoraLinear {
    let w0 = random(&[d, k]).to_dtype(dtype).unwrap();
    LoraLinear::with_adapter(w0, None, "default", adapter([d, k], rank)).unwrap()
}

/// H = X W0ᵀ + s · (X Aᵀ) Bᵀ + bias, in f32 by candle's matmul.
pub fn plain(layer: &LoraLinear, x: &Tensor) -> Result<Tensor> {
    dropped::plain(layer, x, None)
}

/// Compares the gradients of these variables.
#[track_caller]
pub fn assert_same_gradients(got: &GradStore, expected: &GradStore, vars: &[(&str, &Var)]) {
    for (name, var) in vars {
        let (got, expected) = (got.get(var), expected.get(var));
        let got = got.unwrap_or_else(|| panic!("no gradient of {name}"));
        assert_eq!(got.dtype(), var.dtype(), "{name}");
        assert_close(name, got, expected.expect("a gradient"), 1e-5);
    }
}

/// A and B of a layer by name.
pub fn named(layer: &LoraLinear) -> [(&'static str, &Var); 2] {
    [("A", layer.adapter().a()), ("B", layer.adapter().b())]
}
