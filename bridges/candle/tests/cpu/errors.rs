//! What does not fit is refused.

use crate::common::{adapter, layer, random, var};
use candle_core::{DType, Device, Error, Module, Tensor, Var};
use lora_kernels_candle::lora_kernels::{AdapterConfig, Scaling};
use lora_kernels_candle::{FrozenLinear, LoraAdapter, LoraLinear};

#[track_caller]
fn refused<T>(result: Result<T, Error>, part: &str) {
    let Err(error) = result else { panic!("accepted: expected an error with {part}") };
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn inputs() {
    let layer = layer([12, 20], 3, DType::F32);
    refused(layer.forward(&random(&[7, 19])), "[..., 20]");
    refused(layer.forward(&Tensor::zeros((), DType::F32, &Device::Cpu).unwrap()), "[..., 20]");
    refused(layer.forward(&random(&[7, 20]).to_dtype(DType::BF16).unwrap()), "one type");
}

#[test]
fn weights_and_biases() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    refused(FrozenLinear::new(zeros(&[12, 20, 1], DType::F32), None), "rank");
    refused(FrozenLinear::new(zeros(&[12, 20], DType::F64), None), "F64");
    refused(FrozenLinear::new(zeros(&[12, 0], DType::F32), None), "at least one column");
    for bias in [zeros(&[11], DType::F32), zeros(&[12], DType::BF16)] {
        refused(FrozenLinear::new(zeros(&[12, 20], DType::F32), Some(bias)), "[12]");
    }
}

#[test]
fn adapters() {
    let rank = AdapterConfig::new(0);
    refused(LoraLinear::new(random(&[12, 20]), None, &rank), "rank");
    let from = |a, b| LoraAdapter::from_vars(a, b, 1.0, Scaling::Standard);
    refused(from(var(&[3, 20]), var(&[12, 4])), "[r, k]");
    let half = Var::zeros((3, 20), DType::BF16, &Device::Cpu).unwrap();
    refused(from(half, var(&[12, 3])), "f32");
    let infinite =
        LoraAdapter::from_vars(var(&[3, 20]), var(&[12, 3]), f32::INFINITY, Scaling::Standard);
    refused(infinite, "not finite");

    let mut layer = layer([12, 20], 3, DType::F32);
    refused(layer.add_adapter("other", adapter([11, 20], 3)), "[12, 20]");
    refused(layer.add_adapter("default", adapter([12, 20], 3)), "has an adapter default");
    refused(layer.set_adapter("other"), "no adapter other");
}
