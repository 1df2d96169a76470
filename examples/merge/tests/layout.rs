//! Weights stored as [k, d].

use super::{Setting, adapter, values, weight, write};
use crate::Result;
use approx::abs_diff_eq;
use lora_kernels::{Adapter, DType};
use safetensors::Dtype;
use std::fs;

const GPT2: &str = r#"{"model_type": "gpt2"}"#;
const NESTED: &str = r#"{"model_type": "x", "decoder": {"model_type": "gpt2"}}"#;
const LLAMA: &str = r#"{"model_type": "llama"}"#;

/// Fails unless the weight, stored as [k, d] or as [d, k], got the update of the adapter.
fn assert_updated(setting: &Setting, name: &str, adapter: &Adapter, transposed: bool) {
    let (a, b) = (adapter.a().to_f32_vec().unwrap(), adapter.b().to_f32_vec().unwrap());
    let (r, k, d) = (adapter.rank(), adapter.a().shape().cols(), adapter.b().shape().rows());
    let (old, new) =
        (values(&setting.path("model.safetensors"), name), values(&setting.path("out"), name));
    for (i, (old, new)) in old.iter().zip(new).enumerate() {
        let (row, col) = if transposed { (i % d, i / d) } else { (i / k, i % k) };
        let sum: f32 = (0..r).map(|j| b[row * r + j] * a[j * k + col]).sum();
        let want = old + adapter.scale() * sum;
        let near = abs_diff_eq!(new, want, epsilon = 1e-5);
        assert!(near, "{name}[{i}] is {new}, not {want}");
    }
}

/// A checkpoint with `h.c_proj.weight`, square, and an adapter of it and `more` modules.
fn square(more: &[(&'static str, [usize; 2], Option<usize>)], fan_in_fan_out: bool) -> Setting {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    let mut weights = vec![
        weight("h.c_proj.weight", Dtype::F32, &[6, 6]),
        weight("lm_head.weight", Dtype::F32, &[6, 6]),
    ];
    for &(module, shape, bias) in more {
        let name = |end: &str| -> &'static str { format!("{module}.{end}").leak() };
        weights.push(weight(name("weight"), Dtype::F32, &shape));
        weights.extend(bias.map(|d| weight(name("bias"), Dtype::F32, &[d])));
    }
    write(&setting.path("model.safetensors"), &weights);
    setting.save_adapter(&[
        ("h.c_proj", adapter(6, 6, 2, DType::F32)),
        ("lm_head", adapter(6, 6, 2, DType::F32)),
    ]);
    setting.set_fan_in_fan_out(fan_in_fan_out);
    setting
}

impl Setting {
    fn set_fan_in_fan_out(&self, value: bool) {
        let path = self.path("adapter/adapter_config.json");
        let text = fs::read_to_string(&path).unwrap();
        let old = "\"fan_in_fan_out\": false";
        assert!(text.contains(old), "{text}");
        fs::write(path, text.replace(old, &format!("\"fan_in_fan_out\": {value}"))).unwrap();
    }
}

#[test]
fn shapes_decide_where_they_can() -> Result<()> {
    for fan_in_fan_out in [false, true] {
        for dtype in [DType::F32, DType::Bf16] {
            let setting = Setting { dir: tempfile::tempdir()? };
            write(
                &setting.path("model.safetensors"),
                &[
                    weight("c_attn.weight", Dtype::F32, &[4, 12]),
                    weight("head.weight", Dtype::F32, &[12, 4]),
                ],
            );
            let adapters =
                [("c_attn", adapter(12, 4, 3, dtype)), ("head", adapter(12, 4, 3, dtype))];
            setting.save_adapter(&adapters);
            setting.set_fan_in_fan_out(fan_in_fan_out);
            let said = setting.run("model.safetensors", "", &["--dry-run"])?;
            assert!(said.contains("c_attn.weight [4, 12] F32, rank 3, scale 2, stored"), "{said}");
            setting.run("model.safetensors", "out", &[])?;
            assert_updated(&setting, "c_attn.weight", &adapters[0].1, true);
            assert_updated(&setting, "head.weight", &adapters[1].1, false);
        }
    }
    Ok(())
}

#[test]
fn transposed_weights_are_merged_in_parts() -> Result<()> {
    let setting = Setting { dir: tempfile::tempdir()? };
    write(&setting.path("model.safetensors"), &[weight("q.weight", Dtype::F32, &[1301, 2003])]);
    let adapter = adapter(2003, 1301, 2, DType::F32);
    setting.save_adapter(&[("q", adapter)]);
    setting.run("model.safetensors", "out", &[])?;
    assert_updated(&setting, "q.weight", &super::adapter(2003, 1301, 2, DType::F32), true);
    Ok(())
}

#[test]
fn the_checkpoint_decides_for_square_weights() -> Result<()> {
    let conv1d = ("h.c_attn", [6, 18], Some(18));
    let linear = ("h.c_attn", [18, 6], Some(18));
    for (more, config, fan_in_fan_out, transposed) in [
        (&[conv1d][..], None, false, true),
        (&[conv1d], Some(LLAMA), false, true),
        (&[linear], None, false, false),
        (&[linear], Some(GPT2), true, false),
        (&[], Some(GPT2), false, true),
        (&[], Some(NESTED), false, true),
        (&[], Some(LLAMA), true, false),
        // Says nothing: without a bias, either may be.
        (&[("h.c_attn", [6, 18], None)], Some(GPT2), false, true),
    ] {
        let setting = square(more, fan_in_fan_out);
        if let Some(config) = config {
            fs::write(setting.path("config.json"), config)?;
        }
        setting.run("model.safetensors", "out", &[])?;
        let adapter = adapter(6, 6, 2, DType::F32);
        assert_updated(&setting, "h.c_proj.weight", &adapter, transposed);
        assert_updated(&setting, "lm_head.weight", &adapter, false);
    }
    Ok(())
}

#[test]
fn square_weights_that_nothing_tells_of_are_refused() -> Result<()> {
    for (fan_in_fan_out, config, module) in [
        (false, None, "h.c_proj"),
        (false, Some("{}"), "h.c_proj"),
        // c_proj is one, then, but lm_head may not be.
        (true, None, "lm_head"),
    ] {
        let setting = square(&[], fan_in_fan_out);
        if let Some(config) = config {
            fs::write(setting.path("config.json"), config)?;
        }
        let error = setting.error("model.safetensors", "out");
        assert!(error.starts_with(module) && error.contains("--transposed yes"), "{error}");
        for (how, transposed) in [("yes", true), ("no", false)] {
            setting.run("model.safetensors", "out", &["--transposed", how])?;
            let adapter = adapter(6, 6, 2, DType::F32);
            assert_updated(&setting, "h.c_proj.weight", &adapter, transposed);
        }
    }
    Ok(())
}
