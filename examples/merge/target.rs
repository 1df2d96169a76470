//! Where the output goes: looked at before any work is done.

use crate::Result;
use crate::checkpoint::Checkpoint;
use std::fs::{self, FileType, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A path that is free, or that holds what may be replaced.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A file; a regular file that is there is replaced.
    File(PathBuf),
    /// A folder; an empty one may be there.
    Folder(PathBuf),
}

impl Target {
    /// A folder for a sharded checkpoint and for a base that is one, unless `out` is named as a
    /// safetensors file; otherwise a file.
    pub fn new(checkpoint: &Checkpoint, base: &Path, out: &Path) -> Result<Self> {
        let named_as_file = out.extension().is_some_and(|end| end == "safetensors");
        match (checkpoint.sharded(), base.is_dir()) {
            (true, _) if named_as_file => Err(format!(
                "{}: the checkpoint is sharded, so the output is a folder, not a .safetensors file",
                out.display()
            )
            .into()),
            (true, _) => Ok(Target::Folder(out.to_path_buf())),
            (false, true) if !named_as_file => Ok(Target::Folder(out.to_path_buf())),
            _ => Ok(Target::File(out.to_path_buf())),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Target::File(path) | Target::Folder(path) => path,
        }
    }

    /// The folder that the output is in.
    pub fn parent(&self) -> &Path {
        match self.path().parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        }
    }

    /// Refuses what cannot be written, and what would take something away that is there.
    pub fn check<'a>(&self, inputs: impl Iterator<Item = &'a Path>) -> Result<()> {
        let out = self.path().display();
        if self.path().file_name().is_none() {
            return Err(format!("--out {out} names neither a file nor a folder").into());
        }
        self.check_inputs(inputs)?;
        match fs::symlink_metadata(self.path()) {
            Ok(metadata) => self.check_present(&metadata)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{out} could not be written: {error}").into()),
        }
        let parent = self.parent();
        if !parent.is_dir() {
            let parent = parent.display();
            return Err(format!("{out} could not be written: there is no folder {parent}").into());
        }
        Ok(())
    }

    fn check_inputs<'a>(&self, mut inputs: impl Iterator<Item = &'a Path>) -> Result<()> {
        let out = self.path();
        // Nothing else is opened: a FIFO would wait for a writer.
        if !out.is_file() && !out.is_dir() {
            return Ok(());
        }
        let same = |input: &&Path| same_file::is_same_file(out, input).unwrap_or(false);
        if let Some(input) = inputs.find(same) {
            let (out, input) = (out.display(), input.display());
            return Err(format!("{out} is the input {input}, which is not overwritten").into());
        }
        Ok(())
    }

    /// Checks what is at the output's path.
    fn check_present(&self, metadata: &Metadata) -> Result<()> {
        let (path, out) = (self.path(), self.path().display());
        let is = metadata.file_type();
        if is.is_symlink() {
            let to = fs::read_link(path)?;
            let (to, end) = match path.exists() {
                true => (to.display(), "give the path of what it leads to"),
                false => (to.display(), "that does not exist"),
            };
            return Err(format!("{out} is a symbolic link to {to}: {end}").into());
        }
        match self {
            Target::File(_) if is.is_file() => Ok(()),
            Target::File(_) => Err(format!("{out} is {}, not a file", kind(is)).into()),
            Target::Folder(_) if !is.is_dir() => Err(format!(
                "{out} is {}, but the output is a folder; for a checkpoint of one file, a name \
                 that ends in .safetensors gives a file",
                kind(is)
            )
            .into()),
            Target::Folder(_) => {
                let entries = fs::read_dir(path);
                let mut entries = entries.map_err(|error| format!("{out}: {error}"))?;
                match entries.next() {
                    Some(_) => Err(format!(
                        "{out} is a directory that is not empty: give the path of a new one"
                    )
                    .into()),
                    None => Ok(()),
                }
            }
        }
    }
}

fn kind(is: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if is.is_char_device() {
            return "a character device";
        } else if is.is_block_device() {
            return "a block device";
        } else if is.is_fifo() {
            return "a FIFO";
        } else if is.is_socket() {
            return "a socket";
        }
    }
    match (is.is_dir(), is.is_file()) {
        (true, _) => "a directory",
        (_, true) => "a file",
        _ => "something else",
    }
}
