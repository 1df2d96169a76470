//! Directories and files that are not PEFT's: what they are, and what to do.

use super::files::{
    CONFIG, WEIGHTS, assert_refused, file, good_config, good_weights, load, load_weights,
};
use lora_kernels::peft::{self, TensorFile};
use lora_kernels::{Device, Error};
use std::fs;
use std::path::Path;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";

#[test]
fn git_lfs_pointers_are_named() {
    let result = load_weights(POINTER.as_bytes());
    assert_refused("weights", result, "unsupported", WEIGHTS, "the file", "git lfs pull");
    let result = load(POINTER.as_bytes(), &good_weights());
    assert_refused("config", result, "unsupported", CONFIG, "the file", "git lfs pull");
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("model.safetensors");
    fs::write(&base, POINTER).unwrap();
    let error = TensorFile::open(&base).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("Git LFS pointer"), "{error}");
}

#[test]
fn byte_order_marks_are_named() {
    let config = good_config().to_string();
    let utf16: Vec<u8> = config.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (case, config, words) in [
        ("UTF-8", [b"\xef\xbb\xbf", config.as_bytes()].concat(), "(BOM) of UTF-8"),
        ("UTF-16", [b"\xff\xfe", &utf16[..]].concat(), "(BOM) of UTF-16"),
    ] {
        let result = load(&config, &good_weights());
        assert_refused(case, result, "malformed", CONFIG, "the JSON", words);
    }
}

/// Fails unless the directory is refused with all of the words.
#[track_caller]
fn assert_error(dir: &Path, words: &[&str]) {
    let error = peft::load(dir, &Device::cpu(), None).unwrap_err().to_string();
    for words in words {
        assert!(error.contains(words), "{error}");
    }
}

fn write(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn adapters_in_sub_folders_are_found() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let config = good_config().to_string();
    for folder in ["checkpoint-500", "sql"] {
        let (config_path, weights_path) =
            (format!("{folder}/{CONFIG}"), format!("{folder}/{WEIGHTS}"));
        write(dir, &[(&config_path, config.as_bytes()), (&weights_path, &good_weights())]);
    }
    fs::create_dir(dir.join("runs")).unwrap();
    assert_error(dir, &[CONFIG, "name one of checkpoint-500, sql"]);
    // The configuration is in both places.
    write(dir, &[(CONFIG, config.as_bytes())]);
    assert_error(dir, &[WEIGHTS, "name one of checkpoint-500, sql"]);
    for i in 0..20 {
        write(dir, &[(&format!("{i:02}/{WEIGHTS}"), b"")]);
    }
    assert_error(dir, &["00, 01, 02, 03, 04, 05, 06, 07 and 14 more"]);
    assert_error(&dir.join("sql").join(WEIGHTS), &["it is a file; name the directory"]);
}

#[test]
fn other_formats_are_named() {
    let config = good_config().to_string();
    let mlx = br#"{"fine_tune_type":"lora","num_layers":1,"lora_parameters":{"rank":4}}"#;
    let none = b"".as_slice();
    let config = (CONFIG, config.as_bytes());
    let (index, shard) =
        ("adapter_model.safetensors.index.json", "adapter_model-00001-of-00002.safetensors");
    for (files, words) in [
        (vec![(CONFIG, mlx.as_slice())], vec![CONFIG, "mlx-lm's configuration"]),
        (vec![(CONFIG, b"{}")], vec![CONFIG, "peft_type", "save_pretrained"]),
        (vec![("adapters.safetensors", none)], vec!["adapters.safetensors", "is cut off"]),
        (
            vec![("lora.safetensors", &file("{}", 0))],
            vec!["lora.safetensors", "names of no format that is known"],
        ),
        (vec![config, ("adapter_model.bin", none)], vec!["adapter_model.bin", "python -c"]),
        (vec![config, (index, none), (shard, none)], vec![index, "in several files", "python -c"]),
        (vec![config, (shard, none)], vec!["in several files", "python -c"]),
        (vec![(WEIGHTS, none)], vec![CONFIG, "copy it"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files);
        assert_error(dir.path(), &words);
    }
    let error = peft::load("nowhere", &Device::cpu(), None).unwrap_err();
    assert!(matches!(error, Error::Io { kind: std::io::ErrorKind::NotFound, .. }), "{error}");
}

/// Python refuses the file, also where the bytes are in a field that nobody reads.
#[test]
fn bytes_that_are_not_utf_8_are_refused() {
    let mut config = good_config();
    config["unknown"] = "?".into();
    let config = config.to_string().replace('?', "\u{1}").into_bytes();
    let config: Vec<u8> =
        config.into_iter().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
    let result = load(&config, &good_weights());
    assert_refused("config", result, "malformed", CONFIG, "the JSON", "");
    let header = br#"{"q":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":"?"}}"#;
    let header: Vec<u8> =
        header.iter().map(|&byte| if byte == b'?' { 0xff } else { byte }).collect();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &[0; 4]].concat();
    let error = TensorFile::new(WEIGHTS, std::io::Cursor::new(file)).unwrap_err().to_string();
    assert!(error.contains("the header invalid utf-8"), "{error}");
}
