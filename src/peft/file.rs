//! The names in a PEFT directory, opening its files, and errors that name them.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io;
use std::path::Path;

pub(super) const CONFIG_FILE: &str = "adapter_config.json";
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts in front of a module's path.
pub(super) const PREFIX: &str = "base_model.model.";

/// Opens a file, unless it is something else, such as a pipe that never ends.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if !metadata.is_file() {
        return Err(unreadable(path, io::Error::other("it is not a regular file")));
    }
    File::open(path).map_err(|error| unreadable(path, error))
}

pub(super) fn unreadable(path: &Path, error: io::Error) -> Error {
    failed(path, "read", error)
}

pub(super) fn unwritable(path: &Path, error: io::Error) -> Error {
    failed(path, "written", error)
}

fn failed(path: &Path, action: &'static str, error: io::Error) -> Error {
    Error::Io { path: path.into(), action, kind: error.kind(), reason: error.to_string() }
}

pub(super) fn malformed(path: &Path, key: &str, reason: impl Into<String>) -> Error {
    Error::Malformed { path: path.into(), key: key.into(), reason: reason.into() }
}

pub(super) fn unsupported(path: &Path, key: &str, reason: impl Into<String>) -> Error {
    Error::Unsupported { path: path.into(), key: key.into(), reason: reason.into() }
}
