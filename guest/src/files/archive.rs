//! Packing what there is into one tar archive, sent as it is made.
//!
//! Links are packed as links, except those that were named themselves; hard links as the files they are. A file that
//! changes while it is read keeps the length that it had at its start: cut, or filled up with zeros.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cove_protocol::{
    frame::FrameError,
    guest::{CHUNK_BYTES_MAX, Reply},
};
use tar::{Builder, EntryType, Header};

use super::{FileError, content::read_all, list::names};
use crate::{
    failure::{Failure, absolute},
    transport::Transport,
};

/// Paths of one request.
const PATHS_MAX: usize = 1000;

/// Bytes of one block of an archive (tar(5)).
const BLOCK_BYTES: u64 = 512;

/// What is never looked into: file systems that the kernel makes up.
const LEFT_OUT: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What the root directory is called in an archive.
const ROOT_NAME: &str = "root";

/// Sends the archive and gives the final reply.
pub fn archive(transport: &mut Transport, paths: &[String], buffer: &mut Vec<u8>) -> Result<Reply, FileError> {
    let roots = roots(paths)?;
    let mut packer = Packer { builder: Builder::new(Sink::new(transport)), buffer };
    for (path, name) in roots {
        let packed = packer.pack(&path, &name);
        packer.check(&path, packed)?;
    }
    let finished = packer.builder.finish().and_then(|()| packer.builder.get_mut().flush());
    packer.check(Path::new("/"), finished)?;
    Ok(Reply::Done)
}

/// Each path with its name in the archive. Fails before the first byte when one of them does not exist.
fn roots(paths: &[String]) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    if paths.is_empty() || paths.len() > PATHS_MAX {
        return Err(Failure::request(format!("paths: there are {}, and 1 to {PATHS_MAX} are possible", paths.len())));
    }
    let mut taken = HashSet::new();
    let mut roots = Vec::new();
    for path in paths {
        absolute("paths", path)?;
        let metadata = fs::metadata(path).map_err(|error| Failure::io(format!("Cannot pack {path}"), &error))?;
        if !metadata.is_file() && !metadata.is_dir() {
            return Err(Failure::path(path, "is no file and no directory"));
        }
        let name = Path::new(path).file_name().map_or_else(|| OsString::from(ROOT_NAME), ToOwned::to_owned);
        // Two of one name do not lie over each other.
        let mut free = name.clone();
        let mut number = 2;
        while !taken.insert(free.clone()) {
            free = name.clone();
            free.push(format!("-{number}"));
            number += 1;
        }
        roots.push((PathBuf::from(path), PathBuf::from(free)));
    }
    Ok(roots)
}

struct Packer<'a, 'b> {
    builder: Builder<Sink<'a>>,
    buffer: &'b mut Vec<u8>,
}

impl Packer<'_, '_> {
    /// Says whose fault a failure is.
    fn check(&mut self, path: &Path, packed: io::Result<()>) -> Result<(), FileError> {
        match (self.builder.get_mut().broken.take(), packed) {
            (Some(broken), _) => Err(broken.into()),
            (None, Ok(())) => Ok(()),
            (None, Err(error)) => Err(Failure::io(format!("Cannot pack {}", path.display()), &error).into()),
        }
    }

    /// Packs one root with all below it, names in byte order.
    fn pack(&mut self, root: &Path, name: &Path) -> io::Result<()> {
        let metadata = fs::metadata(root)?;
        self.add(root, name, &metadata)?;
        if !metadata.is_dir() {
            return Ok(());
        }
        let mut levels = vec![(root.to_owned(), name.to_owned(), names(root)?)];
        while let Some((directory, name, rest)) = levels.last_mut() {
            let Some(last) = rest.pop() else {
                levels.pop();
                continue;
            };
            let (path, name) = (directory.join(&last), name.join(&last));
            if LEFT_OUT.iter().any(|left_out| path == Path::new(left_out)) {
                continue;
            }
            // What has gone meanwhile is not packed.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            self.add(&path, &name, &metadata)?;
            if metadata.is_dir() {
                match names(&path) {
                    Ok(below) => levels.push((path, name, below)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        if metadata.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder.append_data(&mut header, name, io::empty())
        } else if metadata.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            match fs::read_link(path) {
                Ok(target) => self.builder.append_link(&mut header, name, target),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        } else if metadata.is_file() {
            self.add_file(path, name, header)
        } else {
            Ok(())
        }
    }

    fn add_file(&mut self, path: &Path, name: &Path, mut header: Header) -> io::Result<()> {
        // O_NONBLOCK for what has become a pipe meanwhile.
        let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(());
        }
        let size = metadata.len();
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        self.builder.append_data(&mut header, name, io::empty())?;
        self.send_content(&mut file, size)
    }

    /// Exactly `size` bytes of the file, and what fills the last block.
    fn send_content(&mut self, file: &mut File, size: u64) -> io::Result<()> {
        let sink = self.builder.get_mut();
        let mut left = size;
        let sent = read_all(file, self.buffer, CHUNK_BYTES_MAX, |bytes| {
            let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= now as u64;
            sink.write_all(&bytes[..now]).map_err(Stopped::Failed)?;
            // A file that grows without end would be read without end.
            if left == 0 { Err(Stopped::Whole) } else { Ok(()) }
        });
        if let Err(Stopped::Failed(error)) = sent {
            return Err(error);
        }
        let fill = left + size.next_multiple_of(BLOCK_BYTES) - size;
        io::copy(&mut io::Read::take(io::repeat(0), fill), sink).map(drop)
    }
}

/// Why the reading of a file stopped before its end.
enum Stopped {
    Whole,
    Failed(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Stopped::Failed(error)
    }
}

/// Sends what is written to it, a chunk at a time.
struct Sink<'a> {
    transport: &'a mut Transport,
    chunk: Vec<u8>,
    /// Why nothing can be sent any more.
    broken: Option<FrameError>,
}

impl<'a> Sink<'a> {
    fn new(transport: &'a mut Transport) -> Self {
        Self { transport, chunk: Vec::with_capacity(CHUNK_BYTES_MAX), broken: None }
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = bytes.len().min(CHUNK_BYTES_MAX - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..now]);
        if self.chunk.len() == CHUNK_BYTES_MAX {
            self.flush()?;
        }
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES_MAX));
        self.transport.send_all(&Reply::Data(chunk.into())).map_err(|error| {
            self.broken = Some(error);
            io::ErrorKind::BrokenPipe.into()
        })
    }
}
