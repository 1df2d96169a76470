//! Bases that are quantised, wrapped, or not whole.

use super::{Setting, adapter, assert_merged, weight, write};
use crate::Result;
use lora_kernels::DType;
use safetensors::Dtype;
use std::fs;

fn setting() -> Setting {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    setting.save_adapter(&[("q", adapter(6, 4, 2, DType::F32))]);
    setting
}

#[test]
fn quantised_and_wrapped_bases_are_named() {
    for (names, dtype, config, words) in [
        (&["q.weight", "q.weight.absmax"][..], Dtype::U8, "{}", "4 bits, without its quant_state"),
        (&["q.weight", "q.weight_format"], Dtype::I8, "{}", "8 bits, without its SCB"),
        (&["q.qweight", "q.qzeros", "q.scales"], Dtype::I32, "{}", "GPTQ or AWQ"),
        (
            &["q.qweight"],
            Dtype::I32,
            r#"{"quantization_config": {"quant_method": "awq"}}"#,
            "quantised (awq)",
        ),
        (&["q.weight"], Dtype::F8_E4M3, "{}", "FP8, F8_E4M3, without a scale"),
        (&["q.weight_packed"], Dtype::I32, "{}", "compressed-tensors"),
        (&["q.base_layer.weight"], Dtype::F32, "{}", "merge_and_unload()"),
        (&["base_model.model.q.weight"], Dtype::F32, "{}", "merge_and_unload()"),
    ] {
        let setting = setting();
        let bytes = vec![0; 24 * dtype.bitsize() / 8];
        let view = || safetensors::tensor::TensorView::new(dtype, vec![6, 4], &bytes).unwrap();
        let file = safetensors::serialize(names.iter().map(|name| (*name, view())), None).unwrap();
        fs::write(setting.path("model.safetensors"), file).unwrap();
        fs::write(setting.path("config.json"), config).unwrap();
        let error = setting.error("model.safetensors", "out");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn git_lfs_pointers_are_named() {
    let setting = setting();
    fs::write(
        setting.path("model.safetensors"),
        "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n",
    )
    .unwrap();
    assert!(setting.error("model.safetensors", "out").contains("git lfs pull"));
}

#[test]
fn shards_without_an_index_are_read_if_all_are_there() -> Result<()> {
    let setting = setting();
    fs::create_dir(setting.path("base"))?;
    assert!(setting.error("base", "out").contains("has no model.safetensors"));
    fs::write(setting.path("base/pytorch_model.bin"), "")?;
    assert!(setting.error("base", "out").contains("a pickle file"));
    let shard = |n: usize| format!("base/model-0000{n}-of-00002.safetensors");
    write(&setting.path(&shard(1)), &[weight("q.weight", Dtype::F32, &[6, 4])]);
    assert!(setting.error("base", "out").contains("not each of 2 shards once: 1 are there"));
    write(&setting.path(&shard(2)), &[weight("q.weight", Dtype::F32, &[6, 4])]);
    assert!(setting.error("base", "out").contains("q.weight is in another shard"));
    write(&setting.path(&shard(2)), &[weight("head", Dtype::F32, &[6])]);
    setting.run("base", "out", &[])?;
    let adapters = [("q", adapter(6, 4, 2, DType::F32))];
    let out = setting.path("out/model-00001-of-00002.safetensors");
    assert_merged(&setting.path(&shard(1)), &out, &adapters, 1.0);
    // The output has an index, so it is a base as well.
    setting.run("out/model.safetensors.index.json", "again", &["--scale=-1"])?;
    assert_eq!(fs::read_dir(setting.path("again"))?.count(), 3);
    Ok(())
}
