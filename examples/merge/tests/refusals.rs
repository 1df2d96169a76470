//! What is refused, and leaves all files as they are.

use super::{Setting, adapter, assert_merged, sharded, three, weight, write};
use crate::Result;
use lora_kernels::DType;
use safetensors::Dtype;
use std::fs;
use std::path::PathBuf;

#[cfg(unix)]
#[test]
fn the_input_is_not_overwritten() {
    let setting = Setting::new(DType::F32);
    let link = std::os::unix::fs::symlink::<PathBuf, PathBuf>;
    link(setting.path("model.safetensors"), setting.path("link")).unwrap();
    fs::hard_link(setting.path("model.safetensors"), setting.path("hard")).unwrap();
    for out in
        ["model.safetensors", "./model.safetensors", "adapter/../model.safetensors", "link", "hard"]
    {
        assert!(setting.error("model.safetensors", out).contains("is the input"), "{out}");
    }
    assert!(setting.error("link", "model.safetensors").contains("is the input"));
    let adapter = "adapter/adapter_model.safetensors";
    assert!(setting.error("model.safetensors", adapter).contains("is the input"));
    assert!(setting.error("model.safetensors", "adapter").contains("is the input"));

    let setting = sharded(DType::F32);
    let elsewhere = tempfile::tempdir().unwrap();
    link(setting.path("base"), elsewhere.path().join("link")).unwrap();
    let linked = elsewhere.path().join("link");
    for out in ["base", linked.to_str().unwrap()] {
        assert!(setting.error("base", out).contains("is the input"), "{out}");
    }
}

#[test]
fn another_file_in_the_place_is_replaced() -> Result<()> {
    let setting = Setting::new(DType::F32);
    fs::write(setting.path("out"), "old")?;
    setting.run("model.safetensors", "out", &[])?;
    assert_merged(
        &setting.path("model.safetensors"),
        &setting.path("out"),
        &three(DType::F32),
        1.0,
    );
    Ok(())
}

#[test]
fn adapters_without_a_weight_are_named() {
    let setting = Setting::new(DType::F32);
    for (module, d, k, words) in [
        ("a.nowhere", 6, 4, "has no a.nowhere.weight for the adapter a.nowhere"),
        ("embed", 6, 7, "embed.weight has shape [5, 6], but the adapter embed is for [6, 7]"),
    ] {
        setting.save_adapter(&[
            ("a.q", adapter(6, 4, 2, DType::F32)),
            (module, adapter(d, k, 2, DType::F32)),
        ]);
        let error = setting.error("model.safetensors", "out");
        assert!(error.contains(words), "{error}");
    }
    write(&setting.path("ints"), &[weight("a.q.weight", Dtype::I64, &[6, 4])]);
    setting.save_adapter(&[("a.q", adapter(6, 4, 2, DType::F32))]);
    assert!(setting.error("ints", "out").contains("a.q.weight holds I64"));
}

#[test]
fn broken_checkpoints_are_named() {
    let setting = sharded(DType::F32);
    assert!(setting.error("nowhere", "out").contains("nowhere"));
    for (files, words) in [
        (&[("a.q.weight", "../base/model-1.safetensors")][..], "no plain name"),
        (&[("a.q.weight", "/dev/zero")], "no plain name"),
        (&[("a.q.weight", "..")], "no plain name"),
        (&[("a.q.weight", "model-9.safetensors")], "model-9.safetensors"),
        (&[("a.q.weight", "model-2.safetensors")], "a.q.weight is not in"),
        (&[("a.q.weight", "model-1.safetensors")], "has no a.k.weight"),
        (&[], "no tensors"),
    ] {
        setting.write_index(files);
        let error = setting.error("base", "out");
        assert!(error.contains(words), "{error}");
    }
    fs::write(setting.path("base/model.safetensors.index.json"), "{").unwrap();
    assert!(setting.error("base", "out").contains("index.json"));
}
