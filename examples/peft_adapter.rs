//! An adapter that PEFT saved: loaded, trained for a few steps, and saved for PEFT.
//!
//! ```text
//! cargo run --features peft --example peft_adapter
//! ```

use lora_kernels::peft::{self, TensorFile};
use lora_kernels::{Accumulation, DType, Device, LoraLinear, Tensor};
use std::error::Error;
use std::path::Path;

const MODULE: &str = "layers.0.attn.q";
const LEARNING_RATE: f32 = 0.01;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::cuda(0).unwrap_or(Device::cpu());
    let dtype = if device.is_cuda() { DType::Bf16 } else { DType::F32 };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft");

    let mut loaded = peft::load(fixtures.join("plain-r8"), &device, Some(dtype))?;
    let adapter = loaded.adapters.remove(MODULE).ok_or("the adapter has no such module")?;
    let mut base = TensorFile::open(fixtures.join("base.safetensors"))?;
    let w0 = base.tensor(&format!("{MODULE}.weight"), &device, Some(dtype))?;
    let mut layer = LoraLinear::new(w0, adapter)?;
    // As PEFT would in training. This adapter's p is 0.
    layer.train(loaded.config.dropout() as f32, 0, 0)?;

    // Towards h = 0, for the sake of an example: half the sum of squares has the gradient dH = H.
    let mut inputs = TensorFile::open(fixtures.join("inputs.safetensors"))?;
    let x = inputs.tensor(&format!("{MODULE}.x"), &device, Some(dtype))?;
    let mut gradients = layer.zero_gradients()?;
    for step in 0..5 {
        let out = layer.forward(&x)?;
        let squares: f32 = out.h[0].to_f32_vec()?.iter().map(|h| h * h).sum();
        println!("step {step}: loss {:.3}", squares / 2.0);
        layer.backward_params(&[&out.h[0]], &out.saved, &mut gradients, Accumulation::Overwrite)?;
        let (a, mut b) = layer.tensors_mut()?;
        descend(a, &gradients.a)?;
        descend(b.remove(0), &gradients.b[0])?;
    }

    // With the adapters of the other modules, as they were loaded.
    loaded.adapters.insert(MODULE.into(), layer.adapters()?.remove(0));
    let folder = tempfile::tempdir()?;
    let named = loaded.adapters.iter().map(|(module, adapter)| (module.as_str(), adapter));
    peft::save(folder.path(), &loaded.config, named)?;
    let again = peft::load(folder.path(), &device, None)?;
    println!("saved and loaded again: {} modules", again.adapters.len());
    Ok(())
}

fn descend(weight: &mut Tensor, gradient: &Tensor) -> lora_kernels::Result<()> {
    let (old, gradient) = (weight.to_f32_vec()?, gradient.to_f32_vec()?);
    let new: Vec<f32> = old.iter().zip(&gradient).map(|(w, g)| w - LEARNING_RATE * g).collect();
    weight.copy_from_f32(&new)
}
