//! From a snapshot to a [`Machine`] that stands still where the captured one stood. Memory is mapped, not read; nothing is
//! booted.

use std::path::Path;

use super::{BuildError, create_vm, make_vcpus, start_vcpus, system};
use crate::arch::x86_64::state::StateError;
use crate::builder::devices::Devices;
use crate::config::MachineConfig;
use crate::devices::virtio::block::state::RestoreError as BlockError;
use crate::devices::virtio::mmio::state::StateError as TransportError;
use crate::devices::virtio::vsock::VsockError;
use crate::host::Host;
use crate::machine::{Ending, Machine, Parts};
use crate::memory;
use crate::signal::install_kick_handler;
use crate::snapshot::{ReadError, Snapshot};

/// Why a snapshot does not make a machine here. The disks are not touched by that.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It cannot be read, or is of another host.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Another amount of memory.
    #[error("The snapshot is of a machine with {saved} bytes of memory, not {asked}")]
    Memory {
        /// In the snapshot.
        saved: u64,
        /// In the spec.
        asked: u64,
    },
    /// Another number of vCPUs.
    #[error("The snapshot is of a machine with {saved} vCPUs; {granted} are asked for and can be granted here")]
    Vcpus {
        /// In the snapshot.
        saved: usize,
        /// The spec's, as far as this host grants them.
        granted: u8,
    },
    /// A host that needs the assist and one that does not.
    #[error("The snapshot was made on a host of another kind (assist: {saved})")]
    Assist {
        /// There.
        saved: bool,
    },
    /// Other devices.
    #[error("The snapshot has {saved} devices, and not the {here} of this machine")]
    Devices {
        /// In the snapshot.
        saved: usize,
        /// By the spec.
        here: usize,
    },
    /// A device's registers or queues.
    #[error("The snapshot does not fit a device")]
    Device(#[source] TransportError),
    /// A disk of another size.
    #[error(transparent)]
    Disk(BlockError),
    /// The vsock device's state.
    #[error("The snapshot does not fit the vsock device")]
    Vsock(#[source] VsockError),
    /// KVM refuses a part.
    #[error("The snapshot does not fit this host's KVM")]
    Kvm(#[from] StateError),
}

/// Builds the machine of `config` as the snapshot in `folder` has it; [`Machine::start`] lets it go on. The spec's kernel
/// and its words are not used.
///
/// # Errors
/// [`BuildError::Restore`] when the snapshot is the reason.
pub fn restore(config: &MachineConfig, folder: &Path) -> Result<Machine, BuildError> {
    install_kick_handler().map_err(system("a signal handler"))?;
    let host = Host::open()?;
    let ending = Ending::new().map_err(system("an event descriptor"))?;
    let snapshot = Snapshot::open(folder, &host.record).map_err(RestoreError::Read)?;
    let state = &snapshot.state;
    let count = config.vcpus.min(host.vcpus_max());
    if state.vcpus.len() != usize::from(count) {
        return Err(RestoreError::Vcpus { saved: state.vcpus.len(), granted: count }.into());
    }
    if state.memory_bytes != config.memory_bytes {
        return Err(RestoreError::Memory { saved: state.memory_bytes, asked: config.memory_bytes }.into());
    }
    if let Some(vcpu) = state.vcpus.iter().find(|vcpu| vcpu.assist.is_some() != host.assist) {
        return Err(RestoreError::Assist { saved: vcpu.assist.is_some() }.into());
    }
    let memory = memory::map_file(config.memory_bytes, &snapshot.memory)?;
    let vm = create_vm(&host)?;
    memory::register(&vm, &memory)?;

    let mut devices = Devices::new(&vm, &memory, &ending);
    let serial = devices.add_legacy(config, Some(&state.serial))?;
    let transports = devices.add_virtio(config, Some(&state.devices))?;
    let surroundings = devices.surroundings();

    let mut fds = Vec::new();
    for (mut fd, saved) in make_vcpus(&host, &vm, count)?.into_iter().zip(&state.vcpus) {
        saved.restore(&mut fd).map_err(RestoreError::Kvm)?;
        fds.push((fd, saved.assist.clone()));
    }
    state.vm.restore(&vm).map_err(RestoreError::Kvm)?;
    let vcpus = start_vcpus(&host, fds, &surroundings)?;
    let base = Some(snapshot.memory);
    Ok(Machine::new(Parts { vcpus, transports, disks: config.disks.clone(), serial, vm, memory, base, host, ending }))
}
