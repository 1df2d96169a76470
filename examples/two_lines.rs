//! A LoRA layer, forward and backward.
//!
//! ```text
//! cargo run --example two_lines
//! ```

use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, LoraLinear, Tensor};

fn main() -> lora_kernels::Result<()> {
    let device = Device::cuda(0).unwrap_or(Device::cpu());
    let (t, k, d, r) = (16, 64, 32, 8);
    let ones = |shape: [usize; 2]| {
        Tensor::from_f32(&device, &vec![1.0; shape[0] * shape[1]], shape, DType::Bf16)
    };
    let config = AdapterConfig::new(r).with_alpha(16.0);
    let layer =
        LoraLinear::new(ones([d, k])?, Adapter::new(&device, [d, k], DType::Bf16, &config)?)?;
    let (x, dh, mut gradients) = (ones([t, k])?, ones([t, d])?, layer.zero_gradients()?);

    let out = layer.forward(&x)?;
    let dx = layer.backward(&[&dh], &out.saved, &mut gradients, Accumulation::Overwrite)?;

    // B is zero at first, so that h is that of W0, and A has no gradient yet.
    println!("on {device}: h[0, 0] = {}, dX[0, 0] = {}", first(&out.h[0])?, first(&dx)?);
    println!("dA[0, 0] = {}, dB[0, 0] = {}", first(&gradients.a)?, first(&gradients.b[0])?);
    Ok(())
}

fn first(tensor: &Tensor) -> lora_kernels::Result<f32> {
    Ok(tensor.to_f32_vec()?[0])
}
