//! Reading and writing directories: what is missing, in the way, or cannot be written.

use super::files::{CONFIG, WEIGHTS, good_config, info, parts};
use lora_kernels::peft::{self, Config, TensorFile};
use lora_kernels::{Adapter, AdapterConfig, DType, Device, Error, Scaling};
use std::fs;
use std::path::Path;

#[test]
fn missing_and_strange_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let load = |dir: &Path| peft::load(dir, &Device::cpu(), None).unwrap_err();
    let assert_io = |error: Error, file: &str, words: &str| {
        let message = error.to_string();
        assert!(matches!(error, Error::Io { .. }), "{message}");
        assert!(message.contains(file) && message.contains(words), "{message}");
    };
    assert_io(load(&dir.path().join("nowhere")), CONFIG, "No such file");
    fs::create_dir(dir.path().join(CONFIG)).unwrap();
    assert_io(load(dir.path()), CONFIG, "not a regular file");
    fs::remove_dir(dir.path().join(CONFIG)).unwrap();
    fs::write(dir.path().join(CONFIG), good_config().to_string()).unwrap();
    assert_io(load(dir.path()), WEIGHTS, "No such file");
    fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
    let message = load(dir.path()).to_string();
    assert!(message.contains("adapter_model.bin") && message.contains("pickle"), "{message}");
    fs::write(dir.path().join(CONFIG), vec![b' '; (4 << 20) + 1]).unwrap();
    let message = load(dir.path()).to_string();
    assert!(message.contains(CONFIG) && message.contains("4194304 bytes"), "{message}");
}

/// A pipe would keep a reader waiting for ever.
#[cfg(target_os = "linux")]
#[test]
fn endless_files_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join(CONFIG)).unwrap();
    let error = peft::load(dir.path(), &Device::cpu(), None).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn tensor_files_name_what_they_lack() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let entries = [info("I64", "[1]", "[0,8]"), info("F32", "[1,1,1,1,1,1,1]", "[8,12]")];
    let header = format!(
        r#"{{"n":{},"deep":{},"one":{}}}"#,
        entries[0],
        entries[1],
        info("F32", "[]", "[12,16]")
    );
    fs::write(&path, super::files::file(&header, 16)).unwrap();
    let mut file = TensorFile::open(&path).unwrap();
    assert_eq!(file.entries()["n"].dtype, None);
    assert_eq!(file.entries()["n"].dtype_name, "I64");
    let data = 8 + header.len() as u64;
    assert_eq!(file.entries()["deep"].bytes, data + 8..data + 12);
    for (name, words) in
        [("m", "not in the file"), ("n", "I64"), ("deep", "it has 7"), ("one", "it has 0")]
    {
        let error = file.tensor(name, &Device::cpu(), None).unwrap_err().to_string();
        assert!(error.contains("x.safetensors") && error.contains(words), "{error}");
    }
}

fn adapter(rank: usize, scaling: Scaling) -> Adapter {
    let config = AdapterConfig::new(rank).with_alpha(8.0).with_scaling(scaling);
    Adapter::new(&Device::cpu(), [4, 3], DType::F32, &config).unwrap()
}

#[test]
fn what_cannot_be_saved_is_named_and_leaves_the_old_files() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (adapter(2, Scaling::Standard), adapter(2, Scaling::RankStabilized));
    let save = |adapters: &[(&str, &Adapter)]| {
        peft::save(dir.path(), &Config::default(), adapters.iter().copied())
    };
    save(&[("q", &one)]).unwrap();
    let files = || [CONFIG, WEIGHTS].map(|name| fs::read(dir.path().join(name)).unwrap());
    let before = files();
    for (adapters, key, words) in [
        (&[][..], "the file", "no adapter"),
        (&[("q", &one), ("q", &one)], "q", "twice"),
        (&[("q", &one), ("k", &other)], "use_rslora", "one for all"),
        (&[("a..b", &one)], "\"a..b\"", "dots"),
        (&[("", &one)], "\"\"", "dots"),
        (&[("a b", &one)], "\"a b\"", "spaces"),
    ] {
        let (_, named, message) = parts(&save(adapters).unwrap_err());
        assert!(named == key && message.contains(words), "{message}");
        assert_eq!(files(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{words}: nothing is left over");
    }
}

/// What could not be loaded again is not saved.
#[test]
fn too_many_adapters_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let adapters = [2, 3].map(|rank| adapter(rank, Scaling::Standard));
    let save = |names: &[String], ranks: usize| {
        let adapters =
            names.iter().enumerate().map(|(i, name)| (name.as_str(), &adapters[i % ranks]));
        peft::save(dir.path(), &Config::default(), adapters)
    };
    let names: Vec<_> = (0..20_002).map(|i| format!("layers.{i}.q")).collect();
    let (_, key, message) = parts(&save(&names, 2).unwrap_err());
    assert!(key == "rank_pattern" && message.contains("10000 keys"), "{message}");
    let names: Vec<_> = (0..5_000).map(|i| format!("layers.{i}.{}", "q".repeat(900))).collect();
    let (_, key, message) = parts(&save(&names, 1).unwrap_err());
    assert!(key == "the file" && message.contains("4194304 bytes"), "{message}");
    // All of one rank, though, are as good as one.
    let names: Vec<_> = (0..20_002).map(|i| format!("layers.{i}.q")).collect();
    save(&names, 1).unwrap();
    assert_eq!(peft::load(dir.path(), &Device::cpu(), None).unwrap().adapters.len(), 20_002);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let one = adapter(2, Scaling::Standard);
    let error = peft::save(dir.path().join("file"), &Config::default(), [("q", &one)]).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("file")), "{error}");
    // The configuration's place is taken by a directory: the weights are new, but nothing else is.
    let taken = dir.path().join("taken");
    fs::create_dir_all(taken.join(CONFIG).join("x")).unwrap();
    let error = peft::save(&taken, &Config::default(), [("q", &one)]).unwrap_err().to_string();
    assert!(error.contains(CONFIG), "{error}");
    let names: Vec<_> = fs::read_dir(&taken).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == CONFIG || name == WEIGHTS), "{names:?}");
}

#[cfg(unix)]
#[test]
fn saved_files_can_be_read_by_others_as_usual() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    fs::write(dir.path().join("usual"), "").unwrap();
    let one = adapter(2, Scaling::Standard);
    peft::save(dir.path(), &Config::default(), [("q", &one)]).unwrap();
    assert_eq!((mode(CONFIG), mode(WEIGHTS)), (mode("usual"), mode("usual")));
}
