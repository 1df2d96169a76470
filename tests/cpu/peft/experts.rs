//! Adapters of experts: of parameters, not of modules.

use super::extras::load_case;
use super::files::{CONFIG, WEIGHTS, assert_refused, config, load, tensors};
use crate::oracle::relative_error;
use crate::peft_fixtures::fixture;
use lora_kernels::peft::TensorFile;
use lora_kernels::{DType, Device, LoraLinear, Result, Tensor};
use serde_json::{Value, json};

/// The numbers of a tensor of a case's base, or of PEFT's merged model.
fn numbers(path: &str, name: &str) -> Vec<f32> {
    let mut file = TensorFile::open(fixture("extras").join(path)).unwrap();
    file.tensor(name, &Device::cpu(), Some(DType::F32)).unwrap().to_f32_vec().unwrap()
}

/// The experts' adapters are adapters of linear layers that compute what PEFT's merged experts do.
#[test]
fn experts_become_layers() -> Result<()> {
    let cpu = Device::cpu();
    // Case, base, shape of down_proj [E, ..], and d, k.
    for (case, base, transposed) in
        [("experts-transposed", "base-gpt-oss", true), ("experts-square", "base-gpt-oss", true)]
    {
        let loaded = load_case(case)?;
        let experts = &loaded.config.extras().parameters["model.layers.0.mlp.experts"];
        let shapes: [(&str, &[usize]); 2] =
            [("gate_up_proj", &[3, 8, 16]), ("down_proj", &[3, 8, 8])];
        let fitted = experts.fit(&shapes, Some(transposed))?;
        for parameter in fitted {
            let name = format!("model.layers.0.mlp.experts.{}", parameter.parameter);
            let old = numbers(&format!("{base}/model.safetensors"), &name);
            let new = numbers(&format!("{case}/merged.safetensors"), &name);
            assert_eq!((parameter.experts, parameter.transposed, parameter.rank()), (3, true, 2));
            for (expert, adapter) in parameter.adapters(&cpu, DType::F32)?.into_iter().enumerate() {
                let (d, k) = (adapter.b().shape().rows(), adapter.a().shape().cols());
                // [k, d] in the file.
                let matrix = |all: &[f32]| -> Vec<f32> {
                    let all = &all[expert * d * k..(expert + 1) * d * k];
                    (0..d * k).map(|at| all[(at % k) * d + at / k]).collect()
                };
                let w0 = Tensor::from_f32(&cpu, &matrix(&old), [d, k], DType::F32)?;
                let layer = LoraLinear::new(w0, adapter)?;
                let identity: Vec<f32> =
                    (0..k * k).map(|at| f32::from(u8::from(at / k == at % k))).collect();
                let x = Tensor::from_f32(&cpu, &identity, [k, k], DType::F32)?;
                let h = layer.forward(&x)?.h.remove(0).to_f32_vec()?;
                let want = matrix(&new);
                let transposed: Vec<f32> =
                    (0..k * d).map(|at| want[(at % d) * k + at / d]).collect();
                let error = relative_error(&h, &transposed);
                assert!(error < 4.0 / (1 << 24) as f64, "{name} {expert}: {error:e}");
            }
        }
    }
    Ok(())
}

/// Shapes that fit in no way, in several, or square ones of which nothing is known.
#[test]
fn experts_that_do_not_fit_are_named() -> Result<()> {
    let loaded = load_case("experts-transposed")?;
    let experts = &loaded.config.extras().parameters["model.layers.0.mlp.experts"];
    assert!(experts.candidates().eq(["down_proj", "gate_up_proj"]));
    let fit = |shapes: &[(&str, &[usize])]| experts.fit(shapes, None).map(|fitted| fitted.len());
    // The square one is stored as the other.
    assert_eq!(fit(&[("gate_up_proj", &[3, 8, 16]), ("down_proj", &[3, 8, 8])])?, 2);
    for shapes in [
        [("gate_up_proj", &[3, 8, 17][..]), ("down_proj", &[3, 8, 8][..])],
        [("gate_up_proj", &[2, 8, 16]), ("down_proj", &[2, 8, 8])],
        [("gate_up_proj", &[3, 8, 16]), ("down_proj", &[24, 8])],
        [("gate_up_proj", &[3, 8, 16]), ("other", &[3, 8, 8])],
    ] {
        let error = fit(&shapes).unwrap_err().to_string();
        assert!(error.contains("model.layers.0.mlp.experts"), "{error}");
        assert!(error.contains("gate_up_proj"), "{error}");
    }
    let loaded = load_case("experts-square")?;
    let experts = &loaded.config.extras().parameters["model.layers.0.mlp.experts"];
    let error = experts.fit(&[("down_proj", &[3, 8, 8])], None).unwrap_err().to_string();
    assert!(error.contains("is square"), "{error}");
    for transposed in [false, true] {
        let fitted = experts.fit(&[("down_proj", &[3, 8, 8])], Some(transposed))?;
        assert_eq!(fitted[0].transposed, transposed);
    }
    Ok(())
}

/// Names without a module are of experts, others of the modules that they name.
#[test]
fn target_parameters_name_modules() -> Result<()> {
    let name = |module: &str, half| format!("base_model.model.{module}.lora_{half}.weight");
    let load = |module: &str, targets: Value| {
        let (a, b) = (name(module, 'A'), name(module, 'B'));
        let fields = json!({"target_modules": [], "target_parameters": targets});
        load(&config(fields), &tensors(&[(&a, &[4, 3]), (&b, &[4, 4])]))
    };
    for (module, targets, candidates) in [
        ("l.experts", json!(["down", "up"]), vec!["down", "up"]),
        ("l.experts", json!(["experts.down", "l.experts.down"]), vec!["down"]),
        ("l.moe", json!(["moe.down", "up"]), vec!["down"]),
        ("moe", json!(["moe.down", "oe.up"]), vec!["down"]),
    ] {
        let loaded = load(module, targets.clone())?;
        let parameters = &loaded.config.extras().parameters[module];
        assert!(parameters.candidates().eq(candidates), "{module}, {targets}");
    }
    let result = load("l.experts", json!(["router.weight"]));
    let key = name("l.experts", 'A');
    assert_refused("others", result, "unsupported", WEIGHTS, &key, "target_parameters");
    let many: Vec<String> = (0..17).map(|i| format!("p{i}")).collect();
    let result = load("l.experts", json!(many));
    assert_refused("many", result, "unsupported", CONFIG, "target_parameters", "more than 16");
    Ok(())
}
