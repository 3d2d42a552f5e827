//! Guest memory: private anonymous pages that cost nothing until the guest touches them, and their KVM slots.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::arch::x86_64::memory_ranges;
use crate::devices::virtio::Memory;

const PAGE_BYTES: usize = 4096;
/// Pages that one look at residency covers, so that its answer needs little memory of ours.
const RESIDENCY_PAGES: usize = 64 << 10;

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

/// Maps `bytes` of guest memory.
///
/// # Errors
/// When the host refuses.
pub fn map(bytes: u64) -> Result<Memory, MemoryError> {
    let regions = memory_ranges(bytes).into_iter().map(|(start, bytes)| {
        // Not reserved: a guest rarely uses all it has, and admission goes by what is really used.
        let region = MmapRegionBuilder::new(bytes as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|source| MemoryError::Map { bytes, source })?;
        GuestRegionMmap::new(region, GuestAddress(start))
            .ok_or(MemoryError::Ranges(vm_memory::GuestRegionCollectionError::NoMemoryRegion))
    });
    let regions = regions.collect::<Result<Vec<_>, MemoryError>>()?;
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

/// Bytes of guest memory that the host really holds, or `None` when it does not tell.
pub fn resident_bytes(memory: &Memory) -> Option<u64> {
    let mut pages = 0;
    let mut answer = vec![0u8; RESIDENCY_PAGES];
    for region in memory.iter() {
        let (start, bytes) = (region.as_ptr(), region.len() as usize);
        for offset in (0..bytes).step_by(RESIDENCY_PAGES * PAGE_BYTES) {
            let length = (bytes - offset).min(RESIDENCY_PAGES * PAGE_BYTES);
            // SAFETY: `offset + length` is within the region's live mapping, and `answer` has a byte for each of its
            // pages, so the kernel writes within it.
            let result = unsafe { libc::mincore(start.add(offset).cast(), length, answer.as_mut_ptr()) };
            if result != 0 {
                return None;
            }
            pages += answer[..length.div_ceil(PAGE_BYTES)].iter().filter(|page| **page & 1 != 0).count();
        }
    }
    Some((pages * PAGE_BYTES) as u64)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn only_touched_pages_are_resident() {
        let memory = map(64 << 20).unwrap();
        assert_eq!(resident_bytes(&memory), Some(0));
        memory.write_obj(1u8, GuestAddress(0x10_0000)).unwrap();
        memory.write_obj(1u8, GuestAddress(0x30_0000)).unwrap();
        let resident = resident_bytes(&memory).unwrap();
        // Transparent huge pages may make each touch 2 MiB.
        assert!((2 * 4096..=4 << 20).contains(&resident), "{resident}");
    }

    #[test]
    fn more_than_the_gap_becomes_two_regions() {
        let memory = map(5 << 30).unwrap();
        let regions: Vec<_> = memory.iter().map(|region| (region.start_addr().0, region.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
