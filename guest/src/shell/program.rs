//! Arranges the segments of a static program so that its start takes few page faults.
//!
//! ```text
//!  as linked                              arranged
//!  constants  r--  400000                 code and constants  r-x  400000   one huge page, one fault
//!  code       r-x  401000
//!  constants  r--  5b7000                 data                rw-  62a500   empty memory, comes in large pieces
//!  data       rw-  62a500 from the file   initial data        r--  64e500   read once
//! ```
//!
//! Data from the file would be copied page by page, a fault or two each. So it is made memory like any other, and the
//! program begins with a few instructions that copy its initial bytes there, which is native work even where the kernel
//! is emulated. What the program sees is what it would see otherwise, but that its constants are executable and stay
//! writable where it would have locked them after its start. (ELF-64 object file format, version 1.5.)

use super::entry::{self, Start};

const HEADER_BYTES: usize = 56;
const NULL: u32 = 0;
const LOAD: u32 = 1;
const GNU_RELRO: u32 = 0x6474_e552;
const EXECUTABLE: u32 = 1;
const WRITABLE: u32 = 2;
const READABLE: u32 = 4;
const PAGE_BYTES: u64 = 4096;
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// New first instructions, for a place in the file that holds zeros so far.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where they belong, in bytes from the file's start.
    pub offset: u64,
    /// The instructions.
    pub code: Vec<u8>,
}

/// One program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Segment {
    fn read(header: &[u8]) -> Option<Self> {
        let word = |at: usize| header.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        Some(Self {
            kind: word(0)?,
            flags: word(4)?,
            offset: long(header, 8)?,
            address: long(header, 16)?,
            file_bytes: long(header, 32)?,
            memory_bytes: long(header, 40)?,
        })
    }

    /// As a loaded segment's header is.
    fn write(self, header: &mut [u8]) -> Option<()> {
        header.get_mut(..8)?.copy_from_slice(&[self.kind.to_le_bytes(), self.flags.to_le_bytes()].concat());
        let longs = [self.offset, self.address, self.address, self.file_bytes, self.memory_bytes, PAGE_BYTES];
        header.get_mut(8..HEADER_BYTES)?.copy_from_slice(&longs.map(u64::to_le_bytes).concat());
        Some(())
    }

    fn is_load(&self) -> bool {
        self.kind == LOAD
    }
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Changes the headers at the start of a program's file. `None`, and nothing changed, for a program of another shape.
pub fn arrange(program: &mut [u8]) -> Option<Entry> {
    // 64 bits, little-endian, not relocatable (e_ident, e_type 2), x86-64 (e_machine 62).
    if program.get(..6)? != b"\x7fELF\x02\x01" || program.get(16..20)? != [2, 0, 62, 0] {
        return None;
    }
    let table = usize::try_from(long(program, 32)?).ok()?;
    let size = u16::from_le_bytes(*program.get(54..56)?.first_chunk()?);
    let count = usize::from(u16::from_le_bytes(*program.get(56..58)?.first_chunk()?));
    let headers = table..table.checked_add(count.checked_mul(HEADER_BYTES)?)?;
    if usize::from(size) != HEADER_BYTES {
        return None;
    }
    let segments: Vec<Segment> =
        program.get(headers.clone())?.chunks(HEADER_BYTES).map(Segment::read).collect::<Option<_>>()?;
    let plan = Plan::of(&segments, long(program, 24)?)?;
    for ((header, new), old) in program.get_mut(headers)?.chunks_mut(HEADER_BYTES).zip(&plan.segments).zip(&segments) {
        // The others keep what is not read here: the alignment of thread-local storage counts.
        if new != old {
            new.write(header)?;
        }
    }
    program.get_mut(24..32)?.copy_from_slice(&plan.entry_address.to_le_bytes());
    Some(plan.entry)
}

struct Plan {
    segments: Vec<Segment>,
    entry_address: u64,
    entry: Entry,
}

impl Plan {
    fn of(segments: &[Segment], main: u64) -> Option<Self> {
        let loads: Vec<usize> = (0..segments.len()).filter(|&at| segments[at].is_load()).collect();
        let (&data_at, constant) = loads.split_last()?;
        let (&first, &spare, &last) = (constant.first()?, constant.get(1)?, constant.last()?);
        let (base, data) = (segments[first].address, segments[data_at]);
        let bytes = segments[last].offset.checked_add(segments[last].file_bytes)?;
        let as_in_file = |at: &usize| segments[*at].address.checked_sub(segments[*at].offset) == Some(base);
        let fits = segments[first].offset == 0
            && base.is_multiple_of(HUGE_PAGE_BYTES)
            && bytes >= HUGE_PAGE_BYTES
            && constant.iter().all(|at| segments[*at].flags & WRITABLE == 0 && as_in_file(at))
            && data.flags == READABLE | WRITABLE
            && data.file_bytes <= data.memory_bytes
            && data.address >= base.checked_add(bytes)?;
        if !fits {
            return None;
        }
        // Behind the data, at the same place in its page as in the file; the same table of pages serves both then.
        let data_end = data.address.checked_add(data.memory_bytes)?.checked_next_multiple_of(PAGE_BYTES)?;
        let initial_data = data_end.checked_add(data.offset % PAGE_BYTES)?;
        let code = constant.iter().map(|&at| segments[at]).find(|segment| segment.flags & EXECUTABLE != 0)?;
        // The rest of the last page of the code: the file's next segment begins on a page of its own.
        let offset = code.offset.checked_add(code.file_bytes)?.next_multiple_of(16);
        let entry_address = base.checked_add(offset)?;
        let word = |value: u64| u32::try_from(value).ok();
        let code = entry::instructions(&Start {
            from: word(initial_data)?,
            data: word(data.address)?,
            bytes: word(data.file_bytes)?,
            data_end: word(data.address.checked_add(data.memory_bytes)?)?,
            constants: word((base + bytes - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)?,
            here: entry_address,
            main,
        })?;
        if PAGE_BYTES - offset % PAGE_BYTES < code.len() as u64 || offset + code.len() as u64 > bytes {
            return None;
        }
        let mut segments = segments.to_vec();
        for &at in constant {
            segments[at].kind = NULL;
        }
        for segment in segments.iter_mut().filter(|segment| segment.kind == GNU_RELRO) {
            segment.kind = NULL;
        }
        let read_execute = READABLE | EXECUTABLE;
        segments[first] =
            Segment { kind: LOAD, flags: read_execute, file_bytes: bytes, memory_bytes: bytes, ..segments[first] };
        segments[spare] =
            Segment { kind: LOAD, flags: READABLE, address: initial_data, memory_bytes: data.file_bytes, ..data };
        segments[data_at].file_bytes = 0;
        Some(Self { segments, entry_address, entry: Entry { offset, code } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: u64 = 0x40_32d0;
    const THREAD_LOCAL: u32 = 7;

    /// A program with these segments: kind, flags, offset, address, bytes in the file, bytes in memory.
    fn program(segments: &[(u32, u32, u64, u64, u64, u64)]) -> Vec<u8> {
        let mut program = vec![0; 64];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        program[16..20].copy_from_slice(&[2, 0, 62, 0]);
        program[24..32].copy_from_slice(&MAIN.to_le_bytes());
        program[32] = 64;
        program[54] = HEADER_BYTES as u8;
        program[56] = segments.len() as u8;
        for &(kind, flags, offset, address, file_bytes, memory_bytes) in segments {
            let mut header = [0; HEADER_BYTES];
            Segment { kind, flags, offset, address, file_bytes, memory_bytes }.write(&mut header).unwrap();
            program.extend(header);
        }
        program
    }

    /// As Debian's bash-static 5.2.15-2+b13.
    fn bash() -> Vec<u8> {
        program(&[
            (LOAD, 4, 0, 0x40_0000, 0x728, 0x728),
            (LOAD, 5, 0x1000, 0x40_1000, 0x1b_5849, 0x1b_5849),
            (LOAD, 4, 0x1b_7000, 0x5b_7000, 0x7_207d, 0x7_207d),
            (LOAD, 6, 0x22_9500, 0x62_a500, 0x1_1a10, 0x2_3478),
            (GNU_RELRO, 4, 0x22_9500, 0x62_a500, 0x6b00, 0x6b00),
            (THREAD_LOCAL, 4, 0x22_9500, 0x62_a500, 0x70, 0xc8),
        ])
    }

    #[test]
    fn constants_become_one_segment_and_data_becomes_memory_with_a_copy_to_start_from() {
        let mut program = bash();
        let thread_local = 64 + 5 * HEADER_BYTES..64 + 6 * HEADER_BYTES;
        program[thread_local.start + 48] = 8;
        program[thread_local.start + 49] = 0;
        let untouched = program[thread_local.clone()].to_vec();
        let entry = arrange(&mut program).unwrap();
        assert_eq!(program[thread_local], untouched, "with its alignment of 8");
        let segments: Vec<Segment> = program[64..].chunks(HEADER_BYTES).filter_map(Segment::read).collect();
        let shape = |s: &Segment| (s.kind, s.flags, s.offset, s.address, s.file_bytes, s.memory_bytes);
        assert_eq!(shape(&segments[0]), (LOAD, 5, 0, 0x40_0000, 0x22_907d, 0x22_907d));
        assert_eq!(shape(&segments[1]), (LOAD, 4, 0x22_9500, 0x64_e500, 0x1_1a10, 0x1_1a10));
        assert_eq!(shape(&segments[3]), (LOAD, 6, 0x22_9500, 0x62_a500, 0, 0x2_3478));
        assert!(segments[2].kind == NULL && segments[4].kind == NULL);
        assert_eq!((entry.offset, long(&program, 24)), (0x1b_6850, Some(0x5b_6850)));
        assert_eq!(entry.code[..5], [0xbe, 0x00, 0xe5, 0x64, 0x00], "mov esi, 0x64e500");
    }

    #[test]
    fn programs_of_another_shape_are_left_alone() {
        let change = |at: usize, value: u8| {
            let mut program = bash();
            program[at] = value;
            program
        };
        let header = |number: usize, at: usize| 64 + number * HEADER_BYTES + at;
        let cases = [
            vec![],
            vec![0; 4096],
            change(16, 3),               // relocatable
            change(56, 255),             // more headers than there are
            change(header(0, 17), 0x10), // constants not at a huge page
            change(header(1, 18), 0x50), // code not as in the file
            change(header(2, 34), 0x00), // too small for a huge page: 0x1b707d
            change(header(3, 4), 4),     // data that is not writable
            change(header(1, 4), 7),     // code that is
            change(header(3, 20), 1),    // data above 4 GiB
            bash()[..200].to_vec(),
        ];
        for (number, mut program) in cases.into_iter().enumerate() {
            let before = program.clone();
            assert_eq!(arrange(&mut program), None, "{number}");
            assert!(program == before, "{number}");
        }
    }
}
