//! What a vCPU's thread does: enters the guest, serves what it asks for at each exit, lets the assist finish what the host
//! left undone, and stands still when told to.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use cove_protocol::vmm::ExitReason;
use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::VcpuExit;

use super::counters::ExitKind;
use super::{Order, SAMPLES_MAX, Sample, Shared, Surroundings, internal_error, set_msr_error};
use crate::arch::x86_64::assist::cpu::KvmCpu;
use crate::arch::x86_64::assist::{Assist, AssistError, Finished};
use crate::arch::x86_64::state::VcpuState;
use crate::devices::virtio::Memory;
use crate::host::chain;
use crate::machine::Ending;
use crate::signal::KickTarget;

/// What the thread owns.
pub(super) struct Runner {
    pub(super) id: u8,
    pub(super) target: KickTarget,
    pub(super) assist: Option<Assist>,
    pub(super) synced: bool,
    pub(super) surroundings: Surroundings,
    pub(super) shared: Arc<Shared>,
}

/// What an exit leaves to do once KVM's page is no longer borrowed.
enum After {
    Nothing,
    Breakpoint,
    InternalError,
    SyscallMsr { index: u32, data: u64 },
    End(ExitReason),
}

impl Runner {
    /// The thread's body: runs until ordered to end. After an end that came from the guest it waits for that order.
    pub(super) fn run(mut self) {
        let _panic_guard =
            PanicGuard { id: self.id, ending: self.surroundings.ending.clone(), shared: Arc::clone(&self.shared) };
        let mut left = Instant::now();
        loop {
            self.target.clear();
            let order = self.shared.orders().order;
            match order {
                Order::Run => self.take_sample(),
                Order::Pause => {
                    if !self.rest() {
                        return;
                    }
                    left = Instant::now();
                    continue;
                }
                Order::End => return self.shared.say_resting(&mut self.shared.orders()),
            }
            let entered = Instant::now();
            let after = self.enter();
            let returned = Instant::now();
            self.shared.counters.spent(entered - left, returned - entered);
            left = returned;
            if let Err(reason) = self.finish(after) {
                self.surroundings.ending.set(reason);
                // The guest cannot go on: stand still until the machine is ended.
                let mut orders = self.shared.orders();
                if orders.order == Order::Run {
                    orders.order = Order::Pause;
                }
            }
        }
    }

    /// Stands still until the order changes; false when it is to end.
    fn rest(&mut self) -> bool {
        self.complete_pending_access();
        let mut orders = self.shared.orders();
        loop {
            match orders.order {
                Order::Run => break,
                Order::End => {
                    self.shared.say_resting(&mut orders);
                    return false;
                }
                // Said anew each time: a resume and a pause may both have come since the last look.
                Order::Pause => self.shared.say_resting(&mut orders),
            }
            if let Some(msrs) = orders.wanted.take() {
                orders.saved = Some(VcpuState::save(self.target.vcpu(), &msrs, self.assist.as_ref()));
                self.shared.changed.notify_all();
            }
            orders = self.shared.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
        drop(orders);
        // Tells the guest's watchdogs that it was stopped. A guest without kvm-clock refuses, and has none to tell.
        let _ = self.target.vcpu().kvmclock_ctrl();
        true
    }

    /// Answers [`VcpuHandle::sample`].
    fn take_sample(&mut self) {
        if !self.shared.sample.load(Ordering::Relaxed) || !self.shared.sample.swap(false, Ordering::Relaxed) {
            return;
        }
        // Reads the registers past the shared page, which may hold values that wait for the next entry: those are the
        // same but for the instruction just finished.
        let (Ok(regs), Ok(sregs)) = (self.target.vcpu().get_regs(), self.target.vcpu().get_sregs()) else { return };
        let mut samples = self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() < SAMPLES_MAX {
            samples.push(Sample { rip: regs.rip, level: sregs.ss.dpl });
        }
    }

    /// A port or memory read is finished by KVM only when the vCPU is entered again; until then its registers are not
    /// what the guest has (Linux, Documentation/virt/kvm/api.rst, KVM_RUN).
    fn complete_pending_access(&mut self) {
        self.target.vcpu().set_kvm_immediate_exit(1);
        // EINTR is the only answer with immediate_exit.
        let _ = self.target.vcpu().run().map(|_| ());
        self.target.clear();
    }

    /// Runs the guest until its next exit, and serves port and memory accesses.
    fn enter(&mut self) -> After {
        let counters = &self.shared.counters;
        let Surroundings { ports, mmio, .. } = &self.surroundings;
        match self.target.vcpu().run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                counters.count(ExitKind::IoIn);
                ports.read(port.into(), data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                counters.count(ExitKind::IoOut);
                ports.write(port.into(), data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                counters.count(ExitKind::MmioRead);
                mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                counters.count(ExitKind::MmioWrite);
                mmio.write(address, data);
            }
            Ok(VcpuExit::Debug(_)) => {
                counters.count(ExitKind::Debug);
                return After::Breakpoint;
            }
            Ok(VcpuExit::InternalError) => {
                counters.count(ExitKind::EmulationFailure);
                return After::InternalError;
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                counters.count(ExitKind::MsrWrite);
                return After::SyscallMsr { index: exit.index, data: exit.data };
            }
            Ok(VcpuExit::Intr) => counters.count(ExitKind::Kick),
            Ok(exit) => {
                counters.count(ExitKind::Other);
                return After::End(unexpected(&exit));
            }
            Err(error) => match error.errno() {
                libc::EINTR => counters.count(ExitKind::Kick),
                // A vCPU that waits for its start-up message was woken.
                libc::EAGAIN => counters.count(ExitKind::Again),
                _ => return After::End(ExitReason::HostFault(format!("KVM cannot run vCPU {}: {error}", self.id))),
            },
        }
        After::Nothing
    }

    /// Does what the exit left to do; an error ends the machine.
    fn finish(&mut self, after: After) -> Result<(), ExitReason> {
        match (after, self.assist.as_mut()) {
            (After::Nothing, None) => Ok(()),
            (After::End(reason), _) => Err(reason),
            (After::Nothing, Some(assist)) => {
                // Without the shared page this would be a system call an exit, and Linux's table does not move later.
                if self.synced {
                    let mut cpu = KvmCpu::new(self.target.vcpu(), true);
                    assist.watch(&mut cpu, &self.surroundings.memory).map_err(guest_fault)?;
                }
                Ok(())
            }
            (after, Some(assist)) => {
                let failure = matches!(after, After::InternalError).then(|| internal_error(&mut self.target));
                if let Some(suberror) = failure
                    && suberror != KVM_INTERNAL_ERROR_EMULATION
                {
                    return Err(ExitReason::HostFault(format!("KVM failed inside (internal error {suberror})")));
                }
                let finished = finish_with(assist, &mut self.target, self.synced, &self.surroundings.memory, after)?;
                self.shared.counters.count_finished(finished);
                Ok(())
            }
            (After::InternalError, None) => {
                let suberror = internal_error(&mut self.target);
                Err(ExitReason::HostFault(format!("KVM failed inside (internal error {suberror})")))
            }
            (After::Breakpoint | After::SyscallMsr { .. }, None) => {
                Err(ExitReason::HostFault("KVM stopped the guest for a reason that was not asked for".into()))
            }
        }
    }
}

/// Lets the assist finish what the exit was about.
fn finish_with(
    assist: &mut Assist,
    target: &mut KickTarget,
    synced: bool,
    memory: &Memory,
    after: After,
) -> Result<Finished, ExitReason> {
    let mut cpu = KvmCpu::new(target.vcpu(), synced);
    match after {
        After::Breakpoint => assist.breakpoint_hit(&mut cpu, memory).map_err(guest_fault),
        After::SyscallMsr { index, data } => {
            let accepted = assist.msr_write(&mut cpu, memory, index, data).map_err(guest_fault)?;
            set_msr_error(target, !accepted);
            Ok(Finished::MsrWrite)
        }
        _ => assist.emulation_failed(&mut cpu, memory).map_err(guest_fault),
    }
}

fn guest_fault(error: AssistError) -> ExitReason {
    match error {
        AssistError::Cpu(error) => ExitReason::HostFault(chain(&error)),
        error => ExitReason::GuestFault(chain(&error)),
    }
}

/// Why the machine ends at an exit that has no handler.
fn unexpected(exit: &VcpuExit) -> ExitReason {
    match exit {
        VcpuExit::Shutdown => ExitReason::GuestFault("The guest's CPU shut down (triple fault)".into()),
        VcpuExit::Hlt => ExitReason::GuestFault("The guest's CPU halted".into()),
        VcpuExit::FailEntry(reason, _) => ExitReason::HostFault(format!("KVM cannot enter the guest ({reason:#x})")),
        exit => ExitReason::HostFault(format!("KVM ended with the unexpected exit {exit:?}")),
    }
}

/// Ends the machine when a vCPU's thread panics, instead of leaving the guest without a CPU and the machine waiting.
struct PanicGuard {
    id: u8,
    ending: Ending,
    shared: Arc<Shared>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ending.set(ExitReason::HostFault(format!("The thread of vCPU {} panicked", self.id)));
            self.shared.say_resting(&mut self.shared.orders());
        }
    }
}
