//! What a waiting shell is told: the system calls that are still to be made, and the stack with which a program begins.
//!
//! ```text
//!  area ─► call, call, ..., -1, 0 | argc, argv.., 0, env.., 0, auxv.. | random bytes, arguments, environment, directory
//! ```
//!
//! The stack is as the kernel's `execve` makes it (System V ABI for AMD64, 3.4.1), and the kernel is told where arguments
//! and environment lie, so that `/proc/<pid>/cmdline` and `environ` are the program's own. Pure: no system call here.

use std::ffi::CString;

use super::entry::GO_FD;
use crate::process::Program;

/// Most bytes of an image. A request that needs more starts a shell of its own.
pub const IMAGE_BYTES_MAX: usize = 12 << 10;

/// Bytes of one call: its number and five arguments.
pub const CALL_BYTES: usize = 48;

/// Bytes behind the last call.
const END_BYTES: usize = 16;

/// Random bytes that the C library finds (AT_RANDOM, getauxval(3)).
pub const RANDOM_BYTES: usize = 16;

const AT_RANDOM: u64 = 25;

/// The numbers of prctl(2) for PR_SET_MM.
const PR_SET_MM: u64 = 35;
const ARG_START: u64 = 8;
const ARG_END: u64 = 9;
const ENV_START: u64 = 10;
const ENV_END: u64 = 11;

/// Most calls of an image: directory, four places, the descriptor.
const CALLS_MAX: usize = 6;

/// The shell that an image is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Where it puts the image.
    pub area: u64,
    /// The auxiliary values it was started with.
    pub auxiliary: Vec<(u64, u64)>,
    /// It may tell the kernel where its arguments are (CAP_SYS_RESOURCE): in a machine always.
    pub places: bool,
}

/// Makes the image that has `reader` run `program`. `None` when it is larger than [`IMAGE_BYTES_MAX`].
pub fn image(reader: &Reader, random: [u8; RANDOM_BYTES], program: &Program) -> Option<Vec<u8>> {
    let Reader { area, auxiliary, places } = reader;
    let bytes = |strings: &[CString]| strings.iter().map(|string| string.as_bytes_with_nul().len()).sum::<usize>();
    let stack = if *places { CALLS_MAX } else { CALLS_MAX - 4 } * CALL_BYTES + END_BYTES;
    let words = 1 + program.argv.len() + 1 + program.env.len() + 1 + 2 * auxiliary.len();
    let random_at = stack + 8 * words;
    let arguments = random_at + RANDOM_BYTES;
    let environment = arguments + bytes(&program.argv);
    let directory = environment + bytes(&program.env);
    let end = directory + program.cwd.as_bytes_with_nul().len();
    if end > IMAGE_BYTES_MAX {
        return None;
    }
    let at = |offset: usize| *area + offset as u64;
    let place = |which: u64, offset: usize| [libc::SYS_prctl as u64, PR_SET_MM, which, at(offset), 0, 0];
    let calls: [[u64; 6]; CALLS_MAX] = [
        [libc::SYS_chdir as u64, at(directory), 0, 0, 0, 0],
        // In this order each start stays at or below its end, as the kernel demands: the old places lie above.
        place(ARG_START, arguments),
        place(ARG_END, environment),
        place(ENV_START, environment),
        place(ENV_END, directory),
        [libc::SYS_close as u64, GO_FD as u64, 0, 0, 0, 0],
    ];
    let mut image = Vec::with_capacity(end);
    let mut put = |word: u64| image.extend_from_slice(&word.to_le_bytes());
    let is_place = |call: &[u64; 6]| call[0] == libc::SYS_prctl as u64;
    calls.into_iter().filter(|call| *places || !is_place(call)).flatten().for_each(&mut put);
    put(u64::MAX);
    put(0);
    put(program.argv.len() as u64);
    for (strings, start) in [(&program.argv, arguments), (&program.env, environment)] {
        let mut next = at(start);
        for string in strings {
            put(next);
            next += string.as_bytes_with_nul().len() as u64;
        }
        put(0);
    }
    for &(kind, value) in auxiliary {
        put(kind);
        put(if kind == AT_RANDOM { at(random_at) } else { value });
    }
    image.extend_from_slice(&random);
    program.argv.iter().chain(&program.env).for_each(|string| image.extend_from_slice(string.as_bytes_with_nul()));
    image.extend_from_slice(program.cwd.as_bytes_with_nul());
    Some(image)
}

/// The pairs of `/proc/<pid>/auxv`, up to the null one and with it.
pub fn auxiliary(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
    let word = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let mut pairs = Vec::new();
    for pair in bytes.chunks_exact(16) {
        pairs.push((word(pair)?, word(&pair[8..])?));
        if pairs.last().is_some_and(|(kind, _)| *kind == 0) {
            return Some(pairs);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: u64 = 0x7fff_0000_0000;

    fn program() -> Program {
        Program {
            argv: [c"bash", c"-c", c"echo 2"].map(CString::from).into(),
            env: [c"A=1", c"B="].map(CString::from).into(),
            cwd: c"/workspace".into(),
            ..Default::default()
        }
    }

    fn reader(places: bool) -> Reader {
        Reader { area: AREA, auxiliary: vec![(6, 4096), (AT_RANDOM, 1), (0, 0)], places }
    }

    #[test]
    fn the_stack_is_as_execve_leaves_it() {
        let image = image(&reader(true), [7; RANDOM_BYTES], &program()).unwrap();
        let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        let text = |address: u64| {
            let at = (address - AREA) as usize;
            std::ffi::CStr::from_bytes_until_nul(&image[at..]).unwrap().to_str().unwrap()
        };
        assert_eq!(word(CALLS_MAX * CALL_BYTES), u64::MAX);
        let stack = CALLS_MAX * CALL_BYTES + END_BYTES;
        assert_eq!((AREA + stack as u64) % 16, 0);
        assert_eq!(word(stack), 3);
        let words: Vec<u64> = (1..).map(|index| word(stack + 8 * index)).take(13).collect();
        assert_eq!([words[0], words[1], words[2]].map(text), ["bash", "-c", "echo 2"]);
        assert_eq!((words[3], text(words[4]), text(words[5]), words[6]), (0, "A=1", "B=", 0));
        assert_eq!([words[7], words[8], words[9], words[11], words[12]], [6, 4096, AT_RANDOM, 0, 0]);
        assert_eq!(image[(words[10] - AREA) as usize..][..RANDOM_BYTES], [7; RANDOM_BYTES]);
        assert_eq!(text(word(8)), "/workspace");
    }

    #[test]
    fn without_the_right_to_it_the_kernel_is_told_no_places() {
        let image = image(&reader(false), [7; RANDOM_BYTES], &program()).unwrap();
        assert_eq!(image[2 * CALL_BYTES..][..8], u64::MAX.to_le_bytes());
        assert_eq!(image[2 * CALL_BYTES + END_BYTES..][..8], 3u64.to_le_bytes());
    }

    #[test]
    fn what_is_too_large_has_no_image() {
        let mut program = program();
        program.env.push(CString::new(vec![b'x'; IMAGE_BYTES_MAX]).unwrap());
        assert_eq!(image(&reader(true), [0; RANDOM_BYTES], &program), None);
    }

    #[test]
    fn auxiliary_values_end_with_the_null_one() {
        let bytes: Vec<u8> = [6u64, 4096, 0, 0, 9, 9].into_iter().flat_map(u64::to_le_bytes).collect();
        assert_eq!(auxiliary(&bytes), Some(vec![(6, 4096), (0, 0)]));
        assert_eq!(auxiliary(&bytes[..16]), None);
    }
}
