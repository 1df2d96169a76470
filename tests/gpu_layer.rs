//! The layer that owns its tensors, on a GPU against the CPU reference.

mod common;

use common::{assert_same_bits, assert_same_values, cuda, DeviceElement, Inputs, Sizes};
use half::{bf16, f16};
use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, InputGradient};
use lora_kernels::{LoraLinear, Result, Scaling, Tensor};

const SIZES: Sizes = Sizes::new(70, 72, 56, 16);

/// What a training step with an adapter makes, then what merging does.
struct Step<E> {
    h: Vec<E>,
    s: Vec<E>,
    frozen: Vec<E>,
    dx: Vec<E>,
    gradients: [Vec<f32>; 2],
    merged: Vec<E>,
    h_merged: Vec<E>,
    unmerged: Vec<E>,
}

fn step<E: DeviceElement>(device: &Device, inputs: &Inputs<E>) -> Result<Step<E>> {
    let Sizes { t, k, d, r } = inputs.sizes;
    // The rows as two leading dimensions.
    let batch = |values: &[E], cols| Tensor::from_slice(device, values, [2, t / 2, cols]);
    let matrix = |values: &[E], shape: [usize; 2]| Tensor::from_slice(device, values, shape);
    let (a, b) = (matrix(&inputs.a, [r, k])?, matrix(&inputs.b, [d, r])?);
    let adapter = Adapter::from_tensors(a, b, inputs.scale * r as f32, Scaling::Standard)?;
    let mut layer = LoraLinear::new(matrix(&inputs.w0, [d, k])?, adapter)?;

    let (x, dh) = (batch(&inputs.x, k)?, batch(&inputs.dh, d)?);
    let out = layer.forward(&x)?;
    assert_eq!((out.h.shape().dims(), out.s.shape().dims()), (&[2, 35, 56][..], &[2, 35, 16][..]));
    assert_same_bits("alone", &layer.infer(&x)?.to_vec::<E>()?, &out.h.to_vec::<E>()?);
    let mut gradients = layer.zero_gradients()?;
    let (set, add) = (Accumulation::Overwrite, Accumulation::Add);
    let compute = InputGradient::Compute;
    let dx = layer.backward(&dh, &x, &out.s, &mut gradients, set, compute)?.expect("dX");
    assert_eq!(dx.shape().dims(), [2, 35, 72]);
    let none = layer.backward(&dh, &x, &out.s, &mut gradients, add, InputGradient::Skip)?;
    assert!(none.is_none());

    let frozen = layer.forward_frozen(&x)?;
    let merged = layer.merged()?;
    layer.merge()?;
    assert_same_bits("in place", &layer.w0().to_vec::<E>()?, &merged.to_vec::<E>()?);
    let h_merged = layer.forward_frozen(&x)?;
    layer.unmerge()?;
    Ok(Step {
        h: out.h.to_vec()?,
        s: out.s.to_vec()?,
        frozen: frozen.to_vec()?,
        dx: dx.to_vec()?,
        gradients: [gradients.a.to_vec()?, gradients.b.to_vec()?],
        merged: merged.to_vec()?,
        h_merged: h_merged.to_vec()?,
        unmerged: layer.w0().to_vec()?,
    })
}

fn matches_reference<E: DeviceElement>() -> Result<()> {
    // Integers, so that there is nothing to tolerate: see `Inputs::integers`.
    let inputs = Inputs::<E>::integers(SIZES, 21);
    let (got, want) = (step(&cuda(), &inputs)?, step(&Device::cpu(), &inputs)?);
    assert_same_values("h", &got.h, &want.h);
    assert_same_values("s", &got.s, &want.s);
    assert_same_values("h of frozen", &got.frozen, &want.frozen);
    assert_same_values("dx", &got.dx, &want.dx);
    assert_same_values("dA twice", &got.gradients[0], &want.gradients[0]);
    assert_same_values("dB twice", &got.gradients[1], &want.gradients[1]);
    assert_same_values("merged", &got.merged, &want.merged);
    assert_same_values("h of the merged weight", &got.h_merged, &want.h_merged);
    assert_same_values("unmerged", &got.unmerged, &want.unmerged);
    Ok(())
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layer_bf16() -> Result<()> {
    matches_reference::<bf16>()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layer_f16() -> Result<()> {
    matches_reference::<f16>()
}

/// The same seed gives the same A on every device.
#[test]
#[ignore = "needs a CUDA GPU"]
fn adapters_start_alike_everywhere() -> Result<()> {
    let config = AdapterConfig { rank: 16, seed: 3, ..AdapterConfig::default() };
    let on = |device: &Device| Adapter::for_weight(device, [56, 72], DType::Bf16, &config);
    let (gpu, cpu) = (on(&cuda())?, on(&Device::cpu())?);
    assert_same_bits("A", &gpu.a().to_vec::<bf16>()?, &cpu.a().to_vec::<bf16>()?);
    assert_same_bits("B", &gpu.b().to_vec::<bf16>()?, &[bf16::ZERO; 56 * 16]);
    Ok(())
}
