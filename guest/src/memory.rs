//! Memory that the kernel was not given at boot.
//!
//! Each page costs the kernel work at boot, and on a host that emulates it 4 GiB took half a minute. There the engine
//! has the machine boot with `mem=` a little, and the rest is added here, block by block, while the machine already
//! serves. Adding a page takes far less than a first touch of it, so no program can be ahead of it.
//! The kernel knows where memory is from the firmware's map (`/sys/firmware/memmap`), which `mem=` does not change.
//! Called once by `main`, on the thread that finishes the boot.

use std::{fs, io, ops::Range};

const MAP: &str = "/sys/firmware/memmap";
const BLOCKS: &str = "/sys/devices/system/memory";

/// Adds what is missing. A kernel that cannot add memory has all of it.
///
/// # Errors
/// The kernel refused a block; the ones before it are there.
pub fn add_rest() -> io::Result<()> {
    let probe = format!("{BLOCKS}/probe");
    if !fs::exists(&probe)? {
        return Ok(());
    }
    let block_bytes = number(&read(&format!("{BLOCKS}/block_size_bytes"))?, 16)?;
    for address in missing(&memory()?, &present()?, block_bytes) {
        fs::write(&probe, format!("{address:#x}"))?;
    }
    Ok(())
}

/// Addresses of the whole blocks in `memory` whose number is not among `present`.
fn missing(memory: &[Range<u64>], present: &[u64], block_bytes: u64) -> Vec<u64> {
    let blocks = |range: &Range<u64>| range.start.div_ceil(block_bytes)..range.end / block_bytes;
    let all = memory.iter().flat_map(blocks);
    all.filter(|block| !present.contains(block)).map(|block| block * block_bytes).collect()
}

/// Where memory is, whether the kernel uses it or not.
fn memory() -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    for entry in fs::read_dir(MAP)? {
        let entry = entry?.path();
        let field = |name: &str| read(&entry.join(name).to_string_lossy());
        if field("type")? == "System RAM" {
            ranges.push(number(&field("start")?, 16)?..number(&field("end")?, 16)?.saturating_add(1));
        }
    }
    ranges.sort_by_key(|range| range.start);
    Ok(ranges)
}

/// Numbers of the blocks the kernel has: directories `memory<number>`.
fn present() -> io::Result<Vec<u64>> {
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("memory")?.parse().ok();
    Ok(fs::read_dir(BLOCKS)?.collect::<Result<Vec<_>, _>>()?.into_iter().filter_map(name).collect())
}

fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn number(text: &str, radix: u32) -> io::Result<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), radix).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 128 << 20;

    #[test]
    fn whole_blocks_that_are_not_there_are_missing() {
        let memory = [0..0x9_fc00, 1 << 20..4 * BLOCK];
        assert_eq!(missing(&memory, &[0], BLOCK), [BLOCK, 2 * BLOCK, 3 * BLOCK]);
        assert!(missing(&memory, &[0, 1, 2, 3], BLOCK).is_empty());
    }

    #[test]
    fn a_part_of_a_block_cannot_be_added_and_a_hole_is_left_out() {
        let memory = [1 << 20..BLOCK * 5 / 2, 4 * BLOCK..5 * BLOCK];
        assert_eq!(missing(&memory, &[0], BLOCK), [BLOCK, 4 * BLOCK]);
    }

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(number("8000000", 16).unwrap(), BLOCK);
        assert_eq!(number("0x100000", 16).unwrap(), 1 << 20);
        assert!(number("many", 16).is_err());
    }
}
