//! What runs that were killed leave behind: hidden files and folders beside their outputs.
//!
//! A hidden name tells the process that made it: `.merging-PID-START-BOOT-NAMESPACE-RANDOM`, with
//! the process's start time and PID namespace and the machine's boot, as Linux's `/proc` has them.
//! What a process of this boot and namespace and this user has left is removed once there is no
//! such process. Anything else called `.merging-*` is only reported.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

const PREFIX: &str = ".merging-";

/// The beginning of this process's hidden names.
pub fn prefix() -> String {
    match Owner::this() {
        Some(Owner { pid, start, boot, namespace }) => {
            format!("{PREFIX}{pid}-{start}-{boot}-{namespace}-")
        }
        None => PREFIX.into(),
    }
}

#[derive(Debug, PartialEq)]
struct Owner {
    pid: u32,
    start: u64,
    boot: String,
    namespace: u64,
}

impl Owner {
    /// This process; `None` without `/proc`.
    fn this() -> Option<Self> {
        let pid = std::process::id();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let boot = boot.trim().replace('-', "");
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        let digits = |c: char| !c.is_ascii_digit();
        let namespace = namespace.to_str()?.trim_matches(digits).parse().ok()?;
        Some(Owner { pid, start: start_of(pid)?, boot, namespace })
    }

    fn of(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let pid = parts.next()?.parse().ok()?;
        let start = parts.next()?.parse().ok()?;
        let boot = parts.next()?.to_string();
        let namespace = parts.next()?.parse().ok()?;
        let random = parts.next().filter(|random| !random.is_empty());
        (random.is_some() && parts.next().is_none()).then_some(Owner {
            pid,
            start,
            boot,
            namespace,
        })
    }
}

/// When a process started, in ticks since the boot; `None` if it has ended, also where nobody has
/// waited for it yet.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the command's name, which may have anything in it, is the third field.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!["Z", "X"].contains(&state)).then_some(fields.nth(22 - 4)?.parse().ok()?)
}

/// Removes from a folder what killed runs of this user have left, and reports the rest.
pub fn clean(folder: &Path, out: &mut impl Write) -> io::Result<()> {
    // A folder that cannot be listed has an error of its own when it is written to.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let this = Owner::this();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let path = entry.path();
        let shown = path.display();
        let owner = Owner::of(name);
        let (Some(this), Some(owner)) = (&this, &owner) else {
            writeln!(out, "note     {shown} may be left from a run that was killed")?;
            continue;
        };
        if (&owner.boot, owner.namespace) != (&this.boot, this.namespace) || !is_own(&path) {
            writeln!(out, "note     {shown} may be left from a run that was killed")?;
        } else if start_of(owner.pid) != Some(owner.start) {
            match remove(&path) {
                Ok(()) => writeln!(out, "removed  {shown}, left from a run that was killed")?,
                Err(error) => writeln!(out, "note     {shown} could not be removed: {error}")?,
            }
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.file_type() {
        is if is.is_dir() => fs::remove_dir_all(path),
        is if is.is_file() => fs::remove_file(path),
        _ => Err(io::Error::other("it is neither a file nor a folder")),
    }
}

/// Whether it belongs to the user of this process. Processes of others can be invisible.
#[cfg(unix)]
fn is_own(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let user = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|metadata| metadata.uid());
    user(fs::symlink_metadata(path))
        .is_some_and(|uid| user(fs::metadata("/proc/self")) == Some(uid))
}

#[cfg(not(unix))]
fn is_own(_: &Path) -> bool {
    false
}
