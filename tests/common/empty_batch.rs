//! T = 0, an empty batch: outputs without rows, gradients of zero, and nothing added to others.

use crate::common::run::Outputs;
use crate::common::{DeviceElement, Inputs, Sizes};
use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, LoraLinear};
use lora_kernels::{Result, Tensor};

pub const SIZES: [Sizes; 3] = [
    Sizes::new(0, 40, 24, 8),
    Sizes::new(0, 7, 9, 3),
    Sizes::group(0, 40, &[(24, 8), (8, 16), (5, 3), (1, 1)]),
];

/// `Buffers` gave both kinds of gradients poison to overwrite and numbers to add to, and checked
/// what became of them; merges do not depend on T.
pub fn check_outputs<E: DeviceElement>(inputs: &Inputs<E>, outputs: &Outputs<E>) {
    let Outputs { h, s, base_h, dx, base_dx, da, db, merged } = outputs;
    let without_rows = [h, base_h, base_dx].into_iter().flatten().chain([s, dx]);
    without_rows.for_each(|output| assert!(output.is_empty(), "{}", inputs.sizes));
    assert_eq!(da.len(), inputs.sizes.rank() * inputs.sizes.k);
    let gradients = db.iter().chain([da]).flatten();
    gradients.for_each(|gradient| assert_eq!(gradient.to_bits(), 0, "{}", inputs.sizes));
    for (merged, of) in merged.iter().zip(&inputs.of) {
        assert_ne!(merged, &of.w0, "{}: the update is a real one", inputs.sizes);
    }
}

pub fn layers_take_no_tokens(device: &Device) -> Result<()> {
    let part = |d: usize| -> Result<(Tensor, Adapter)> {
        let adapter = Adapter::new(device, [d, 40], DType::Bf16, &AdapterConfig::new(8))?;
        Ok((Tensor::zeros(device, [d, 40], DType::Bf16)?, adapter))
    };
    let mut layer = LoraLinear::group(vec![part(24)?, part(9)?])?;
    for leading in [&[0][..], &[0, 3], &[2, 0]] {
        let shape = |cols: usize| [leading, &[cols]].concat();
        let zeros = |cols: usize| Tensor::zeros(device, &shape(cols)[..], DType::Bf16);
        let x = zeros(40)?;
        let out = layer.forward(&x)?;
        assert_eq!(out.h[0].shape().dims(), shape(24));
        assert_eq!(out.h[1].shape().dims(), shape(9));
        assert_eq!(out.saved.s.shape().dims(), shape(16));
        for h in [layer.infer(&x)?, layer.forward_base(&x)?] {
            let shapes = [h[0].shape(), h[1].shape()].map(|shape| shape.dims().to_vec());
            assert_eq!(shapes, [shape(24), shape(9)]);
        }

        let (dh, saved) = ([zeros(24)?, zeros(9)?], out.saved);
        let dh = dh.each_ref();
        for dtype in [DType::F32, DType::Bf16] {
            let mut gradients = layer.zero_gradients_in(dtype)?;
            let sevens =
                |tensor: &mut Tensor| tensor.copy_from_f32(&vec![7.5; tensor.shape().elements()]);
            sevens(&mut gradients.a)?;
            gradients.b.iter_mut().try_for_each(sevens)?;
            let mut check = |accumulation, value: f32| -> Result<()> {
                let dx = layer.backward(&dh, &saved, &mut gradients, accumulation)?;
                assert_eq!(dx.shape().dims(), shape(40));
                layer.backward_params(&dh, &saved, &mut gradients, accumulation)?;
                for gradient in [&gradients.a].into_iter().chain(&gradients.b) {
                    assert!(gradient.to_f32_vec()?.iter().all(|&g| g == value), "{dtype}");
                }
                Ok(())
            };
            check(Accumulation::Add, 7.5)?;
            check(Accumulation::Overwrite, 0.0)?;
            check(Accumulation::Add, 0.0)?;
        }
    }
    // The layer serves batches that are not empty after that.
    let x = Tensor::from_f32(device, &[0.5; 3 * 40], [3, 40], DType::Bf16)?;
    let s = layer.forward(&x)?.saved.s.to_f32_vec()?;
    assert!(s.len() == 3 * 16 && s.iter().any(|&s| s != 0.0));
    layer.merge()?;
    let empty = Tensor::zeros(device, [0, 40], DType::Bf16)?;
    assert_eq!(layer.forward_base(&empty)?[0].shape().dims(), [0, 24]);
    Ok(())
}
