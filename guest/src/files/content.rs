//! The bytes of a file on their way to and from the disk, with few of the guest kernel's instructions.
//!
//! A small file goes through the page cache, where the program that reads it next finds it. A large one goes past it in
//! large pieces: on a host that emulates the guest's kernel each cached page costs milliseconds to make and to write
//! back, and a direct transfer costs a few for 64 pages.

use std::{
    fs::File,
    io::{self, Read, Write},
};

use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};

/// Bytes collected before they are written, and the size from which a file is written directly.
const PIECE_BYTES: usize = 256 << 10;

/// Direct writes begin, end and lie in memory at multiples of this.
const ALIGNMENT: usize = 4096;

/// A file being written.
pub struct Content<'a> {
    file: File,
    /// An aligned part of the worker's buffer.
    piece: &'a mut [u8],
    filled: usize,
    /// Pieces go past the page cache; `None` until the first one is full.
    direct: Option<bool>,
}

impl<'a> Content<'a> {
    /// Into an empty file. `buffer` is the worker's own.
    pub fn new(file: File, buffer: &'a mut Vec<u8>) -> Self {
        Self { file, piece: aligned(buffer), filled: 0, direct: None }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The file's.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.piece.len() - self.filled));
            self.piece[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == self.piece.len() {
                if self.direct.is_none() {
                    self.direct = Some(set_direct(&self.file, true).is_ok());
                }
                self.write_piece(self.filled)?;
            }
        }
        Ok(())
    }

    /// Writes what is left. All blocks are allocated then and on their way: a new name given to the file cannot reach
    /// the disk before they do.
    ///
    /// # Errors
    /// The file's.
    pub fn finish(mut self) -> io::Result<File> {
        if self.direct == Some(true) {
            self.write_piece(self.filled - self.filled % ALIGNMENT)?;
            set_direct(&self.file, false)?;
        }
        self.write_piece(self.filled)?;
        // "Not needed" starts the writing of what is not written and drops only what is: a file that was just written
        // stays in the cache.
        fadvise(&self.file, 0, None, Advice::DontNeed)?;
        Ok(self.file)
    }

    /// Writes the first `count` bytes of the piece and moves the rest to its start.
    fn write_piece(&mut self, count: usize) -> io::Result<()> {
        match self.file.write_all(&self.piece[..count]) {
            // A file system may take the flag and refuse the write.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && self.direct == Some(true) => {
                self.direct = Some(false);
                set_direct(&self.file, false)?;
                self.file.write_all(&self.piece[..count])?;
            }
            result => result?,
        }
        self.piece.copy_within(count..self.filled, 0);
        self.filled -= count;
        Ok(())
    }
}

/// Reads a file from its start to its end, in pieces no larger than `piece_bytes_max`, of which a whole number makes
/// 256 KiB. `buffer` is the worker's own.
///
/// # Errors
/// The file's, or what `sink` returns.
pub fn read_all<E>(
    file: &mut File,
    buffer: &mut Vec<u8>,
    piece_bytes_max: usize,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<io::Error>,
{
    let piece = aligned(buffer);
    let mut direct = file.metadata()?.len() >= PIECE_BYTES as u64 && set_direct(file, true).is_ok();
    // To its end and not to its size: files of /proc have no size, and a log may grow.
    loop {
        // Through the cache a reply's worth at a time, so that the first bytes are soon on their way.
        let wanted = if direct { piece.len() } else { piece_bytes_max.min(piece.len()) };
        match file.read(&mut piece[..wanted]) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                piece[..count].chunks(piece_bytes_max).try_for_each(&mut sink)?;
                // A short piece ends at no multiple of a block: what may follow is read the other way.
                if direct && count < wanted {
                    direct = false;
                    set_direct(file, false)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
                direct = false;
                set_direct(file, false)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// An aligned piece of a worker's buffer.
fn aligned(buffer: &mut Vec<u8>) -> &mut [u8] {
    buffer.resize(PIECE_BYTES + ALIGNMENT, 0);
    let start = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    &mut buffer[start..start + PIECE_BYTES]
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}
