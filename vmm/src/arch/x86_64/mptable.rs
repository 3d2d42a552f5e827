//! The MP table: processors, the I/O APIC and its interrupt lines (Intel MultiProcessor Specification 1.4, chapter 4).
//!
//! The guest's kernel has no ACPI, so this is how it learns of its CPUs.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{IOAPIC_START, LAPIC_START, MPTABLE_START};

const FLOATING_POINTER_BYTES: u32 = 16;
const HEADER_BYTES: usize = 44;
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// Lines of the I/O APIC (KVM's has 24).
const IOAPIC_LINES: u8 = 24;
const ISA_BUS: u8 = 0;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;

/// Writes the table for `vcpus` processors into guest memory.
///
/// # Errors
/// When the guest has no memory there.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&build(vcpus), GuestAddress(MPTABLE_START))
}

/// Floating pointer and configuration table, one after the other.
fn build(vcpus: u8) -> Vec<u8> {
    let mut table = floating_pointer();
    table.extend(configuration(vcpus));
    table
}

fn floating_pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend((MPTABLE_START as u32 + FLOATING_POINTER_BYTES).to_le_bytes());
    // Length in 16-byte units, specification 1.4, checksum, five feature bytes.
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

fn configuration(vcpus: u8) -> Vec<u8> {
    let entries = entries(vcpus);
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(((HEADER_BYTES + entries.iter().map(Vec::len).sum::<usize>()) as u16).to_le_bytes());
    bytes.extend([4, 0]);
    bytes.extend(b"COVE    MICROVM     ");
    bytes.extend([0; 6]);
    bytes.extend((entries.len() as u16).to_le_bytes());
    bytes.extend(LAPIC_START.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(entries.concat());
    bytes[7] = checksum(&bytes);
    bytes
}

fn entries(vcpus: u8) -> Vec<Vec<u8>> {
    // Local APIC ids are 0..vcpus, so the I/O APIC takes the next.
    let ioapic = vcpus;
    let mut entries: Vec<Vec<u8>> = (0..vcpus).map(processor).collect();
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    entries.push([&[2, ioapic, IOAPIC_VERSION, 1][..], &IOAPIC_START.to_le_bytes()].concat());
    for line in 0..IOAPIC_LINES {
        entries.push(vec![3, 0, 0, 0, ISA_BUS, line, ioapic, line]);
    }
    // Local interrupts: LINT0 is the old interrupt controller, LINT1 the NMI of every CPU.
    entries.push(vec![4, 3, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![4, 1, 0, 0, ISA_BUS, 0, 0xff, 1]);
    entries
}

fn processor(id: u8) -> Vec<u8> {
    let flags = if id == 0 { CPU_ENABLED | CPU_BOOT } else { CPU_ENABLED };
    // Signature and features are what CPUID says; the kernel does not read them here.
    let mut entry = vec![0, id, APIC_VERSION, flags];
    entry.resize(20, 0);
    entry
}

/// The byte that makes the sum of all bytes zero, where the checksum's own byte is still zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_sum_to_zero_and_fit_in_the_last_kib_of_base_memory() {
        for vcpus in [1, 2, 16] {
            let table = build(vcpus);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&table[..16]), 0);
            assert_eq!(sum(&table[16..]), 0);
            assert_eq!(u16::from_le_bytes([table[20], table[21]]) as usize, table.len() - 16);
            assert!(table.len() <= 1024, "{} bytes", table.len());
        }
    }
}
