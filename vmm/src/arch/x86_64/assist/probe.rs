//! Whether this host needs the assist, told by behaviour: a guest of 20 bytes makes a system call.

use std::sync::mpsc;
use std::time::Duration;

use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::Killable;

use super::super::registers::{code_segment, data_segment, set_msr};
use super::{MSR_LSTAR, MSR_SFMASK, MSR_STAR};
use crate::memory;
use crate::signal::{KickTarget, install_kick_handler, kick_signal};

/// How long the small guest may take; it runs a handful of instructions.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

const MEMORY_BYTES: u64 = 0x10_000;
const TABLES: u64 = 0x1000;
const PROGRAM: u64 = 0x5000;
const KERNEL: u64 = 0x6000;
const PRESENT_WRITE: u64 = 3;
const USER: u64 = 4;
const PORT: u16 = 0x80;
/// syscall
const PROGRAM_CODE: [u8; 2] = [0x0f, 0x05];
/// fwait; out 0x80, al
const KERNEL_CODE: [u8; 3] = [0x9b, 0xe6, PORT as u8];

/// The question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM refused a step.
    #[error("KVM refused to {what}")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The small guest's memory could not be made.
    #[error("Cannot make the probe's guest memory")]
    Memory(#[from] memory::MemoryError),
    /// Its code could not be written.
    #[error("Cannot write the probe's guest code")]
    Write(#[from] vm_memory::GuestMemoryError),
    /// The system refused a thread or a signal.
    #[error("Cannot run the probe's vCPU thread")]
    Thread(#[from] std::io::Error),
    /// The small guest did not come to an end.
    #[error("KVM did not run a small guest to its end within {} s", PROBE_TIMEOUT.as_secs())]
    Timeout,
    /// It ended in a way that is neither a usual host's nor an emulating one's.
    #[error("KVM ended a small guest with the exit {exit}, which no known kind of host does")]
    Exit {
        /// KVM's exit.
        exit: String,
    },
}

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |source| ProbeError::Kvm { what, source }
}

/// Whether `kvm` leaves SYSCALL, or FWAIT at level 0, undone.
///
/// A usual host runs the program's SYSCALL and reaches the port access; an emulating one stops at the unfinished SYSCALL
/// (its fault finds no handler: shutdown) or at the FWAIT.
///
/// # Errors
/// When KVM refuses a step, or behaves like no known host.
pub fn assist_needed(kvm: &Kvm) -> Result<bool, ProbeError> {
    install_kick_handler()?;
    let vm = kvm.create_vm().map_err(kvm_error("create a VM"))?;
    let memory = memory::map(MEMORY_BYTES)?;
    write_guest(&memory)?;
    memory::register(&vm, &memory)?;
    let vcpu = small_vcpu(kvm, &vm)?;
    let (done, ended) = mpsc::channel();
    let thread = std::thread::Builder::new().name("probe".into()).spawn(move || {
        let mut target = KickTarget::new(vcpu);
        let answer = run(&mut target);
        // Nobody waits any more after the timeout.
        let _ = done.send(answer);
    })?;
    let answer = ended.recv_timeout(PROBE_TIMEOUT);
    if answer.is_err() {
        thread.kill(kick_signal()).map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
    }
    // The thread ends after its answer or the kick; guest memory must outlive it.
    let _ = thread.join();
    drop(vm);
    drop(memory);
    answer.map_err(|_| ProbeError::Timeout)?
}

fn run(target: &mut KickTarget) -> Result<bool, ProbeError> {
    match target.vcpu().run() {
        Ok(VcpuExit::IoOut(PORT, _)) => Ok(false),
        Ok(VcpuExit::Shutdown | VcpuExit::InternalError) => Ok(true),
        Ok(exit) => Err(ProbeError::Exit { exit: format!("{exit:?}") }),
        Err(source) => Err(ProbeError::Kvm { what: "run a small guest", source }),
    }
}

/// Page tables for the first 2 MiB in which only the program's page is the user's, and the code.
fn write_guest(memory: &crate::devices::virtio::Memory) -> Result<(), ProbeError> {
    let levels = [(TABLES, TABLES + 0x1000), (TABLES + 0x1000, TABLES + 0x2000), (TABLES + 0x2000, TABLES + 0x3000)];
    for (table, next) in levels {
        memory.write_obj(next | PRESENT_WRITE | USER, GuestAddress(table))?;
    }
    let pages = TABLES + 0x3000;
    memory.write_obj(PROGRAM | PRESENT_WRITE | USER, GuestAddress(pages + PROGRAM / 0x1000 * 8))?;
    memory.write_obj(KERNEL | PRESENT_WRITE, GuestAddress(pages + KERNEL / 0x1000 * 8))?;
    memory.write_slice(&PROGRAM_CODE, GuestAddress(PROGRAM))?;
    memory.write_slice(&KERNEL_CODE, GuestAddress(KERNEL))?;
    Ok(())
}

/// A vCPU at level 3 in 64-bit mode, about to make a system call; without an interrupt table.
fn small_vcpu(kvm: &Kvm, vm: &VmFd) -> Result<kvm_ioctls::VcpuFd, ProbeError> {
    let vcpu = vm.create_vcpu(0).map_err(kvm_error("create a vCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("say what CPU features it supports"))?;
    vcpu.set_cpuid2(&cpuid).map_err(kvm_error("set a vCPU's features"))?;
    let mut sregs = vcpu.get_sregs().map_err(kvm_error("read a vCPU's registers"))?;
    sregs.cs = code_segment(0x33, 3);
    sregs.ss = data_segment(0x2b, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (sregs.ss, sregs.ss, sregs.ss, sregs.ss);
    sregs.idt.limit = 0;
    sregs.cr3 = TABLES;
    sregs.cr4 = 1 << 5;
    sregs.cr0 = 1 | 1 << 4 | 1 << 31;
    // SYSCALL, long mode enabled and active.
    sregs.efer = 1 | 1 << 8 | 1 << 10;
    vcpu.set_sregs(&sregs).map_err(kvm_error("set a vCPU's segment registers"))?;
    for (index, data) in [(MSR_STAR, 0x0023_0010 << 32), (MSR_LSTAR, KERNEL), (MSR_SFMASK, 1 << 9)] {
        set_msr(&vcpu, index, data).map_err(kvm_error("set a system-call register"))?;
    }
    let regs = kvm_regs { rip: PROGRAM, rsp: PROGRAM + 0x800, rflags: 2 | 1 << 9, ..Default::default() };
    vcpu.set_regs(&regs).map_err(kvm_error("set a vCPU's registers"))?;
    Ok(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_agrees_with_the_module_that_the_host_runs() {
        let kvm = crate::host::open_kvm().expect("this test needs KVM");
        let needed = assist_needed(&kvm).unwrap();
        let emulates = std::path::Path::new("/sys/module/kvm_pvm").exists();
        assert_eq!(needed, emulates);
    }
}
