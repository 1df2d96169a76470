//! The output, which has its name only when it is whole.
//!
//! Everything is written beside its final path under a hidden name, forced to disk, and then
//! renamed: a file, or a whole folder, so that a reader sees all of it or nothing. A folder has no
//! state between. An error drops the hidden file or folder; a run that is killed leaves it to the
//! next one, see `leftovers.rs`.

use crate::Result;
use crate::leftovers;
use crate::target::Target;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::{TempDir, TempPath};

pub struct Staging {
    target: Target,
    hidden: Hidden,
}

enum Hidden {
    /// The file, until somebody writes to it.
    File(Option<File>, TempPath),
    Folder(TempDir),
}

impl Staging {
    /// Makes the hidden file or folder.
    pub fn new(target: Target) -> Result<Self> {
        let prefix = leftovers::prefix();
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        // The usual permissions, as far as the umask leaves them.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(match target {
            Target::File(_) => 0o666,
            Target::Folder(_) => 0o777,
        }));
        let hidden = step().and_then(|()| match target {
            Target::File(_) => {
                let (file, path) = builder.tempfile_in(target.parent())?.into_parts();
                Ok(Hidden::File(Some(file), path))
            }
            Target::Folder(_) => Ok(Hidden::Folder(builder.tempdir_in(target.parent())?)),
        });
        let hidden = hidden.map_err(|error| unwritable(target.path(), error))?;
        Ok(Staging { target, hidden })
    }

    /// A file of the output folder, or the only file.
    pub fn file(&mut self, name: &Path) -> Result<Output> {
        match &mut self.hidden {
            Hidden::File(file, _) => {
                let path = self.target.path().to_path_buf();
                let file = file.take().ok_or_else(|| {
                    format!("{} cannot take {} as well", path.display(), name.display())
                })?;
                Ok(Output { file, path })
            }
            Hidden::Folder(folder) => {
                let path = self.target.path().join(name);
                let file = step().and_then(|()| File::create_new(folder.path().join(name)));
                Ok(Output { file: file.map_err(|error| unwritable(&path, error))?, path })
            }
        }
    }

    /// Gives the output its name.
    pub fn finish(self) -> Result<()> {
        let (target, path) = (&self.target, self.target.path());
        let renamed = match self.hidden {
            Hidden::File(_, hidden) => {
                step().and_then(|()| hidden.persist(path).map_err(|error| error.error))
            }
            Hidden::Folder(hidden) => rename_folder(hidden, path),
        };
        renamed.map_err(|error| unwritable(path, error))?;
        sync_names(target.parent()).map_err(|error| {
            format!("{} is written, but may not survive a power failure: {error}", path.display())
        })?;
        Ok(())
    }
}

fn rename_folder(hidden: TempDir, path: &Path) -> io::Result<()> {
    sync_names(hidden.path())?;
    // An empty folder gives way, elsewhere only if it is removed before.
    if !cfg!(unix) && path.is_dir() {
        fs::remove_dir(path)?;
    }
    step()?;
    fs::rename(hidden.path(), path)?;
    // Nothing has the hidden name now.
    let _ = hidden.keep();
    Ok(())
}

/// A file of the output that is being written.
pub struct Output {
    file: File,
    /// Its final path, which errors name.
    path: PathBuf,
}

impl Output {
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = step().and_then(|()| self.file.write_all(bytes));
        Ok(written.map_err(|error| unwritable(&self.path, error))?)
    }

    /// Forces it to disk.
    pub fn finish(self) -> Result<()> {
        let synced = step().and_then(|()| self.file.sync_all());
        Ok(synced.map_err(|error| unwritable(&self.path, error))?)
    }
}

fn unwritable(path: &Path, error: io::Error) -> String {
    format!("{} could not be written: {error}", path.display())
}

/// Forces the names in a folder to disk, where a folder can be opened for that.
fn sync_names(folder: &Path) -> io::Result<()> {
    step()?;
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Stands before every operation that can fail, so that tests can have it fail.
fn step() -> io::Result<()> {
    #[cfg(test)]
    return steps::step();
    #[cfg(not(test))]
    Ok(())
}

#[cfg(test)]
pub mod steps {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static UNTIL_FAILURE: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Lets this thread's steps fail after so many.
    pub fn fail_after(steps: Option<usize>) {
        UNTIL_FAILURE.set(steps);
    }

    pub fn step() -> io::Result<()> {
        match UNTIL_FAILURE.get() {
            Some(0) => return Err(io::Error::other("the disk is full, says the test")),
            left => UNTIL_FAILURE.set(left.map(|left| left - 1)),
        }
        Ok(())
    }
}
