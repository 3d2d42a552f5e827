//! From a [`MachineConfig`] to a [`Machine`] that stands still before its first instruction. Read this first: it names
//! all that a machine is made of, in the order in which it must be made. `restore` makes one of a snapshot instead.

mod devices;
mod restore;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config};
use kvm_ioctls::{Cap, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use self::devices::Devices;
pub use self::restore::{RestoreError, restore};
use crate::arch::x86_64::assist::{Assist, MSR_STAR, SYSCALL_MSRS};
use crate::arch::x86_64::{
    IDENTITY_MAP_START, TSS_START, cpuid, kernel, mptable, registers, virtio_irq, virtio_window,
};
use crate::config::MachineConfig;
use crate::devices::bus::OverlapError;
use crate::devices::virtio::block::LayerError;
use crate::devices::virtio::mmio::TransportError;
use crate::devices::virtio::vsock::VsockError;
use crate::host::{Host, HostError};
use crate::machine::{Ending, Machine, Parts};
use crate::memory::{self, MemoryError};
use crate::signal::install_kick_handler;
use crate::vcpu::{Surroundings, Vcpu, VcpuHandle};

/// Where the agent lies in the root image.
const INIT: &str = "/usr/sbin/cove-agent";

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The host cannot run machines.
    #[error(transparent)]
    Host(#[from] HostError),
    /// KVM refused a step.
    #[error("KVM refused to {what}")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// The MP table.
    #[error("Cannot write the MP table into the guest's memory")]
    MpTable(#[source] vm_memory::GuestMemoryError),
    /// Start registers.
    #[error(transparent)]
    Registers(#[from] registers::RegistersError),
    /// A disk.
    #[error("disks[{disk}] cannot be opened")]
    Disk {
        /// Which.
        disk: usize,
        /// Why not.
        #[source]
        source: LayerError,
    },
    /// The vsock device.
    #[error("The vsock device cannot be made")]
    Vsock(#[from] VsockError),
    /// A virtio device's transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The console's log.
    #[error("Cannot make the console log {}", path.display())]
    Console {
        /// Its path.
        path: std::path::PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The snapshot does not make this machine.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Two devices at one address: a mistake in the layout.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// The system refused a thread, a descriptor or a signal handler.
    #[error("The system refused {what}")]
    System {
        /// What was asked.
        what: &'static str,
        /// What it says.
        #[source]
        source: std::io::Error,
    },
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { what, source }
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> BuildError {
    move |source| BuildError::System { what, source }
}

/// Builds the machine that `config` describes; [`Machine::start`] lets it run.
///
/// # Errors
/// See [`BuildError`]; everything made so far is gone then.
pub fn build(config: &MachineConfig) -> Result<Machine, BuildError> {
    install_kick_handler().map_err(system("a signal handler"))?;
    let host = Host::open()?;
    let ending = Ending::new().map_err(system("an event descriptor"))?;
    let vcpus = config.vcpus.min(host.vcpus_max());
    if vcpus < config.vcpus {
        tracing::warn!(asked = config.vcpus, granted = vcpus, "This host can give fewer vCPUs than asked");
    }
    let memory = memory::map(config.memory_bytes)?;
    let vm = create_vm(&host)?;
    memory::register(&vm, &memory)?;

    let mut devices = Devices::new(&vm, &memory, &ending);
    let serial = devices.add_legacy(config, None)?;
    let transports = devices.add_virtio(config, None)?;
    let surroundings = devices.surroundings();

    let entry = kernel::load(&memory, &config.kernel, &command_line(config, transports.len(), host.assist))?;
    mptable::write(&memory, vcpus).map_err(BuildError::MpTable)?;
    registers::write_boot_tables(&memory)?;
    let mut fds = Vec::new();
    for (id, fd) in make_vcpus(&host, &vm, vcpus)?.into_iter().enumerate() {
        registers::set_common(&fd)?;
        if id == 0 {
            registers::set_boot(&fd, entry)?;
        }
        fds.push((fd, host.assist.then(Assist::default)));
    }
    let vcpus = start_vcpus(&host, fds, &surroundings)?;
    Ok(Machine::new(Parts {
        vcpus,
        transports,
        disks: config.disks.clone(),
        serial,
        vm,
        memory,
        base: None,
        host,
        ending,
    }))
}

/// A VM with KVM's own interrupt controllers and timer.
fn create_vm(host: &Host) -> Result<VmFd, BuildError> {
    let vm = host.kvm.create_vm().map_err(kvm("create a VM"))?;
    if host.assist {
        // First: KVM waits for its readers after each of these steps, and that takes a dozen milliseconds instead of none
        // when another such wait has just ended (synchronize_srcu's hold-off in Linux's kernel/rcu/srcutree.c).
        watch_syscall_msrs(&vm)?;
    }
    vm.set_identity_map_address(IDENTITY_MAP_START).map_err(kvm("place its identity map"))?;
    vm.set_tss_address(TSS_START as usize).map_err(kvm("place its task state segment"))?;
    vm.create_irq_chip().map_err(kvm("create interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(kvm("create a timer"))?;
    Ok(vm)
}

/// Lets a guest's write to the SYSCALL MSRs come to us: the assist must know them before the first SYSCALL.
fn watch_syscall_msrs(vm: &VmFd) -> Result<(), BuildError> {
    let mut cap = kvm_enable_cap { cap: Cap::X86UserSpaceMsr as u32, ..Default::default() };
    cap.args[0] = MsrExitReason::Filter.bits().into();
    vm.enable_cap(&cap).map_err(kvm("report writes to MSRs"))?;
    // A zero bit denies the access to KVM, which makes it an exit.
    let denied = [0u8];
    let range =
        MsrFilterRange { flags: MsrFilterRangeFlags::WRITE, base: MSR_STAR, msr_count: SYSCALL_MSRS, bitmap: &denied };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range]).map_err(kvm("filter MSRs"))
}

/// The kernel hands this word to the agent's environment, and the agent to every process.
///
/// Programs run natively and see the host's CPUID, AVX-512 included, but the guest's kernel, whose interpreter lacks
/// XSAVE, saves and restores only the 128-bit registers. Whatever is wider is lost when another process runs in between:
/// copies of memory came out damaged. So the C library must not use it. Programs that use wide registers on their own
/// are not reached by this.
const NO_WIDE_VECTORS: &str = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,\
                               -AVX512BW,-AVX512CD,-AVX512DQ,-FMA,-FMA4";

/// The guest's command line. Words of the spec come last, so they win.
fn command_line(config: &MachineConfig, virtio_devices: usize, assist: bool) -> String {
    // Only what is critical or worse reaches the console: each line costs, and a panic is what must be seen. On a reboot
    // the keyboard controller's reset line is pulled, which ends the machine; a panic reboots at once.
    let mut words: Vec<String> =
        ["console=ttyS0", "loglevel=3", "reboot=k", "panic=-1", "8250.nr_uarts=1"].map(Into::into).into();
    if assist {
        words.push(format!("clearcpuid={}", cpuid::ASSIST_CLEARED));
        // Statistics of memory cgroups were 8 % of the work under page faults, splitting the kernel's large pages to
        // protect its constants was 6 % of a boot, mitigations use instructions that the interpreter lacks, and the
        // timer's self-test is slow.
        words.extend(["cgroup_disable=memory", "rodata=off", "mitigations=off", "no_timer_check"].map(Into::into));
        // Tables that grow with memory cost their clearing at boot. The connection table is also walked in the background
        // without end, as one walk takes longer than the interval: 15 % of what the guest's kernel did.
        words.extend(["dhash_entries=16384", "ihash_entries=16384", "thash_entries=2048"].map(Into::into));
        words.push("nf_conntrack.hashsize=512".into());
        // The time-stamp counter is the host's there and cannot be set, so a clock made of it would count the time in which
        // a sandbox was paused, and stand still after a reboot of the host, which starts the counter anew.
        words.push("clocksource=kvm-clock".into());
        // An interface that nobody asked for takes 0.16 s to make, and reading 32 blocks of inodes at each look-up 0.3 s on
        // the way to the agent, which sets that back.
        words.extend(["dummy.numdummies=0", "rootflags=inode_readahead_blks=1"].map(Into::into));
        words.push(NO_WIDE_VECTORS.into());
    }
    if let Some(root) = config.disks.first() {
        let mode = if root.read_only { "ro" } else { "rw" };
        words.extend(["root=/dev/vda".into(), mode.into(), "rootfstype=ext4".into(), format!("init={INIT}")]);
    }
    for index in 0..virtio_devices {
        let (window, irq) = (virtio_window(index), virtio_irq(index));
        words.push(format!("virtio_mmio.device=4K@{window:#x}:{irq}"));
    }
    words.extend(config.kernel_args.iter().cloned());
    words.join(" ")
}

/// The vCPUs, their features set; in the state of before, or, without one, the first at the kernel's entry once it is
/// known and the others waiting for the kernel to start them.
fn make_vcpus(host: &Host, vm: &VmFd, count: u8) -> Result<Vec<VcpuFd>, BuildError> {
    let tsc_deadline = host.kvm.check_extension(Cap::TscDeadlineTimer);
    let make = |id: u8| {
        let fd = vm.create_vcpu(id.into()).map_err(kvm("create a vCPU"))?;
        let cpuid = cpuid::for_vcpu(&host.cpuid, id, count, tsc_deadline, host.assist);
        fd.set_cpuid2(&cpuid).map_err(kvm("set a vCPU's features"))?;
        Ok(fd)
    };
    (0..count).map(make).collect()
}

/// Starts the vCPUs' threads, at rest.
fn start_vcpus(
    host: &Host,
    vcpus: Vec<(VcpuFd, Option<Assist>)>,
    surroundings: &Surroundings,
) -> Result<Vec<VcpuHandle>, BuildError> {
    let synced = host.kvm.check_extension(Cap::SyncRegs);
    let start = |(id, (fd, assist))| {
        let vcpu = Vcpu::new(id, fd, assist, synced, surroundings.clone());
        vcpu.start().map_err(system("a vCPU's thread"))
    };
    (0..).zip(vcpus).map(start).collect()
}

#[cfg(test)]
mod tests {
    use cove_protocol::vmm::{ConsoleSpec, DiskSpec, VsockSpec};

    use super::*;

    fn config(disks: Vec<DiskSpec>) -> MachineConfig {
        MachineConfig {
            id: "test".into(),
            vcpus: 1,
            memory_bytes: 512 << 20,
            kernel: "/vmlinux".into(),
            kernel_args: vec!["loglevel=7".into()],
            disks,
            vsock: VsockSpec { guest_cid: 3, socket: "/vsock".into() },
            console: ConsoleSpec { log: "/log".into(), bytes_max: 1 << 20 },
        }
    }

    #[test]
    fn the_command_line_names_root_and_devices_and_ends_with_the_specs_words() {
        let root = DiskSpec { layers: Vec::new(), read_only: false };
        let line = command_line(&config(vec![root]), 3, false);
        assert!(line.contains(" root=/dev/vda rw rootfstype=ext4 init=/usr/sbin/cove-agent "), "{line}");
        assert!(line.contains(" virtio_mmio.device=4K@0xd0000000:5 "), "{line}");
        assert!(line.ends_with(" virtio_mmio.device=4K@0xd0002000:7 loglevel=7"), "{line}");
        assert!(!command_line(&config(Vec::new()), 2, false).contains("root="));
    }

    #[test]
    fn only_a_host_that_needs_the_assist_has_its_words() {
        assert!(!command_line(&config(Vec::new()), 2, false).contains("clearcpuid"));
        let assisted = command_line(&config(Vec::new()), 2, true);
        assert!(assisted.contains(" clearcpuid=popcnt,") && assisted.contains(",-AVX512VL,-AVX512BW,"), "{assisted}");
        assert!(!command_line(&config(Vec::new()), 2, false).contains("GLIBC_TUNABLES"));
    }
}
