//! The server of a data directory on this computer: what its lock file says, as long as the lock is held.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;

/// The server's lock file, in the data directory.
const LOCK_FILE: &str = "lock";

/// Most bytes read of a lock file.
const FILE_BYTES_MAX: u64 = 4096;

/// A running server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LocalServer {
    /// Its process.
    pub pid: u32,
    /// Since when, RFC 3339.
    pub since: String,
    /// Where it listens; `None` while it starts.
    pub port: Option<u16>,
}

/// The server that holds `data_dir`, if one does. The lock itself is not touched, since even a moment's shared lock could
/// make a starting server believe that it is not alone; the kernel's list of locks tells the same.
pub fn server(data_dir: &Path) -> Option<LocalServer> {
    let file = File::open(data_dir.join(LOCK_FILE)).ok()?;
    let inode = file.metadata().ok()?.ino();
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    let server: LocalServer = serde_json::from_str(&text).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().any(|line| is_flock_of(line, server.pid, inode)).then_some(server)
}

/// A line of `/proc/locks` (proc(5)): `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`.
fn is_flock_of(line: &str, pid: u32, inode: u64) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, _, holder, place, ..] = words[..] else { return false };
    holder.parse() == Ok(pid) && place.rsplit(':').next().map(str::parse) == Some(Ok(inode))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn a_server_is_there_as_long_as_it_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(server(dir.path()), None);
        let text = format!("{{\"pid\":{},\"since\":\"now\",\"port\":7}}\n", std::process::id());
        fs::write(dir.path().join(LOCK_FILE), text).unwrap();
        assert_eq!(server(dir.path()), None, "nobody holds it");
        let file = File::open(dir.path().join(LOCK_FILE)).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let found = server(dir.path()).unwrap();
        assert_eq!((found.pid, found.port), (std::process::id(), Some(7)));
        drop(file);
        assert_eq!(server(dir.path()), None);
    }
}
