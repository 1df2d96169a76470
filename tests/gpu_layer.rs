//! The layers that own their tensors, on a GPU against the CPU reference.

mod common;

use common::{
    assert_same_bits, assert_same_values, cuda, cuda_paths, DeviceElement, Inputs, Sizes,
};
use common::{SharedInputs, SharedSizes};
use half::{bf16, f16};
use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, Error, InputGradient};
use lora_kernels::{LoraLinear, Result, Scaling, SharedLoraLinear, Tensor};

const SIZES: Sizes = Sizes::new(70, 72, 56, 16);
/// For the kernels of few tokens and of many, and with rows that those do not take.
const SHARED_SIZES: [SharedSizes; 3] = [
    SharedSizes::new(70, 72, &[(56, 16), (24, 8), (24, 32)]),
    SharedSizes::new(300, 136, &[(264, 16), (72, 24)]),
    SharedSizes::new(33, 41, &[(9, 3), (56, 8), (1, 1), (24, 70)]),
];

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

/// The layer of projections that share their input.
fn shared_layer<E: DeviceElement>(
    device: &Device,
    inputs: &SharedInputs<E>,
) -> Result<SharedLoraLinear> {
    let SharedSizes { k, of, .. } = inputs.sizes;
    let matrix = |values: &[E], shape: [usize; 2]| Tensor::from_slice(device, values, shape);
    let part = |(i, &(d, r)): (usize, &(usize, usize))| {
        let one = inputs.alone(i);
        let (a, b) = (matrix(&one.a, [r, k])?, matrix(&one.b, [d, r])?);
        let adapter = Adapter::from_tensors(a, b, one.scale * r as f32, Scaling::Standard)?;
        Ok((matrix(&one.w0, [d, k])?, adapter))
    };
    SharedLoraLinear::new(of.iter().enumerate().map(part).collect::<Result<_>>()?)
}

/// What [`Step`] has, by name, with one for every projection where there is.
fn shared_step<E: DeviceElement>(
    device: &Device,
    inputs: &SharedInputs<E>,
) -> Result<Vec<(String, Vec<f64>)>> {
    fn values<E: DeviceElement>(tensor: &Tensor) -> Result<Vec<f64>> {
        Ok(tensor.to_vec::<E>()?.iter().map(|value| value.to_f64()).collect())
    }
    let SharedSizes { t, k, of } = inputs.sizes;
    let matrix = |values: &[E], cols| Tensor::from_slice(device, values, [t, cols]);
    let mut layer = shared_layer(device, inputs)?;
    let x = matrix(&inputs.x, k)?;
    let dh = of.iter().zip(&inputs.of).map(|(&(d, _), one)| matrix(&one.dh, d));
    let dh = dh.collect::<Result<Vec<_>>>()?;

    let out = layer.forward(&x)?;
    let mut gradients = layer.zero_gradients()?;
    let (set, add) = (Accumulation::Overwrite, Accumulation::Add);
    let (dh, compute): (Vec<_>, _) = (dh.iter().collect(), InputGradient::Compute);
    let dx = layer.backward(&dh, &x, &out.s, &mut gradients, set, compute)?.expect("dX");
    layer.backward(&dh, &x, &out.s, &mut gradients, add, InputGradient::Skip)?;
    let (alone, frozen, merged) = (layer.infer(&x)?, layer.forward_frozen(&x)?, layer.merged()?);
    let mut outputs = vec![
        ("A".to_string(), values::<E>(layer.a())?),
        ("s".to_string(), values::<E>(&out.s)?),
        ("dx".to_string(), values::<E>(&dx)?),
        ("dA twice".to_string(), values::<f32>(&gradients.a)?),
    ];
    let adapters = layer.adapters()?;
    layer.merge()?;
    for (i, projection) in layer.projections().iter().enumerate() {
        assert_same_bits("alone", &alone[i].to_vec::<E>()?, &out.h[i].to_vec::<E>()?);
        let in_place = projection.w0().to_vec::<E>()?;
        assert_same_bits("in place", &in_place, &merged[i].to_vec::<E>()?);
        let one = inputs.alone(i);
        assert_same_bits("A of an adapter", &adapters[i].a().to_vec::<E>()?, &one.a);
        assert_same_bits("B of an adapter", &adapters[i].b().to_vec::<E>()?, &one.b);
        outputs.extend([
            (format!("h[{i}]"), values::<E>(&out.h[i])?),
            (format!("h[{i}] of frozen"), values::<E>(&frozen[i])?),
            (format!("dB[{i}] twice"), values::<f32>(&gradients.b[i])?),
            (format!("merged[{i}]"), values::<E>(&merged[i])?),
        ]);
    }
    layer.unmerge()?;
    for (i, projection) in layer.projections().iter().enumerate() {
        outputs.push((format!("unmerged[{i}]"), values::<E>(projection.w0())?));
    }
    Ok(outputs)
}

fn shared_matches_reference<E: DeviceElement>() -> Result<()> {
    for sizes in SHARED_SIZES {
        let inputs = SharedInputs::<E>::integers(sizes, 22);
        let want = shared_step(&Device::cpu(), &inputs)?;
        for device in cuda_paths() {
            let got = shared_step(&device, &inputs)?;
            assert_eq!(got.len(), want.len());
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                // Equal f64 that come from one element type are the same number of that.
                let differ = got.iter().zip(want).filter(|(got, want)| got != want).count();
                assert_eq!((got.len(), differ), (want.len(), 0), "{sizes}, {device}: {name}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn shared_layer_bf16() -> Result<()> {
    shared_matches_reference::<bf16>()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn shared_layer_f16() -> Result<()> {
    shared_matches_reference::<f16>()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn shared_layers_are_of_one_device() -> Result<()> {
    let part = |w0: &Device, adapter: &Device| {
        let config = AdapterConfig::default();
        let adapter = Adapter::for_weight(adapter, [24, 16], DType::Bf16, &config)?;
        Ok((Tensor::zeros(w0, [24, 16], DType::Bf16)?, adapter))
    };
    let (gpu, cpu) = (cuda(), Device::cpu());
    for (w0, adapter) in [(&gpu, &cpu), (&cpu, &gpu), (&cpu, &cpu)] {
        let error = SharedLoraLinear::new(vec![part(&gpu, &gpu)?, part(w0, adapter)?]).unwrap_err();
        let holds = matches!(error, Error::Device { argument: "projections[1].w0", .. });
        assert!(holds, "{error}");
    }
    let layer = SharedLoraLinear::new(vec![part(&gpu, &gpu)?, part(&gpu, &gpu)?])?;
    let error = layer.infer(&Tensor::zeros(&cpu, [3, 16], DType::Bf16)?).unwrap_err();
    assert!(matches!(error, Error::Device { argument: "x", .. }), "{error}");
    Ok(())
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
