//! Adapters in the formats of other programs, by their bytes: values, scales and errors.

use super::files::{CONFIG, file, info, load};
use lora_kernels::peft::{self, Adapters, Config, Format};
use lora_kernels::{Device, Result, Scaling};
use serde_json::{Value, json};
use std::fs;

/// A file of f32 tensors that count upwards, over all tensors, from 1.
fn counting(of: &[(&str, &[usize])], metadata: &Value) -> Vec<u8> {
    let (mut end, mut entries) = (0, vec![format!(r#""__metadata__":{metadata}"#)]);
    for (name, shape) in of {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let info = info("F32", &format!("{shape:?}"), &format!("[{start},{end}]"));
        entries.push(format!("{}:{info}", json!(name)));
    }
    let mut bytes = file(&format!("{{{}}}", entries.join(",")), end);
    let data = bytes.len() - end;
    for (i, number) in bytes[data..].chunks_exact_mut(4).enumerate() {
        number.copy_from_slice(&(i as f32 + 1.0).to_le_bytes());
    }
    bytes
}

/// The adapters as A, B, α and s by their modules.
fn shown(loaded: &Adapters) -> Vec<(&str, Vec<f32>, Vec<f32>, f32)> {
    let adapters = loaded.adapters.iter();
    let values = |(module, adapter)| {
        let (_, a): (&String, &lora_kernels::Adapter) = (module, adapter);
        (module.as_str(), a.a().to_f32_vec().unwrap(), a.b().to_f32_vec().unwrap(), a.scale())
    };
    adapters.map(values).collect()
}

fn up(from: usize, to: usize) -> Vec<f32> {
    (from..=to).map(|number| number as f32).collect()
}

fn bytes(json: Value) -> Vec<u8> {
    json.to_string().into_bytes()
}

/// r = 2, k = 3, d = 1.
const MLX: [(&str, &[usize]); 2] = [("m.q.lora_a", &[3, 2]), ("m.q.lora_b", &[2, 1])];

#[test]
fn mlx_lm_s_matrices_are_transposed_and_its_scale_is_s() -> Result<()> {
    let config = json!({"fine_tune_type": "lora", "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}});
    let loaded = load(&bytes(config), &counting(&MLX, &json!({})))?;
    assert_eq!(loaded.format, Format::MlxLm);
    let expected = ("m.q", vec![1.0, 3.0, 5.0, 2.0, 4.0, 6.0], vec![7.0, 8.0], 20.0);
    assert_eq!(shown(&loaded), [expected]);
    let adapter = &loaded.adapters["m.q"];
    assert_eq!(
        (adapter.a().shape().dims(), adapter.b().shape().dims()),
        (&[2, 3][..], &[1, 2][..])
    );
    // With PEFT's configuration: α / r.
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": true});
    let loaded = load(&bytes(config), &counting(&MLX, &json!({})))?;
    assert_eq!(loaded.adapters["m.q"].scaling(), Scaling::RankStabilized);
    assert_eq!(loaded.adapters["m.q"].alpha(), 3.0);
    Ok(())
}

#[test]
fn kohya_s_alphas_are_in_the_file() -> Result<()> {
    let of: [(&str, &[usize]); 5] = [
        ("lora_te_b.lora_down.weight", &[2, 1, 1, 1]),
        ("lora_te_b.lora_up.weight", &[1, 2, 1, 1]),
        ("lora_unet_a_q.alpha", &[]),
        ("lora_unet_a_q.lora_down.weight", &[2, 3]),
        ("lora_unet_a_q.lora_up.weight", &[1, 2]),
    ];
    // Neither a configuration nor one that is not theirs is asked for the scale.
    for config in [b"".as_slice(), br#"{"peft_type":"LORA","r":4,"lora_alpha":32}"#] {
        let loaded = load(config, &counting(&of, &json!({"ss_network_dim": "2"})))?;
        assert_eq!(loaded.format, Format::Kohya);
        let te = ("lora_te_b", up(1, 2), up(3, 4), 1.0);
        let unet = ("lora_unet_a_q", up(6, 11), up(12, 13), 2.5);
        assert_eq!(shown(&loaded), [te, unet]);
    }
    // Without alphas, it is.
    let of = [of[0], of[1]];
    let scale = |config: &[u8]| -> Result<f32> {
        Ok(load(config, &counting(&of, &json!({})))?.adapters["lora_te_b"].scale())
    };
    assert_eq!(scale(b"")?, 1.0);
    assert_eq!(scale(br#"{"peft_type":"LORA","r":2,"lora_alpha":5}"#)?, 2.5);
    let error = scale(br#"{"peft_type":"LORA","r":4}"#).unwrap_err().to_string();
    assert!(error.contains("has rank 2, but r or rank_pattern in") && error.contains(CONFIG));
    Ok(())
}

#[test]
fn diffusers_keeps_the_scale_in_four_places() -> Result<()> {
    let of: [(&str, &[usize]); 4] = [
        ("transformer.a.q.lora_A.weight", &[2, 3]),
        ("transformer.a.q.lora_B.weight", &[1, 2]),
        ("unet.b.lora.down.weight", &[1, 1]),
        ("unet.b.lora.up.weight", &[1, 1]),
    ];
    let scales = |config: &[u8], weights: &[u8]| -> Result<Vec<f32>> {
        let loaded = load(config, weights)?;
        assert_eq!(loaded.format, Format::Diffusers);
        let expected = [("transformer.a.q", up(1, 6), up(7, 8)), ("unet.b", up(9, 9), up(10, 10))];
        let shown = shown(&loaded);
        let read = shown.iter().map(|(module, a, b, _)| (*module, a.clone(), b.clone()));
        assert!(read.eq(expected), "{shown:?}");
        Ok(shown.iter().map(|(.., scale)| *scale).collect())
    };
    let plain = counting(&of, &json!({}));
    assert_eq!(scales(b"", &plain)?, [1.0, 1.0]);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3,
        "rank_pattern": {"b": 1}, "alpha_pattern": {"a.q": 5}});
    assert_eq!(scales(&bytes(config), &plain)?, [2.5, 3.0]);
    let metadata = json!({"transformer.r": 2, "transformer.lora_alpha": 7, "unet.r": 1,
        "unet.lora_alpha": 9, "unet.alpha_pattern": {"b": 4}, "transformer.use_rslora": true});
    let metadata = json!({ "lora_adapter_metadata": metadata.to_string() });
    assert_eq!(scales(b"", &counting(&of, &metadata))?, [7.0 / 2f32.sqrt(), 4.0]);
    let [a, b, c, d] = of;
    let with_alphas = [a, b, c, d, ("transformer.a.q.alpha", &[1]), ("unet.b.alpha", &[])];
    assert_eq!(scales(b"{}", &counting(&with_alphas, &json!({})))?, [5.5, 12.0]);
    Ok(())
}

#[test]
fn mistral_finetune_s_scale_is_in_its_arguments() -> Result<()> {
    let of: [(&str, &[usize]); 2] = [
        ("layers.0.attention.wq.lora_A.weight", &[2, 3]),
        ("layers.0.attention.wq.lora_B.weight", &[1, 2]),
    ];
    for (config, scale) in [
        (b"".to_vec(), 2.0),
        (bytes(json!({"dim": 3, "lora": {"rank": 2, "scaling": 0.5}})), 0.5),
        (bytes(json!({"dim": 3})), 2.0),
        (bytes(json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6})), 3.0),
    ] {
        let loaded = load(&config, &counting(&of, &json!({})))?;
        assert_eq!(loaded.format, Format::MistralFinetune);
        let expected = ("layers.0.attention.wq", up(1, 6), up(7, 8), scale);
        assert_eq!(shown(&loaded), [expected]);
    }
    Ok(())
}

#[test]
fn what_cannot_be_read_is_named() {
    let mlx = |more: Value| {
        let mut config = json!({"lora_parameters": {"rank": 2, "scale": 1.0}});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        bytes(config)
    };
    let of_mlx = |changed: &[(&'static str, &'static [usize])]| {
        let mut of = MLX.to_vec();
        of.extend(changed);
        counting(&of, &json!({}))
    };
    let kohya = |more: &[(&'static str, &'static [usize])]| {
        let mut of: Vec<(&str, &[usize])> = vec![
            ("lora_unet_a.lora_down.weight", &[2, 3]),
            ("lora_unet_a.lora_up.weight", &[1, 2]),
        ];
        of.extend(more);
        counting(&of, &json!({}))
    };
    let diffusers = |more: &[(&'static str, &'static [usize])], metadata: Value| {
        let mut of: Vec<(&str, &[usize])> = vec![
            ("unet.a.lora_A.weight", &[2, 3]),
            ("unet.a.lora_B.weight", &[1, 2]),
            ("unet.b.lora_A.weight", &[2, 3]),
            ("unet.b.lora_B.weight", &[1, 2]),
        ];
        of.extend(more);
        counting(&of, &metadata)
    };
    for (config, weights, words) in [
        (b"".to_vec(), of_mlx(&[]), "lora_parameters"),
        (b"{}".to_vec(), of_mlx(&[]), "lora_parameters is missing"),
        (b"[]".to_vec(), of_mlx(&[]), "the JSON is no object"),
        (mlx(json!({"fine_tune_type": "dora"})), of_mlx(&[]), "\"dora\", only \"lora\""),
        (mlx(json!({})), of_mlx(&[("m.q.m", &[1])]), "m.q.m is not supported: a trained magnitude"),
        (mlx(json!({})), of_mlx(&[("m.k.lora_a", &[3, 2])]), "m.k lacks A or B"),
        (
            mlx(json!({"lora_parameters": {"rank": 3, "scale": 1.0}})),
            of_mlx(&[]),
            "m.q has rank 2, but rank in adapter_config.json says 3",
        ),
        (
            mlx(json!({"lora_parameters": {"rank": 2, "scale": 1.0, "alpha": 16}})),
            of_mlx(&[]),
            "lora_parameters.alpha is not supported: 16",
        ),
        (mlx(json!({"lora_parameters": {"rank": 2}})), of_mlx(&[]), "scale is not a number"),
        (
            mlx(json!({})),
            counting(&[("m.q.lora_a", &[3, 2]), ("m.q.lora_b", &[3, 1])], &json!({})),
            "m.q.lora_b has shape [3, 1], which does not fit m.q.lora_a of [3, 2]",
        ),
        (
            mlx(json!({})),
            counting(&[("e.lora_a", &[4, 2, 3]), ("e.lora_b", &[4, 1, 2])], &json!({})),
            "e.lora_a is no matrix: its shape is [4, 2, 3]",
        ),
        (b"".to_vec(), kohya(&[("lora_unet_a.dora_scale", &[1])]), "(DoRA)"),
        (b"".to_vec(), kohya(&[("lora_unet_a.lora_mid.weight", &[2, 2, 3, 3])]), "LyCORIS"),
        (b"".to_vec(), kohya(&[("lora_unet_a.alpha", &[2])]), "is not one number"),
        (b"".to_vec(), kohya(&[("lora_unet_c.alpha", &[])]), "lora_unet_c lacks A or B"),
        (
            b"".to_vec(),
            kohya(&[("lora_unet_c.lora_down.weight", &[2, 3, 3, 3])]),
            "a convolution of 3x3",
        ),
        (b"{}".to_vec(), kohya(&[]), "peft_type is missing: the scale"),
        (b"".to_vec(), diffusers(&[("unet.a.alpha", &[])], json!({})), "unet.b has no alpha"),
        (
            b"".to_vec(),
            diffusers(&[("unet.a.lora.down.weight", &[2, 3])], json!({})),
            "is there twice: ",
        ),
        (
            b"".to_vec(),
            diffusers(&[], json!({"lora_adapter_metadata": "{\"text_encoder.r\": 2}"})),
            "lora_adapter_metadata says nothing of unet",
        ),
        (
            b"".to_vec(),
            diffusers(&[], json!({"lora_adapter_metadata": "{\"unet.use_dora\": true}"})),
            "use_dora is not supported",
        ),
        (b"".to_vec(), diffusers(&[("unet.a.lora_B.bias", &[1])], json!({})), "a bias"),
    ] {
        let error = load(&config, &weights).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn an_alpha_of_zero_or_infinity_is_refused() {
    let of: [(&str, &[usize]); 3] = [
        ("lora_unet_a.lora_down.weight", &[2, 3]),
        ("lora_unet_a.lora_up.weight", &[1, 2]),
        ("lora_unet_a.alpha", &[]),
    ];
    for (alpha, words) in [(0.0f32, "is 0: in training"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")]
    {
        let mut weights = counting(&of, &json!({}));
        let at = weights.len() - 4;
        weights[at..].copy_from_slice(&alpha.to_le_bytes());
        let error = load(b"", &weights).unwrap_err().to_string();
        assert!(error.contains("lora_unet_a.alpha") && error.contains(words), "{error}");
    }
}

/// Directories and files as the programs leave them, and that PEFT's own are saved from them.
#[test]
fn files_are_found_under_their_own_names() -> Result<()> {
    let kohya = counting(
        &[("lora_unet_a.lora_down.weight", &[2, 3]), ("lora_unet_a.lora_up.weight", &[1, 2])],
        &json!({}),
    );
    let mistral = counting(
        &[
            ("layers.0.attention.wq.lora_A.weight", &[2, 3]),
            ("layers.0.attention.wq.lora_B.weight", &[1, 2]),
        ],
        &json!({}),
    );
    let mlx_config = bytes(json!({"lora_parameters": {"rank": 2, "scale": 3.0}}));
    let mlx = counting(&MLX, &json!({}));
    for (files, path, scale) in [
        (vec![("adapters.safetensors", &mlx), (CONFIG, &mlx_config)], "", 3.0),
        (vec![("lora.safetensors", &mistral)], "", 2.0),
        (
            vec![
                ("lora.safetensors", &mistral),
                ("params.json", &bytes(json!({"lora": {"scaling": 4}}))),
            ],
            "",
            4.0,
        ),
        (vec![("any name.safetensors", &kohya)], "any name.safetensors", 1.0),
        (vec![("pytorch_lora_weights.safetensors", &kohya)], "", 1.0),
        (vec![("adapter_model.safetensors", &kohya)], "", 1.0),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        for (name, bytes) in &files {
            fs::write(temporary.path().join(name), bytes).unwrap();
        }
        let cpu = Device::cpu();
        let loaded = peft::load(temporary.path().join(path), &cpu, None)?;
        assert_eq!(loaded.adapters.len(), 1);
        let (module, adapter) = loaded.adapters.first_key_value().unwrap();
        assert_eq!(adapter.scale(), scale, "{module}");
        let saved = temporary.path().join("saved");
        peft::save(&saved, &loaded.config, [(module.as_str(), adapter)])?;
        let again = peft::load(&saved, &cpu, None)?;
        assert_eq!(again.format, Format::Peft);
        assert_eq!(shown(&again), shown(&loaded));
        peft::save(&saved, &Config::default(), [(module.as_str(), adapter)])?;
    }
    // A file of PEFT by itself lacks its configuration.
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("adapter_model.safetensors");
    fs::write(&path, super::files::good_weights()).unwrap();
    let error = peft::load(&path, &Device::cpu(), None).unwrap_err().to_string();
    assert!(error.contains("it is a file; name the directory"), "{error}");
    Ok(())
}
