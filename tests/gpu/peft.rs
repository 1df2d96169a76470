//! Adapters that PEFT made, on a GPU in bf16 against PEFT's own numbers in f32.

#![cfg(feature = "peft")]

use crate::cuda::cuda_paths;
use crate::oracle::{relative_error, unit_roundoff};
use crate::peft_fixtures::weights;
use crate::peft_fixtures::{CASES, DROPOUT, base, expected, fixture, layers_with_dropout, run};
use lora_kernels::{DType, LoraLinear, Result, peft};

/// bf16 holds weights and inputs of the fixtures exactly, so all that is rounded is S, H, dS and
/// dX, each by about 0.4 u of its norm: S under H and dB, dS under dX and dA. Computed in f64 with
/// those roundings, no output of any case is off by more than 0.66 u. Sums in f32 are of no account
/// beside that.
#[test]
#[ignore = "needs a CUDA GPU"]
fn outputs_and_gradients_are_those_of_peft() -> Result<()> {
    let (dtype, bound) = (DType::Bf16, unit_roundoff(DType::Bf16));
    for device in cuda_paths() {
        for case in CASES {
            let loaded = peft::load(fixture(case), &device, Some(dtype))?;
            assert_eq!(loaded.adapters.len(), 4, "{case}");
            for (module, adapter) in loaded.adapters {
                let layer = LoraLinear::new(base(&module, &device, dtype), adapter)?;
                let want = expected(case, &module);
                for (name, got) in run(&layer, &module)? {
                    let error = relative_error(&got.1, &want[name].1);
                    println!("{case} {module}: {name} off by {error:.1e}, bound {bound:.1e}");
                    assert!(error <= bound, "{case} {module}: {name} is off by {error:e}");
                }
            }
        }
    }
    Ok(())
}

/// The bound is that without dropout: the factor 1 / (1 − p) is applied to sums in f32.
#[test]
#[ignore = "needs a CUDA GPU"]
fn training_with_dropout_is_that_of_peft() -> Result<()> {
    for dtype in [DType::Bf16, DType::F16] {
        let bound = unit_roundoff(dtype);
        for device in cuda_paths() {
            for (module, layer) in layers_with_dropout(&device, dtype)? {
                let want = expected(DROPOUT, &module);
                for (name, got) in run(&layer, &module)? {
                    let error = relative_error(&got.1, &want[name].1);
                    println!("{module}, {dtype}: {name} off by {error:.1e}, bound {bound:.1e}");
                    assert!(error <= bound, "{module}, {dtype}: {name} is off by {error:e}");
                }
            }
        }
    }
    Ok(())
}

/// What is saved from a GPU is what was loaded onto it.
#[test]
#[ignore = "needs a CUDA GPU"]
fn adapters_on_a_gpu_are_saved() -> Result<()> {
    let [device, _] = cuda_paths();
    let loaded = peft::load(fixture("plain-r4-bfloat16"), &device, None)?;
    let dir = tempfile::tempdir().unwrap();
    let adapters = loaded.adapters.iter().map(|(module, a)| (module.as_str(), a));
    peft::save(dir.path(), &loaded.config, adapters)?;
    assert!(weights(dir.path()) == weights(&fixture("plain-r4-bfloat16")));
    Ok(())
}
