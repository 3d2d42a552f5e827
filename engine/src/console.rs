//! Following a sandbox's console as its machine writes it.
//!
//! The vmm writes the log, in two segments: when `<log>` is full it becomes `<log>.old` and a new `<log>` begins
//! (`vmm/src/devices/console.rs`). The kernel tells of every change (inotify(7)), so nothing is asked in between; a follower
//! that is slow is told that something is missing and goes on with what there is. Used by `Engine::follow_logs`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::Error;

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 64 << 10;

/// What a follower gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsolePiece {
    /// The next bytes.
    Bytes(Bytes),
    /// Bytes are missing here: the console was written faster than it was read.
    Gap,
}

/// A place in a console's log.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    changes: AsyncFd<OwnedFd>,
    /// What is read now; `None` before the machine's first word.
    segment: Option<Segment>,
    /// Its directory is gone.
    ended: bool,
}

#[derive(Debug)]
struct Segment {
    file: File,
    inode: u64,
    position: u64,
}

impl Console {
    /// Follows the log at `path` from its newest `bytes` on. Must be called inside the runtime.
    pub(crate) fn follow(path: &Path, bytes: u64) -> Result<Self, Error> {
        let changes = watch(path.parent().unwrap_or(path)).map_err(Error::file("watch", path))?;
        let segment = newest(path, bytes).map_err(Error::file("read", path))?;
        Ok(Self { path: path.to_owned(), changes, segment, ended: false })
    }

    /// What is there already, without waiting.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn available(&mut self) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(piece) = self.read().map_err(Error::file("read", &self.path))? {
            if let ConsolePiece::Bytes(bytes) = piece {
                all.extend_from_slice(&bytes);
            }
        }
        Ok(all)
    }

    /// The next piece; `None` when the sandbox's files are gone. Waits for one.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn next(&mut self) -> Option<Result<ConsolePiece, Error>> {
        loop {
            match self.read() {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) if self.ended => return None,
                Ok(None) => {}
                Err(source) => return Some(Err(Error::file("read", &self.path)(source))),
            }
            if let Err(source) = self.changed().await {
                return Some(Err(Error::file("watch", &self.path)(source)));
            }
        }
    }

    /// What can be read without waiting.
    fn read(&mut self) -> io::Result<Option<ConsolePiece>> {
        if self.segment.is_none() {
            self.segment = Segment::open(&self.path)?;
        }
        let Some(segment) = &mut self.segment else { return Ok(None) };
        if let Some(bytes) = segment.read()? {
            return Ok(Some(ConsolePiece::Bytes(bytes)));
        }
        // At its end: another segment may have begun meanwhile.
        let current = inode(&self.path);
        if current == Some(segment.inode) {
            return Ok(None);
        }
        // What was written to the old one before the new one began.
        if let Some(bytes) = segment.read()? {
            return Ok(Some(ConsolePiece::Bytes(bytes)));
        }
        if current.is_none() {
            // An open file would keep its removed directory, and nobody would be told of the end.
            self.segment = None;
            return Ok(None);
        }
        let whole = inode(&old(&self.path)).is_none_or(|old| old == segment.inode);
        self.segment = Segment::open(&self.path)?;
        if whole { self.read() } else { Ok(Some(ConsolePiece::Gap)) }
    }

    /// Returns when something in the log's directory changed.
    async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut ready = self.changes.readable().await?;
        let mut changes = inotify::Reader::new(ready.get_inner(), &mut buffer);
        loop {
            match changes.next() {
                Ok(change) => self.ended |= change.events().contains(inotify::ReadFlags::IGNORED),
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Segment {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some(Self { file, inode, position: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The next bytes; `None` at the end.
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        // A new machine of the sandbox begins the log anew.
        if self.length()? < self.position {
            self.position = 0;
        }
        self.file.seek(SeekFrom::Start(self.position))?;
        let mut bytes = Vec::new();
        (&self.file).take(PIECE_BYTES).read_to_end(&mut bytes)?;
        self.position += bytes.len() as u64;
        Ok((!bytes.is_empty()).then(|| bytes.into()))
    }
}

/// Where the newest `bytes` begin.
fn newest(path: &Path, bytes: u64) -> io::Result<Option<Segment>> {
    let Some(mut segment) = Segment::open(path)? else { return Ok(None) };
    let length = segment.length()?;
    if length < bytes
        && let Some(mut before) = Segment::open(&old(path))?
    {
        before.position = before.length()?.saturating_sub(bytes - length);
        return Ok(Some(before));
    }
    segment.position = length.saturating_sub(bytes);
    Ok(Some(segment))
}

/// The segment before the one at `path`.
fn old(path: &Path) -> PathBuf {
    let mut old = path.to_owned().into_os_string();
    old.push(".old");
    old.into()
}

fn watch(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let changes = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let wanted = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&changes, directory, wanted | inotify::WatchFlags::ONLYDIR)?;
    // The descriptor is owned by what it is registered with, and closed after that.
    #[expect(
        deprecated,
        reason = "the safe constructor is deprecated for types whose descriptor may change; an OwnedFd's cannot"
    )]
    AsyncFd::with_interest(changes, Interest::READABLE)
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    async fn text(console: &mut Console) -> String {
        let next = tokio::time::timeout(Duration::from_secs(10), console.next()).await.expect("nothing came");
        match next.unwrap().unwrap() {
            ConsolePiece::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            ConsolePiece::Gap => "GAP".into(),
        }
    }

    #[tokio::test]
    async fn what_is_written_arrives_through_new_segments_and_new_machines() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("sbx_1");
        fs::create_dir(&directory).unwrap();
        let path = directory.join("console.log");
        let mut console = Console::follow(&path, 0).unwrap();
        let mut log = File::create(&path).unwrap();
        log.write_all(b"one\n").unwrap();
        assert_eq!(text(&mut console).await, "one\n");
        fs::rename(&path, directory.join("console.log.old")).unwrap();
        log.write_all(b"two\n").unwrap();
        log = File::create(&path).unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(text(&mut console).await, "two\n");
        assert_eq!(text(&mut console).await, "three\n");
        // A new machine truncates.
        log = File::create(&path).unwrap();
        log.write_all(b"4\n").unwrap();
        assert_eq!(text(&mut console).await, "4\n");
        drop(log);
        fs::remove_dir_all(&directory).unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(10), console.next()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_that_something_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("console.log"), folder.path().join("console.log.old"));
        fs::write(&path, "first\n").unwrap();
        let mut console = Console::follow(&path, 3).unwrap();
        assert_eq!(text(&mut console).await, "st\n");
        for line in ["second\n", "third\n"] {
            fs::rename(&path, &old).unwrap();
            fs::write(&path, line).unwrap();
        }
        assert_eq!(text(&mut console).await, "GAP");
        assert_eq!(text(&mut console).await, "third\n");
        let mut console = Console::follow(&path, 9).unwrap();
        assert_eq!(console.available().unwrap(), b"nd\nthird\n");
        assert!(console.available().unwrap().is_empty());
    }
}
