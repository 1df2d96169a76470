//! New files, which nobody sees before they are whole.

use crate::Result;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file that is written beside its place under another name; dropped, it is gone.
pub struct Output {
    file: NamedTempFile,
    path: PathBuf,
}

impl Output {
    pub fn new(path: PathBuf) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".merging-");
        // The usual permissions, as far as the umask leaves them.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|error| {
            format!("{}: nothing can be written there: {error}", folder.display())
        })?;
        Ok(Output { file, path })
    }

    /// Forces it to disk and gives it its name.
    pub fn finish(self) -> Result<()> {
        let path = &self.path;
        let failed = |error| format!("{} could not be written: {error}", path.display());
        self.file.as_file().sync_all().map_err(failed)?;
        self.file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Forces the names in a folder to disk, where a folder can be opened for that.
pub fn sync_names(folder: &Path) -> io::Result<()> {
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Refuses an output that is an input, by whatever name, and links count.
pub fn refuse_inputs<'a>(out: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<()> {
    if !out.exists() {
        return Ok(());
    }
    if let Some(input) = inputs.find(|input| same_file::is_same_file(out, input).unwrap_or(false)) {
        let (out, input) = (out.display(), input.display());
        return Err(format!("{out} is the input {input}, which is not overwritten").into());
    }
    Ok(())
}
