//! The output's place, and what stands there after errors.

use super::{Setting, assert_merged, sharded, three};
use crate::Result;
use crate::output::steps;
use lora_kernels::DType;
use std::fs;

/// Everything in the folder but the inputs, hidden files too.
fn outputs(setting: &Setting) -> Vec<String> {
    let names = fs::read_dir(setting.dir.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let inputs = ["adapter", "base", "model.safetensors"];
    let mut names: Vec<_> = names.filter(|name| !inputs.contains(&name.as_str())).collect();
    names.sort();
    names
}

#[cfg(unix)]
#[test]
fn what_is_no_place_for_an_output_is_refused() -> Result<()> {
    use std::os::unix::{fs::symlink, net::UnixListener};
    let one = Setting::new(DType::F32);
    let many = sharded(DType::F32);
    for setting in [&one, &many] {
        fs::create_dir(setting.path("full"))?;
        fs::write(setting.path("full/keep"), "kept")?;
        fs::write(setting.path("there"), "old")?;
        symlink("nowhere", setting.path("dangling"))?;
        symlink("there", setting.path("link"))?;
        symlink("full", setting.path("folder-link"))?;
        std::mem::forget(UnixListener::bind(setting.path("socket"))?);
        let made = std::process::Command::new("mkfifo").arg(setting.path("fifo")).status()?;
        assert!(made.success());
    }
    let error = |setting: &Setting, base: &str, out: &str| {
        let before = outputs(setting);
        let error = setting.run(base, out, &[]).expect_err(out).to_string();
        assert_eq!(outputs(setting), before);
        assert!(error.contains(&*setting.path(out).to_string_lossy()), "{out}: {error}");
        let dry = setting.run(base, out, &["--dry-run"]).expect_err(out).to_string();
        assert_eq!(dry, error);
        error
    };
    for (out, words) in [
        ("/dev/null", "is a character device, not a file"),
        ("fifo", "is a FIFO, not a file"),
        ("socket", "is a socket, not a file"),
        ("full", "is a directory, not a file"),
        ("dangling", "is a symbolic link to nowhere: that does not exist"),
        ("link", "is a symbolic link to there: give the path"),
        ("none/out", "there is no folder"),
        ("there/out", "Not a directory"),
        ("full/..", "names neither a file nor a folder"),
        ("/", "names neither a file nor a folder"),
    ] {
        let error = error(&one, "model.safetensors", out);
        assert!(error.contains(words), "{error}");
    }
    for (out, words) in [
        ("/dev/null", "is a character device, but the output is a folder"),
        ("fifo", "is a FIFO, but"),
        ("there", "is a file, but"),
        ("full", "is a directory that is not empty"),
        ("dangling", "does not exist"),
        ("folder-link", "is a symbolic link to full: give the path"),
        ("none/out", "there is no folder"),
        ("out.safetensors", "the output is a folder, not a .safetensors file"),
    ] {
        let error = error(&many, "base", out);
        assert!(error.contains(words), "{error}");
    }
    for setting in [one, many] {
        assert_eq!(fs::read(setting.path("full/keep"))?, b"kept");
        assert_eq!(fs::read(setting.path("there"))?, b"old");
    }
    Ok(())
}

/// Lets every operation fail once, and looks at what is there then.
fn fail_everywhere(setting: &Setting, base: &str, there: impl Fn(), whole: impl Fn()) {
    for step in 0.. {
        steps::fail_after(Some(step));
        let result = setting.run(base, "out", &[]);
        steps::fail_after(None);
        let Err(error) = result else {
            assert!(step > 4, "there are more operations than {step}");
            whole();
            return;
        };
        let error = error.to_string();
        let out = setting.path("out");
        assert!(error.starts_with(&*out.to_string_lossy()), "{error}");
        match error.contains("may not survive") {
            true => whole(),
            false => there(),
        }
        // Nothing is hidden either.
        assert!(outputs(setting).iter().all(|name| name == "out"), "{:?}", outputs(setting));
        if error.contains("may not survive") && out.is_dir() {
            fs::remove_dir_all(out).unwrap();
        }
    }
}

#[test]
fn an_error_leaves_the_old_file() {
    let setting = Setting::new(DType::F32);
    fs::write(setting.path("out"), "old").unwrap();
    let (base, out) = (setting.path("model.safetensors"), setting.path("out"));
    fail_everywhere(
        &setting,
        "model.safetensors",
        || assert_eq!(fs::read(&out).unwrap(), b"old"),
        || assert_merged(&base, &out, &three(DType::F32), 1.0),
    );
}

#[test]
fn an_error_leaves_no_part_of_a_folder() {
    let setting = sharded(DType::F32);
    fs::write(setting.path("base/config.json"), "{}").unwrap();
    let out = setting.path("out");
    fail_everywhere(
        &setting,
        "base",
        || assert!(!out.exists()),
        || assert_eq!(fs::read_dir(&out).unwrap().count(), 5),
    );
    // An empty folder stays one.
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(&out).unwrap();
    fail_everywhere(
        &setting,
        "base",
        || assert!(!out.exists() || fs::read_dir(&out).unwrap().count() == 0),
        || assert_eq!(fs::read_dir(&out).unwrap().count(), 5),
    );
}

#[cfg(unix)]
#[test]
fn files_beside_the_weights_are_copied() -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let setting = sharded(DType::F32);
    fs::write(setting.path("blob"), "the tokenizer")?;
    fs::write(setting.path("base/config.json"), "{}")?;
    fs::write(setting.path("base/training_args.bin"), "args")?;
    fs::set_permissions(setting.path("base/config.json"), fs::Permissions::from_mode(0o400))?;
    symlink("../blob", setting.path("base/tokenizer.json"))?;
    symlink("gone", setting.path("base/merges.txt"))?;
    for weights in
        ["pytorch_model.bin", "other.safetensors", "adapter_config.json", ".merging-1-2-3-4-5"]
    {
        fs::write(setting.path("base").join(weights), "weights")?;
    }
    for folder in ["1_Pooling", ".git"] {
        fs::create_dir(setting.path("base").join(folder))?;
    }
    let said = setting.run("base", "out", &["--dry-run"])?;
    assert!(said.contains("base/config.json: copied") && !said.contains(".bin.index"), "{said}");
    let said = setting.run("base", "out", &[])?;
    assert!(said.contains("copied   3 files"), "{said}");
    for left_out in ["1_Pooling", "merges.txt"] {
        assert!(said.contains(&format!("{left_out} is not copied")), "{said}");
    }
    assert!(!said.contains(".git"), "{said}");
    let mut names: Vec<_> = fs::read_dir(setting.path("out"))?
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model-3.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "training_args.bin",
    ];
    assert_eq!(names, expected);
    let tokenizer = setting.path("out/tokenizer.json");
    assert_eq!(fs::read(&tokenizer)?, b"the tokenizer");
    assert!(fs::symlink_metadata(&tokenizer)?.is_file());
    assert_eq!(fs::metadata(setting.path("out"))?.permissions().mode() & 0o700, 0o700);
    fs::OpenOptions::new().write(true).open(setting.path("out/config.json"))?;
    Ok(())
}

#[test]
fn the_folder_of_one_file_becomes_a_folder() -> Result<()> {
    let setting = Setting::new(DType::F32);
    fs::create_dir(setting.path("base"))?;
    fs::rename(setting.path("model.safetensors"), setting.path("base/model.safetensors"))?;
    fs::write(setting.path("base/config.json"), "{}")?;
    setting.run("base", "out", &[])?;
    let base = setting.path("base/model.safetensors");
    assert_merged(&base, &setting.path("out/model.safetensors"), &three(DType::F32), 1.0);
    assert_eq!(fs::read(setting.path("out/config.json"))?, b"{}");
    // Named as a file, it is one.
    setting.run("base", "out.safetensors", &[])?;
    assert_merged(&base, &setting.path("out.safetensors"), &three(DType::F32), 1.0);
    // Within the base's own folder, too.
    setting.run("base", "base/merged", &[])?;
    assert_eq!(fs::read_dir(setting.path("base/merged"))?.count(), 2);
    Ok(())
}
