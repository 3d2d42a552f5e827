//! x86-64: where things lie in the guest's physical memory, and the modules that put them there.
//!
//! ```text
//! 0x0000_0500  global descriptor table       0xc000_0000  gap: no memory up to 4 GiB
//! 0x0000_7000  boot parameters (zero page)   0xd000_0000  virtio-mmio windows
//! 0x0000_9000  first page tables             0xfec0_0000  I/O APIC
//! 0x0002_0000  command line                  0xfee0_0000  local APICs
//! 0x0009_fc00  MP table                      0xfffb_c000  identity map and TSS for KVM
//! 0x0010_0000  the kernel, then free memory  0x1_0000_0000 the memory that the gap displaced
//! ```

pub mod assist;
pub mod cpuid;
pub mod kernel;
pub mod mptable;
pub mod registers;
pub mod state;

/// The global descriptor table of the boot CPU's first instructions.
pub const GDT_START: u64 = 0x500;
/// The zero page (Linux, Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Top of the boot CPU's first stack, just under the page tables.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// First page-table page: level 4, then level 3 and level 2 in the two pages after it.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Longest command line in bytes, its final zero included (Linux, COMMAND_LINE_SIZE).
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// The MP table, in the last KiB of base memory where the kernel looks for it (MP specification 1.4, chapter 4).
pub const MPTABLE_START: u64 = 0x9_fc00;
/// Where memory beyond the legacy hole starts, and the lowest address of a kernel.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// Start of the hole below 4 GiB that holds devices.
pub const GAP_START: u64 = 0xc000_0000;
/// End of that hole.
pub const GAP_END: u64 = 0x1_0000_0000;
/// Window of the first virtio device; the others follow.
pub const VIRTIO_START: u64 = 0xd000_0000;
/// Bytes between two virtio windows.
pub const VIRTIO_WINDOW_BYTES: u64 = 0x1000;
/// The I/O APIC's registers.
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LAPIC_START: u32 = 0xfee0_0000;
/// A page that Intel hosts need for their identity map.
pub const IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// Three pages that Intel hosts need for a task state segment.
pub const TSS_START: u64 = 0xfffb_d000;
/// Interrupt line of the serial console.
pub const SERIAL_IRQ: u32 = 4;
/// Interrupt line of the first virtio device; the others follow.
pub const VIRTIO_IRQ_FIRST: u32 = 5;
/// Most virtio devices: one interrupt line each, up to the I/O APIC's last (23).
pub const VIRTIO_DEVICES_MAX: usize = 18;

/// Address of the window of virtio device `index`.
pub fn virtio_window(index: usize) -> u64 {
    VIRTIO_START + VIRTIO_WINDOW_BYTES * index as u64
}

/// Interrupt line of virtio device `index`.
pub fn virtio_irq(index: usize) -> u32 {
    VIRTIO_IRQ_FIRST + index as u32
}

/// The ranges of guest memory for `bytes` of it, as (start, bytes): below the gap, and the rest above 4 GiB.
pub fn memory_ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= GAP_START { vec![(0, bytes)] } else { vec![(0, GAP_START), (GAP_END, bytes - GAP_START)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_the_gap_goes_above_4_gib() {
        assert_eq!(memory_ranges(1 << 30), [(0, 1 << 30)]);
        assert_eq!(memory_ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(memory_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
