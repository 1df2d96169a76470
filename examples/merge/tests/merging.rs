//! What changes, and what does not.

use super::{Setting, adapter, assert_merged, sharded, three, values, weight, write};
use crate::Result;
use approx::assert_abs_diff_eq;
use lora_kernels::{Adapter, DType, Device, Scaling, Tensor};
use safetensors::Dtype;
use std::fs;
#[test]
fn adapted_weights_change_and_nothing_else() -> Result<()> {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let setting = Setting::new(dtype);
        let said = setting.run("model.safetensors", "out.safetensors", &[])?;
        assert!(said.contains("7 tensors in 1 files"), "{said}");
        assert!(said.contains("merged   3 of 7 tensors"), "{said}");
        let [base, out] = ["model.safetensors", "out.safetensors"].map(|name| setting.path(name));
        assert_merged(&base, &out, &three(dtype), 1.0);
        // Nothing else is left behind: the base, two files of the adapter, the output.
        assert_eq!(setting.files().len(), 4);
    }
    Ok(())
}

#[test]
fn the_scale_is_multiplied() -> Result<()> {
    let setting = Setting::new(DType::F32);
    let [base, half, none, out, back] =
        ["model.safetensors", "half", "none", "out", "back"].map(|name| setting.path(name));
    setting.run("model.safetensors", "half", &["--scale", "-0.5"])?;
    assert_merged(&base, &half, &three(DType::F32), -0.5);
    setting.run("model.safetensors", "none", &["--scale", "0"])?;
    assert!(fs::read(&base)? == fs::read(none)?, "nothing is added");
    setting.run("model.safetensors", "out", &[])?;
    setting.run("out", "back", &["--scale=-1"])?;
    let [was, is] = [&base, &back].map(|file| values(file, "b.q.weight"));
    assert_abs_diff_eq!(is[..], was[..], epsilon = 1e-6);
    assert!(fs::read(&base)? != fs::read(out)? && base != back);
    Ok(())
}

/// A GPU rounds A and B to the weight's type, so they are of that type here; f32 is on the CPU.
#[test]
#[ignore = "needs a CUDA GPU"]
fn a_gpu_merges_as_the_cpu() -> Result<()> {
    for dtype in [DType::Bf16, DType::F16] {
        let setting = Setting::new(dtype);
        let said = setting.run("model.safetensors", "out", &["--device=cuda:0"])?;
        assert!(said.contains("device   cuda:0") && said.contains("f32 on the CPU"), "{said}");
        let (base, out) = (setting.path("model.safetensors"), setting.path("out"));
        let rounded = three(DType::F32).map(|(module, adapter)| {
            let of = |own: &Tensor, dtype| {
                Tensor::from_f32(&Device::cpu(), &own.to_f32_vec().unwrap(), own.shape(), dtype)
            };
            let weight = if module == "a.k" { DType::F16 } else { DType::Bf16 };
            // What the file holds, then what the GPU makes of it.
            let of = |own| {
                let file = of(own, dtype).unwrap();
                if module == "b.q" { file } else { of(&file, weight).unwrap() }
            };
            let (a, b) = (of(adapter.a()), of(adapter.b()));
            (module, Adapter::from_tensors(a, b, 4.0, Scaling::Standard).unwrap())
        });
        assert_merged(&base, &out, &rounded, 1.0);
    }
    Ok(())
}

/// More than is read at a time, with rows that do not divide it.
#[test]
fn large_weights_are_merged_in_parts() -> Result<()> {
    let setting = Setting { dir: tempfile::tempdir()? };
    let (d, k) = (2301, 2003);
    write(
        &setting.path("model.safetensors"),
        &[
            weight("first", Dtype::F32, &[3]),
            weight("q.weight", Dtype::BF16, &[d, k]),
            weight("wide.weight", Dtype::BF16, &[2, 4_200_000]),
            weight("z", Dtype::BF16, &[4_200_001]),
        ],
    );
    let adapters =
        [("q", adapter(d, k, 2, DType::F32)), ("wide", adapter(2, 4_200_000, 1, DType::F32))];
    setting.save_adapter(&adapters);
    setting.run("model.safetensors", "out", &[])?;
    assert_merged(&setting.path("model.safetensors"), &setting.path("out"), &adapters, 1.0);
    Ok(())
}

#[test]
fn sharded_checkpoints_keep_their_files() -> Result<()> {
    let setting = sharded(DType::F32);
    for (base, out) in [("base/model.safetensors.index.json", "one"), ("base", "other")] {
        let said = setting.run(base, out, &[])?;
        assert!(said.contains("merged   3 of 5 tensors"), "{said}");
        for name in ["model-1.safetensors", "model-2.safetensors"] {
            let [base, out] = ["base", out].map(|dir| setting.path(dir).join(name));
            assert_merged(&base, &out, &three(DType::F32), 1.0);
        }
        for name in ["model-3.safetensors", "model.safetensors.index.json"] {
            let [base, out] = ["base", out].map(|dir| fs::read(setting.path(dir).join(name)));
            assert!(base? == out?, "{name}");
        }
        assert_eq!(fs::read_dir(setting.path(out))?.count(), 4);
    }
    Ok(())
}

#[test]
fn a_dry_run_writes_nothing() -> Result<()> {
    let setting = sharded(DType::F32);
    let before = setting.files();
    for out in ["", "out"] {
        let said = setting.run("base", out, &["--dry-run", "--scale=3"])?;
        assert!(
            said.contains("model-1.safetensors: a.q.weight [6, 4] BF16, rank 2, scale 6"),
            "{said}"
        );
        assert!(said.contains("model-2.safetensors: b.q.weight [4, 5] F32"), "{said}");
        assert!(said.contains("3 of 5 tensors would change") && !said.contains("head"), "{said}");
        assert_eq!(setting.files(), before);
        assert!(!setting.path("out").exists());
    }
    Ok(())
}
