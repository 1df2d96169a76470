//! Which of a pipeline's adapters go where, in checkpoints under the names of the hub.

use super::{Setting, adapter, assert_merged, weight, write};
use crate::Result;
use lora_kernels::{Adapter, DType};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::Path;

/// Writes the adapters' A and B under names that end in other ways, in kohya's files α = 2 r.
fn write_adapters(path: &Path, adapters: &[(&str, Adapter)], ends: [&str; 2], alphas: bool) {
    let mut tensors = Vec::new();
    for (module, adapter) in adapters {
        for (tensor, end) in [adapter.a(), adapter.b()].into_iter().zip(ends) {
            let bytes: Vec<u8> = tensor
                .to_f32_vec()
                .unwrap()
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect();
            tensors.push((format!("{module}{end}"), tensor.shape().dims().to_vec(), bytes));
        }
        if alphas {
            let alpha = adapter.alpha().to_le_bytes().to_vec();
            tensors.push((format!("{module}.alpha"), vec![], alpha));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];

fn setting(folder: &str, file: &str, weights: &[(&'static str, &[usize])]) -> Setting {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    fs::create_dir(setting.path(folder)).unwrap();
    let weights: Vec<_> =
        weights.iter().map(|(name, shape)| weight(name, Dtype::F32, shape)).collect();
    write(&setting.path(folder).join(file), &weights);
    setting
}

fn of(d: usize, k: usize) -> Adapter {
    adapter(d, k, 2, DType::F32)
}

#[test]
fn modules_of_other_parts_are_left_out_and_said() -> Result<()> {
    let names = [("mid.a_b.q.weight", &[6, 4][..]), ("mid.a_b.conv.weight", &[3, 4, 1, 1])];
    let file = "diffusion_pytorch_model.safetensors";
    let setting = setting("unet", file, &names);
    let path = setting.path("adapter/any.safetensors");
    let adapters = [
        ("lora_unet_mid_a_b_q", of(6, 4)),
        ("lora_unet_mid_a_b_conv", of(3, 4)),
        ("lora_te_q", of(6, 4)),
    ];
    write_adapters(&path, &adapters, KOHYA, true);
    let said = setting.run("unet", "out", &["--adapter", path.to_str().unwrap()])?;
    assert!(said.contains("1 modules of lora_te are left out"), "{said}");
    assert!(said.contains("merged   2 of 2"), "{said}");
    let (base, out) = (setting.path("unet").join(file), setting.path("out").join(file));
    let mut merged = vec![("mid.a_b.q", of(6, 4))];
    // The convolution is 1x1, a matrix: assert_merged looks at its first two dimensions.
    merged.push(("mid.a_b.conv", of(3, 4)));
    assert_merged(&base, &out, &merged, 1.0);
    // A module that is not there is not passed over.
    write_adapters(&path, &[("lora_unet_mid_x", of(6, 4))], KOHYA, true);
    let error = setting.run("unet", "other", &["--adapter", path.to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("no lora_unet_mid_x.weight"), "{error}");
    Ok(())
}

#[test]
fn two_text_encoders_are_told_apart_by_shape_or_folder() -> Result<()> {
    for (folder, second, expected) in [
        ("text_encoder_2", of(6, 4), Ok("text_encoder are left out")),
        ("any", of(6, 4), Err("fits text_encoder and text_encoder_2")),
        ("any", of(6, 8), Ok("text_encoder_2 are left out")),
    ] {
        let setting = setting(folder, "model.safetensors", &[("text_model.q.weight", &[6, 4])]);
        let path = setting.path("adapter/pytorch_lora_weights.safetensors");
        let adapters =
            [("text_encoder.text_model.q", of(6, 4)), ("text_encoder_2.text_model.q", second)];
        write_adapters(&path, &adapters, PEFT, false);
        match (setting.run(folder, "out", &[]), expected) {
            (Ok(said), Ok(words)) => assert!(said.contains(words), "{said}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (got, expected) => panic!("{got:?} is not {expected:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_single_file_of_a_pipeline_gets_all_its_parts() -> Result<()> {
    let setting = setting(
        "base",
        "model.safetensors",
        &[
            ("model.diffusion_model.input_blocks.1.0.q.weight", &[6, 4]),
            ("cond_stage_model.transformer.text_model.q.weight", &[6, 4]),
        ],
    );
    let path = setting.path("adapter/pytorch_lora_weights.safetensors");
    let adapters = [("lora_unet_input_blocks_1_0_q", of(6, 4)), ("lora_te_text_model_q", of(6, 4))];
    write_adapters(&path, &adapters, KOHYA, true);
    setting.run("base", "out", &[])?;
    let merged = [
        ("model.diffusion_model.input_blocks.1.0.q", of(6, 4)),
        ("cond_stage_model.transformer.text_model.q", of(6, 4)),
    ];
    let file = |folder: &str| setting.path(folder).join("model.safetensors");
    assert_merged(&file("base"), &file("out"), &merged, 1.0);
    Ok(())
}

#[test]
fn mistral_s_own_checkpoint_keeps_its_rows() -> Result<()> {
    let file = "consolidated.safetensors";
    let own = setting("base", file, &[("layers.0.attention.wq.weight", &[8, 4])]);
    let adapters = [("layers.0.attention.wq", of(8, 4))];
    write_adapters(&own.path("adapter/lora.safetensors"), &adapters, PEFT, false);
    own.run("base", "out", &[])?;
    let path = |folder: &str| own.path(folder).join(file);
    assert_merged(&path("base"), &path("out"), &adapters, 1.0);

    let names = [("model.layers.0.self_attn.q_proj.weight", &[8, 4][..])];
    let other = setting("base", "model.safetensors", &names);
    write_adapters(&other.path("adapter/lora.safetensors"), &adapters, PEFT, false);
    let error = other.run("base", "out", &[]).unwrap_err().to_string();
    assert!(error.contains("takes num_attention_heads from config.json"), "{error}");
    fs::write(other.path("base/config.json"), r#"{"num_attention_heads": 3}"#)?;
    let error = other.run("base", "out", &[]).unwrap_err().to_string();
    assert!(error.contains("has 8 rows, which 3 heads do not share"), "{error}");
    Ok(())
}
