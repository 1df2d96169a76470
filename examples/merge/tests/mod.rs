//! The whole program, on small checkpoints.

mod bases;
mod extras;
mod finite;
mod fixtures;
mod layout;
mod leftovers;
mod merging;
mod mutations;
mod names;
mod output;
mod packed;
mod programs;
mod refusals;
mod tied;

use crate::args::Options;
use crate::{Result, run};
use approx::abs_diff_eq;
use lora_kernels::half::{bf16, f16};
use lora_kernels::peft::{self, Config, TensorFile};
use lora_kernels::{Adapter, DType, Device, Scaling, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A weight of the checkpoint, in one of the types.
struct Weight {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Numbers from -1 to 1, never a zero.
fn number(i: usize) -> f32 {
    ((i * 7919 + 13) % 997) as f32 / 498.25 - 1.0
}

fn weight(name: &'static str, dtype: Dtype, shape: &[usize]) -> Weight {
    let numbers = (0..shape.iter().product()).map(number);
    let bytes = match dtype {
        Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => numbers.flat_map(|n| f16::from_f32(n).to_le_bytes()).collect(),
        Dtype::BF16 => numbers.flat_map(|n| bf16::from_f32(n).to_le_bytes()).collect(),
        _ => numbers.flat_map(|n| ((n * 100.0) as i64).to_le_bytes()).collect(),
    };
    Weight { name, dtype, shape: shape.to_vec(), bytes }
}

fn write(path: &Path, weights: &[Weight]) {
    let views = weights
        .iter()
        .map(|w| (w.name, TensorView::new(w.dtype, w.shape.clone(), &w.bytes).unwrap()));
    let metadata =
        HashMap::from([("format".into(), "pt".into()), ("made".into(), "by hand".into())]);
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// An adapter for a weight of [d, k]; s = 2.
fn adapter(d: usize, k: usize, r: usize, dtype: DType) -> Adapter {
    let tensor = |shape: [usize; 2], from: usize| {
        let numbers: Vec<f32> = (0..shape[0] * shape[1]).map(|i| number(i + from) / 4.0).collect();
        Tensor::from_f32(&Device::cpu(), &numbers, shape, dtype).unwrap()
    };
    let (a, b) = (tensor([r, k], 3), tensor([d, r], 5));
    Adapter::from_tensors(a, b, 2.0 * r as f32, Scaling::Standard).unwrap()
}

struct Setting {
    dir: TempDir,
}

impl Setting {
    /// A checkpoint of one file, and an adapter, r = 2, of three of its weights.
    fn new(dtype: DType) -> Self {
        let setting = Setting { dir: tempfile::tempdir().unwrap() };
        write(
            &setting.path("model.safetensors"),
            &[
                weight("embed.weight", Dtype::F32, &[5, 6]),
                weight("a.q.weight", Dtype::BF16, &[6, 4]),
                weight("a.q.bias", Dtype::BF16, &[6]),
                weight("a.k.weight", Dtype::F16, &[3, 4]),
                weight("b.q.weight", Dtype::F32, &[4, 5]),
                weight("b.unchanged.weight", Dtype::F32, &[4, 5]),
                weight("ids", Dtype::I64, &[1, 7]),
            ],
        );
        setting.save_adapter(&[
            ("a.q", adapter(6, 4, 2, dtype)),
            ("a.k", adapter(3, 4, 2, dtype)),
            ("b.q", adapter(4, 5, 2, dtype)),
        ]);
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn save_adapter(&self, adapters: &[(&str, Adapter)]) {
        let adapters = adapters.iter().map(|(module, adapter)| (*module, adapter));
        peft::save(self.path("adapter"), &Config::default(), adapters).unwrap();
    }

    /// Runs the program, on the CPU if `more` does not say otherwise, and returns what it says.
    fn run(&self, base: &str, out: &str, more: &[&str]) -> Result<String> {
        let mut args: Vec<OsString> = vec!["--base".into(), self.path(base).into()];
        args.extend(["--adapter".into(), self.path("adapter").into(), "--device=cpu".into()]);
        if !out.is_empty() {
            args.extend(["--out".into(), self.path(out).into()]);
        }
        args.extend(more.iter().map(OsString::from));
        let mut text = Vec::new();
        run(&Options::parse(args)?.expect("options"), &mut text)?;
        Ok(String::from_utf8(text)?)
    }

    /// What a run that must fail says.
    fn error(&self, base: &str, out: &str) -> String {
        let before = self.files();
        let error = self.run(base, out, &[]).expect_err("an error").to_string();
        assert_eq!(self.files(), before, "{error}: the files are as they were");
        error
    }

    /// All files and what is in them.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(dir: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, files),
                    false => files.push((path.clone(), fs::read(path).unwrap())),
                }
            }
        }
        let mut files = Vec::new();
        walk(self.dir.path(), &mut files);
        files.sort();
        files
    }
}

fn values(path: &Path, name: &str) -> Vec<f32> {
    let mut file = TensorFile::open(path).unwrap();
    file.tensor(name, &Device::cpu(), None).unwrap().to_f32_vec().unwrap()
}

/// Fails unless the weights of the adapter are W0 + factor · s · B A, to within one rounding, and
/// all else of the file is the same.
fn assert_merged(base: &Path, out: &Path, adapters: &[(&str, Adapter)], factor: f64) {
    let (old, new) = (fs::read(base).unwrap(), fs::read(out).unwrap());
    assert_eq!(old.len(), new.len());
    let file = TensorFile::open(base).unwrap();
    let mut at = 0;
    let mut changed: Vec<_> = adapters
        .iter()
        .filter_map(|(module, adapter)| {
            let name = format!("{module}.weight");
            let entry = file.entries().get(&name)?.clone();
            Some((name, entry, adapter))
        })
        .collect();
    changed.sort_by_key(|(_, entry, _)| entry.bytes.start);
    assert!(!changed.is_empty());
    for (name, entry, adapter) in changed {
        let range = entry.bytes.start as usize..entry.bytes.end as usize;
        assert!(old[at..range.start] == new[at..range.start], "what is before {name}");
        at = range.end;
        let (d, k, r) = (entry.shape[0], entry.shape[1], adapter.rank());
        let (a, b) = (adapter.a().to_f32_vec().unwrap(), adapter.b().to_f32_vec().unwrap());
        let (w0, w) = (values(base, &name), values(out, &name));
        let eps = match entry.dtype.unwrap() {
            DType::Bf16 => 2f64.powi(-8),
            DType::F16 => 2f64.powi(-11),
            _ => 2f64.powi(-24),
        };
        for (i, (&w0, &w)) in w0.iter().zip(&w).enumerate() {
            let (row, col) = (i / k, i % k);
            let sum: f64 =
                (0..r).map(|j| f64::from(b[row * r + j]) * f64::from(a[j * k + col])).sum();
            let want = f64::from(w0) + factor * f64::from(adapter.scale()) * sum;
            // Rounded once, but for what f32 loses on the way to 16 bits.
            let bound = want.abs() * eps * 1.001 + if eps > 1e-6 { 1e-6 } else { 0.0 };
            let near = abs_diff_eq!(f64::from(w), want, epsilon = bound);
            assert!(near, "{name}[{row}, {col}] is {w}, not {want}");
        }
        assert!(d * k == 1 || w0 != w, "{name} has changed");
    }
    assert!(old[at..] == new[at..], "what is behind");
}

fn three(dtype: DType) -> [(&'static str, Adapter); 3] {
    [
        ("a.q", adapter(6, 4, 2, dtype)),
        ("a.k", adapter(3, 4, 2, dtype)),
        ("b.q", adapter(4, 5, 2, dtype)),
    ]
}

fn sharded(dtype: DType) -> Setting {
    let setting = Setting::new(dtype);
    fs::remove_file(setting.path("model.safetensors")).unwrap();
    fs::create_dir(setting.path("base")).unwrap();
    write(
        &setting.path("base/model-1.safetensors"),
        &[weight("a.q.weight", Dtype::BF16, &[6, 4]), weight("a.k.weight", Dtype::F16, &[3, 4])],
    );
    write(
        &setting.path("base/model-2.safetensors"),
        &[weight("b.q.weight", Dtype::F32, &[4, 5]), weight("head.weight", Dtype::F32, &[2, 2])],
    );
    write(&setting.path("base/model-3.safetensors"), &[weight("norm", Dtype::F32, &[9])]);
    setting.write_index(&[
        ("a.q.weight", "model-1.safetensors"),
        ("a.k.weight", "model-1.safetensors"),
        ("b.q.weight", "model-2.safetensors"),
        ("head.weight", "model-2.safetensors"),
        ("norm", "model-3.safetensors"),
    ]);
    setting
}

impl Setting {
    fn write_index(&self, files: &[(&str, &str)]) {
        let map: HashMap<_, _> = files.iter().copied().collect();
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        fs::write(self.path("base/model.safetensors.index.json"), index.to_string()).unwrap();
    }
}
