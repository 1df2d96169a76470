//! Quantised bases by their bytes: what is decoded, what is written, and what is refused.

use super::{Setting, adapter, assert_merged, values};
use crate::Result;
use lora_kernels::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn floats(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A weight of [6, 4]: codes 0 to 15 and on, the number of a code is the code less 8, times 1, 2 and
/// 3 by blocks of 8 elements.
fn four_bits(state: Value) -> Vec<Tensor> {
    let table = floats((0..16).map(|code| code as f32 - 8.0));
    let codes = (0..12).map(|at: u8| ((2 * at) % 16) << 4 | ((2 * at + 1) % 16)).collect();
    vec![
        ("q.weight", Dtype::U8, vec![12, 1], codes),
        ("q.weight.absmax", Dtype::F32, vec![3], floats([1.0, 2.0, 3.0])),
        ("q.weight.quant_map", Dtype::F32, vec![16], table),
        (
            "q.weight.quant_state.bitsandbytes__nf4",
            Dtype::U8,
            vec![state.to_string().len()],
            state.to_string().into(),
        ),
        ("odd", Dtype::U8, vec![3], vec![1, 2, 3]),
        ("norm", Dtype::F32, vec![2], floats([1.0, 2.0])),
    ]
}

fn state() -> Value {
    json!({"quant_type": "nf4", "blocksize": 8, "dtype": "float16", "shape": [6, 4]})
}

fn of_four_bits() -> Vec<f32> {
    (0..24).map(|at| ((at % 16) as f32 - 8.0) * (at / 8 + 1) as f32).collect()
}

fn setting() -> Setting {
    let setting = Setting { dir: tempfile::tempdir().unwrap() };
    setting.save_adapter(&[("q", adapter(6, 4, 2, DType::F32))]);
    setting
}

fn plain(path: &Path, numbers: &[f32]) {
    let bytes =
        numbers.iter().flat_map(|number| lora_kernels::half::f16::from_f32(*number).to_le_bytes());
    write(path, &[("q.weight", Dtype::F16, vec![6, 4], bytes.collect())]);
}

#[test]
fn a_folder_becomes_a_plain_checkpoint() -> Result<()> {
    let setting = setting();
    write(&setting.path("base/model.safetensors"), &four_bits(state()));
    let config = json!({"quantization_config": {"quant_method": "bitsandbytes"}, "hidden_size": 4});
    fs::write(setting.path("base/config.json"), config.to_string())?;
    let said = setting.run("base", "out", &[])?;
    assert!(said.contains("1 weights of the base are quantised (bitsandbytes NF4)"), "{said}");
    let out = setting.path("out/model.safetensors");
    plain(&setting.path("plain.safetensors"), &of_four_bits());
    setting.run("plain.safetensors", "merged.safetensors", &[])?;
    assert_eq!(values(&out, "q.weight"), values(&setting.path("merged.safetensors"), "q.weight"));
    let file = lora_kernels::peft::TensorFile::open(&out)?;
    assert!(file.entries().keys().eq(["norm", "odd", "q.weight"]));
    assert_eq!(values(&out, "norm"), [1.0, 2.0]);
    let config: Value = serde_json::from_slice(&fs::read(setting.path("out/config.json"))?)?;
    assert_eq!(config, json!({"hidden_size": 4}));
    // Nothing is left to decode, and taking the adapter out again gives the plain weight.
    let said = setting.run("out", "again", &["--scale=-1"])?;
    assert!(!said.contains("quantised"), "{said}");
    Ok(())
}

#[test]
fn scales_may_be_in_another_shard_and_weights_in_another_type() -> Result<()> {
    let setting = setting();
    let mut tensors = four_bits(state());
    // quant_storage: the same bytes under another type.
    tensors[0].1 = Dtype::BF16;
    tensors[0].2 = vec![6];
    let shard = |n: usize| setting.path(&format!("base/model-{n}.safetensors"));
    write(&shard(1), &tensors[..1]);
    write(&shard(2), &tensors[1..]);
    let files: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(at, tensor)| {
            (tensor.0, if at == 0 { "model-1.safetensors" } else { "model-2.safetensors" })
        })
        .collect();
    setting.write_index(&files);
    setting.run("base", "out", &[])?;
    plain(&setting.path("plain.safetensors"), &of_four_bits());
    let adapters = [("q", adapter(6, 4, 2, DType::F32))];
    setting.run("plain.safetensors", "merged.safetensors", &[])?;
    assert_merged(
        &setting.path("plain.safetensors"),
        &setting.path("merged.safetensors"),
        &adapters,
        1.0,
    );
    let (out, merged) =
        (setting.path("out/model-1.safetensors"), setting.path("merged.safetensors"));
    assert_eq!(values(&out, "q.weight"), values(&merged, "q.weight"));
    let index = fs::read(setting.path("out/model.safetensors.index.json"))?;
    let index: Value = serde_json::from_slice(&index)?;
    let map = json!({"q.weight": "model-1.safetensors", "norm": "model-2.safetensors", "odd": "model-2.safetensors"});
    assert_eq!((&index["weight_map"], &index["metadata"]["total_size"]), (&map, &json!(59)));
    Ok(())
}

/// Also rows that one reading does not end with: odd blocks, and experts one after the other.
#[test]
fn fp8_is_decoded_with_scales_of_any_grid() -> Result<()> {
    // 1.0, 1.125, -2.0 and so on: the byte's number is exact in 16 bits.
    let data: Vec<u8> = (0..24).map(|at| 0x38 + at as u8 % 8).collect();
    let number = |at: usize| 1.0 + (at % 8) as f32 / 8.0;
    for (dims, scales, block, expected) in [
        (vec![], vec![2.0], None, (|_| 2.0) as fn(usize) -> f32),
        (vec![1], vec![2.0], None, |_| 2.0),
        (vec![6, 1], (1..=6).map(|n| n as f32).collect(), None, |at| (at / 4 + 1) as f32),
        (vec![6], (1..=6).map(|n| n as f32).collect(), None, |at| (at / 4 + 1) as f32),
        (vec![3, 2], (1..=6).map(|n| n as f32).collect(), None, |at| {
            (at / 8 * 2 + at % 4 / 2 + 1) as f32
        }),
        // Blocks of 4 x 3, of which the last are smaller.
        (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0], Some([4, 3]), |at| {
            (at / 16 * 2 + at % 4 / 3 + 1) as f32
        }),
    ] {
        let setting = setting();
        let scale = ("q.weight_scale_inv", Dtype::F32, dims.clone(), floats(scales));
        let tensors = [("q.weight", Dtype::F8_E4M3, vec![6, 4], data.clone()), scale];
        write(&setting.path("base/model.safetensors"), &tensors);
        let mut config =
            json!({"torch_dtype": "float16", "quantization_config": {"quant_method": "fp8"}});
        if let Some(block) = block {
            config["quantization_config"]["weight_block_size"] = json!(block);
        }
        fs::write(setting.path("base/config.json"), config.to_string())?;
        setting.run("base", "out", &["--scale=0"])?;
        let got = values(&setting.path("out/model.safetensors"), "q.weight");
        let want: Vec<f32> = (0..24).map(|at| number(at) * expected(at)).collect();
        assert_eq!(got, want, "{dims:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_decoded_is_named() {
    let with = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut tensors = four_bits(state());
        change(&mut tensors);
        tensors
    };
    let stated = |key: &str, value: Value| {
        let mut state = state();
        state[key] = value;
        four_bits(state)
    };
    let fp8 = |scale: Option<(Vec<usize>, Dtype)>| {
        let mut tensors = vec![("q.weight", Dtype::F8_E4M3, vec![300, 4], vec![0x38; 1200])];
        tensors.extend(scale.map(|(shape, dtype)| {
            let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
            ("q.weight_scale_inv", dtype, shape, bytes)
        }));
        tensors
    };
    let int8 = |format: u8, rows: usize| {
        vec![
            ("q.weight", Dtype::I8, vec![6, 4], vec![1; 24]),
            ("q.SCB", Dtype::F32, vec![rows], floats((0..rows).map(|_| 1.0))),
            ("q.weight_format", Dtype::U8, vec![], vec![format]),
        ]
    };
    for (tensors, words) in [
        (with(&|tensors| drop(tensors.remove(1))), "has no q.weight.absmax, which"),
        (with(&|tensors| drop(tensors.remove(0))), "has no q.weight, which"),
        (stated("shape", json!([6, 5])), "q.weight has 12 bytes, not 4 bits for [6, 5]"),
        (stated("shape", json!([1u64 << 40, 1u64 << 40])), "has no shape"),
        (stated("shape", json!([])), "has no shape"),
        (stated("blocksize", json!(0)), "has no blocksize"),
        (stated("blocksize", json!(4)), "6 elements of F32 are expected"),
        (stated("dtype", json!("int8")), "has no dtype of bfloat16"),
        (with(&|tensors| tensors[3].3.fill(b'x')), "is no JSON"),
        (with(&|tensors| tensors[1].1 = Dtype::I32), "q.weight.absmax is I32 [3]"),
        (int8(1, 6), "q.weight_format is not 0"),
        (int8(0, 5), "q.SCB is F32 [5], but 6 elements"),
        (fp8(None), "is FP8, but has no scale"),
        (fp8(Some((vec![7, 4], Dtype::F32))), "they fit no size of blocks"),
        (fp8(Some((vec![3, 1], Dtype::F32))), "weight_block_size in quantization_config"),
        (fp8(Some((vec![3, 1, 1], Dtype::F32))), "which scales [3, 1, 1] do not fit"),
        (fp8(Some((vec![1], Dtype::I32))), "1 elements of F32 or BF16"),
    ] {
        let setting = setting();
        write(&setting.path("base/model.safetensors"), &tensors);
        let config = json!({"quantization_config": {"quant_method": "fp8"}});
        fs::write(setting.path("base/config.json"), config.to_string()).unwrap();
        let error = setting.error("base", "out");
        assert!(error.contains(words), "{error}");
    }
}
