//! One saver of a directory at a time.

use super::file::unwritable;
use crate::error::Result;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const LOCK_FILE: &str = ".saving-lock";

/// Savers hold the lock for two renames. One that stays as it is for so long is of a process that
/// was killed.
const STALE: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

/// The lock of a directory: a file that only one process can have created.
#[derive(Debug)]
pub(super) struct Lock(PathBuf);

impl Lock {
    /// Waits for the lock and takes it.
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK_FILE);
        let start = Instant::now();
        let (mut seen, mut since) = (None, start);
        loop {
            match File::create_new(&path) {
                Ok(_) => return Ok(Lock(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(unwritable(&path, error)),
            }
            if start.elapsed() > LONGEST_WAIT {
                let reason =
                    "other processes save to the directory; remove the file if there are none";
                return Err(unwritable(&path, io::Error::new(io::ErrorKind::WouldBlock, reason)));
            }
            let stamp = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
            if stamp.is_none() || stamp != seen {
                (seen, since) = (stamp, Instant::now());
            } else if since.elapsed() > STALE {
                // If it is gone, another waiter has removed it.
                let _ = fs::remove_file(&path);
                (seen, since) = (None, Instant::now());
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
