//! Which pages of guest memory are the machine's own: those it wrote since it was made or restored. What a restored
//! machine has not written is its snapshot's file, shared with every machine of that snapshot.
//!
//! No dirty log runs for this. A private mapping keeps its own copy of each page that was written, by the guest or by a
//! device, and the kernel tells which those are (Linux, Documentation/admin-guide/mm/pagemap.rst): by `PAGEMAP_SCAN` since
//! 6.7, page by page before.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::PAGE_BYTES;
use crate::devices::virtio::Memory;

const PAGEMAP: &str = "/proc/self/pagemap";

/// Ranges that one scan gives at most; the next one goes on after them.
const RANGES_PER_SCAN: usize = 1024;

/// Entries of the page map that are read at once.
const ENTRIES_PER_READ: usize = 16 << 10;
const ENTRY_BYTES: usize = 8;
const ENTRY_FILE: u64 = 1 << 61;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_PRESENT: u64 = 1 << 63;

const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO_PAGE: u64 = 1 << 5;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_max: u64,
    pages_max: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of: u64,
    return_mask: u64,
}

mod number {
    #![allow(missing_docs, reason = "the macro makes a function without a comment")]
    vmm_sys_util::ioctl_iowr_nr!(PAGEMAP_SCAN, 'f' as u32, 16, super::ScanArgument);
}

/// The machine's own pages, as byte ranges of the memory file: the guest's regions one after the other. In order, not
/// overlapping; pages that were only read are not among them, pages of zeroes may be.
///
/// # Errors
/// When the host does not show this process its page map.
pub fn ranges(memory: &Memory) -> io::Result<Vec<Range<u64>>> {
    let pagemap = File::open(PAGEMAP)?;
    let mut found = Vec::new();
    let mut base = 0;
    for region in memory.iter() {
        let start = region.as_ptr() as u64;
        let end = start + region.len();
        let mut add = |range: Range<u64>| push(&mut found, base + range.start - start..base + range.end - start);
        match scan(&pagemap, start..end, &mut add) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read(&pagemap, start..end, &mut add)?,
            result => result?,
        }
        base += region.len();
    }
    Ok(found)
}

/// Bytes of [`ranges`], or `None` when the host does not tell.
pub fn bytes(memory: &Memory) -> Option<u64> {
    Some(ranges(memory).ok()?.iter().map(|range| range.end - range.start).sum())
}

/// Appends `range`, as part of the last one where they meet.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

fn scan(pagemap: &File, mut addresses: Range<u64>, add: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
    let mut regions = vec![PageRegion::default(); RANGES_PER_SCAN];
    while addresses.start < addresses.end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start: addresses.start,
            end: addresses.end,
            regions: regions.as_mut_ptr() as u64,
            regions_max: regions.len() as u64,
            category_inverted: IS_FILE | IS_ZERO_PAGE,
            category_mask: IS_FILE | IS_ZERO_PAGE,
            category_any_of: IS_PRESENT | IS_SWAPPED,
            return_mask: IS_PRESENT,
            ..Default::default()
        };
        // SAFETY: the argument is laid out as the kernel's `struct pm_scan_arg`, whose size it carries; the kernel writes
        // into it and at most `regions_max` entries at `regions`, which is a live array of that many. The scan reads
        // page tables only.
        let count = unsafe { ioctl_with_mut_ref(pagemap, number::PAGEMAP_SCAN(), &mut argument) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let regions = &regions[..count.min(RANGES_PER_SCAN)];
        for region in regions {
            add(region.start..region.end);
        }
        // Where the answer had no room for more, Linux 6.18 says an address before its last range.
        let on = argument.walk_end.max(regions.last().map_or(0, |region| region.end));
        if on <= addresses.start {
            return Err(io::Error::other("the page map's scan does not get on"));
        }
        addresses.start = on;
    }
    Ok(())
}

/// As [`scan`], on hosts that have none.
fn read(pagemap: &File, addresses: Range<u64>, add: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
    let mut buffer = vec![0; ENTRIES_PER_READ * ENTRY_BYTES];
    let pages = addresses.start / PAGE_BYTES..addresses.end / PAGE_BYTES;
    for first in pages.clone().step_by(ENTRIES_PER_READ) {
        let count = ENTRIES_PER_READ.min((pages.end - first) as usize);
        let bytes = &mut buffer[..count * ENTRY_BYTES];
        pagemap.read_exact_at(bytes, first * ENTRY_BYTES as u64)?;
        for (page, entry) in (first..).zip(bytes.as_chunks::<ENTRY_BYTES>().0) {
            let entry = u64::from_le_bytes(*entry);
            if entry & ENTRY_FILE == 0 && entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 {
                add(page * PAGE_BYTES..(page + 1) * PAGE_BYTES);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::{map, map_file};
    use super::*;

    fn by_page(memory: &Memory) -> Vec<Range<u64>> {
        let (mut found, mut base) = (Vec::new(), 0);
        for region in memory.iter() {
            let start = region.as_ptr() as u64;
            let mut add = |range: Range<u64>| push(&mut found, base + range.start - start..base + range.end - start);
            read(&File::open(PAGEMAP).unwrap(), start..start + region.len(), &mut add).unwrap();
            base += region.len();
        }
        found
    }

    #[test]
    fn only_written_pages_of_a_file_are_the_machines_own() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let memory = map_file(8 << 20, &Arc::new(file)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x2000)).unwrap(), 0);
        assert_eq!(ranges(&memory).unwrap(), []);
        for address in [0x3000, 0x4fff, 0x7f_f000] {
            memory.write_obj(1u8, GuestAddress(address)).unwrap();
        }
        let expected = [0x3000..0x5000, 0x7f_f000..0x80_0000];
        assert_eq!(ranges(&memory).unwrap(), expected);
        assert_eq!(by_page(&memory), expected, "the way of older kernels");
        assert_eq!(bytes(&memory), Some(0x3000));
    }

    #[test]
    fn written_pages_of_fresh_memory_are_found_past_many_ranges() {
        let memory = map(64 << 20).unwrap();
        assert_eq!(bytes(&memory), Some(0));
        // Every second page, so that no two ranges meet; huge pages may make them meet all the same.
        for page in (0..4 * RANGES_PER_SCAN as u64).step_by(2) {
            memory.write_obj(1u8, GuestAddress(page * PAGE_BYTES)).unwrap();
        }
        let found = ranges(&memory).unwrap();
        for page in (0..4 * RANGES_PER_SCAN as u64).step_by(2) {
            assert!(found.iter().any(|range| range.contains(&(page * PAGE_BYTES))), "page {page}");
        }
        assert!(found.is_sorted_by(|a, b| a.end < b.start), "{} ranges overlap", found.len());
    }

    #[test]
    fn offsets_run_on_from_one_region_to_the_next() {
        let memory = map(4 << 30).unwrap();
        memory.write_obj(1u8, GuestAddress(4 << 30)).unwrap();
        let found = ranges(&memory).unwrap();
        assert_eq!(found[0].start, 3 << 30, "{found:?}");
    }
}
