//! Finishes what a KVM leaves undone that emulates the guest's kernel (`kvm_pvm` hosts); off everywhere else.
//!
//! Such a host runs guest code of privilege level 3 natively and interprets level 0 instruction by instruction. Its
//! interpreter lacks instructions, and SYSCALL is half done: RCX, R11, RIP = LSTAR and RFLAGS are set, but CS and SS stay
//! at level 3, so the first fetch at LSTAR raises a page fault in the guest. [`Assist`] is one vCPU's part of the cure:
//!
//! ```text
//!  guest writes LSTAR ── MSR filter ──► breakpoint on the page-fault entry (IDT[14])
//!  user: SYSCALL ── #PF at LSTAR ── breakpoint ──► level 0 at LSTAR        } the guest never sees
//!  kernel: SYSRET, int3, popcnt ... ── emulation failure ──► finished here } the difference
//!  user: real page fault ── breakpoint ──► first instruction stepped over, the handler goes on
//! ```
//!
//! **Why a user program cannot use this to get level 0 where it should not.** A program that jumps to LSTAR's address
//! raises the same page fault: same RIP, same CS, same error code, and it can choose RCX and R11 to look like SYSCALL's.
//! What it cannot choose is RFLAGS.IF: SYSCALL clears the flags in SFMASK, IF among them, before the fetch; at level 3
//! with IOPL 0 neither POPF nor CLI nor IRET changes IF, and Linux never returns to a program with IF clear (it keeps IF out
//! of what sigreturn and ptrace may set, and iopl(2) grants ports without raising IOPL). So a fault at LSTAR from level 3
//! with IF clear is a SYSCALL, and one with IF set is a jump and stays a page fault. A guest kernel whose SFMASK leaves
//! IF alone, or that lets programs clear IF, gets the weaker rule: RFLAGS must be R11 less SFMASK. Forging that only
//! enters the kernel by its own gate, at LSTAR with SFMASK applied and the program's stack, as SYSCALL would, except
//! that RCX need not follow a SYSCALL instruction; a kernel that returns to it by SYSRET returns to level 3.
//!
//! Not covered: system calls of 32-bit programs (SYSCALL to CSTAR, SYSENTER), which stay the page fault that they are on
//! such a host, so a program that makes one dies of it. Our kernels have no 32-bit programs.
//!
//! Everything in [`Assist`] is plain data, so a snapshot can hold it.

pub mod cpu;
pub mod instruction;
pub mod probe;

use kvm_bindings::{kvm_regs, kvm_sregs};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use self::cpu::{Cpu, CpuError, read_linear};
use super::registers::{code_segment, data_segment};

/// First of the four MSRs of SYSCALL: STAR, LSTAR, CSTAR, SFMASK.
pub const MSR_STAR: u32 = 0xc000_0081;
/// How many they are.
pub const SYSCALL_MSRS: u32 = 4;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;

const PAGE_FAULT: u8 = 14;
const IDT_ENTRY_BYTES: u64 = 16;
/// Bytes of the frame that a fault with an error code pushes: error, RIP, CS, RFLAGS, RSP, SS.
const FRAME_BYTES: usize = 48;

/// RFLAGS bit that always reads as one.
const FLAG_FIXED: u64 = 1 << 1;
const FLAG_DIRECTION: u64 = 1 << 10;
const FLAG_INTERRUPT: u64 = 1 << 9;
const FLAG_RESUME: u64 = 1 << 16;
const FLAG_ALIGNMENT: u64 = 1 << 18;
/// Flags that SYSRET takes from R11 (Intel SDM 2B, SYSRET).
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

/// What the assist finished; each is counted by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// A SYSCALL became an entry at LSTAR.
    Syscall,
    /// A SYSRET.
    Sysret,
    /// A real page fault was let through to the guest.
    PageFault,
    /// A breakpoint instruction became vector 3.
    Int3,
    /// An FWAIT was skipped.
    Fwait,
    /// A POPCNT.
    Popcnt,
    /// A CRC32.
    Crc32,
    /// A RDTSCP.
    Rdtscp,
    /// A CLAC or STAC.
    AccessFlag,
    /// A VERW was skipped.
    Verw,
    /// A RDRAND or RDSEED said that it has nothing.
    Random,
    /// A memory operand was not mapped: the guest got its page fault.
    Fault,
    /// An MSR of SYSCALL was written.
    MsrWrite,
    /// Another vCPU changed the instruction in between: it is run again.
    Again,
}

impl Finished {
    /// All of them, in the order of their numbers.
    pub const ALL: [Finished; 14] = [
        Self::Syscall,
        Self::Sysret,
        Self::PageFault,
        Self::Int3,
        Self::Fwait,
        Self::Popcnt,
        Self::Crc32,
        Self::Rdtscp,
        Self::AccessFlag,
        Self::Verw,
        Self::Random,
        Self::Fault,
        Self::MsrWrite,
        Self::Again,
    ];

    /// The name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syscall => "syscall",
            Self::Sysret => "sysret",
            Self::PageFault => "page_fault",
            Self::Int3 => "int3",
            Self::Fwait => "fwait",
            Self::Popcnt => "popcnt",
            Self::Crc32 => "crc32",
            Self::Rdtscp => "rdtscp",
            Self::AccessFlag => "clac_stac",
            Self::Verw => "verw",
            Self::Random => "rdrand",
            Self::Fault => "fault",
            Self::MsrWrite => "msr_write",
            Self::Again => "again",
        }
    }
}

/// Why the assist cannot go on: the machine ends with this as the guest's fault.
#[derive(Debug, thiserror::Error)]
pub enum AssistError {
    /// The interpreter lacks an instruction, and so does the assist.
    #[error("This host cannot run the instruction {text:?} of the guest's kernel at {rip:#x} (bytes {bytes:02x?})")]
    UnknownInstruction {
        /// Its address.
        rip: u64,
        /// Its name and first operand kind, as the decoder calls it.
        text: String,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// The address is not mapped in the guest.
    #[error("The guest has nothing mapped at {address:#x}, where {what} should be")]
    NotMapped {
        /// The linear address.
        address: u64,
        /// What was looked for.
        what: &'static str,
    },
    /// KVM refused.
    #[error("The assist cannot reach the vCPU")]
    Cpu(#[from] CpuError),
}

/// One vCPU's assist: what the guest told its CPU about system calls, and where the breakpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assist {
    star: u64,
    lstar: u64,
    sfmask: u64,
    /// Base of the interrupt table that `handler` was read from.
    idt_base: u64,
    /// The guest's page-fault entry, once known.
    handler: u64,
    /// Where the breakpoint is: at `handler`, or one instruction after it while that is being stepped over.
    breakpoint: u64,
    /// Where instructions were run again, and how often in a row.
    #[serde(skip)]
    again: (u64, u8),
}

/// Most times in a row that the instruction at one address is run again.
const AGAIN_MAX: u8 = 16;

impl Assist {
    /// The guest writes `data` to one of the SYSCALL MSRs. False: the CPU refuses the value, the guest gets #GP.
    ///
    /// # Errors
    /// When the vCPU or the guest's interrupt table cannot be reached.
    pub fn msr_write(
        &mut self,
        cpu: &mut impl Cpu,
        memory: &GuestMemoryMmap,
        index: u32,
        data: u64,
    ) -> Result<bool, AssistError> {
        if !cpu.set_msr(index, data)? {
            return Ok(false);
        }
        match index {
            MSR_STAR => self.star = data,
            MSR_LSTAR => self.lstar = data,
            MSR_SFMASK => self.sfmask = data,
            _ => {}
        }
        self.watch(cpu, memory)?;
        Ok(true)
    }

    /// Looks where the guest's page-fault entry is, if its interrupt table moved. Called after every exit, since a
    /// guest may load another table at any time; costs one comparison when it did not.
    ///
    /// # Errors
    /// When the vCPU refuses.
    pub fn watch(&mut self, cpu: &mut impl Cpu, memory: &GuestMemoryMmap) -> Result<(), AssistError> {
        if self.lstar == 0 {
            return Ok(());
        }
        let idt = cpu.sregs()?.idt;
        if idt.base == self.idt_base && self.handler != 0 {
            return Ok(());
        }
        let mut entry = [0; IDT_ENTRY_BYTES as usize];
        let address = idt.base.wrapping_add(u64::from(PAGE_FAULT) * IDT_ENTRY_BYTES);
        // An interrupt table that is not mapped yet, or too short, is looked at again after the next exit.
        if u64::from(idt.limit) < u64::from(PAGE_FAULT + 1) * IDT_ENTRY_BYTES - 1
            || !read_linear(cpu, memory, address, &mut entry)?
        {
            return Ok(());
        }
        let handler = gate_offset(&entry);
        self.idt_base = idt.base;
        if handler != self.handler {
            self.handler = handler;
            self.set_breakpoint(cpu, handler)?;
        }
        Ok(())
    }

    /// Puts the breakpoint back after a restore.
    ///
    /// # Errors
    /// When the vCPU refuses.
    pub fn rearm(&self, cpu: &mut impl Cpu) -> Result<(), AssistError> {
        if self.breakpoint != 0 {
            cpu.set_breakpoint(self.breakpoint)?;
        }
        Ok(())
    }

    /// The breakpoint was reached: a SYSCALL to finish, or a page fault to let through.
    ///
    /// # Errors
    /// When the vCPU or the guest's stack cannot be reached.
    pub fn breakpoint_hit(&mut self, cpu: &mut impl Cpu, memory: &GuestMemoryMmap) -> Result<Finished, AssistError> {
        let regs = cpu.regs()?;
        if self.breakpoint != self.handler {
            // The handler's first instruction has run.
            self.set_breakpoint(cpu, self.handler)?;
            return Ok(Finished::PageFault);
        }
        let mut frame = [0; FRAME_BYTES];
        if !read_linear(cpu, memory, regs.rsp, &mut frame)? {
            return Err(AssistError::NotMapped { address: regs.rsp, what: "the page-fault frame" });
        }
        let frame = Frame::from(frame);
        if self.is_syscall(&frame, &regs) {
            self.enter_kernel(cpu, regs, &frame)?;
            return Ok(Finished::Syscall);
        }
        self.step_over_first_instruction(cpu, memory, regs)?;
        Ok(Finished::PageFault)
    }

    /// See the module's header for why this cannot be forged.
    fn is_syscall(&self, frame: &Frame, regs: &kvm_regs) -> bool {
        let from_user = frame.cs & 3 == 3;
        let masked = if self.sfmask & FLAG_INTERRUPT != 0 {
            frame.rflags & FLAG_INTERRUPT == 0
        } else {
            (frame.rflags ^ (regs.r11 & !self.sfmask)) & !(FLAG_RESUME | FLAG_FIXED) == 0
        };
        from_user && frame.rip == self.lstar && masked
    }

    /// Does SYSCALL's second half (Intel SDM 2B, SYSCALL): level 0 at LSTAR, on the stack the program had.
    fn enter_kernel(&self, cpu: &mut impl Cpu, mut regs: kvm_regs, frame: &Frame) -> Result<(), AssistError> {
        let selector = (self.star >> 32) as u16 & !3;
        let mut sregs = cpu.sregs()?;
        sregs.cs = code_segment(selector, 0);
        sregs.ss = data_segment(selector.wrapping_add(8), 0);
        cpu.set_sregs(&sregs)?;
        regs.rip = self.lstar;
        regs.rsp = frame.rsp;
        regs.rflags = frame.rflags & !(self.sfmask | FLAG_RESUME) | FLAG_FIXED;
        cpu.set_regs(&regs)?;
        Ok(())
    }

    /// The breakpoint fires before its instruction, and again if the guest went on there. Linux starts the handler
    /// with `endbr64`, a nop where `clac` was, or `cld`: those are done here. Anything else runs with the breakpoint
    /// moved behind it.
    fn step_over_first_instruction(
        &mut self,
        cpu: &mut impl Cpu,
        memory: &GuestMemoryMmap,
        mut regs: kvm_regs,
    ) -> Result<(), AssistError> {
        use iced_x86::Mnemonic;
        let first = instruction::fetch(cpu, memory, regs.rip)?;
        match first.decoded.mnemonic() {
            Mnemonic::Endbr64 | Mnemonic::Nop => {}
            Mnemonic::Clac => regs.rflags &= !FLAG_ALIGNMENT,
            Mnemonic::Cld => regs.rflags &= !FLAG_DIRECTION,
            Mnemonic::Jmp if first.decoded.is_jmp_short_or_near() => {
                regs.rip = first.decoded.near_branch_target();
                return Ok(cpu.set_regs(&regs)?);
            }
            _ => return self.set_breakpoint(cpu, first.decoded.next_ip()),
        }
        regs.rip = first.decoded.next_ip();
        Ok(cpu.set_regs(&regs)?)
    }

    fn set_breakpoint(&mut self, cpu: &mut impl Cpu, address: u64) -> Result<(), AssistError> {
        cpu.set_breakpoint(address)?;
        self.breakpoint = address;
        Ok(())
    }

    /// The host's interpreter gave up on the instruction at RIP: finish it.
    ///
    /// # Errors
    /// [`AssistError::UnknownInstruction`] for one that is not known here.
    pub fn emulation_failed(&mut self, cpu: &mut impl Cpu, memory: &GuestMemoryMmap) -> Result<Finished, AssistError> {
        let (regs, sregs) = (cpu.regs()?, cpu.sregs()?);
        if sregs.ss.dpl != 0 {
            // Nothing of what follows may be done for a program. Level 3 runs natively, so what the host could not
            // run there is no instruction.
            const INVALID_OPCODE: u8 = 6;
            cpu.inject(INVALID_OPCODE, None)?;
            return Ok(Finished::Fault);
        }
        let failed = instruction::fetch(cpu, memory, regs.rip)?;
        match failed.decoded.mnemonic() {
            iced_x86::Mnemonic::Sysret | iced_x86::Mnemonic::Sysretq => {
                let wide = failed.decoded.mnemonic() == iced_x86::Mnemonic::Sysretq;
                self.leave_kernel(cpu, regs, sregs, wide)
            }
            _ => match instruction::finish(cpu, memory, &failed, regs, &sregs) {
                Err(AssistError::UnknownInstruction { .. }) if self.may_run_again(regs.rip) => Ok(Finished::Again),
                finished => finished,
            },
        }
    }

    /// Linux patches its code while other vCPUs run it: a breakpoint instruction first, the new one when all have seen
    /// that (arch/x86/kernel/alternative.c, text_poke_bp). What the interpreter gave up on was then the breakpoint, and
    /// what is read now is the new instruction, which it knows. One that it truly lacks fails at once again.
    fn may_run_again(&mut self, rip: u64) -> bool {
        self.again = if self.again.0 == rip { (rip, self.again.1.saturating_add(1)) } else { (rip, 1) };
        self.again.1 <= AGAIN_MAX
    }

    /// SYSRET (Intel SDM 2B): level 3 at RCX with R11's flags; `wide` to 64-bit code, else to 32-bit code.
    fn leave_kernel(
        &self,
        cpu: &mut impl Cpu,
        mut regs: kvm_regs,
        mut sregs: kvm_sregs,
        wide: bool,
    ) -> Result<Finished, AssistError> {
        const GENERAL_PROTECTION: u8 = 13;
        if wide && !is_canonical(regs.rcx) {
            cpu.inject(GENERAL_PROTECTION, Some(0))?;
            return Ok(Finished::Fault);
        }
        let selector = (self.star >> 48) as u16;
        if wide {
            sregs.cs = code_segment(selector.wrapping_add(16) | 3, 3);
            regs.rip = regs.rcx;
        } else {
            sregs.cs = code_segment(selector | 3, 3);
            (sregs.cs.l, sregs.cs.db) = (0, 1);
            regs.rip = regs.rcx & 0xffff_ffff;
        }
        sregs.ss = data_segment(selector.wrapping_add(8) | 3, 3);
        regs.rflags = regs.r11 & SYSRET_FLAGS | FLAG_FIXED;
        cpu.set_sregs(&sregs)?;
        cpu.set_regs(&regs)?;
        Ok(Finished::Sysret)
    }
}

/// What the CPU pushed for a fault.
struct Frame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
}

impl From<[u8; FRAME_BYTES]> for Frame {
    fn from(bytes: [u8; FRAME_BYTES]) -> Self {
        let word = |index: usize| bytes[index * 8..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
        Self { rip: word(1), cs: word(2), rflags: word(3), rsp: word(4) }
    }
}

/// The handler's address in a 64-bit interrupt gate (Intel SDM 3A, 6.14.1).
fn gate_offset(entry: &[u8; IDT_ENTRY_BYTES as usize]) -> u64 {
    let half = |at: usize| u64::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
    half(0) | half(6) << 16 | half(8) << 32 | half(10) << 48
}

/// Whether bits 63 to 47 are all equal, as 4-level paging asks.
fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

/// Reads `buffer.len()` bytes at a guest physical address; false when there is no memory.
fn read_physical(memory: &GuestMemoryMmap, address: u64, buffer: &mut [u8]) -> bool {
    memory.read_slice(buffer, GuestAddress(address)).is_ok()
}

#[cfg(test)]
mod tests;
