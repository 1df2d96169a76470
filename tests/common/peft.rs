//! The fixtures that PEFT made, and a run of one of their layers.

use lora_kernels::peft::{self, TensorFile};
use lora_kernels::{Accumulation, DType, Device, LoraLinear, Result, Tensor};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The cases with expected outputs.
pub const CASES: [&str; 8] = [
    "plain-r4",
    "plain-r8",
    "plain-r64",
    "rslora-r4",
    "rslora-r8",
    "rslora-r64",
    "patterns",
    "patterns-rslora",
];

/// The case whose layers PEFT ran in training, with this crate's masks (`dropout.py`).
pub const DROPOUT: &str = "dropout";
/// Of the first module; each has the next one.
const DROPOUT_SEED: u64 = 7;
/// The first row of the masks.
const DROPOUT_OFFSET: u64 = (1 << 32) - 5;

/// Shapes and values by name.
pub type Outputs<Name = String> = BTreeMap<Name, (Vec<usize>, Vec<f32>)>;

/// A fixture in the source tree, or where a bundle that was copied to another machine has it.
pub fn fixture(name: &str) -> PathBuf {
    let bundled = std::env::var_os("LORA_KERNELS_FIXTURES").map(PathBuf::from);
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    bundled.unwrap_or_else(here).join("peft").join(name)
}

fn tensor(file: &str, name: &str, device: &Device, dtype: DType) -> Tensor {
    let mut file = TensorFile::open(fixture(file)).unwrap();
    file.tensor(name, device, Some(dtype)).unwrap()
}

/// The frozen weight of a module.
pub fn base(module: &str, device: &Device, dtype: DType) -> Tensor {
    tensor("base.safetensors", &format!("{module}.weight"), device, dtype)
}

/// What PEFT's layer made of the fixture's x and dh.
pub fn expected(case: &str, module: &str) -> Outputs<&'static str> {
    let file = format!("{case}/expected.safetensors");
    let output =
        |name| values(&tensor(&file, &format!("{module}.{name}"), &Device::cpu(), DType::F32));
    ["h", "dx", "da", "db"].map(|name| (name, output(name))).into()
}

/// What the crate's layer makes of them, in its own element type.
pub fn run(layer: &LoraLinear, module: &str) -> Result<Outputs<&'static str>> {
    let (device, dtype) = (layer.device(), layer.a().dtype());
    let input = |name| tensor("inputs.safetensors", &format!("{module}.{name}"), device, dtype);
    let (x, dh) = (input("x"), input("dh"));
    let out = layer.forward(&x)?;
    let mut gradients = layer.zero_gradients()?;
    let dx = layer.backward(&[&dh], &out.saved, &mut gradients, Accumulation::Overwrite)?;
    let outputs = [("h", &out.h[0]), ("dx", &dx), ("da", &gradients.a), ("db", &gradients.b[0])];
    Ok(outputs.map(|(name, tensor)| (name, values(tensor))).into())
}

/// The layers of the case [`DROPOUT`] by their modules, in training with the p of the file. Asserts
/// that their masks equal the masks of dropout.py.
pub fn layers_with_dropout(device: &Device, dtype: DType) -> Result<Vec<(String, LoraLinear)>> {
    let loaded = peft::load(fixture(DROPOUT), device, Some(dtype))?;
    let p = loaded.config.dropout() as f32;
    let (file, cpu) = (format!("{DROPOUT}/expected.safetensors"), Device::cpu());
    let mut layers = Vec::new();
    for ((module, adapter), seed) in loaded.adapters.into_iter().zip(DROPOUT_SEED..) {
        let mut layer = LoraLinear::new(base(&module, device, dtype), adapter)?;
        layer.train(p, seed, DROPOUT_OFFSET)?;
        let (shape, mask) = values(&tensor(&file, &format!("{module}.kept"), &cpu, DType::F32));
        let kept = layer.dropout().expect("a layer in training").kept([shape[0], shape[1]])?;
        assert!(kept.iter().zip(&mask).all(|(&kept, &mask)| f32::from(kept) == mask), "{module}");
        layers.push((module, layer));
    }
    Ok(layers)
}

fn values(tensor: &Tensor) -> (Vec<usize>, Vec<f32>) {
    (tensor.shape().dims().to_vec(), tensor.to_f32_vec().unwrap())
}

/// The weights in an adapter's directory, to the byte: the file's header without its metadata, and
/// the data.
pub fn weights(dir: &Path) -> (serde_json::Value, Vec<u8>) {
    let mut file = fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&file[8..end]).unwrap();
    let metadata = header.as_object_mut().unwrap().remove("__metadata__");
    assert_eq!(metadata.unwrap()["format"], "pt");
    (header, file.split_off(end))
}
