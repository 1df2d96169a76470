//! PEFT's own numbers: adapters that it made, and adapters made here for it to load.
//!
//! `tests/fixtures/peft/make.py` made the fixtures, and with `--check` compares what
//! `LORA_KERNELS_PEFT_OUT=DIR cargo test --features peft --test cpu peft::` leaves in DIR.

use crate::common::assert_same_bits;
use crate::common::random::{reals, rng};
use crate::oracle::{relative_error, unit_roundoff};
use crate::peft_fixtures::{CASES, DROPOUT, Outputs, base, expected, fixture};
use crate::peft_fixtures::{layers_with_dropout, run, weights};
use half::{bf16, f16};
use lora_kernels::peft::{self, Config};
use lora_kernels::{Adapter, DType, Device, Error, LoraLinear, Result, Scaling, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// PEFT adds up to 64 products in f32, up to two such sums one after the other. The error of one is
/// about √64 · 2⁻²⁴ of its norm; the crate's own is that of one rounding.
const F32_SUMS: f64 = 2.0 * 8.0 / (1 << 24) as f64;

/// Fails if an output or gradient is further from PEFT's, in norm, than the bound.
fn assert_near_peft(dtype: DType, bound: f64) -> Result<()> {
    let cpu = Device::cpu();
    for case in CASES {
        let loaded = peft::load(fixture(case), &cpu, Some(dtype))?;
        assert_eq!(loaded.adapters.len(), 4, "{case}");
        for (module, adapter) in loaded.adapters {
            let layer = LoraLinear::new(base(&module, &cpu, dtype), adapter)?;
            let want = expected(case, &module);
            for (name, got) in run(&layer, &module)? {
                assert_eq!(got.0, want[name].0, "{case} {module}: the shape of {name}");
                let error = relative_error(&got.1, &want[name].1);
                println!("{case} {module}, {dtype}: {name} off by {error:.1e}");
                assert!(error < bound, "{case} {module}, {dtype}: {name} is off by {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn outputs_and_gradients_are_those_of_peft() -> Result<()> {
    assert_near_peft(DType::F32, F32_SUMS)
}

/// tests/gpu/peft.rs says why the unit roundoff is a bound.
#[test]
fn in_sixteen_bits_they_are_off_by_their_rounding() -> Result<()> {
    assert_near_peft(DType::Bf16, unit_roundoff(DType::Bf16))?;
    assert_near_peft(DType::F16, unit_roundoff(DType::F16))
}

#[test]
fn training_with_dropout_is_that_of_peft() -> Result<()> {
    let u = unit_roundoff;
    for (dtype, bound) in
        [(DType::F32, F32_SUMS), (DType::Bf16, u(DType::Bf16)), (DType::F16, u(DType::F16))]
    {
        let layers = layers_with_dropout(&Device::cpu(), dtype)?;
        assert_eq!(layers.len(), 4);
        for (module, layer) in layers {
            assert_eq!(layer.dropout().map(|dropout| dropout.p()), Some(0.25));
            let want = expected(DROPOUT, &module);
            for (name, got) in run(&layer, &module)? {
                let error = relative_error(&got.1, &want[name].1);
                assert!(error < bound, "{module}, {dtype}: {name} is off by {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn ranks_and_scales_are_those_of_the_configuration() -> Result<()> {
    let load = |case| peft::load(fixture(case), &Device::cpu(), None);
    let shown = |case| -> Result<Vec<(String, usize, f32, Scaling)>> {
        let adapters = load(case)?.adapters.into_iter();
        Ok(adapters.map(|(module, a)| (module, a.rank(), a.alpha(), a.scaling())).collect())
    };
    let (plain, stable) = (Scaling::Standard, Scaling::RankStabilized);
    let of = |scaling, values: [(usize, f32); 4]| -> Vec<_> {
        let modules = ["layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.q", "layers.1.mlp.up"];
        let pairs = modules.iter().zip(values);
        pairs.map(|(module, (r, alpha))| (module.to_string(), r, alpha, scaling)).collect()
    };
    assert_eq!(shown("plain-r4")?, of(plain, [(4, 16.0); 4]));
    assert_eq!(shown("rslora-r64")?, of(stable, [(64, 16.0); 4]));
    // As PEFT takes them: the first key that matches counts, in the order of the file.
    let values = [(8, 0.3), (3, 12.0), (6, 12.0), (6, 5.0)];
    assert_eq!(shown("patterns")?, of(plain, values));
    let values = [(5, 1.0), (2, 4.0), (7, 4.0), (2, 9.0)];
    assert_eq!(shown("patterns-rslora")?, of(stable, values));
    Ok(())
}

#[test]
fn sixteen_bits_hold_the_same_values() -> Result<()> {
    let cpu = Device::cpu();
    let f32s = peft::load(fixture("plain-r4"), &cpu, None)?.adapters;
    for (case, dtype) in [("plain-r4-bfloat16", DType::Bf16), ("plain-r4-float16", DType::F16)] {
        let own = peft::load(fixture(case), &cpu, None)?.adapters;
        let widened = peft::load(fixture(case), &cpu, Some(DType::F32))?.adapters;
        let narrowed = peft::load(fixture("plain-r4"), &cpu, Some(dtype))?.adapters;
        for (module, adapter) in &f32s {
            let (a, b) = (adapter.a().to_vec::<f32>()?, adapter.b().to_vec::<f32>()?);
            for (adapters, dtype) in [(&own, dtype), (&widened, DType::F32), (&narrowed, dtype)] {
                let adapter = &adapters[module];
                assert_eq!((adapter.a().dtype(), adapter.b().dtype()), (dtype, dtype));
                assert_same_bits("A", &adapter.a().to_f32_vec()?, &a);
                assert_same_bits("B", &adapter.b().to_f32_vec()?, &b);
            }
        }
    }
    Ok(())
}

/// Saves adapters and what they compute, for make.py --check; then loads them again and compares.
fn save_and_load(name: &str, config: &Config, adapters: BTreeMap<String, Adapter>) -> Result<()> {
    let temporary = tempfile::tempdir().unwrap();
    let root = std::env::var_os("LORA_KERNELS_PEFT_OUT").map(PathBuf::from);
    let dir = root.as_deref().unwrap_or(temporary.path()).join(name);
    let cpu = Device::cpu();

    peft::save(&dir, config, adapters.iter().map(|(module, adapter)| (module.as_str(), adapter)))?;
    let again = peft::load(&dir, &cpu, None)?.adapters;
    assert!(again.keys().eq(adapters.keys()), "{name}");
    let mut outputs = Outputs::new();
    for (module, adapter) in adapters {
        let other = &again[&module];
        assert_eq!((other.rank(), other.alpha()), (adapter.rank(), adapter.alpha()), "{name}");
        assert_eq!(other.scaling(), adapter.scaling(), "{name}");
        assert_eq!(other.a().dtype(), adapter.a().dtype(), "{name}");
        assert_same_bits("A", &other.a().to_f32_vec()?, &adapter.a().to_f32_vec()?);
        assert_same_bits("B", &other.b().to_f32_vec()?, &adapter.b().to_f32_vec()?);

        // PEFT computes in f32 on a CPU, whatever the file holds.
        let widened = |tensor: &Tensor| {
            Tensor::from_f32(&cpu, &tensor.to_f32_vec()?, tensor.shape(), DType::F32)
        };
        let (a, b) = (widened(adapter.a())?, widened(adapter.b())?);
        let adapter = Adapter::from_tensors(a, b, adapter.alpha(), adapter.scaling())?;
        let layer = LoraLinear::new(base(&module, &cpu, DType::F32), adapter)?;
        for (output, values) in run(&layer, &module)? {
            outputs.insert(format!("{module}.{output}"), values);
        }
    }
    if root.is_some() {
        write(&dir.join("crate.safetensors"), &outputs);
    }
    Ok(())
}

/// Writes f32 tensors as a safetensors file.
fn write(path: &Path, tensors: &Outputs) {
    let views = tensors.iter().map(|(name, (shape, values))| {
        let (dtype, bytes) = (safetensors::Dtype::F32, bytemuck::cast_slice(values));
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn trained_adapters_are_saved() -> Result<()> {
    let cpu = Device::cpu();
    for case in CASES.into_iter().chain(["plain-r4-bfloat16", "plain-r4-float16"]) {
        let mut loaded = peft::load(fixture(case), &cpu, None)?;
        for adapter in loaded.adapters.values_mut() {
            // As after a step of training: every number is another one.
            let (a, b) = adapter.tensors_mut();
            for tensor in [a, b] {
                let values: Vec<f32> = tensor.to_f32_vec()?.iter().map(|v| v * 0.75).collect();
                tensor.copy_from_f32(&values)?;
            }
        }
        save_and_load(&format!("trained-{case}"), &loaded.config, loaded.adapters)?;
    }
    Ok(())
}

/// An adapter for the fixture's layer of this path.
fn new_adapter(module: &str, rank: usize, alpha: f32, scaling: Scaling, dtype: DType) -> Adapter {
    let cpu = Device::cpu();
    let w0 = base(module, &cpu, dtype);
    let (d, k) = (w0.shape().rows(), w0.shape().cols());
    let mut rng = rng(rank as u64);
    let a = Tensor::from_f32(&cpu, &reals(&mut rng, rank * k, 0.5), [rank, k], dtype).unwrap();
    let b = Tensor::from_f32(&cpu, &reals(&mut rng, d * rank, 0.5), [d, rank], dtype).unwrap();
    Adapter::from_tensors(a, b, alpha, scaling).unwrap()
}

/// Ranks and alphas of all sorts, of modules one of whose names is the end of the other's.
#[test]
fn new_adapters_are_saved() -> Result<()> {
    let modules = ["layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.q", "layers.1.head"];
    for (name, scaling) in [("plain", Scaling::Standard), ("rslora", Scaling::RankStabilized)] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let values = [(8, 16.0), (3, 0.1), (8, 1.5), (16, 16.0)];
            let adapters = modules.into_iter().zip(values).map(|(module, (rank, alpha))| {
                (module.to_string(), new_adapter(module, rank, alpha, scaling, dtype))
            });
            let config = Config::default().with_task_type("FEATURE_EXTRACTION");
            save_and_load(&format!("new-{name}-{dtype}"), &config, adapters.collect())?;
        }
    }
    Ok(())
}

/// Fewer modules than were loaded, and one with another rank: the targets and patterns of the
/// file would not do any more.
#[test]
fn changed_adapters_are_saved() -> Result<()> {
    let mut loaded = peft::load(fixture("patterns-rslora"), &Device::cpu(), None)?;
    loaded.adapters.remove("layers.0.attn.v").expect("an adapter of v");
    let adapter = new_adapter("layers.1.mlp.up", 4, 9.0, Scaling::RankStabilized, DType::F32);
    loaded.adapters.insert("layers.1.mlp.up".into(), adapter);
    save_and_load("changed-patterns-rslora", &loaded.config, loaded.adapters)
}

fn config_of(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
}

/// The same, as PEFT has to read it.
#[test]
fn changed_modules_are_named_in_the_configuration() -> Result<()> {
    let mut loaded = peft::load(fixture("patterns-rslora"), &Device::cpu(), None)?;
    loaded.adapters.remove("layers.0.attn.v").expect("an adapter of v");
    let dir = tempfile::tempdir().unwrap();
    let save = |config: &Config, adapters: &BTreeMap<String, Adapter>| {
        peft::save(dir.path(), config, adapters.iter().map(|(module, a)| (module.as_str(), a)))
    };
    let settings = loaded.config.with_base_model("base").with_task_type("CAUSAL_LM");
    save(&settings.with_dropout(0.25)?, &loaded.adapters)?;
    let config = config_of(dir.path());
    let modules = ["layers.0.attn.q", "layers.1.attn.q", "layers.1.mlp.up"];
    assert_eq!(config["target_modules"], serde_json::json!(modules));
    // Ranks and alphas are as they were, so the patterns are too.
    assert_eq!(config["rank_pattern"], config_of(&fixture("patterns-rslora"))["rank_pattern"]);
    assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &4.into()));

    let again = peft::load(dir.path(), &Device::cpu(), None)?;
    assert_eq!(again.config.base_model(), Some("base"));
    assert_eq!(again.config.task_type(), Some("CAUSAL_LM"));
    assert_eq!(again.config.dropout(), 0.25);
    for p in [-0.5, 1.0, f64::NAN] {
        assert!(matches!(again.config.clone().with_dropout(p), Err(Error::Dropout { .. })));
    }

    // One module of another rank than before: the most frequent rank and alpha are for all.
    let scaling = Scaling::RankStabilized;
    let adapter = new_adapter("layers.1.mlp.up", 7, 4.0, scaling, DType::F32);
    loaded.adapters.insert("layers.1.mlp.up".into(), adapter);
    save(&again.config, &loaded.adapters)?;
    let config = config_of(dir.path());
    assert_eq!(config["r"], 7);
    let ranks = serde_json::json!({ r"^layers\.0\.attn\.q": 5 });
    assert_eq!(config["rank_pattern"], ranks);
    let alphas = serde_json::json!({ r"^layers\.0\.attn\.q": 1 });
    assert_eq!((&config["lora_alpha"], &config["alpha_pattern"]), (&4.into(), &alphas));
    Ok(())
}

/// What is saved untouched is what was loaded: every tensor in its place, to the byte, and every
/// field. The metadata have the fingerprint of the configuration besides.
#[test]
fn an_untouched_adapter_stays_as_it_is() -> Result<()> {
    for case in CASES {
        let loaded = peft::load(fixture(case), &Device::cpu(), None)?;
        let dir = tempfile::tempdir().unwrap();
        let adapters = loaded.adapters.iter().map(|(module, a)| (module.as_str(), a));
        peft::save(dir.path(), &loaded.config, adapters)?;
        assert!(weights(dir.path()) == weights(&fixture(case)), "{case}");
        assert_eq!(config_of(dir.path()), config_of(&fixture(case)), "{case}");
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 2, "{case}: nothing is left beside the two files");
    }
    Ok(())
}

/// The fixtures are exact in every element type, or the tests in 16 bits would show nothing.
#[test]
fn fixtures_are_exact_in_sixteen_bits() {
    for module in ["layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.q", "layers.1.mlp.up"] {
        let values = base(module, &Device::cpu(), DType::F32).to_vec::<f32>().unwrap();
        for value in values {
            assert_eq!(bf16::from_f32(value).to_f32(), value);
            assert_eq!(f16::from_f32(value).to_f32(), value);
        }
    }
}
