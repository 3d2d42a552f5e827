//! The assist with a CPU made of plain data.

use std::collections::HashMap;

use kvm_bindings::{kvm_regs, kvm_sregs};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::cpu::{Cpu, CpuError};
use super::*;

const CODE: u64 = 0x1000;
const STACK: u64 = 0x3000;
const IDT: u64 = 0x4000;
const HANDLER: u64 = 0x5000;
const LSTAR: u64 = 0x6000;
const FLAGS: u64 = FLAG_FIXED | FLAG_INTERRUPT;
const UNMAPPED: u64 = 0x10_0000;

/// Linear addresses are physical ones, below [`UNMAPPED`].
#[derive(Default)]
struct Plain {
    regs: kvm_regs,
    sregs: kvm_sregs,
    msrs: HashMap<u32, u64>,
    injected: Option<(u8, Option<u32>)>,
    breakpoint: u64,
}

impl Cpu for Plain {
    fn regs(&self) -> Result<kvm_regs, CpuError> {
        Ok(self.regs)
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), CpuError> {
        self.regs = *regs;
        Ok(())
    }

    fn sregs(&self) -> Result<kvm_sregs, CpuError> {
        Ok(self.sregs)
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), CpuError> {
        self.sregs = *sregs;
        Ok(())
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>, CpuError> {
        Ok((linear < UNMAPPED).then_some(linear))
    }

    fn msr(&self, index: u32) -> Result<u64, CpuError> {
        Ok(self.msrs.get(&index).copied().unwrap_or(0))
    }

    fn set_msr(&mut self, index: u32, data: u64) -> Result<bool, CpuError> {
        if index == MSR_LSTAR && !is_canonical(data) {
            return Ok(false);
        }
        self.msrs.insert(index, data);
        Ok(true)
    }

    fn inject(&mut self, vector: u8, error_code: Option<u32>) -> Result<(), CpuError> {
        self.injected = Some((vector, error_code));
        Ok(())
    }

    fn set_breakpoint(&mut self, address: u64) -> Result<(), CpuError> {
        self.breakpoint = address;
        Ok(())
    }
}

/// A guest that has set up system calls; its page-fault handler starts with `first`.
fn guest(first: &[u8]) -> (Assist, Plain, GuestMemoryMmap) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), UNMAPPED as usize)]).unwrap();
    memory.write_slice(first, GuestAddress(HANDLER)).unwrap();
    let mut gate = [0; 16];
    gate[..2].copy_from_slice(&(HANDLER as u16).to_le_bytes());
    memory.write_slice(&gate, GuestAddress(IDT + 14 * 16)).unwrap();
    let mut cpu = Plain::default();
    cpu.sregs.idt.base = IDT;
    cpu.sregs.idt.limit = 0xfff;
    cpu.sregs.cs = code_segment(0x10, 0);
    cpu.regs.rip = CODE;
    cpu.regs.rflags = FLAGS;
    let mut assist = Assist::default();
    for (index, data) in [(MSR_STAR, 0x0023_0010 << 32), (MSR_LSTAR, LSTAR), (MSR_SFMASK, 0x4_7700)] {
        assert!(assist.msr_write(&mut cpu, &memory, index, data).unwrap());
    }
    assert_eq!(cpu.breakpoint, HANDLER);
    (assist, cpu, memory)
}

/// The guest's CPU pushed a page fault's frame and reached the handler.
fn fault(cpu: &mut Plain, memory: &GuestMemoryMmap, rip: u64, cs: u64, rflags: u64) {
    for (index, word) in [0x15, rip, cs, rflags, 0x7fff_0000, 0x2b].into_iter().enumerate() {
        memory.write_obj(word, GuestAddress(STACK + index as u64 * 8)).unwrap();
    }
    cpu.regs.rsp = STACK;
    cpu.regs.rip = HANDLER;
}

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

#[test]
fn a_system_call_enters_the_kernel_on_the_programs_stack() {
    let (mut assist, mut cpu, memory) = guest(&ENDBR64);
    fault(&mut cpu, &memory, LSTAR, 0x33, FLAG_FIXED | FLAG_RESUME | 0x40);
    assert_eq!(assist.breakpoint_hit(&mut cpu, &memory).unwrap(), Finished::Syscall);
    assert_eq!((cpu.regs.rip, cpu.regs.rsp, cpu.regs.rflags), (LSTAR, 0x7fff_0000, FLAG_FIXED | 0x40));
    assert_eq!((cpu.sregs.cs.selector, cpu.sregs.cs.dpl, cpu.sregs.cs.l), (0x10, 0, 1));
    assert_eq!((cpu.sregs.ss.selector, cpu.sregs.ss.dpl), (0x18, 0));
}

#[test]
fn a_jump_to_the_entry_stays_a_page_fault_whatever_rcx_and_r11_are() {
    let (mut assist, mut cpu, memory) = guest(&ENDBR64);
    fault(&mut cpu, &memory, LSTAR, 0x33, FLAGS | FLAG_RESUME);
    (cpu.regs.rcx, cpu.regs.r11) = (0x40_0000, FLAGS);
    assert_eq!(assist.breakpoint_hit(&mut cpu, &memory).unwrap(), Finished::PageFault);
    assert_eq!((cpu.regs.rip, cpu.regs.rsp, cpu.sregs.cs.dpl), (HANDLER + 4, STACK, 0));
    // From level 0 it is the kernel's own affair.
    fault(&mut cpu, &memory, LSTAR, 0x10, FLAG_FIXED);
    assert_eq!(assist.breakpoint_hit(&mut cpu, &memory).unwrap(), Finished::PageFault);
}

#[test]
fn the_handlers_first_instruction_is_stepped_over_or_run() {
    for (first, next) in
        [(&ENDBR64[..], 4), (&[0x0f, 0x1f, 0x00], 3), (&[0x0f, 0x01, 0xca], 3), (&[0xfc], 1), (&[0xeb, 0x10], 0x12)]
    {
        let (mut assist, mut cpu, memory) = guest(first);
        fault(&mut cpu, &memory, CODE, 0x33, FLAGS);
        assert_eq!(assist.breakpoint_hit(&mut cpu, &memory).unwrap(), Finished::PageFault);
        assert_eq!((cpu.regs.rip, cpu.breakpoint), (HANDLER + next, HANDLER), "{first:02x?}");
    }
    // push rax: the breakpoint waits behind it, then goes back.
    let (mut assist, mut cpu, memory) = guest(&[0x50]);
    fault(&mut cpu, &memory, CODE, 0x33, FLAGS);
    assist.breakpoint_hit(&mut cpu, &memory).unwrap();
    assert_eq!((cpu.regs.rip, cpu.breakpoint), (HANDLER, HANDLER + 1));
    cpu.regs.rip = HANDLER + 1;
    assist.breakpoint_hit(&mut cpu, &memory).unwrap();
    assert_eq!((cpu.regs.rip, cpu.breakpoint), (HANDLER + 1, HANDLER));
}

#[test]
fn another_interrupt_table_moves_the_breakpoint() {
    let (mut assist, mut cpu, memory) = guest(&ENDBR64);
    let mut gate = [0; 16];
    gate[..2].copy_from_slice(&0x7000u16.to_le_bytes());
    memory.write_slice(&gate, GuestAddress(0x8000 + 14 * 16)).unwrap();
    cpu.sregs.idt.base = 0x8000;
    assist.watch(&mut cpu, &memory).unwrap();
    assert_eq!(cpu.breakpoint, 0x7000);
    // A table that is not mapped is no reason to stop.
    cpu.sregs.idt.base = UNMAPPED;
    assist.watch(&mut cpu, &memory).unwrap();
    assert_eq!(cpu.breakpoint, 0x7000);
}

#[test]
fn a_refused_msr_value_gives_the_guest_its_fault() {
    let (mut assist, mut cpu, memory) = guest(&ENDBR64);
    assert!(!assist.msr_write(&mut cpu, &memory, MSR_LSTAR, 1 << 63).unwrap());
    assert_eq!(assist.lstar, LSTAR);
}

fn run(code: &[u8], change: impl FnOnce(&mut Plain)) -> (Result<Finished, AssistError>, Plain) {
    let (mut assist, mut cpu, memory) = guest(&ENDBR64);
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    memory.write_obj(0xff00_0000_0000_00ffu64, GuestAddress(0x2000)).unwrap();
    change(&mut cpu);
    let finished = assist.emulation_failed(&mut cpu, &memory);
    (finished, cpu)
}

#[test]
fn sysret_returns_to_the_program() {
    let (finished, cpu) = run(&[0x48, 0x0f, 0x07], |cpu| (cpu.regs.rcx, cpu.regs.r11) = (0x40_1000, 0x1_0246));
    assert_eq!(finished.unwrap(), Finished::Sysret);
    assert_eq!((cpu.regs.rip, cpu.regs.rflags), (0x40_1000, 0x246));
    assert_eq!((cpu.sregs.cs.selector, cpu.sregs.cs.dpl, cpu.sregs.ss.selector), (0x33, 3, 0x2b));
    let (finished, cpu) = run(&[0x48, 0x0f, 0x07], |cpu| cpu.regs.rcx = 1 << 63);
    assert_eq!((finished.unwrap(), cpu.injected), (Finished::Fault, Some((13, Some(0)))));
}

#[test]
fn a_program_gets_nothing_from_the_assist() {
    let (finished, cpu) = run(&[0x48, 0x0f, 0x07], |cpu| cpu.sregs.ss.dpl = 3);
    assert_eq!((finished.unwrap(), cpu.injected), (Finished::Fault, Some((6, None))));
    assert_eq!(cpu.regs.rip, CODE);
}

#[test]
fn instructions_are_finished_from_their_operands() {
    let (finished, cpu) = run(&[0xcc], |_| {});
    assert_eq!((finished.unwrap(), cpu.injected, cpu.regs.rip), (Finished::Int3, Some((3, None)), CODE + 1));
    let (finished, cpu) = run(&[0x9b], |_| {});
    assert_eq!((finished.unwrap(), cpu.regs.rip), (Finished::Fwait, CODE + 1));
    // popcnt rax, [rbx]
    let (_, cpu) = run(&[0xf3, 0x48, 0x0f, 0xb8, 0x03], |cpu| cpu.regs.rbx = 0x2000);
    assert_eq!((cpu.regs.rax, cpu.regs.rip), (16, CODE + 5));
    // popcnt r9d, r8d: 32 bits of the source, and the upper half of the target is cleared
    let (_, cpu) = run(&[0xf3, 0x45, 0x0f, 0xb8, 0xc8], |cpu| (cpu.regs.r8, cpu.regs.r9) = (u64::MAX, u64::MAX));
    assert_eq!(cpu.regs.r9, 32);
    // popcnt ax, cx keeps the upper bits; zero sets ZF and clears the others
    let (_, cpu) = run(&[0x66, 0xf3, 0x0f, 0xb8, 0xc1], |cpu| (cpu.regs.rax, cpu.regs.rflags) = (0xabcd_ffff, 0x8d5));
    assert_eq!((cpu.regs.rax, cpu.regs.rflags), (0xabcd_0000, 0x40));
    // crc32 ecx, eax: from the instruction itself on another machine
    let (_, cpu) = run(&[0xf2, 0x0f, 0x38, 0xf1, 0xc8], |cpu| cpu.regs.rax = 0x1234_5678);
    assert_eq!(cpu.regs.rcx, 0xfa74_5634);
    // rdtscp
    let (_, cpu) = run(&[0x0f, 0x01, 0xf9], |cpu| cpu.msrs.extend([(0x10, 0x1_0000_0002), (0xc000_0103, 7)]));
    assert_eq!((cpu.regs.rax, cpu.regs.rdx, cpu.regs.rcx), (2, 1, 7));
    // stac, clac
    let (_, cpu) = run(&[0x0f, 0x01, 0xcb], |_| {});
    assert_eq!(cpu.regs.rflags, FLAGS | FLAG_ALIGNMENT);
    // rdrand eax: nothing available
    let (_, cpu) = run(&[0x0f, 0xc7, 0xf0], |cpu| (cpu.regs.rax, cpu.regs.rflags) = (u64::MAX, FLAGS | 1));
    assert_eq!((cpu.regs.rax, cpu.regs.rflags), (0, FLAGS));
}

#[test]
fn an_operand_that_is_not_mapped_is_the_guests_page_fault() {
    let (finished, cpu) = run(&[0xf3, 0x48, 0x0f, 0xb8, 0x03], |cpu| cpu.regs.rbx = UNMAPPED + 8);
    assert_eq!((finished.unwrap(), cpu.injected, cpu.regs.rip), (Finished::Fault, Some((14, Some(0))), CODE));
    assert_eq!(cpu.sregs.cr2, UNMAPPED + 8);
}

#[test]
fn an_unknown_instruction_is_named_with_its_bytes() {
    // vmcall
    let (mut assist, mut cpu, memory) = guest(&ENDBR64);
    memory.write_slice(&[0x0f, 0x01, 0xc1], GuestAddress(CODE)).unwrap();
    for _ in 0..AGAIN_MAX {
        assert_eq!(assist.emulation_failed(&mut cpu, &memory).unwrap(), Finished::Again);
        assert_eq!(cpu.regs.rip, CODE);
    }
    let error = assist.emulation_failed(&mut cpu, &memory).unwrap_err();
    assert_eq!(
        error.to_string(),
        "This host cannot run the instruction \"vmcall\" of the guest's kernel at 0x1000 (bytes [0f, 01, c1])"
    );
    let (finished, _) = run(&[], |cpu| cpu.regs.rip = UNMAPPED);
    assert!(matches!(finished, Err(AssistError::NotMapped { .. })));
}

proptest! {
    #[test]
    fn no_code_and_no_registers_make_it_panic(
        code in proptest::collection::vec(any::<u8>(), 15),
        words in proptest::collection::vec(any::<u64>(), 6),
    ) {
        let (mut assist, mut cpu, memory) = guest(&code);
        let [rip, rsp, rbx, rflags, base, rcx] = words[..] else { unreachable!() };
        cpu.regs = kvm_regs { rip, rsp, rbx, rflags, rcx, ..Default::default() };
        let _ = assist.emulation_failed(&mut cpu, &memory);
        cpu.regs.rip = CODE;
        memory.write_slice(&code, GuestAddress(CODE)).unwrap();
        let _ = assist.emulation_failed(&mut cpu, &memory);
        let _ = assist.breakpoint_hit(&mut cpu, &memory);
        cpu.regs.rsp = STACK;
        let _ = assist.breakpoint_hit(&mut cpu, &memory);
        cpu.sregs.idt.base = base;
        let _ = assist.watch(&mut cpu, &memory);
    }
}
