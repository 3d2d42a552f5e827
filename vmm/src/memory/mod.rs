//! Guest memory and its KVM slots: anonymous pages of a machine that boots, or a snapshot's memory file, mapped privately.
//! Either costs nothing until the guest touches it.

pub mod own;

use std::fs::File;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::arch::x86_64::memory_ranges;
use crate::devices::virtio::Memory;

/// Bytes of a page, the unit in which memory is mapped and changes are found.
pub const PAGE_BYTES: u64 = 4096;

/// Guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not map it.
    #[error("Cannot map {bytes} bytes of guest memory")]
    Map {
        /// How much was asked.
        bytes: u64,
        /// What the system says.
        #[source]
        source: MmapRegionError,
    },
    /// The ranges do not make a guest memory.
    #[error("The guest's memory ranges are not legal")]
    Ranges(#[from] vm_memory::GuestRegionCollectionError),
    /// KVM refuses a slot.
    #[error("KVM refused {bytes} bytes of guest memory at {start:#x}")]
    Slot {
        /// Guest address.
        start: u64,
        /// How much.
        bytes: u64,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Maps `bytes` of guest memory, all zero.
///
/// # Errors
/// When the host refuses.
pub fn map(bytes: u64) -> Result<Memory, MemoryError> {
    map_ranges(bytes, None)
}

/// Maps `bytes` of guest memory with the content of `file`, in which the ranges of [`memory_ranges`] follow each other. The
/// guest's writes stay its own. The file must be `bytes` long and not change while the guest runs; it may be unlinked.
///
/// # Errors
/// When the host refuses.
pub fn map_file(bytes: u64, file: &Arc<File>) -> Result<Memory, MemoryError> {
    map_ranges(bytes, Some(file))
}

fn map_ranges(bytes: u64, file: Option<&Arc<File>>) -> Result<Memory, MemoryError> {
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, bytes) in memory_ranges(bytes) {
        // Not reserved: a guest rarely uses all it has, and admission goes by what is really used.
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let region = MmapRegionBuilder::new(bytes as usize).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let region = match file {
            None => region.with_mmap_flags(flags | libc::MAP_ANONYMOUS),
            Some(file) => {
                region.with_mmap_flags(flags).with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
            }
        };
        let region = region.build().map_err(|source| MemoryError::Map { bytes, source })?;
        let region = GuestRegionMmap::new(region, GuestAddress(start));
        regions.push(region.ok_or(MemoryError::Ranges(vm_memory::GuestRegionCollectionError::NoMemoryRegion))?);
        offset += bytes;
    }
    Ok(Arc::new(GuestMemoryMmap::from_regions(regions)?))
}

/// Gives the guest its memory. `memory` must outlive `vm`: [`crate::machine::Machine`] holds both and drops `vm` first.
///
/// # Errors
/// When KVM refuses.
pub fn register(vm: &VmFd, memory: &Memory) -> Result<(), MemoryError> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        let failed = |source| MemoryError::Slot { start: slot.guest_phys_addr, bytes: slot.memory_size, source };
        // SAFETY: the range is a live mapping of exactly this size, made by `map`, never remapped, and unmapped only when
        // the last `Memory` is dropped. `Machine` keeps a `Memory` until its VM and vCPUs are gone, so the guest never
        // writes to a range that became something else. Slots do not overlap, since guest memory's regions do not.
        unsafe { vm.set_user_memory_region(slot) }.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn writes_to_a_mapped_file_stay_the_guests_own() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"before", 4096).unwrap();
        let file = Arc::new(file);
        let (one, other) = (map_file(1 << 20, &file).unwrap(), map_file(1 << 20, &file).unwrap());
        one.write_slice(b"after!", GuestAddress(4096)).unwrap();
        let mut text = [0; 6];
        other.read_slice(&mut text, GuestAddress(4096)).unwrap();
        assert_eq!(&text, b"before");
    }

    #[test]
    fn more_than_the_gap_becomes_two_regions() {
        let memory = map(5 << 30).unwrap();
        let regions: Vec<_> = memory.iter().map(|region| (region.start_addr().0, region.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
