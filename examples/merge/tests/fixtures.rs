//! Checkpoints, adapters and merged checkpoints of other programs: tests/fixtures/merge/make.py.

use crate::args::Options;
use crate::{Result, run};
use lora_kernels::Device;
use lora_kernels::peft::TensorFile;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/merge")
}

/// Merges a fixture's adapter and fails unless the output has the expected tensors, with an error of
/// at most `bound`, in norm, and the base's otherwise, bit for bit.
fn assert_expected(name: &str, bound: f64) -> Result<()> {
    let fixture = fixtures().join(name);
    let temporary = tempfile::tempdir()?;
    let out = temporary.path().join("out");
    let args = ["base", "adapter"].map(|part| {
        let path = fixture.join(part).into_os_string();
        [OsString::from(format!("--{part}")), path]
    });
    let args = args.into_iter().flatten().chain(["--device=cpu".into(), "--out".into()]);
    run(&Options::parse(args.chain([out.clone().into()]))?.expect("options"), &mut Vec::new())?;

    let base_path = weights(&fixture.join("base"));
    let mut got = TensorFile::open(out.join(base_path.file_name().expect("a name")))?;
    let mut want = TensorFile::open(fixture.join("expected.safetensors"))?;
    let base = TensorFile::open(&base_path)?;
    assert!(!want.entries().is_empty());
    let bytes = |file: &TensorFile, name: &str| -> Result<Vec<u8>> {
        let range = file.entries()[name].bytes.clone();
        Ok(fs::read(file.path())?[range.start as usize..range.end as usize].to_vec())
    };
    let names: Vec<String> = got.entries().keys().cloned().collect();
    for name in want.entries().keys() {
        assert!(names.contains(name), "{name} is missing");
    }
    for tensor in names {
        let entry = got.entries()[&tensor].clone();
        let Some(want_entry) = want.entries().get(&tensor) else {
            assert_eq!(bytes(&got, &tensor)?, bytes(&base, &tensor)?, "{name}: {tensor}");
            continue;
        };
        assert_eq!(entry.dtype_name, want_entry.dtype_name, "{name}: {tensor}");
        assert_eq!(entry.shape, want_entry.shape, "{name}: {tensor}");
        let values = |file: &mut TensorFile| -> Result<Vec<f32>> {
            Ok(file.tensor(&tensor, &Device::cpu(), None)?.to_f32_vec()?)
        };
        let (got, want) = (values(&mut got)?, values(&mut want)?);
        let norm = |numbers: &mut dyn Iterator<Item = f64>| {
            numbers.map(|number| number * number).sum::<f64>().sqrt()
        };
        let pairs = got.iter().zip(&want);
        let error = norm(&mut pairs.map(|(&one, &other)| f64::from(one) - f64::from(other)));
        let error = error / norm(&mut want.iter().map(|&number| f64::from(number)));
        println!("{name}: {tensor} off by {error:.1e}");
        assert!(error <= bound, "{name}: {tensor} is off by {error:e}");
    }
    Ok(())
}

/// The only weights of a folder.
fn weights(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|end| end == "safetensors")).unwrap()
}

/// PEFT adds a rounding in f32 for each of the few products of an element.
const F32: f64 = 4.0 / (1 << 24) as f64;

fn of_kind(kind: &str) -> Vec<String> {
    let entries = fs::read_dir(fixtures()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<_> = names.filter(|name| name.starts_with(kind)).collect();
    assert!(!names.is_empty());
    names
}

#[test]
fn modules_with_other_names_merge_as_in_peft() -> Result<()> {
    for name in of_kind("names-") {
        assert_expected(&name, F32)?;
    }
    Ok(())
}

#[test]
fn adapters_of_other_programs_merge_as_there() -> Result<()> {
    for kind in ["mlx-", "mistral-", "kohya-", "diffusers-"] {
        for name in of_kind(kind) {
            assert_expected(&name, F32)?;
        }
    }
    Ok(())
}

/// Both round to bf16 twice, at the same places.
const SAME: f64 = 0.0;

#[test]
fn quantised_bases_merge_as_dequantised_ones_in_peft() -> Result<()> {
    for name in of_kind("packed-") {
        assert_expected(&name, SAME)?;
    }
    Ok(())
}
