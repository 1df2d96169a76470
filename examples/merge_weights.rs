//! An adapter merged into its layer's weight, for serving without it, and taken out again.
//!
//! ```text
//! cargo run --example merge_weights
//! ```

use lora_kernels::{Adapter, DType, Device, LoraLinear, Scaling, Tensor};

fn main() -> lora_kernels::Result<()> {
    let device = Device::cuda(0).unwrap_or(Device::cpu());
    let (t, k, d, r) = (4, 64, 32, 8);
    let waves = |shape: [usize; 2], step: f32| {
        let values = (0..shape[0] * shape[1]).map(|i| (i as f32 * step).sin());
        Tensor::from_f32(&device, &values.collect::<Vec<f32>>(), shape, DType::Bf16)
    };
    let (a, b) = (waves([r, k], 0.3)?, waves([d, r], 0.7)?);
    let adapter = Adapter::from_tensors(a, b, 1.0, Scaling::Standard)?;
    let mut layer = LoraLinear::new(waves([d, k], 0.1)?, adapter)?;
    let x = waves([t, k], 0.2)?;
    let largest_difference = |a: &Tensor, b: &Tensor| -> lora_kernels::Result<f32> {
        let (a, b) = (a.to_f32_vec()?, b.to_f32_vec()?);
        Ok(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
    };

    let (w0, h) = (layer.projections()[0].w0().try_clone()?, layer.infer(&x)?);
    layer.merge()?;
    let merged = layer.forward_base(&x)?;
    let difference = largest_difference(&h[0], &merged[0])?;
    println!("on {device}: merged, h differs by {difference} at most");

    // W0 + s·B A was rounded to bf16: keep W0 where its exact bits matter.
    layer.unmerge()?;
    let difference = largest_difference(&w0, layer.projections()[0].w0())?;
    println!("unmerged, W0 differs by {difference} at most");
    Ok(())
}
