//! Writing a file so that its path shows the old content or the whole new one, never a part, whatever breaks.
//!
//! The bytes go to a temporary file in the same directory, which is renamed over the path and then flushed to the disk:
//! a reply of `Done` outlives a killed machine. An existing file keeps its permission bits and owner, and a symbolic link is
//! written through.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use cove_protocol::guest::{CHUNK_BYTES_MAX, Input, Reply};

use super::{FileError, change::make_parents, content::Content};
use crate::{
    failure::{Failure, absolute},
    transport::Transport,
};

/// Symbolic links followed before a path is refused, as the kernel counts them.
const LINKS_MAX: usize = 40;

/// Makes names of temporary files differ.
static LAST_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Receives the content and gives the final reply. A failure is answered once all the content has come, so that the
/// connection can carry the next request.
pub fn write_file(transport: &mut Transport, path: &str, mode: u32, buffer: &mut Vec<u8>) -> Result<Reply, FileError> {
    let failed = |error: io::Error| Failure::io(format!("Cannot write {path}"), &error);
    let mut received = vec![0; CHUNK_BYTES_MAX];
    let mut target = begin(path, mode).map(|(temporary, file)| (temporary, Content::new(file, buffer)));
    loop {
        match transport.next::<Input>()? {
            None => transport.wait_for_bytes(&mut received)?,
            Some(Input::Data(bytes)) => {
                if let Ok((_, content)) = &mut target
                    && let Err(error) = content.push(&bytes)
                {
                    target = Err(failed(error));
                }
            }
            Some(Input::End) => break,
            Some(Input::Signal(_) | Input::Resize(_)) => {}
        }
    }
    let (temporary, content) = target?;
    content.finish().and_then(|file| temporary.publish(&file)).map_err(failed)?;
    Ok(Reply::Done)
}

/// Checks the path and opens the temporary file beside it.
fn begin(path: &str, mode: u32) -> Result<(Temporary, File), Failure> {
    absolute("path", path)?;
    if mode & !0o7777 != 0 {
        return Err(Failure::request(format!("mode: {mode:#o} has more than permission bits")));
    }
    if path.ends_with('/') {
        return Err(Failure::path(path, "names a directory"));
    }
    let failed = |error: io::Error| Failure::io(format!("Cannot write {path}"), &error);
    let (target, existing) = follow_links(Path::new(path)).map_err(failed)?;
    if existing.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        return Err(Failure::path(path, "is not a regular file"));
    }
    make_parents(&target)?;
    Temporary::beside(target, mode, existing.as_ref()).map_err(failed)
}

/// Where a write to `path` ends up, and what is there.
fn follow_links(path: &Path) -> io::Result<(PathBuf, Option<Metadata>)> {
    let mut target = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        match fs::symlink_metadata(&target) {
            Ok(metadata) if metadata.is_symlink() => {
                let link = fs::read_link(&target)?;
                target.pop();
                target.push(link);
            }
            Ok(metadata) => return Ok((target, Some(metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((target, None)),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// The name of a file that is removed again unless it is published.
struct Temporary {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Temporary {
    fn beside(target: PathBuf, mode: u32, existing: Option<&Metadata>) -> io::Result<(Self, File)> {
        let number = LAST_TEMPORARY.fetch_add(1, Ordering::Relaxed);
        // A watch tells by the name whether the file is new (`changes::watcher`).
        let suffix = if existing.is_none() { "-new" } else { "" };
        let path = target.with_file_name(format!(".cove-write-{}-{number}{suffix}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let temporary = Self { path, target, published: false };
        if let Some(existing) = existing
            && (existing.uid(), existing.gid()) != (0, 0)
        {
            fchown(&file, Some(existing.uid()), Some(existing.gid()))?;
        }
        let mode = existing.map_or(mode, |existing| existing.mode() & 0o7777);
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok((temporary, file))
    }

    /// Puts the file in its place: first the new name, then one flush for content and name. [`Content::finish`] has
    /// seen to it that even a machine killed in between never shows the name without the content, and this costs one
    /// commit of the journal where a flush before and another after would cost two.
    fn publish(mut self, file: &File) -> io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        self.published = true;
        file.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}
