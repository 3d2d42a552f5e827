//! Listing a directory, depth first, names in byte order, without following symbolic links.

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStrExt, path::Path};

use cove_protocol::guest::{ENTRIES_PER_FRAME_MAX, Entry, Reply};

use super::{FileError, entry};
use crate::{
    failure::{Failure, absolute},
    transport::Transport,
};

/// Names of one directory that are sorted in memory; a larger one is refused.
const NAMES_MAX: usize = 200_000;

/// Bytes of paths in one frame: well below what a frame holds, whatever the paths' length.
const PATH_BYTES_PER_FRAME_MAX: usize = 256 << 10;

/// Sends the entries and gives the final reply.
pub fn list(transport: &mut Transport, path: &str, depth: u32) -> Result<Reply, FileError> {
    absolute("path", path)?;
    let root = Path::new(path);
    let failed = |path: &Path, error: io::Error| Failure::io(format!("Cannot list {}", path.display()), &error);
    let mut batch = Batch::default();
    if depth == 0 {
        return Ok(Reply::Done);
    }
    // One sorted list of names for each level on the way down, taken from its end.
    let mut levels = vec![(root.to_path_buf(), names(root).map_err(|error| failed(root, error))?)];
    while let Some((directory, rest)) = levels.last_mut() {
        let Some(name) = rest.pop() else {
            levels.pop();
            continue;
        };
        let path = directory.join(name);
        // What has gone meanwhile is not listed.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        batch.push(transport, entry(&path, &metadata))?;
        if metadata.is_dir() && (levels.len() as u64) < u64::from(depth) {
            match names(&path) {
                Ok(below) => levels.push((path, below)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&path, error).into()),
            }
        }
    }
    batch.send(transport)?;
    Ok(Reply::Done)
}

/// The names in a directory, the last one first.
///
/// # Errors
/// The directory's; a directory of too many names.
pub fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for name in fs::read_dir(directory)? {
        if names.len() == NAMES_MAX {
            return Err(io::Error::other(format!("it holds more than {NAMES_MAX} names")));
        }
        names.push(name?.file_name());
    }
    names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
    Ok(names)
}

/// Entries on their way into a frame.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    path_bytes: usize,
}

impl Batch {
    fn push(&mut self, transport: &mut Transport, entry: Entry) -> Result<(), FileError> {
        self.path_bytes += entry.path.len();
        self.entries.push(entry);
        if self.entries.len() == ENTRIES_PER_FRAME_MAX || self.path_bytes > PATH_BYTES_PER_FRAME_MAX {
            self.send(transport)?;
        }
        Ok(())
    }

    fn send(&mut self, transport: &mut Transport) -> Result<(), FileError> {
        if !self.entries.is_empty() {
            self.path_bytes = 0;
            transport.send_all(&Reply::Entries(std::mem::take(&mut self.entries)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn names_come_out_in_byte_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a", "Z", "ä", "a b", "#"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let mut got: Vec<PathBuf> = names(folder.path()).unwrap().into_iter().map(PathBuf::from).collect();
        got.reverse();
        assert_eq!(got, ["#", "Z", "a", "a b", "b", "ä"].map(PathBuf::from));
    }
}
