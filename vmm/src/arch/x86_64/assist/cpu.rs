//! The vCPU as the assist sees it: registers, translation, injection. A trait, so that the assist's logic is tested
//! without KVM; [`KvmCpu`] is the real one.

use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug, kvm_regs, kvm_sregs};
use kvm_ioctls::{SyncReg, VcpuFd};
use vm_memory::GuestMemoryMmap;

use super::super::registers::{get_msr, set_msr};

const PAGE_BYTES: u64 = 4096;

/// KVM refused something that the assist needs.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused to {what}")]
pub struct CpuError {
    /// What was asked.
    pub what: &'static str,
    /// What KVM says.
    #[source]
    pub source: kvm_ioctls::Error,
}

/// What the assist needs of a vCPU that is stopped between two runs.
pub trait Cpu {
    /// The general registers.
    ///
    /// # Errors
    /// When KVM refuses.
    fn regs(&self) -> Result<kvm_regs, CpuError>;

    /// Sets them.
    ///
    /// # Errors
    /// When KVM refuses.
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), CpuError>;

    /// The segment and control registers.
    ///
    /// # Errors
    /// When KVM refuses.
    fn sregs(&self) -> Result<kvm_sregs, CpuError>;

    /// Sets them.
    ///
    /// # Errors
    /// When KVM refuses.
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), CpuError>;

    /// The guest physical address behind a linear one, if the guest maps it.
    ///
    /// # Errors
    /// When KVM refuses.
    fn translate(&self, linear: u64) -> Result<Option<u64>, CpuError>;

    /// An MSR's value.
    ///
    /// # Errors
    /// When KVM does not know it.
    fn msr(&self, index: u32) -> Result<u64, CpuError>;

    /// Sets an MSR; false when the value is refused.
    ///
    /// # Errors
    /// When KVM fails otherwise.
    fn set_msr(&mut self, index: u32, data: u64) -> Result<bool, CpuError>;

    /// Makes the guest take exception `vector` next.
    ///
    /// # Errors
    /// When KVM refuses.
    fn inject(&mut self, vector: u8, error_code: Option<u32>) -> Result<(), CpuError>;

    /// Stop before the instruction at `address`, and nowhere else.
    ///
    /// # Errors
    /// When KVM refuses.
    fn set_breakpoint(&mut self, address: u64) -> Result<(), CpuError>;
}

/// Reads guest memory by linear address, page by page; false when a page is not mapped.
///
/// # Errors
/// When KVM refuses.
pub fn read_linear(
    cpu: &impl Cpu,
    memory: &GuestMemoryMmap,
    mut address: u64,
    mut buffer: &mut [u8],
) -> Result<bool, CpuError> {
    while !buffer.is_empty() {
        let in_page = (PAGE_BYTES - address % PAGE_BYTES) as usize;
        let (now, later) = buffer.split_at_mut(in_page.min(buffer.len()));
        let Some(physical) = cpu.translate(address)? else { return Ok(false) };
        if !super::read_physical(memory, physical, now) {
            return Ok(false);
        }
        address = address.wrapping_add(now.len() as u64);
        buffer = later;
    }
    Ok(true)
}

/// A vCPU of KVM. Where the host copies registers into the shared page at every exit (`KVM_CAP_SYNC_REGS`), they are
/// read and written there, which saves four system calls for each SYSCALL of the guest.
pub struct KvmCpu<'a> {
    fd: &'a mut VcpuFd,
    synced: bool,
}

impl<'a> KvmCpu<'a> {
    /// `synced`: the vCPU was set up by [`KvmCpu::enable_sync`].
    pub fn new(fd: &'a mut VcpuFd, synced: bool) -> Self {
        Self { fd, synced }
    }

    /// Asks the host to copy registers into the shared page at every exit.
    pub fn enable_sync(fd: &mut VcpuFd) {
        fd.set_sync_valid_reg(SyncReg::Register);
        fd.set_sync_valid_reg(SyncReg::SystemRegister);
    }
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> CpuError {
    move |source| CpuError { what, source }
}

impl Cpu for KvmCpu<'_> {
    fn regs(&self) -> Result<kvm_regs, CpuError> {
        if self.synced { Ok(self.fd.sync_regs().regs) } else { self.fd.get_regs().map_err(refused("read registers")) }
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), CpuError> {
        if self.synced {
            self.fd.sync_regs_mut().regs = *regs;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        self.fd.set_regs(regs).map_err(refused("set registers"))
    }

    fn sregs(&self) -> Result<kvm_sregs, CpuError> {
        if self.synced {
            return Ok(self.fd.sync_regs().sregs);
        }
        self.fd.get_sregs().map_err(refused("read segment registers"))
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), CpuError> {
        // A bit here injects its interrupt again, with no look at IF. KVM sets the bit of an interrupt whose injection a
        // signal cut short, and does not clear the shared page's old bits (store_regs in arch/x86/kvm/x86.c, Linux 6.18);
        // what is really due stays due without it.
        let sregs = &kvm_sregs { interrupt_bitmap: [0; 4], ..*sregs };
        if self.synced {
            self.fd.sync_regs_mut().sregs = *sregs;
            self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
            return Ok(());
        }
        self.fd.set_sregs(sregs).map_err(refused("set segment registers"))
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>, CpuError> {
        let translation = self.fd.translate_gva(linear).map_err(refused("translate an address"))?;
        Ok((translation.valid != 0).then_some(translation.physical_address))
    }

    fn msr(&self, index: u32) -> Result<u64, CpuError> {
        get_msr(self.fd, index).map_err(refused("read an MSR"))
    }

    fn set_msr(&mut self, index: u32, data: u64) -> Result<bool, CpuError> {
        match set_msr(self.fd, index, data) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == libc::EINVAL => Ok(false),
            Err(source) => Err(CpuError { what: "set an MSR", source }),
        }
    }

    fn inject(&mut self, vector: u8, error_code: Option<u32>) -> Result<(), CpuError> {
        let mut events = self.fd.get_vcpu_events().map_err(refused("read pending events"))?;
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = u8::from(error_code.is_some());
        events.exception.error_code = error_code.unwrap_or(0);
        self.fd.set_vcpu_events(&events).map_err(refused("inject an exception"))
    }

    fn set_breakpoint(&mut self, address: u64) -> Result<(), CpuError> {
        let mut debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, ..Default::default() };
        debug.arch.debugreg[0] = address;
        // Reserved bit 10, and breakpoint 0 on: execution, one byte (Intel SDM 3B, 18.2.4).
        debug.arch.debugreg[7] = 1 << 10 | 1 << 1 | 1;
        self.fd.set_guest_debug(&debug).map_err(refused("set a breakpoint"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_interrupt_bit_of_the_shared_page_does_not_come_back() {
        let kvm = crate::host::open_kvm().expect("this test needs KVM");
        let vm = kvm.create_vm().unwrap();
        let mut fd = vm.create_vcpu(0).unwrap();
        for synced in [true, false] {
            let mut sregs = fd.get_sregs().unwrap();
            sregs.interrupt_bitmap = [0, 1, 0, 0];
            KvmCpu::new(&mut fd, synced).set_sregs(&sregs).unwrap();
            assert_eq!(fd.sync_regs().sregs.interrupt_bitmap, [0; 4]);
            assert_eq!(fd.get_vcpu_events().unwrap().interrupt.injected, 0);
        }
    }
}
