//! Both files of a PEFT directory, written so that `load` sees both of one save.

use super::config::Config;
use super::file::{CONFIG_FILE, WEIGHTS_FILE, malformed, unwritable};
use super::lock::Lock;
use super::names::check_module;
use super::save_config::config_json;
use super::save_tensors::{all_tensors, write_weights};
use crate::error::Result;
use crate::layers::Adapter;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

/// Saves adapters by the paths of their modules, as PEFT's `save_pretrained` does.
///
/// `config` is the one that [`load`](super::load) returned, or `Config::default()`. The ranks and
/// alphas written are those of the adapters. `r`, `lora_alpha` and the patterns of `config` are
/// kept if they agree with them, and replaced otherwise. `target_modules` is kept if the modules
/// are those that were loaded, and otherwise names each module by its whole path. (PEFT also takes
/// such a path for the end of a longer one: the path `a` also puts an adapter on a module `b.a`.)
/// The [extras](Config::extras) of the configuration are written as well.
///
/// The directory is created if necessary. Both files are written under temporary names, forced to
/// disk and renamed, so no reader sees half a file. They are renamed one after the other, the
/// weights first, by one process at a time. [`load`](super::load) [recognises files of two
/// saves](crate::peft#while-another-process-saves); PEFT does not. Tensors are copied from their
/// devices one at a time.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if there are no adapters, if a module occurs twice
/// or has an impossible name, or if there are so many that [`load`](super::load) would refuse the
/// configuration; [`Error::Unsupported`](crate::Error::Unsupported) if the adapters differ in their
/// [`scaling`](Adapter::scaling), or only some have magnitudes; [`Error::Io`](crate::Error::Io);
/// [`Error::Driver`](crate::Error::Driver).
pub fn save<'a>(
    dir: impl AsRef<Path>,
    config: &Config,
    adapters: impl IntoIterator<Item = (&'a str, &'a Adapter)>,
) -> Result<()> {
    let dir = dir.as_ref();
    let (config_path, weights_path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
    let adapters = collect(&weights_path, config, adapters)?;
    let tensors = all_tensors(&weights_path, config, &adapters)?;
    let json = config_json(&config_path, config, &adapters)?;
    let fingerprint = Config::parse(&config_path, json.as_bytes())?.fingerprint();

    fs::create_dir_all(dir).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let reason = "it is a file, or a link to nothing, where the directory is to be";
            unwritable(dir, io::Error::new(error.kind(), reason))
        }
        _ => unwritable(dir, error),
    })?;
    let new = tempfile::Builder::new().prefix(".saving-").tempdir_in(dir);
    let new = new.map_err(|error| unwritable(dir, error))?;
    let (new_config, new_weights) = (new.path().join(CONFIG_FILE), new.path().join(WEIGHTS_FILE));
    write_weights(&new_weights, &weights_path, &tensors, fingerprint)?;
    let written = File::create_new(&new_config).and_then(|mut file| {
        file.write_all(json.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| unwritable(&config_path, error))?;

    replace([(&new_weights, &weights_path), (&new_config, &config_path)], dir)?;
    sync_dir(dir).map_err(|error| unwritable(dir, error))
}

/// Renames both new files to their places, one saver at a time. Before that, they are stamped with
/// the time: the configuration of one save is never newer than the weights of the next.
fn replace([weights, config]: [(&Path, &Path); 2], dir: &Path) -> Result<()> {
    let _lock = Lock::take(dir)?;
    let now = SystemTime::now();
    for (new, path) in [weights, config] {
        if path.is_dir() {
            return Err(unwritable(path, io::Error::other("it is a directory")));
        }
        let stamped = File::options().write(true).open(new).and_then(|file| file.set_modified(now));
        stamped.map_err(|error| unwritable(path, error))?;
    }
    for (new, path) in [weights, config] {
        fs::rename(new, path).map_err(|error| unwritable(path, error))?;
    }
    Ok(())
}

fn collect<'a>(
    path: &Path,
    config: &Config,
    adapters: impl IntoIterator<Item = (&'a str, &'a Adapter)>,
) -> Result<BTreeMap<&'a str, &'a Adapter>> {
    let mut collected = BTreeMap::new();
    for (module, adapter) in adapters {
        check_module(module).map_err(|reason| malformed(path, &format!("{module:?}"), reason))?;
        if collected.insert(module, adapter).is_some() {
            return Err(malformed(path, module, "is there twice"));
        }
    }
    if collected.is_empty() && config.extras.is_empty() {
        return Err(malformed(path, "the file", "would have no adapter"));
    }
    Ok(collected)
}

/// Forces the names in a directory to disk, where a directory can be opened for that.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}
