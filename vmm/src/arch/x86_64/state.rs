//! What a snapshot keeps of KVM's part of a machine: each vCPU's registers, and the interrupt controllers, timer and clock
//! that all share (Linux, Documentation/virt/kvm/api.rst). Saved and set with every vCPU at rest, between two `KVM_RUN`s.
//!
//! Untrusted when read: KVM checks what it is given and refuses what no vCPU can be in; what it takes can at worst make the
//! guest fail.

use kvm_bindings::{
    Msrs, kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::assist::Assist;
use super::assist::cpu::KvmCpu;
use super::registers::{get_msr, set_msr};

/// Interrupt controllers: two 8259s and the I/O APIC.
const IRQCHIPS: u32 = 3;

/// The time-stamp counter, and what a guest added to it.
const MSR_TSC: u32 = 0x10;
const MSR_TSC_ADJUST: u32 = 0x3b;
/// Arms the local APIC's timer: means something only once clock and APIC are set.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// KVM refused a part of a machine's state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It does not tell.
    #[error("KVM does not tell {what}")]
    Get {
        /// Which part.
        what: &'static str,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// It does not take.
    #[error("KVM does not take the saved {what}")]
    Set {
        /// Which part.
        what: &'static str,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// It has no such MSR, or not with this value.
    #[error("KVM does not take the saved value {value:#x} of MSR {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// The assist's breakpoint.
    #[error(transparent)]
    Assist(#[from] super::assist::AssistError),
}

fn get(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Get { what, source }
}

fn set(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Set { what, source }
}

/// One vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Vec<(u32, u64)>,
    /// On hosts that need it.
    pub assist: Option<Assist>,
}

impl VcpuState {
    /// The state of `vcpu`. `msrs` are those that KVM saves ([`saved_msrs`]).
    ///
    /// # Errors
    /// When KVM does not tell a part of it.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32], assist: Option<&Assist>) -> Result<Self, StateError> {
        // First: telling it may take in what other vCPUs sent (KVM_GET_MP_STATE in api.rst).
        let mp_state = vcpu.get_mp_state().map_err(get("whether a vCPU runs"))?;
        let mut sregs = vcpu.get_sregs().map_err(get("segment registers"))?;
        // An interrupt that waits for its injection is among the events; given twice it would be injected without a look
        // at the interrupt flag.
        sregs.interrupt_bitmap = [0; 4];
        // An MSR that is listed and cannot be read is not there (KVM_GET_MSRS in api.rst).
        let msrs = msrs.iter().filter_map(|index| Some((*index, get_msr(vcpu, *index).ok()?))).collect();
        Ok(Self {
            regs: vcpu.get_regs().map_err(get("general registers"))?,
            sregs,
            xsave: vcpu.get_xsave().map_err(get("floating point registers"))?,
            xcrs: vcpu.get_xcrs().ok(),
            debug_regs: vcpu.get_debug_regs().map_err(get("debug registers"))?,
            lapic: vcpu.get_lapic().map_err(get("the local APIC"))?,
            mp_state,
            events: vcpu.get_vcpu_events().map_err(get("pending events"))?,
            msrs,
            assist: assist.cloned(),
        })
    }

    /// Puts a new `vcpu`, whose CPUID is set, into this state.
    ///
    /// # Errors
    /// When KVM does not take a part of it.
    pub fn restore(&self, vcpu: &mut VcpuFd) -> Result<(), StateError> {
        vcpu.set_mp_state(self.mp_state).map_err(set("run state of a vCPU"))?;
        vcpu.set_regs(&self.regs).map_err(set("general registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(set("segment registers"))?;
        set_xsave(vcpu, &self.xsave).map_err(set("floating point registers"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs).map_err(set("extended control registers"))?;
        }
        vcpu.set_debug_regs(&self.debug_regs).map_err(set("debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(set("local APIC"))?;
        self.restore_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(set("pending events"))?;
        if let Some(assist) = &self.assist {
            assist.rearm(&mut KvmCpu::new(vcpu, false))?;
        }
        Ok(())
    }

    fn restore_msrs(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let counter = [MSR_TSC, MSR_TSC_ADJUST, MSR_TSC_DEADLINE];
        let (timing, mut first): (Vec<_>, Vec<_>) = self.msrs.iter().partition(|(index, _)| counter.contains(index));
        if self.assist.is_none() {
            first.extend(timing.iter().filter(|(index, _)| *index != MSR_TSC_DEADLINE));
        }
        let entries: Vec<_> = first
            .iter()
            .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries)
            .map_err(|_| StateError::Set { what: "MSRs", source: kvm_ioctls::Error::new(libc::E2BIG) })?;
        // All in one call; it stops at the first that KVM refuses, and then each is looked at.
        if vcpu.set_msrs(&msrs).map_err(set("MSRs"))? < entries.len() {
            for (index, value) in &first {
                restore_msr(vcpu, *index, *value)?;
            }
        }
        self.restore_deadline(vcpu)
    }

    /// Arms the timer as far from now as it was. Where the guest's kernel is emulated the counter cannot be set: programs,
    /// which run natively, read the host's own, and so the guest does; the deadline moves with it. (The guest's clock is
    /// KVM's there: see `clocksource=` in [`crate::builder`].)
    fn restore_deadline(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let saved = |wanted| self.msrs.iter().find(|(index, _)| *index == wanted).map(|(_, value)| *value);
        let Some(deadline) = saved(MSR_TSC_DEADLINE) else { return Ok(()) };
        let moved = match saved(MSR_TSC) {
            Some(then) if self.assist.is_some() && deadline != 0 => {
                let now = get_msr(vcpu, MSR_TSC).map_err(get("the time-stamp counter"))?;
                now.wrapping_add(deadline.wrapping_sub(then)).max(1)
            }
            _ => deadline,
        };
        restore_msr(vcpu, MSR_TSC_DEADLINE, moved)
    }
}

/// Sets an MSR; one that KVM does not let set but that has the value already is fine.
fn restore_msr(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), StateError> {
    match set_msr(vcpu, index, value) {
        Ok(()) => Ok(()),
        Err(_) if get_msr(vcpu, index).is_ok_and(|now| now == value) => Ok(()),
        Err(_) => Err(StateError::Msr { index, value }),
    }
}

fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads as many bytes as the guest's extended state has. Beyond the 4096 of `kvm_xsave` that can only be
    // tile data (AMX), which KVM counts in only for a process that asked for the permission (arch_prctl); this one never
    // does, and KVM_GET_XSAVE has told the saved state in the same 4096 bytes.
    unsafe { vcpu.set_xsave(xsave) }
}

/// The MSRs whose values make a vCPU, as KVM lists them.
///
/// # Errors
/// When KVM gives no list.
pub fn saved_msrs(kvm: &Kvm) -> Result<Vec<u32>, StateError> {
    Ok(kvm.get_msr_index_list().map_err(get("which MSRs it saves"))?.as_slice().to_vec())
}

/// What the vCPUs share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    irqchips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl VmState {
    /// The state of `vm`.
    ///
    /// # Errors
    /// When KVM does not tell a part of it.
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map(|()| chip).map_err(get("an interrupt controller"))
        };
        Ok(Self {
            irqchips: (0..IRQCHIPS).map(chip).collect::<Result<_, _>>()?,
            pit: vm.get_pit2().map_err(get("the timer"))?,
            clock: vm.get_clock().map_err(get("the clock"))?,
        })
    }

    /// Puts `vm` into this state, after its vCPUs. The guest's monotonic clock goes on from where it stood.
    ///
    /// # Errors
    /// When KVM does not take a part of it.
    pub fn restore(&self, vm: &VmFd) -> Result<(), StateError> {
        for chip in &self.irqchips {
            vm.set_irqchip(chip).map_err(set("interrupt controller"))?;
        }
        vm.set_pit2(&self.pit).map_err(set("timer"))?;
        // Without flags: with the host's real time KVM would let the time of the pause pass.
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(set("clock"))
    }
}
