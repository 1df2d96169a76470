//! Tests on a GPU, against the CPU device.
#![cfg(feature = "cuda")]

#[path = "../shared/compare.rs"]
mod compare;
#[path = "../shared/dropped.rs"]
mod dropped;
#[path = "../shared/small.rs"]
mod small;

use candle_core::{DType, Device, Result, Tensor, Var};
use compare::{assert_close, difference, distance, loss, random};
use dropped::{OFFSET, P, check_group, check_layer};
use lora_kernels_candle::llama::Llama;
use lora_kernels_candle::lora_kernels::AdapterConfig;
use lora_kernels_candle::nn::{
    Attention, IGNORE_INDEX, linear_cross_entropy, rms_norm, rope, rope_frequencies, swiglu,
};
use lora_kernels_candle::{LoraAdapter, LoraGroup, LoraLinear};
use small::{batch, config, model};

const GRADIENTS_BF16: f32 = 4e-2;

fn gpu() -> Device {
    Device::new_cuda(0).expect("a GPU")
}

#[test]
#[ignore = "needs a GPU"]
fn gradients_of_a_llama() -> Result<()> {
    compare_llamas(&[|_: &mut Llama| Ok(())])
}

#[test]
#[ignore = "needs a GPU"]
fn gradients_of_a_llama_with_dropout() -> Result<()> {
    // How far bf16 is from f32 varies with the mask, by a factor of two: hence several.
    let seeds = [5, 6, 7, 8];
    compare_llamas(&seeds.map(|seed| move |model: &mut Llama| model.train(P, seed, OFFSET)))?;
    compare_llamas(&seeds.map(|seed| move |model: &mut Llama| model.train_each(P, seed, OFFSET)))
}

/// The gradients of a Llama in bf16 are as near to those in f32 on the GPU as on the CPU: in the
/// mean over these ways to train.
fn compare_llamas(trains: &[impl Fn(&mut Llama) -> Result<()>]) -> Result<()> {
    let mut means = [0.0; 3];
    for train in trains {
        for (mean, distance) in means.iter_mut().zip(distances(train)?) {
            *mean += distance / trains.len() as f32;
        }
    }
    let [cpu, once, refreshed] = means;
    for gpu in [once, refreshed] {
        assert!(gpu < GRADIENTS_BF16 && gpu < 1.5 * cpu, "GPU {gpu}, CPU {cpu}");
    }
    Ok(())
}

/// From the gradients in f32 to those in bf16: on the CPU, then on the GPU before a refresh of the
/// adapters' copies and after it.
fn distances(train: impl Fn(&mut Llama) -> Result<()>) -> Result<[f32; 3]> {
    let (config, (ids, labels), gpu) = (config(""), batch(2, 11)?, gpu());
    let targets = ["all-linear"];
    let mut exact = model(&config, &targets, DType::F32, &Device::Cpu)?;
    train(&mut exact)?;
    let exact_loss = exact.loss(&ids, &labels)?;
    let (exact_vars, exact) = (exact.vars(), exact_loss.backward()?);
    let mut distances = Vec::new();
    for device in [&Device::Cpu, &gpu] {
        let mut half = model(&config, &targets, DType::BF16, device)?;
        for refresh in [false, true] {
            if refresh {
                half.refresh()?;
            }
            train(&mut half)?;
            let loss = half.loss(&ids.to_device(device)?, &labels.to_device(device)?)?;
            assert_close("loss", &loss.to_device(&Device::Cpu)?, &exact_loss, 1e-2);
            let mut gradients = loss.backward()?;
            let alive = gradients.get_ids().count();
            assert_eq!(alive, exact_vars.len(), "dW0, or gradients of activations");
            for ((_, var), (_, exact)) in half.vars().iter().zip(&exact_vars) {
                let gradient = gradients.remove(var).expect("a gradient");
                assert_eq!(gradient.dtype(), DType::F32);
                gradients.insert(exact, gradient.to_device(&Device::Cpu)?);
            }
            distances.push(distance(&gradients, &exact, &exact_vars)?);
        }
    }
    let [cpu, _, once, refreshed] = distances[..] else { panic!("{distances:?}") };
    Ok([cpu, once, refreshed])
}

/// A layer whose B is not zero.
fn layer([d, k]: [usize; 2], r: usize, dtype: DType, device: &Device) -> Result<LoraLinear> {
    let config = AdapterConfig::new(r).with_alpha(1.5 * r as f32);
    let adapter = LoraAdapter::new([d, k], &config, device)?;
    adapter.b().set(&random(&[d, r]).to_device(device)?)?;
    let w0 = random(&[d, k]).to_dtype(dtype)?.to_device(device)?;
    LoraLinear::with_adapter(w0, None, "default", adapter)
}

/// Few tokens and many, of aligned rows and others.
#[test]
#[ignore = "needs a GPU"]
fn layers_with_dropout() -> Result<()> {
    let gpu = gpu();
    for (dtype, tolerance) in [(DType::BF16, 2e-2), (DType::F16, 3e-3)] {
        for (t, [d, k], r) in
            [(3, [64, 128], 8), (18, [24, 70], 5), (300, [256, 192], 16), (2100, [520, 264], 24)]
        {
            let x = Var::from_tensor(&random(&[t, k]).to_dtype(dtype)?.to_device(&gpu)?)?;
            check_layer(&mut layer([d, k], r, dtype, &gpu)?, &x, tolerance)?;
            let layers = [layer([d, k], r, dtype, &gpu)?, layer([8, k], 8, dtype, &gpu)?];
            let mut group = LoraGroup::new(layers.into())?;
            group.train(P, 5, OFFSET)?;
            check_group(&group, &x, tolerance)?;
            group.train_each(P, 5, OFFSET)?;
            check_group(&group, &x, tolerance)?;
        }
    }
    Ok(())
}

/// A result and the gradients of its arguments, in f32 on the CPU.
fn run<const N: usize>(
    args: &[Tensor; N],
    dtype: DType,
    device: &Device,
    op: impl Fn(&[Tensor; N]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let vars = args.each_ref().map(|x| Var::from_tensor(&x.to_device(device).unwrap()).unwrap());
    let h = op(&vars.each_ref().map(|var| var.to_dtype(dtype).unwrap()))?;
    let gradients = loss(&h)?.backward()?;
    let mut all = vec![h.to_dtype(DType::F32)?.to_device(&Device::Cpu)?];
    for var in &vars {
        all.push(gradients.get(var).expect("a gradient").to_device(&Device::Cpu)?);
    }
    Ok(all)
}

fn compare<const N: usize>(
    name: &str,
    args: [Tensor; N],
    op: impl Fn(&[Tensor; N]) -> Result<Tensor>,
) -> Result<()> {
    let exact = run(&args, DType::F32, &Device::Cpu, &op)?;
    for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 2e-2), (DType::F16, 3e-3)] {
        for (i, (got, exact)) in run(&args, dtype, &gpu(), &op)?.iter().zip(&exact).enumerate() {
            let far = difference(got, exact);
            assert!(far < tolerance, "{name} in {dtype:?}, tensor {i}: {far}");
        }
    }
    Ok(())
}

/// Of widths on both sides of candle's choice between kernels, and odd sizes.
#[test]
#[ignore = "needs a GPU"]
fn operations() -> Result<()> {
    for n in [33, 576, 2048] {
        compare("rms_norm", [random(&[7, n])], |[x]| {
            let weight = Tensor::arange(0f32, n as f32, x.device())?.cos()?.to_dtype(x.dtype())?;
            rms_norm(x, &weight, 1e-5)
        })?;
        compare("swiglu", [random(&[7, n]), random(&[7, n])], |[gate, up]| swiglu(gate, up))?;
    }
    compare("rope", [random(&[2, 3, 9, 10])], |[x]| {
        let angles = Tensor::arange(0f32, 45.0, x.device())?.reshape((9, 5))?;
        rope(x, &angles.cos()?.to_dtype(x.dtype())?, &angles.sin()?.to_dtype(x.dtype())?)
    })?;
    for (t, heads, kv_heads, n) in [(9, 4, 2, 6), (65, 9, 3, 64), (300, 4, 4, 32)] {
        let args = [heads, kv_heads, kv_heads].map(|heads| random(&[2, t, heads * n]));
        let attention = Attention::new(n).with_rope(rope_frequencies(n, 1e4));
        compare("attention", args, |[q, k, v]| attention.forward(q, k, v))?;
    }
    let vocabulary = 5000;
    let (x, weight) = (random(&[100, 8]), random(&[vocabulary, 8]));
    let label = |i: i64| if i % 9 == 0 { IGNORE_INDEX } else { i * 37 % vocabulary as i64 };
    let labels: Vec<_> = (0..100).map(label).collect();
    compare("linear_cross_entropy", [x], |[x]| {
        let weight = weight.to_device(x.device())?.to_dtype(x.dtype())?;
        // Large enough for a gradient that f16 can hold.
        linear_cross_entropy(x, &weight, &Tensor::new(labels.as_slice(), x.device())?)? * 10.0
    })
}
