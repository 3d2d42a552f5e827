//! The memory file of a snapshot: as large as the guest's memory, with holes where that is zero.
//!
//! It starts as a copy of the file that the machine came from (a clone of its extents where the file system can share
//! them, its data without its holes elsewhere), made while the machine runs. What the machine wrote since is put over that
//! while it stands still.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, seek};
use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::devices::virtio::Memory;
use crate::memory::PAGE_BYTES;

/// Bytes of guest memory that are looked at and written together.
const CHUNK_BYTES: u64 = 256 << 10;

/// Bytes of a file's unit of allocation in `stat`'s count (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// A new memory file at `path` for `bytes` of guest memory, with the content of `base` if there is one.
///
/// # Errors
/// What the system says; a file that was made is left.
pub fn create(path: &Path, bytes: u64, base: Option<&File>) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(base) = base
        && ioctl_ficlone(&file, base).is_err()
    {
        copy_data(base, &file)?;
    }
    file.set_len(bytes)?;
    Ok(file)
}

/// Puts `ranges` of guest memory ([`crate::memory::own::ranges`]) into `file`; says how many bytes were written. Pages of
/// zeroes become holes. The machine must stand still.
///
/// # Errors
/// What the system says.
pub fn write(file: &File, memory: &Memory, ranges: &[Range<u64>]) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let (mut written, mut base) = (0, 0);
    let mut ranges = ranges.iter().cloned().peekable();
    for region in memory.iter() {
        let slice = region.as_volatile_slice().map_err(other)?;
        let end = base + region.len();
        while let Some(range) = ranges.next_if(|range| range.start < end) {
            for start in range.clone().step_by(CHUNK_BYTES as usize) {
                let bytes = &mut buffer[..(range.end - start).min(CHUNK_BYTES) as usize];
                let part = slice.subslice((start - base) as usize, bytes.len());
                part.map_err(|error| other(error.into()))?.copy_to(&mut *bytes);
                written += write_pages(file, start, bytes)?;
            }
        }
        base = end;
    }
    Ok(written)
}

/// Bytes of `file` that are not holes.
///
/// # Errors
/// What the system says.
pub fn data_bytes(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * BLOCK_BYTES)
}

/// Writes the pages of `bytes` that hold anything, and makes holes of the others.
fn write_pages(file: &File, start: u64, bytes: &[u8]) -> io::Result<u64> {
    let (mut at, mut written) = (start, 0);
    for run in bytes.chunk_by_pages() {
        let length = run.bytes.len() as u64;
        if run.zero {
            make_hole(file, at, run.bytes)?;
        } else {
            file.write_all_at(run.bytes, at)?;
            written += length;
        }
        at += length;
    }
    Ok(written)
}

fn make_hole(file: &File, at: u64, zeroes: &[u8]) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, at, zeroes.len() as u64) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.write_all_at(zeroes, at),
        result => Ok(result?),
    }
}

/// A run of pages that are all zero, or all not.
struct Run<'a> {
    bytes: &'a [u8],
    zero: bool,
}

trait ChunkByPages {
    fn chunk_by_pages(&self) -> impl Iterator<Item = Run<'_>>;
}

impl ChunkByPages for [u8] {
    fn chunk_by_pages(&self) -> impl Iterator<Item = Run<'_>> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let mut pages = rest.chunks(PAGE_BYTES as usize);
            let zero = is_zero(pages.next()?);
            let more = pages.take_while(|page| is_zero(page) == zero).count();
            let (bytes, later) = rest.split_at(rest.len().min((more + 1) * PAGE_BYTES as usize));
            rest = later;
            Some(Run { bytes, zero })
        })
    }
}

fn is_zero(page: &[u8]) -> bool {
    // By words: byte by byte this would be most of a capture's time.
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Copies what of `from` is no hole.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start..at)?;
    }
}

fn copy_range(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let (mut source, mut target) = (range.start, range.start);
    while source < range.end {
        let length = (range.end - source) as usize;
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Two file systems, or one that has no such call.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_by_hand(from, to, source..range.end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    for start in range.clone().step_by(CHUNK_BYTES as usize) {
        let bytes = &mut buffer[..(range.end - start).min(CHUNK_BYTES) as usize];
        from.read_exact_at(bytes, start)?;
        to.write_all_at(bytes, start)?;
    }
    Ok(())
}

fn other(error: GuestMemoryError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{map, map_file, own};

    const BYTES: u64 = 4 << 20;

    fn content(memory: &Memory) -> Vec<u8> {
        let mut bytes = vec![0; BYTES as usize];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn capture(memory: &Memory, base: Option<&File>) -> (Arc<File>, u64) {
        let folder = tempfile::tempdir().unwrap();
        let file = create(&folder.path().join("memory"), BYTES, base).unwrap();
        let written = write(&file, memory, &own::ranges(memory).unwrap()).unwrap();
        (Arc::new(file), written)
    }

    #[test]
    fn runs_of_pages_are_told_apart() {
        let mut bytes = vec![0; 5 * 4096];
        (bytes[4096], bytes[3 * 4096 - 1], bytes[4 * 4096 + 7]) = (1, 1, 1);
        let runs: Vec<_> = bytes.chunk_by_pages().map(|run| (run.bytes.len() / 4096, run.zero)).collect();
        assert_eq!(runs, [(1, true), (2, false), (1, true), (1, false)]);
    }

    #[test]
    fn a_page_that_became_zero_becomes_a_hole() {
        let memory = map(BYTES).unwrap();
        memory.write_slice(&[7; 3 * 4096], GuestAddress(0x1_0000)).unwrap();
        let (first, written) = capture(&memory, None);
        assert_eq!(written, 3 * 4096);
        let restored = map_file(BYTES, &first).unwrap();
        restored.write_slice(&[0; 4096], GuestAddress(0x1_1000)).unwrap();
        let (second, written) = capture(&restored, Some(&first));
        assert_eq!(written, 0);
        assert_eq!(content(&map_file(BYTES, &second).unwrap()), content(&restored));
        assert!(data_bytes(&second).unwrap() < data_bytes(&first).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_chain_of_captures_keeps_every_byte(
            rounds in proptest::collection::vec(
                proptest::collection::vec((0..BYTES - 9000, 1usize..9000, any::<u8>()), 0..20), 1..4),
        ) {
            let mut memory = map(BYTES).unwrap();
            let mut base: Option<Arc<File>> = None;
            for writes in rounds {
                for (at, length, byte) in writes {
                    memory.write_slice(&vec![byte % 3; length], GuestAddress(at)).unwrap();
                }
                let expected = content(&memory);
                let (file, _) = capture(&memory, base.as_deref());
                memory = map_file(BYTES, &file).unwrap();
                base = Some(file);
                prop_assert!(content(&memory) == expected);
            }
        }
    }
}
