//! Adapters as Hugging Face [PEFT](https://huggingface.co/docs/peft) keeps them: a directory of
//! `adapter_config.json` and `adapter_model.safetensors`.
//!
//! - [`load`] and [`load_from_bytes`] return an [`Adapter`](crate::Adapter) for each adapted linear
//!   layer, by the path of its module.
//! - [`save`] writes a directory that PEFT loads.
//! - [`TensorFile`] reads base weights, or any safetensors file, one tensor at a time.
//! - [`Config`] and its [`Extras`] are what a directory holds besides these adapters.
//!
//! # Example
//!
//! Load an adapter, run it, train it and save it:
//!
//! ```
//! use lora_kernels::peft::{self, TensorFile};
//! use lora_kernels::{Accumulation, DType, Device, LoraLinear, Tensor};
//! use std::collections::BTreeMap;
//!
//! # fn example(device: &Device, dir: &std::path::Path) -> lora_kernels::Result<Vec<u8>> {
//! #     let config = lora_kernels::AdapterConfig::new(2);
//! #     let adapter = lora_kernels::Adapter::new(device, [4, 8], DType::F32, &config)?;
//! #     peft::save(dir, &peft::Config::default(), [("model.layers.0.q_proj", &adapter)])?;
//! #     let header = br#"{"model.layers.0.q_proj.weight":
//! #         {"dtype":"F32","shape":[4,8],"data_offsets":[0,128]}}"#;
//! #     Ok([&(header.len() as u64).to_le_bytes()[..], header, &[0; 128]].concat())
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tempdir = tempfile::tempdir()?;
//! # let (dir, out) = (tempdir.path().join("adapter"), tempdir.path().join("trained"));
//! # let (device, dtype) = (Device::cpu(), DType::F32);
//! # let base = tempdir.path().join("model.safetensors");
//! # std::fs::write(&base, example(&device, &dir)?)?;
//! // let (device, dtype) = (Device::cuda(0)?, DType::Bf16);
//! // let (dir, base, out) = ("adapter", "model.safetensors", "trained");
//!
//! // Load: each adapter with the weight that it is for.
//! let loaded = peft::load(&dir, &device, Some(dtype))?;
//! let mut base = TensorFile::open(&base)?;
//! let mut layers = BTreeMap::new();
//! for (module, adapter) in loaded.adapters {
//!     let w0 = base.tensor(&format!("{module}.weight"), &device, Some(dtype))?;
//!     layers.insert(module, LoraLinear::new(w0, adapter)?);
//! }
//!
//! // Run: h [T, d] of x [T, k].
//! let layer = layers.get_mut("model.layers.0.q_proj").ok_or("no such adapter")?;
//! let w0 = layer.projections()[0].w0().shape();
//! let (d, k) = (w0.rows(), w0.cols());
//! let x = Tensor::from_f32(&device, &vec![0.5; 3 * k], [3, k], dtype)?;
//! let out_of_layer = layer.forward(&x)?;
//!
//! // Train: one step of gradient descent, with dh [T, d] from the layers above.
//! let dh = Tensor::from_f32(&device, &vec![0.1; 3 * d], [3, d], dtype)?;
//! let (mut gradients, set) = (layer.zero_gradients()?, Accumulation::Overwrite);
//! layer.backward_params(&[&dh], &out_of_layer.saved, &mut gradients, set)?;
//! let (a, mut b) = layer.tensors_mut()?;
//! for (weight, gradient) in [(a, &gradients.a), (b.remove(0), &gradients.b[0])] {
//!     let (old, gradient) = (weight.to_f32_vec()?, gradient.to_vec::<f32>()?);
//!     let new: Vec<f32> = old.iter().zip(&gradient).map(|(w, g)| w - 0.01 * g).collect();
//!     weight.copy_from_f32(&new)?;
//! }
//!
//! // Save, with the configuration that was loaded.
//! let mut adapters = BTreeMap::new();
//! for (module, layer) in &layers {
//!     adapters.insert(module.as_str(), layer.adapters()?.remove(0));
//! }
//! peft::save(&out, &loaded.config, adapters.iter().map(|(module, adapter)| (*module, adapter)))?;
//! # let again = peft::load(&out, &device, None)?.adapters;
//! # let b = again["model.layers.0.q_proj"].b().to_vec::<f32>()?;
//! # let own = layers["model.layers.0.q_proj"].projections()[0].b();
//! # assert_eq!(b, own.to_vec::<f32>()?);
//! # assert!(b.iter().all(|&b| b != 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! # Modules that share their input
//!
//! q, k and v of an attention, or gate and up of an MLP, become one layer
//! ([`LoraLinear::group`](crate::LoraLinear::group)). Each is saved as an adapter of its own:
//!
//! ```
//! use lora_kernels::peft::{self, TensorFile};
//! use lora_kernels::{Accumulation, DType, Device, LoraLinear, Tensor};
//!
//! # fn example(device: &Device, dir: &std::path::Path) -> lora_kernels::Result<Vec<u8>> {
//! #     let config = lora_kernels::AdapterConfig::new(2);
//! #     let adapter = |d| lora_kernels::Adapter::new(device, [d, 8], DType::F32, &config);
//! #     let names = ["q_proj", "k_proj", "v_proj"].map(|name| format!("model.layers.0.{name}"));
//! #     let adapters = [adapter(4)?, adapter(2)?, adapter(2)?];
//! #     let named = names.iter().map(String::as_str).zip(&adapters);
//! #     peft::save(dir, &peft::Config::default(), named)?;
//! #     let header = br#"{"model.layers.0.q_proj.weight":
//! #             {"dtype":"F32","shape":[4,8],"data_offsets":[0,128]},
//! #         "model.layers.0.k_proj.weight":
//! #             {"dtype":"F32","shape":[2,8],"data_offsets":[128,192]},
//! #         "model.layers.0.v_proj.weight":
//! #             {"dtype":"F32","shape":[2,8],"data_offsets":[192,256]}}"#;
//! #     Ok([&(header.len() as u64).to_le_bytes()[..], header, &[0; 256]].concat())
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tempdir = tempfile::tempdir()?;
//! # let (dir, out) = (tempdir.path().join("adapter"), tempdir.path().join("trained"));
//! # let (device, dtype) = (Device::cpu(), DType::F32);
//! # let base = tempdir.path().join("model.safetensors");
//! # std::fs::write(&base, example(&device, &dir)?)?;
//! // Load: q, k and v of a block, each with the weight that it is for.
//! let mut loaded = peft::load(&dir, &device, Some(dtype))?;
//! let mut base = TensorFile::open(&base)?;
//! let modules = ["q_proj", "k_proj", "v_proj"].map(|name| format!("model.layers.0.{name}"));
//! let mut projections = Vec::new();
//! for module in &modules {
//!     let w0 = base.tensor(&format!("{module}.weight"), &device, Some(dtype))?;
//!     let adapter = loaded.adapters.remove(module).ok_or("no such adapter")?;
//!     projections.push((w0, adapter));
//! }
//! let mut layer = LoraLinear::group(projections)?;
//!
//! // Run: an h [T, d] of each, of the same x [T, k].
//! let k = layer.a().shape().cols();
//! let x = Tensor::from_f32(&device, &vec![0.5; 3 * k], [3, k], dtype)?;
//! let out_of_layer = layer.forward(&x)?;
//!
//! // Train: one step of gradient descent, with a dh [T, d] of each, and one dX [T, k].
//! let [q, k, v] = &out_of_layer.h[..] else { unreachable!("three projections") };
//! let dh = |h: &Tensor| {
//!     Tensor::from_f32(&device, &vec![0.1; h.shape().elements()], h.shape(), dtype)
//! };
//! let dh = [&dh(q)?, &dh(k)?, &dh(v)?];
//! let (mut gradients, set) = (layer.zero_gradients()?, Accumulation::Overwrite);
//! let dx = layer.backward(&dh, &out_of_layer.saved, &mut gradients, set)?;
//! # assert_eq!(dx.shape(), x.shape());
//! let (a, b) = layer.tensors_mut()?;
//! let gradients = [&gradients.a].into_iter().chain(&gradients.b);
//! for (weight, gradient) in [a].into_iter().chain(b).zip(gradients) {
//!     let (old, gradient) = (weight.to_f32_vec()?, gradient.to_vec::<f32>()?);
//!     let new: Vec<f32> = old.iter().zip(&gradient).map(|(w, g)| w - 0.01 * g).collect();
//!     weight.copy_from_f32(&new)?;
//! }
//!
//! // Save, with the configuration that was loaded.
//! let adapters = layer.adapters()?;
//! peft::save(&out, &loaded.config, modules.iter().map(String::as_str).zip(&adapters))?;
//! # let again = peft::load(&out, &device, None)?.adapters;
//! # for (module, adapter) in modules.iter().zip(&adapters) {
//! #     let (a, b) = (again[module].a().to_vec::<f32>()?, again[module].b().to_vec::<f32>()?);
//! #     assert_eq!(a, adapter.a().to_vec::<f32>()?);
//! #     assert_eq!(b, adapter.b().to_vec::<f32>()?);
//! #     assert!(b.iter().all(|&b| b != 0.0));
//! # }
//! # Ok(())
//! # }
//! ```
//!
#![doc = include_str!("../../docs/peft.md")]

mod config;
mod experts;
mod extras;
mod extras_read;
mod fields;
mod file;
mod formats;
mod load;
mod lock;
mod names;
mod other;
mod pair;
mod pairs;
mod pattern;
mod regex;
mod save;
mod save_config;
mod save_tensors;
mod targets;
mod tensors;
mod text;
mod tokens;
mod unique;

pub use config::Config;
pub use experts::{ParameterAdapter, ParameterAdapters};
pub use extras::{Extras, TokenRows, Update};
pub use load::{Adapters, load, load_from_bytes};
pub use other::Format;
pub use save::save;
pub use tensors::{TensorEntry, TensorFile};
