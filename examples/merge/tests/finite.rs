//! Results that are not finite.

use super::{Setting, Weight, adapter, number, values, write};
use crate::Result;
use lora_kernels::half::{bf16, f16};
use lora_kernels::{Adapter, DType, Device, Scaling, Tensor};
use safetensors::Dtype;

/// A weight `q.weight` of [2, 3] with one element replaced, of which the merged value is
/// `w + 2 · 1 · 1`, and an adapter of which the first A is `a` and the first B is `b`.
fn setting(dtype: Dtype, w: f32, a: f32, b: f32) -> Setting {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    let numbers = (0..6).map(|i| if i == 4 { w } else { number(i) });
    let bytes = match dtype {
        Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => numbers.flat_map(|n| f16::from_f32(n).to_le_bytes()).collect(),
        _ => numbers.flat_map(|n| bf16::from_f32(n).to_le_bytes()).collect(),
    };
    let weight = Weight { name: "q.weight", dtype, shape: vec![2, 3], bytes };
    write(&setting.path("model.safetensors"), &[weight]);
    let tensor = |numbers: &[f32], shape: [usize; 2]| {
        Tensor::from_f32(&Device::cpu(), numbers, shape, DType::F32).unwrap()
    };
    let (a, b) = (tensor(&[a, 1.0, 1.0], [1, 3]), tensor(&[b, 1.0], [2, 1]));
    let adapter = Adapter::from_tensors(a, b, 2.0, Scaling::Standard).unwrap();
    setting.save_adapter(&[("q", adapter)]);
    setting
}

#[test]
fn merged_values_that_are_not_finite_are_refused() -> Result<()> {
    let largest = f32::from(bf16::MAX);
    for (dtype, w, words) in [
        (Dtype::F16, f32::INFINITY, "q.weight would not be finite: [1, 1] is inf"),
        (Dtype::F16, f32::NAN, "q.weight would not be finite: [1, 1] is NaN"),
        (Dtype::BF16, f32::NAN, "[1, 1] is NaN in the checkpoint and NaN merged"),
        (Dtype::F32, f32::NEG_INFINITY, "[1, 1] is -inf in the checkpoint"),
    ] {
        let setting = setting(dtype, w, 1.0, 1.0);
        let error = setting.error("model.safetensors", "out");
        assert!(error.contains(words) && error.contains("--allow-non-finite"), "{error}");
        setting.run("model.safetensors", "out", &["--allow-non-finite"])?;
        let merged = values(&setting.path("out"), "q.weight")[4];
        assert!(!merged.is_finite() && merged.is_nan() == w.is_nan(), "{merged}");
    }
    // Finite inputs, but the sum is more than the type holds.
    let setting = setting(Dtype::F16, 65504.0, 1.0, 1.0);
    for (scale, fits) in [("7", true), ("7.9", true), ("8", false), ("1e38", false)] {
        let result = setting.run("model.safetensors", "out", &["--scale", scale]);
        match result {
            Ok(_) => assert!(fits && values(&setting.path("out"), "q.weight")[4] == 65504.0),
            Err(error) => {
                assert!(!fits, "{scale}: {error}");
                assert!(error.to_string().contains("the largest f16 is 65504"), "{error}");
                // What was there is still there.
                assert_eq!(values(&setting.path("out"), "q.weight")[4], 65504.0);
            }
        }
    }
    let setting = self::setting(Dtype::F32, 0.5, 1e30, 1e30);
    assert!(setting.error("model.safetensors", "out").contains("[0, 0]"));
    let setting = self::setting(Dtype::BF16, largest, 1.0, 1.0);
    setting.run("model.safetensors", "out", &[])?;
    let error = setting.run("model.safetensors", "out", &["--scale", "6e35"]).unwrap_err();
    assert!(error.to_string().contains("the largest bf16"), "{error}");
    Ok(())
}

#[test]
fn adapters_that_are_not_finite_are_refused() -> Result<()> {
    for (a, b, words) in [
        (f32::NAN, 1.0, "A of the adapter q holds NaN"),
        (1.0, f32::INFINITY, "B of the adapter q holds inf"),
    ] {
        let setting = setting(Dtype::F32, 0.5, a, b);
        let error = setting.error("model.safetensors", "out");
        assert!(error.contains(words), "{error}");
        assert!(setting.run("model.safetensors", "", &["--dry-run"]).is_err());
        setting.run("model.safetensors", "out", &["--allow-non-finite"])?;
    }
    // Neither a weight without an adapter nor the adapter's own overflow in the type of A.
    let setting = Setting::new(DType::F32);
    setting.save_adapter(&[("b.q", adapter(4, 5, 2, DType::F32))]);
    setting.run("model.safetensors", "out", &[])?;
    Ok(())
}
