//! The layers that own their tensors, on a GPU against the CPU reference.

use crate::common::{DeviceElement, Inputs, Sizes, assert_same_bits};
use crate::cuda::{cuda, cuda_paths};
use crate::parts::layer;
use half::{bf16, f16};
use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, Error, LoraLinear};
use lora_kernels::{Result, Tensor};

/// Single layers and groups, for the kernels of few tokens and of many, and with rows that those do
/// not take.
const SIZES: [Sizes; 4] = [
    Sizes::new(70, 72, 56, 16),
    Sizes::group(70, 72, &[(56, 16), (24, 8), (24, 32)]),
    Sizes::group(300, 136, &[(264, 16), (72, 24)]),
    Sizes::group(34, 41, &[(9, 3), (56, 8), (1, 1), (24, 70)]),
];

/// What a training step with an adapter makes, then what merging does: the outputs by name.
fn step<E: DeviceElement>(device: &Device, inputs: &Inputs<E>) -> Result<Vec<(String, Vec<f64>)>> {
    fn values<E: DeviceElement>(tensor: &Tensor) -> Result<Vec<f64>> {
        Ok(tensor.to_vec::<E>()?.iter().map(|value| value.to_f64()).collect())
    }
    let (Sizes { t, k, .. }, rank) = (inputs.sizes, inputs.sizes.rank());
    // The rows as two leading dimensions.
    let batch = |values: &[E], cols| Tensor::from_slice(device, values, [2, t / 2, cols]);
    let mut layer = layer(device, inputs)?;
    let x = batch(&inputs.x, k)?;
    let dh = inputs.sizes.of().iter().zip(&inputs.of).map(|(&(d, _), one)| batch(&one.dh, d));
    let dh = dh.collect::<Result<Vec<_>>>()?;
    let dh: Vec<_> = dh.iter().collect();

    let out = layer.forward(&x)?;
    assert_eq!(out.saved.s.shape().dims(), [2, t / 2, rank]);
    let mut gradients = layer.zero_gradients()?;
    let (set, add) = (Accumulation::Overwrite, Accumulation::Add);
    let dx = layer.backward(&dh, &out.saved, &mut gradients, set)?;
    assert_eq!(dx.shape().dims(), [2, t / 2, k]);
    layer.backward_params(&dh, &out.saved, &mut gradients, add)?;
    let mut narrow = layer.zero_gradients_in(E::DTYPE)?;
    layer.backward_params(&dh, &out.saved, &mut narrow, set)?;
    layer.backward_params(&dh, &out.saved, &mut narrow, add)?;
    let (alone, base, merged) = (layer.infer(&x)?, layer.forward_base(&x)?, layer.merged()?);
    let mut outputs = vec![
        ("A".to_string(), values::<E>(layer.a())?),
        ("s".to_string(), values::<E>(&out.saved.s)?),
        ("dx".to_string(), values::<E>(&dx)?),
        ("dA twice".to_string(), values::<f32>(&gradients.a)?),
        ("dA twice in 16 bits".to_string(), values::<E>(&narrow.a)?),
    ];
    let adapters = layer.adapters()?;
    layer.merge()?;
    let merged_h = layer.forward_base(&x)?;
    for (i, projection) in layer.projections().iter().enumerate() {
        assert_eq!(out.h[i].shape().dims(), [2, t / 2, inputs.sizes.of()[i].0]);
        assert_same_bits("alone", &alone[i].to_vec::<E>()?, &out.h[i].to_vec::<E>()?);
        let in_place = projection.w0().to_vec::<E>()?;
        assert_same_bits("in place", &in_place, &merged[i].to_vec::<E>()?);
        let one = inputs.alone(i);
        assert_same_bits("A of an adapter", &adapters[i].a().to_vec::<E>()?, &one.a);
        assert_same_bits("B of an adapter", &adapters[i].b().to_vec::<E>()?, &one.of[0].b);
        outputs.extend([
            (format!("h[{i}]"), values::<E>(&out.h[i])?),
            (format!("h[{i}] of base"), values::<E>(&base[i])?),
            (format!("dB[{i}] twice"), values::<f32>(&gradients.b[i])?),
            (format!("dB[{i}] twice in 16 bits"), values::<E>(&narrow.b[i])?),
            (format!("merged[{i}]"), values::<E>(&merged[i])?),
            (format!("h[{i}] of the merged weight"), values::<E>(&merged_h[i])?),
        ]);
    }
    layer.unmerge()?;
    for (i, projection) in layer.projections().iter().enumerate() {
        outputs.push((format!("unmerged[{i}]"), values::<E>(projection.w0())?));
    }
    Ok(outputs)
}

fn matches_reference<E: DeviceElement>() -> Result<()> {
    for sizes in SIZES {
        // Integers, so that there is nothing to tolerate: see `Inputs::integers`.
        let inputs = Inputs::<E>::integers(sizes, 22);
        let want = step(&Device::cpu(), &inputs)?;
        for device in cuda_paths() {
            let got = step(&device, &inputs)?;
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
fn layers_bf16() -> Result<()> {
    matches_reference::<bf16>()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layers_f16() -> Result<()> {
    matches_reference::<f16>()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layers_are_of_one_device() -> Result<()> {
    let part = |w0: &Device, adapter: &Device| -> Result<_> {
        let adapter = Adapter::new(adapter, [24, 16], DType::Bf16, &AdapterConfig::default())?;
        Ok((Tensor::zeros(w0, [24, 16], DType::Bf16)?, adapter))
    };
    let (gpu, cpu) = (cuda(), Device::cpu());
    for (w0, adapter) in [(&gpu, &cpu), (&cpu, &gpu), (&cpu, &cpu)] {
        let error = LoraLinear::group(vec![part(&gpu, &gpu)?, part(w0, adapter)?]).unwrap_err();
        let holds = matches!(error, Error::Device { argument: "projections[1].w0", .. });
        assert!(holds, "{error}");
    }
    let layer = LoraLinear::group(vec![part(&gpu, &gpu)?, part(&gpu, &gpu)?])?;
    let error = layer.infer(&Tensor::zeros(&cpu, [3, 16], DType::Bf16)?).unwrap_err();
    assert!(matches!(error, Error::Device { argument: "x", .. }), "{error}");
    // A refused call, though the first, leaves the layer as it was.
    layer.infer(&Tensor::zeros(&gpu, [3, 16], DType::Bf16)?)?;
    Ok(())
}

/// The same seed gives the same A on every device.
#[test]
#[ignore = "needs a CUDA GPU"]
fn adapters_start_alike_everywhere() -> Result<()> {
    let config = AdapterConfig::new(16).with_seed(3);
    let on = |device: &Device| Adapter::new(device, [56, 72], DType::Bf16, &config);
    let (gpu, cpu) = (on(&cuda())?, on(&Device::cpu())?);
    assert_same_bits("A", &gpu.a().to_vec::<bf16>()?, &cpu.a().to_vec::<bf16>()?);
    assert_same_bits("B", &gpu.b().to_vec::<bf16>()?, &[bf16::ZERO; 56 * 16]);
    Ok(())
}
