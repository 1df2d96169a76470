//! Named adapters, merging, casts kept, and PEFT directories.

use crate::common::{adapter, assert_close, difference, layer, loss, named, plain, random};
use candle_core::{DType, Device, Module, Result, Tensor};
use lora_kernels_candle::lora_kernels::{AdapterConfig, Scaling, peft};
use lora_kernels_candle::{LoraAdapter, LoraLinear, load_peft, save_peft};

fn bits(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_active_adapter_computes() -> Result<()> {
    let (mut layer, x) = (layer([12, 20], 3, DType::F32), random(&[7, 20]));
    let first = layer.forward(&x)?;
    layer.add_adapter("other", adapter([12, 20], 5))?;
    assert_close("H", &layer.forward(&x)?, &first, 0.0);
    layer.set_adapter("other")?;
    assert_eq!((layer.active_adapter(), layer.adapter().rank()), ("other", 5));
    let other = layer.forward(&x)?;
    assert!(difference(&other, &first) > 1e-2);
    assert_close("H", &other, &plain(&layer, &x)?, 1e-5);
    // The adapter that is not active gets no gradient.
    let gradients = loss(&other)?.backward()?;
    assert!(gradients.get(layer.adapters()["default"].a()).is_none());
    assert!(gradients.get(layer.adapter().a()).is_some());
    Ok(())
}

#[test]
fn merged_layers_compute_the_same() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        let (mut layer, x) = (layer([12, 20], 3, dtype), random(&[7, 20]).to_dtype(dtype)?);
        let shared = layer.w0().clone();
        let (w0, before) = (bits(&shared), layer.forward(&x)?);
        layer.merge()?;
        assert!(layer.is_merged() && layer.merge().is_err());
        assert!(layer.set_adapter("default").is_err());
        assert_close("H", &layer.forward(&x)?, &before, tolerance);
        assert_ne!(bits(layer.weight()), w0);
        assert_eq!(bits(&shared), w0);
        layer.unmerge()?;
        assert!(layer.unmerge().is_err());
        assert_eq!(bits(&layer.forward(&x)?), bits(&before));
        assert_eq!(bits(layer.weight()), w0);
    }
    Ok(())
}

#[test]
fn casts_are_kept_until_the_next_refresh() -> Result<()> {
    let (layer, x) = (layer([12, 20], 3, DType::BF16), random(&[7, 20]).to_dtype(DType::BF16)?);
    let change = || layer.adapter().b().set(&random(&[12, 3]));
    let forward = || layer.forward(&x).map(|h| bits(&h));
    let first = forward()?;
    change()?;
    let second = forward()?;
    assert_ne!(first, second, "a change is seen without a refresh");
    layer.refresh()?;
    assert_eq!(forward()?, second);
    change()?;
    assert_eq!(forward()?, second, "the casts are kept");
    layer.refresh()?;
    let third = forward()?;
    assert_ne!(third, second);
    change()?;
    layer.forget();
    assert_ne!(forward()?, third);
    Ok(())
}

#[test]
fn f32_never_keeps_casts() -> Result<()> {
    let (layer, x) = (layer([12, 20], 3, DType::F32), random(&[7, 20]));
    layer.refresh()?;
    let before = bits(&layer.forward(&x)?);
    layer.adapter().b().set(&random(&[12, 3]))?;
    assert_ne!(bits(&layer.forward(&x)?), before);
    Ok(())
}

#[test]
fn adapters_are_saved_and_loaded() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let x = random(&[7, 20]);
    let config = AdapterConfig::new(4).with_alpha(8.0).with_scaling(Scaling::RankStabilized);
    let one = LoraLinear::new(random(&[12, 20]), None, &config)?;
    let two = LoraLinear::new(random(&[8, 20]), None, &config.clone().with_seed(1))?;
    for layer in [&one, &two] {
        layer.adapter().b().set(&random(layer.adapter().b().dims()))?;
    }
    let modules = ["model.layers.0.q_proj", "model.layers.0.v_proj"];
    let adapters = modules.into_iter().zip([one.adapter(), two.adapter()]);
    save_peft(dir.path(), &peft::Config::default(), adapters)?;

    let again = LoraLinear::from_peft(dir.path(), modules[0], one.w0().clone(), None)?;
    assert_eq!(again.adapter().scale(), 4.0);
    assert_eq!(bits(&again.forward(&x)?), bits(&one.forward(&x)?));
    let loaded = load_peft(dir.path(), &Device::Cpu)?;
    assert_eq!(loaded.adapters.keys().collect::<Vec<_>>(), modules.iter().collect::<Vec<_>>());
    assert_eq!(loaded.not_computed, [""; 0]);
    assert_eq!(bits(loaded.adapters[modules[1]].b()), bits(two.adapter().b()));
    // What was loaded is trained on.
    let gradients = loss(&again.forward(&x)?)?.backward()?;
    assert!(named(&again).iter().all(|(_, var)| gradients.get(var).is_some()));

    let missing = LoraLinear::from_peft(dir.path(), "k_proj", one.w0().clone(), None);
    assert!(missing.unwrap_err().to_string().contains("no adapter of k_proj"));
    Ok(())
}

#[test]
fn new_adapters_are_those_of_the_core() -> Result<()> {
    let adapter = LoraAdapter::new([12, 20], &AdapterConfig::new(4), &Device::Cpu)?;
    assert!(bits(adapter.b()).iter().all(|&b| b == 0.0));
    assert!(bits(adapter.a()).iter().any(|&a| a != 0.0));
    assert_eq!((adapter.alpha(), adapter.scale()), (4.0, 1.0));
    Ok(())
}
