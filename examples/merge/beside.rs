//! What is beside the weights: configuration, tokenizer and the rest, which go into an output
//! folder as they are, so that it loads as the base did.

use crate::Result;
use crate::model::CONFIG;
use crate::output::Staging;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Endings of weights in any format, and of the state of a training.
const WEIGHTS: [&str; 10] =
    ["safetensors", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "ot", "npz"];

/// The files beside a checkpoint's weights.
#[derive(Debug, PartialEq)]
pub struct Beside {
    pub files: Vec<PathBuf>,
    /// Visible folders and links that lead nowhere, which are not copied.
    pub left_out: Vec<PathBuf>,
}

impl Beside {
    pub fn list(folder: &Path) -> Result<Self> {
        let folder = if folder == Path::new("") { Path::new(".") } else { folder };
        let failed = |error| format!("{} could not be read: {error}", folder.display());
        let mut beside = Beside { files: Vec::new(), left_out: Vec::new() };
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if is_weights(&name) || name.starts_with(".merging-") {
                continue;
            }
            // Links count as what they lead to: the cache of the hub is made of them.
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => beside.files.push(path),
                Ok(metadata) if metadata.is_dir() && name.starts_with('.') => {}
                _ => beside.left_out.push(path),
            }
        }
        beside.files.sort();
        beside.left_out.sort();
        Ok(beside)
    }

    /// Copies all files, with another `config.json` if one is given.
    pub fn copy(&self, staging: &mut Staging, config: Option<&[u8]>) -> Result<()> {
        for path in &self.files {
            if let Some(config) = config.filter(|_| path.ends_with(CONFIG)) {
                let mut output = staging.file(Path::new(CONFIG))?;
                output.write(config)?;
                output.finish()?;
                continue;
            }
            let unreadable = |error| format!("{} could not be read: {error}", path.display());
            let mut file = File::open(path).map_err(unreadable)?;
            let mut output = staging.file(Path::new(path.file_name().unwrap_or(OsStr::new(""))))?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match file.read(&mut buffer).map_err(unreadable)? {
                    0 => break,
                    n => output.write(&buffer[..n])?,
                }
            }
            output.finish()?;
        }
        Ok(())
    }
}

/// Weights, their index, or a file of an adapter.
fn is_weights(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let end = name.rsplit('.').next().unwrap_or("");
    let bin = end == "bin"
        && ["pytorch_model", "model", "diffusion_pytorch_model", "consolidated"]
            .iter()
            .any(|start| name.starts_with(start));
    WEIGHTS.contains(&end)
        || bin
        || name.ends_with(".index.json")
        || name == "adapter_config.json"
        || name.starts_with("adapter_model.")
}

#[cfg(test)]
mod tests {
    use super::is_weights;

    #[test]
    fn weights_are_told_from_the_rest() {
        for name in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "consolidated.00.pth",
            "optimizer.pt",
            "adapter_config.json",
            "adapter_model.bin",
            "tf_model.h5",
            "Model.SAFETENSORS",
        ] {
            assert!(is_weights(name), "{name}");
        }
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer.model",
            "merges.txt",
            "training_args.bin",
            "modeling_x.py",
            "LICENSE",
            ".gitattributes",
        ] {
            assert!(!is_weights(name), "{name}");
        }
    }
}
