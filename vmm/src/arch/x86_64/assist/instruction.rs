//! Single instructions that the host's interpreter lacks, finished from their decoded operands.
//!
//! Only what a Linux kernel was seen to use at privilege level 0, and what is cheap to do right. Never called for level 3.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::GuestMemoryMmap;

use super::cpu::{Cpu, read_linear};
use super::{AssistError, FLAG_ALIGNMENT, Finished, PAGE_FAULT};

/// Longest x86 instruction.
const INSTRUCTION_BYTES_MAX: usize = 15;
const PAGE_BYTES: u64 = 4096;
const BREAKPOINT: u8 = 3;
const MSR_TSC: u32 = 0x10;
const MSR_TSC_AUX: u32 = 0xc000_0103;

const FLAG_CARRY: u64 = 1;
const FLAG_ZERO: u64 = 1 << 6;
/// OF, SF, ZF, AF, PF, CF.
const ARITHMETIC_FLAGS: u64 = 1 << 11 | 1 << 7 | FLAG_ZERO | 1 << 4 | 1 << 2 | FLAG_CARRY;
/// The reflected Castagnoli polynomial of CRC32 (Intel SDM 2A, CRC32).
const CRC32C_POLYNOMIAL: u32 = 0x82f6_3b78;

/// An instruction in the guest.
pub struct Fetched {
    /// What it is.
    pub decoded: Instruction,
    /// Its bytes.
    bytes: Vec<u8>,
}

/// Reads and decodes the instruction at `rip`.
///
/// # Errors
/// [`AssistError::NotMapped`] when there is no code, or KVM refuses.
pub fn fetch(cpu: &impl Cpu, memory: &GuestMemoryMmap, rip: u64) -> Result<Fetched, AssistError> {
    let code = cpu.sregs()?.cs;
    let (bits, base) = if code.l != 0 { (64, 0) } else { (if code.db != 0 { 32 } else { 16 }, code.base) };
    let start = base.wrapping_add(rip);
    // The next page may not be mapped, and need not be when the instruction ends before it.
    let in_page = ((PAGE_BYTES - start % PAGE_BYTES) as usize).min(INSTRUCTION_BYTES_MAX);
    let mut bytes = vec![0; INSTRUCTION_BYTES_MAX];
    if !read_linear(cpu, memory, start, &mut bytes[..in_page])? {
        return Err(AssistError::NotMapped { address: start, what: "the failed instruction" });
    }
    let rest = start.wrapping_add(in_page as u64);
    if in_page < bytes.len() && !read_linear(cpu, memory, rest, &mut bytes[in_page..])? {
        bytes.truncate(in_page);
    }
    let decoded = Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE).decode();
    bytes.truncate(decoded.len());
    Ok(Fetched { decoded, bytes })
}

/// Finishes `fetched` for a vCPU at level 0 with these registers.
///
/// # Errors
/// [`AssistError::UnknownInstruction`], or KVM refuses.
pub fn finish(
    cpu: &mut impl Cpu,
    memory: &GuestMemoryMmap,
    fetched: &Fetched,
    mut regs: kvm_regs,
    sregs: &kvm_sregs,
) -> Result<Finished, AssistError> {
    let instruction = &fetched.decoded;
    let operands = match instruction.mnemonic() {
        Mnemonic::Popcnt | Mnemonic::Crc32 => match source(cpu, memory, instruction, &regs, sregs)? {
            Operand::Value(value) => value,
            Operand::Fault(address) => return page_fault(cpu, *sregs, address),
        },
        _ => 0,
    };
    let finished = match instruction.mnemonic() {
        Mnemonic::Int3 => Finished::Int3,
        Mnemonic::Wait => Finished::Fwait,
        Mnemonic::Popcnt => popcnt(instruction, operands, &mut regs),
        Mnemonic::Crc32 => crc32(instruction, operands, &mut regs),
        Mnemonic::Rdtscp => {
            let (tsc, aux) = (cpu.msr(MSR_TSC)?, cpu.msr(MSR_TSC_AUX)?);
            (regs.rax, regs.rdx, regs.rcx) = (tsc & 0xffff_ffff, tsc >> 32, aux & 0xffff_ffff);
            Finished::Rdtscp
        }
        // SMAP is masked, so the flag has no effect beyond its value.
        Mnemonic::Clac => set_flag(&mut regs, FLAG_ALIGNMENT, false, Finished::AccessFlag),
        Mnemonic::Stac => set_flag(&mut regs, FLAG_ALIGNMENT, true, Finished::AccessFlag),
        // Linux uses it to clear CPU buffers, which interpreted code does not fill, on segments that are writable.
        Mnemonic::Verw => set_flag(&mut regs, FLAG_ZERO, true, Finished::Verw),
        // "Nothing available now" is a legal answer, after which Linux uses its other sources.
        Mnemonic::Rdrand | Mnemonic::Rdseed => {
            regs.rflags &= !ARITHMETIC_FLAGS;
            write_register(&mut regs, instruction.op0_register(), 0);
            Finished::Random
        }
        mnemonic => {
            return Err(AssistError::UnknownInstruction {
                rip: regs.rip,
                text: format!("{mnemonic:?}").to_lowercase(),
                bytes: fetched.bytes.clone(),
            });
        }
    };
    regs.rip = instruction.next_ip();
    cpu.set_regs(&regs)?;
    if finished == Finished::Int3 {
        cpu.inject(BREAKPOINT, None)?;
    }
    Ok(finished)
}

fn set_flag(regs: &mut kvm_regs, flag: u64, on: bool, finished: Finished) -> Finished {
    regs.rflags = if on { regs.rflags | flag } else { regs.rflags & !flag };
    finished
}

fn popcnt(instruction: &Instruction, value: u64, regs: &mut kvm_regs) -> Finished {
    regs.rflags &= !ARITHMETIC_FLAGS;
    if value == 0 {
        regs.rflags |= FLAG_ZERO;
    }
    write_register(regs, instruction.op0_register(), u64::from(value.count_ones()));
    Finished::Popcnt
}

fn crc32(instruction: &Instruction, value: u64, regs: &mut kvm_regs) -> Finished {
    let mut crc = read_register(regs, instruction.op0_register()).unwrap_or(0) as u32;
    for byte in &value.to_le_bytes()[..source_bytes(instruction)] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { CRC32C_POLYNOMIAL } else { 0 };
        }
    }
    write_register(regs, instruction.op0_register(), u64::from(crc));
    Finished::Crc32
}

/// The guest gets the page fault that the instruction would have raised: a read from level 0, of what is not there.
fn page_fault(cpu: &mut impl Cpu, mut sregs: kvm_sregs, address: u64) -> Result<Finished, AssistError> {
    sregs.cr2 = address;
    cpu.set_sregs(&sregs)?;
    cpu.inject(PAGE_FAULT, Some(0))?;
    Ok(Finished::Fault)
}

/// A source operand: its value, zero-extended, or the linear address that is not mapped.
enum Operand {
    Value(u64),
    Fault(u64),
}

/// The second operand's value.
fn source(
    cpu: &impl Cpu,
    memory: &GuestMemoryMmap,
    instruction: &Instruction,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
) -> Result<Operand, AssistError> {
    if instruction.op1_kind() == OpKind::Register {
        return Ok(Operand::Value(read_register(regs, instruction.op1_register()).unwrap_or(0)));
    }
    let address = instruction
        .virtual_address(1, 0, |register, _, _| segment_base(sregs, register).or_else(|| read_register(regs, register)))
        .unwrap_or(0);
    let mut bytes = [0; 8];
    let found = read_linear(cpu, memory, address, &mut bytes[..source_bytes(instruction)])?;
    Ok(if found { Operand::Value(u64::from_le_bytes(bytes)) } else { Operand::Fault(address) })
}

/// Bytes of the second operand, 1 to 8.
fn source_bytes(instruction: &Instruction) -> usize {
    let bytes = match instruction.op1_kind() {
        OpKind::Register => instruction.op1_register().size(),
        _ => instruction.memory_size().size(),
    };
    bytes.clamp(1, 8)
}

/// Bases of segments: only FS and GS have one in 64-bit mode.
fn segment_base(sregs: &kvm_sregs, register: Register) -> Option<u64> {
    match register {
        Register::FS => Some(sregs.fs.base),
        Register::GS => Some(sregs.gs.base),
        Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
        _ => None,
    }
}

fn field(regs: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    Some(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RBX => &mut regs.rbx,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        Register::RIP => &mut regs.rip,
        _ => return None,
    })
}

/// A general register's value, zero-extended from its width.
fn read_register(regs: &kvm_regs, register: Register) -> Option<u64> {
    let full = *field(&mut { *regs }, register)?;
    Some(match register {
        Register::AH | Register::BH | Register::CH | Register::DH => full >> 8 & 0xff,
        _ => match register.size() {
            1 => full & 0xff,
            2 => full & 0xffff,
            4 => full & 0xffff_ffff,
            _ => full,
        },
    })
}

/// Sets a 16, 32 or 64-bit register; 32 bits clear the upper half, 16 keep it (Intel SDM 1, 3.4.1.1).
fn write_register(regs: &mut kvm_regs, register: Register, value: u64) {
    let Some(full) = field(regs, register) else { return };
    *full = match register.size() {
        2 => *full & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}
