//! The registers a vCPU starts with: the boot CPU in 64-bit mode at the kernel's entry, the others waiting for the
//! kernel to start them.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BOOT_STACK_TOP, GDT_START, PAGE_TABLES_START, ZERO_PAGE_START};

/// Code and data selectors that the 64-bit boot protocol asks for.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Descriptors in the order of their selectors: two empty ones, 64-bit code, data.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Present, writable, user; and for the last level: large.
const TABLE_ENTRY: u64 = 0x7;
const LARGE_PAGE_ENTRY: u64 = 0x83;

const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
const DELIVER_EXTINT: [u8; 2] = [0, 7];
const DELIVER_NMI: [u8; 2] = [0, 4];

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// A register of a new vCPU could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// KVM refused.
    #[error("KVM refused the start value of the vCPU's {what}")]
    Kvm {
        /// Which registers.
        what: &'static str,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Guest memory is too small.
    #[error("Cannot write the first page tables into the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegistersError {
    move |source| RegistersError::Kvm { what, source }
}

/// Writes the descriptor table and an identity map of the first GiB, in 2 MiB pages, for the boot CPU.
///
/// # Errors
/// When the guest has no memory there.
pub fn write_boot_tables(memory: &GuestMemoryMmap) -> Result<(), RegistersError> {
    for (index, descriptor) in GDT.iter().enumerate() {
        memory.write_obj(*descriptor, GuestAddress(GDT_START + 8 * index as u64))?;
    }
    let (level4, level3, level2) = (PAGE_TABLES_START, PAGE_TABLES_START + 0x1000, PAGE_TABLES_START + 0x2000);
    memory.write_obj(level3 | TABLE_ENTRY, GuestAddress(level4))?;
    memory.write_obj(level2 | TABLE_ENTRY, GuestAddress(level3))?;
    for index in 0..512u64 {
        memory.write_obj(index << 21 | LARGE_PAGE_ENTRY, GuestAddress(level2 + index * 8))?;
    }
    Ok(())
}

/// What every vCPU starts with, the boot CPU included: floating point, interrupt lines, a few MSRs.
///
/// # Errors
/// When KVM refuses.
pub fn set_common(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    // As the processor's FNINIT and reset leave them (Intel SDM 1, 8.1.5 and 10.2.3).
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(kvm("floating point registers"))?;
    let mut lapic = vcpu.get_lapic().map_err(kvm("local APIC"))?;
    for (register, value) in [(LAPIC_LINT0, DELIVER_EXTINT), (LAPIC_LINT1, DELIVER_NMI)] {
        for (byte, value) in lapic.regs[register..].iter_mut().zip(value) {
            *byte = value as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(kvm("local APIC"))?;
    for (index, data) in [(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)] {
        // Not every host has these, and a guest does without.
        if set_msr(vcpu, index, data).is_err() {
            tracing::debug!(msr = format_args!("{index:#x}"), "The host does not take this MSR's start value");
        }
    }
    Ok(())
}

/// Puts the boot CPU at `entry` in 64-bit mode, with the zero page in RSI.
///
/// # Errors
/// When KVM refuses.
pub fn set_boot(vcpu: &VcpuFd, entry: u64) -> Result<(), RegistersError> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("segment registers"))?;
    sregs.cs = code_segment(BOOT_CS, 0);
    let data = data_segment(BOOT_DS, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT_START;
    sregs.gdt.limit = (GDT.len() * 8 - 1) as u16;
    sregs.cr3 = PAGE_TABLES_START;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE_ET_PG;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs).map_err(kvm("segment registers"))?;
    let regs = kvm_regs { rip: entry, rsp: BOOT_STACK_TOP, rsi: ZERO_PAGE_START, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(kvm("general registers"))
}

/// Writes one MSR.
///
/// # Errors
/// When KVM refuses the MSR or its value.
pub fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), kvm_ioctls::Error> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    match vcpu.set_msrs(&msrs)? {
        1 => Ok(()),
        _ => Err(kvm_ioctls::Error::new(libc::EINVAL)),
    }
}

/// Reads one MSR.
///
/// # Errors
/// When KVM does not know the MSR.
pub fn get_msr(vcpu: &VcpuFd, index: u32) -> Result<u64, kvm_ioctls::Error> {
    let entry = kvm_msr_entry { index, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    match vcpu.get_msrs(&mut msrs)? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err(kvm_ioctls::Error::new(libc::EINVAL)),
    }
}

/// A flat 64-bit code segment of privilege level `dpl`.
pub fn code_segment(selector: u16, dpl: u8) -> kvm_segment {
    // Execute, read, accessed.
    kvm_segment { l: 1, db: 0, type_: 11, ..flat_segment(selector, dpl) }
}

/// A flat data segment of privilege level `dpl`.
pub fn data_segment(selector: u16, dpl: u8) -> kvm_segment {
    // Read, write, accessed.
    kvm_segment { l: 0, db: 1, type_: 3, ..flat_segment(selector, dpl) }
}

fn flat_segment(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment { limit: u32::MAX, selector, present: 1, dpl, s: 1, g: 1, ..Default::default() }
}
