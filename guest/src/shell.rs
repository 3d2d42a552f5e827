//! The shell that runs command lines: a statically linked bash whose code lies in one huge page.
//!
//! What a short command costs is the start of its shell, and what that costs is page faults: on a host that emulates the
//! guest's kernel a fault on a file takes 10 ms with its later unmapping, and `bash -c true` has over a hundred. Debian's
//! `bash-static` is the same bash from the same source package, needs no loader and no libraries, and its code and
//! constants fill just over 2 MiB. So at boot it is copied to a small tmpfs with huge pages, and its program headers are
//! changed so that code and constants are one mapping that a single huge page covers: 40 faults become one.
//!
//! ```text
//!  /usr/bin/bash-static ──copy──► /run/cove/shell/bash    used for lines while /bin/bash is as it was at boot
//! ```
//!
//! A sandbox where bash was upgraded or replaced, or an image without `bash-static`, uses `/bin/bash` itself.

use std::{
    ffi::CStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    sync::{Condvar, Mutex, PoisonError},
};

use rustix::mount::{MountFlags, mount, mount_remount};

/// What bash would be.
const BASH: &str = "/bin/bash";

/// The package's binary.
const STATIC_BASH: &str = "/usr/bin/bash-static";

/// Where the copy lies.
const DIRECTORY: &str = "/run/cove/shell";

/// The copy.
pub const COPY: &CStr = c"/run/cove/shell/bash";

/// The tmpfs: two huge pages hold the file.
const MOUNT_OPTIONS: &CStr = c"size=4m,mode=755,huge=always";

/// Largest file that fits.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Bytes copied at once, past the page cache: a huge page is written in place, and the original is not needed again.
const COPY_BYTES: usize = 128 << 10;

/// Direct I/O wants its memory aligned to this.
const ALIGNMENT: usize = 4096;

/// What tells one file from its replacement.
type Identity = (u64, u64, i64, i64);

/// The shell while it is being prepared, and after.
#[derive(Debug, Default)]
pub struct FastShell {
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    /// There is none.
    #[default]
    Absent,
    /// Being copied.
    Preparing,
    /// Good while `/bin/bash` has this identity.
    Ready(Identity),
}

impl FastShell {
    /// Says that [`FastShell::prepare`] will be called by another thread: lines wait for it from now on.
    pub fn expect(&self) {
        self.set(State::Preparing);
    }

    /// Makes the copy. Called once, on a thread of its own, after the agent said that it is ready.
    ///
    /// # Errors
    /// Lines go to `/bin/bash` then.
    pub fn prepare(&self) -> io::Result<()> {
        let made = make();
        self.set(made.as_ref().map_or(State::Absent, |identity| State::Ready(*identity)));
        made.map(|_| ())
    }

    /// Takes [`FastShell::expect`] back.
    pub fn give_up(&self) {
        self.set(State::Absent);
    }

    /// True when lines should run in the copy. Waits while it is being made: that takes less than a cold `/bin/bash`.
    pub fn is_good(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while matches!(*state, State::Preparing) {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        matches!(*state, State::Ready(then) if identity(BASH).is_ok_and(|now| now == then))
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.settled.notify_all();
    }
}

fn identity(path: &str) -> io::Result<Identity> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Mounts, copies, changes the headers, closes for writing.
fn make() -> io::Result<Identity> {
    let source = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(STATIC_BASH)?;
    let bash = identity(BASH)?;
    if source.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("{STATIC_BASH} is larger than {FILE_BYTES_MAX} bytes")));
    }
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    mount("cove-shell", DIRECTORY, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(MOUNT_OPTIONS))?;
    let path = COPY.to_string_lossy();
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&*path)?;
    copy_merged(source, &mut copy)?;
    drop(copy);
    mount_remount(DIRECTORY, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "")?;
    Ok(bash)
}

fn copy_merged(mut source: File, copy: &mut File) -> io::Result<()> {
    let mut memory = vec![0; COPY_BYTES + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = memory.get_mut(start..start + COPY_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut first = true;
    loop {
        let count = source.read(buffer)?;
        if count == 0 {
            return copy.seek(SeekFrom::Start(0)).map(|_| ());
        }
        let piece = &mut buffer[..count];
        if std::mem::take(&mut first) {
            merge_segments(piece).ok_or_else(|| io::Error::other(format!("{STATIC_BASH} has unexpected segments")))?;
        }
        copy.write_all(piece)?;
    }
}

/// One program header of an ELF file for 64 bits, little-endian (ELF-64 object file format, 1.5: figure 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
}

const HEADER_BYTES: usize = 56;
const LOAD: u32 = 1;
const WRITABLE: u32 = 2;
const READABLE_EXECUTABLE: u32 = 5;
const HUGE_PAGE_BYTES: u64 = 2 << 20;

impl Segment {
    fn read(header: &[u8]) -> Option<Self> {
        let word = |at: usize| header.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let long = |at: usize| header.get(at..at + 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Some(Self { kind: word(0)?, flags: word(4)?, offset: long(8)?, address: long(16)?, file_bytes: long(32)? })
    }
}

/// Makes the read-only segments at the start of a program one readable and executable segment, if together they fill a
/// huge page and lie in memory as in the file. `None` for a program of another shape.
fn merge_segments(program: &mut [u8]) -> Option<()> {
    // 64 bits, little-endian, not relocatable (e_ident, e_type 2).
    if program.get(..6)? != b"\x7fELF\x02\x01" || program.get(16..18)? != [2, 0] {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(*program.get(32..40)?.first_chunk()?)).ok()?;
    let count = usize::from(u16::from_le_bytes(*program.get(56..58)?.first_chunk()?));
    if u16::from_le_bytes(*program.get(54..56)?.first_chunk()?) as usize != HEADER_BYTES {
        return None;
    }
    let headers = program.get_mut(table..table.checked_add(count.checked_mul(HEADER_BYTES)?)?)?;
    let segments: Vec<Segment> = headers.chunks(HEADER_BYTES).map(Segment::read).collect::<Option<_>>()?;
    let loads: Vec<usize> = (0..count).filter(|&at| segments[at].kind == LOAD).collect();
    let constant: Vec<usize> = loads.iter().copied().take_while(|&at| segments[at].flags & WRITABLE == 0).collect();
    let (&first, &last) = (constant.first()?, constant.last()?);
    let base = segments[first].address;
    let bytes = segments[last].offset.checked_add(segments[last].file_bytes)?;
    let as_in_file = constant.iter().all(|&at| segments[at].address.checked_sub(segments[at].offset) == Some(base));
    if segments[first].offset != 0 || !base.is_multiple_of(HUGE_PAGE_BYTES) || !as_in_file || bytes < HUGE_PAGE_BYTES {
        return None;
    }
    for at in constant {
        let header = headers.get_mut(at * HEADER_BYTES..(at + 1) * HEADER_BYTES)?;
        if at == first {
            header[4..8].copy_from_slice(&READABLE_EXECUTABLE.to_le_bytes());
            header[32..40].copy_from_slice(&bytes.to_le_bytes());
            header[40..48].copy_from_slice(&bytes.to_le_bytes());
        } else {
            header[..4].copy_from_slice(&0u32.to_le_bytes());
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with these loaded segments: flags, offset, address, bytes.
    fn program(loads: &[(u32, u64, u64, u64)]) -> Vec<u8> {
        let mut program = vec![0; 64];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        program[16] = 2;
        program[32] = 64;
        program[54] = HEADER_BYTES as u8;
        program[56] = loads.len() as u8;
        for &(flags, offset, address, bytes) in loads {
            program.extend([LOAD.to_le_bytes(), flags.to_le_bytes()].concat());
            program.extend([offset, address, address, bytes, bytes, 4096].map(u64::to_le_bytes).concat());
        }
        program
    }

    fn segments(program: &[u8]) -> Vec<Segment> {
        program[64..].chunks(HEADER_BYTES).filter_map(Segment::read).filter(|segment| segment.kind == LOAD).collect()
    }

    #[test]
    fn constant_segments_become_one_and_the_writable_one_stays() {
        let mut bash = program(&[
            (4, 0, 0x40_0000, 0x728),
            (5, 0x1000, 0x40_1000, 0x1b_5849),
            (4, 0x1b_7000, 0x5b_7000, 0x7_207d),
            (6, 0x22_9500, 0x62_a500, 0x1_1a10),
        ]);
        let writable = segments(&bash)[3];
        merge_segments(&mut bash).unwrap();
        let merged = Segment { kind: LOAD, flags: 5, offset: 0, address: 0x40_0000, file_bytes: 0x22_907d };
        assert_eq!(segments(&bash), [merged, writable]);
    }

    #[test]
    fn programs_of_another_shape_are_left_alone() {
        let small = program(&[(5, 0, 0x40_0000, 0x1000)]);
        let relocated = program(&[(5, 0, 0x40_1000, 0x30_0000)]);
        let apart = program(&[(4, 0, 0x40_0000, 0x1000), (5, 0x1000, 0x60_0000, 0x30_0000)]);
        let mut truncated = program(&[(5, 0, 0x40_0000, 0x30_0000)]);
        truncated.truncate(100);
        let mut lying = program(&[(5, 0, 0x40_0000, 0x30_0000)]);
        lying[56] = 255;
        for mut program in [small, relocated, apart, truncated, lying, vec![], vec![0; 4096]] {
            let before = program.clone();
            assert_eq!(merge_segments(&mut program), None);
            assert_eq!(program, before);
        }
    }
}
