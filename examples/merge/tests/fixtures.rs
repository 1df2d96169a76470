//! Checkpoints, adapters and merged checkpoints of other programs: tests/fixtures/merge/make.py.

use crate::args::Options;
use crate::{run, Result};
use lora_kernels::peft::TensorFile;
use lora_kernels::Device;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/merge")
}

/// Merges a fixture's adapter and fails unless the output has the expected tensors: the same bits
/// where the base has them, too, and otherwise an error of at most `bound`, in norm.
fn assert_expected(name: &str, bound: f64) -> Result<()> {
    let fixture = fixtures().join(name);
    let out = tempfile::tempdir()?;
    let out = out.path().join("out");
    let args = ["base", "adapter"].map(|part| {
        let path = fixture.join(part).into_os_string();
        [OsString::from(format!("--{part}")), path]
    });
    let args = args.into_iter().flatten().chain(["--device=cpu".into(), "--out".into()]);
    run(&Options::parse(args.chain([out.clone().into()]))?.expect("options"), &mut Vec::new())?;

    let open = |path: &Path| TensorFile::open(path);
    let mut got = open(&out.join("model.safetensors"))?;
    let mut want = open(&fixture.join("expected.safetensors"))?;
    let mut base = open(&fixture.join("base/model.safetensors"))?;
    assert!(got.entries().keys().eq(want.entries().keys()), "{name}: the names of the tensors");
    let mut changed = 0;
    let names: Vec<String> = want.entries().keys().cloned().collect();
    for tensor in names {
        let (got_entry, want_entry) = (&got.entries()[&tensor], &want.entries()[&tensor]);
        assert_eq!(got_entry.dtype_name, want_entry.dtype_name, "{name}: {tensor}");
        assert_eq!(got_entry.shape, want_entry.shape, "{name}: {tensor}");
        if want_entry.shape.is_empty() {
            continue;
        }
        let values = |file: &mut TensorFile| -> Result<Vec<f32>> {
            Ok(file.tensor(&tensor, &Device::cpu(), None)?.to_f32_vec()?)
        };
        let (got, want) = (values(&mut got)?, values(&mut want)?);
        let same = base.entries().get(&tensor).is_some_and(|entry| entry.dtype.is_some())
            && values(&mut base)? == want;
        if same {
            assert_eq!(got, want, "{name}: {tensor} does not change");
            continue;
        }
        changed += 1;
        let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|n| n * n).sum::<f64>();
        let pairs =
            || got.iter().zip(&want).map(|(&one, &other)| f64::from(one) - f64::from(other));
        let error = norm(&mut pairs()) / norm(&mut want.iter().map(|&n| f64::from(n)));
        println!("{name}: {tensor} off by {:.1e}", error.sqrt());
        assert!(error.sqrt() < bound, "{name}: {tensor} is off by {:e}", error.sqrt());
    }
    assert!(changed > 0, "{name} changes something");
    Ok(())
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
