//! The data directory and the runtime directory: made private, and held by one server at a time.
//!
//! The lock is an flock on `<data>/lock`, so it ends with its process however that ends. The file's text says who holds
//! it, for the second server's message.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::{ConfigError, Paths};
use crate::error::Error;
use crate::machine::process::vmm_processes;

/// Most bytes read of another server's lock file.
const LOCK_BYTES_MAX: u64 = 4096;

/// Who holds a data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    since: String,
    port: Option<u16>,
}

/// The held data directory; dropping it lets go.
#[derive(Debug)]
pub(crate) struct DataDir {
    lock: Mutex<(File, Holder)>,
}

impl DataDir {
    /// Makes the directories and takes the lock.
    pub(crate) fn hold(paths: &Paths) -> Result<Self, Error> {
        make_dir(&paths.data)?;
        let path = paths.lock();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(Error::file("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(held_by_another(&paths.data, &mut file)),
            Err(errno) => return Err(Error::file("lock", &path)(errno.into())),
        }
        let since = OffsetDateTime::now_utc().replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok());
        let holder = Holder { pid: std::process::id(), since: since.unwrap_or_default(), port: None };
        write_holder(&mut file, &holder).map_err(Error::file("write", &path))?;
        for dir in [paths.templates(), paths.sandboxes(), paths.layers(), paths.images()] {
            make_dir(&dir)?;
            fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(Error::file("protect", &dir))?;
        }
        Ok(Self { lock: Mutex::new((file, holder)) })
    }

    /// Makes the runtime directory and remembers it. When machines of an earlier server still listen in another one, as
    /// after a change of `XDG_RUNTIME_DIR`, that one goes on being used: `paths` is changed to it.
    pub(crate) fn settle_runtime_dir(&self, paths: &mut Paths) -> Result<(), Error> {
        let remembered = paths.data.join("runtime-dir");
        if let Ok(earlier) = fs::read_to_string(&remembered) {
            let earlier = PathBuf::from(earlier.trim_end_matches('\n'));
            let in_use =
                earlier != paths.runtime && !vmm_processes(&earlier).map_err(Error::file("list", "/proc"))?.is_empty();
            if in_use {
                tracing::warn!(runtime_dir = %earlier.display(), "machines of an earlier server listen here, so it stays in use");
                paths.runtime = earlier;
            }
        }
        make_dir(&paths.runtime)?;
        check_private(&paths.runtime)?;
        let text = format!("{}\n", paths.runtime.display());
        fs::write(&remembered, text).map_err(Error::file("write", &remembered))
    }

    /// Says on which port the holder serves.
    pub(crate) fn announce_port(&self, paths: &Paths, port: u16) -> Result<(), Error> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, holder) = &mut *lock;
        holder.port = Some(port);
        write_holder(file, holder).map_err(Error::file("write", paths.lock()))
    }
}

fn write_holder(file: &mut File, holder: &Holder) -> io::Result<()> {
    let mut text = serde_json::to_vec(holder)?;
    text.push(b'\n');
    file.rewind()?;
    file.write_all(&text)?;
    file.set_len(text.len() as u64)
}

fn held_by_another(directory: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    // Unreadable text only means that the other one has not written it yet.
    let _ = file.take(LOCK_BYTES_MAX).read_to_string(&mut text);
    let holder = serde_json::from_str(&text).unwrap_or(Holder { pid: 0, since: "just now".into(), port: None });
    Error::DataDirLocked { directory: directory.into(), pid: holder.pid, since: holder.since, port: holder.port }
}

/// Makes a directory and its parents, mode 0700 where it makes one.
pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::file("make the directory", path))
}

/// A directory in `/tmp` may have been made by someone else before us.
fn check_private(path: &Path) -> Result<(), Error> {
    let found = fs::symlink_metadata(path).map_err(Error::file("look at", path))?;
    let uid = rustix::process::getuid().as_raw();
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o077 != 0 {
        let found = format!("mode {:o} of user {}", found.mode() & 0o7777, found.uid());
        return Err(ConfigError::NotPrivate { path: path.into(), uid, found }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_learns_who_holds_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
        let first = DataDir::hold(&paths).unwrap();
        first.settle_runtime_dir(&mut paths.clone()).unwrap();
        first.announce_port(&paths, 7070).unwrap();
        match DataDir::hold(&paths).unwrap_err() {
            Error::DataDirLocked { pid, port, since, .. } => {
                assert_eq!((pid, port), (std::process::id(), Some(7070)));
                assert!(since.ends_with('Z'), "{since}");
            }
            other => panic!("{other}"),
        }
        drop(first);
        DataDir::hold(&paths).unwrap();
    }

    #[test]
    fn a_runtime_directory_open_to_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
        fs::create_dir(&paths.runtime).unwrap();
        fs::set_permissions(&paths.runtime, Permissions::from_mode(0o777)).unwrap();
        let error = DataDir::hold(&paths).unwrap().settle_runtime_dir(&mut paths.clone()).unwrap_err();
        assert!(matches!(error, Error::Config(ConfigError::NotPrivate { .. })), "{error}");
    }
}
