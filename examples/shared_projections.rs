//! q, k and v of an attention as one layer: X is read once, and dX is written once.
//!
//! ```text
//! cargo run --example shared_projections
//! ```

use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, LoraLinear, Tensor};

fn main() -> lora_kernels::Result<()> {
    let device = Device::cuda(0).unwrap_or(Device::cpu());
    let (t, k) = (16, 64);
    let ones = |shape: [usize; 2]| {
        Tensor::from_f32(&device, &vec![1.0; shape[0] * shape[1]], shape, DType::Bf16)
    };
    // Grouped-query attention: k and v are narrower. Ranks may differ too.
    let projection = |(d, r): (usize, usize)| {
        let adapter = Adapter::new(&device, [d, k], DType::Bf16, &AdapterConfig::new(r))?;
        Ok((ones([d, k])?, adapter))
    };
    let sizes = [(64, 16), (16, 8), (16, 8)];
    let projections = sizes.into_iter().map(projection).collect::<lora_kernels::Result<_>>()?;
    let layer = LoraLinear::group(projections)?;

    let x = ones([t, k])?;
    let out = layer.forward(&x)?;
    let dh = sizes.iter().map(|&(d, _)| ones([t, d])).collect::<lora_kernels::Result<Vec<_>>>()?;
    let dh: Vec<&Tensor> = dh.iter().collect();
    let mut gradients = layer.zero_gradients()?;
    let dx = layer.backward(&dh, &out.saved, &mut gradients, Accumulation::Overwrite)?;

    for (name, h) in ["q", "k", "v"].into_iter().zip(&out.h) {
        println!("{name} {}", h.shape());
    }
    println!("dX {}, dA {}", dx.shape(), gradients.a.shape());
    Ok(())
}
