//! A machine's devices on their buses: in the order in which the guest finds them, new or as a snapshot has them.

use std::sync::{Arc, Mutex};

use cove_protocol::vmm::ExitReason;
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::restore::RestoreError;
use super::{BuildError, kvm, system};
use crate::arch::x86_64::{SERIAL_IRQ, VIRTIO_WINDOW_BYTES, virtio_irq, virtio_window};
use crate::config::MachineConfig;
use crate::devices::bus::Bus;
use crate::devices::console::ConsoleLog;
use crate::devices::i8042::{self, I8042};
use crate::devices::power::{self, Power};
use crate::devices::serial::{self, Serial, SerialState};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::block::state::RestoreError as BlockError;
use crate::devices::virtio::mmio::state::TransportState;
use crate::devices::virtio::mmio::{QUEUE_NOTIFY, Transport};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::{DeviceState, Memory, VirtioDevice};
use crate::host::chain;
use crate::machine::Ending;
use crate::vcpu::Surroundings;

/// Devices being put on their buses.
pub(super) struct Devices<'a> {
    vm: &'a VmFd,
    memory: &'a Memory,
    ending: &'a Ending,
    ports: Bus,
    mmio: Bus,
}

impl<'a> Devices<'a> {
    pub(super) fn new(vm: &'a VmFd, memory: &'a Memory, ending: &'a Ending) -> Self {
        Self { vm, memory, ending, ports: Bus::default(), mmio: Bus::default() }
    }

    /// What the vCPUs see of them.
    pub(super) fn surroundings(self) -> Surroundings {
        Surroundings {
            ports: Arc::new(self.ports),
            mmio: Arc::new(self.mmio),
            memory: Arc::clone(self.memory),
            ending: self.ending.clone(),
        }
    }

    /// Serial console, keyboard controller and power switch; only the first has a state.
    pub(super) fn add_legacy(
        &mut self,
        config: &MachineConfig,
        saved: Option<&SerialState>,
    ) -> Result<Arc<Mutex<Serial>>, BuildError> {
        let console = |source| BuildError::Console { path: config.console.log.clone(), source };
        let log = ConsoleLog::create(&config.console.log, config.console.bytes_max).map_err(console)?;
        let irq = self.irq(SERIAL_IRQ)?;
        let serial = match saved {
            None => Serial::new(irq, log),
            Some(state) => Serial::restore(irq, log, state).map_err(system("the console's interrupt"))?,
        };
        let serial = Arc::new(Mutex::new(serial));
        self.ports.insert("serial", serial::PORT, serial::PORTS, Arc::clone(&serial) as _)?;
        self.ports.insert("i8042", i8042::PORT, 1, Arc::new(Mutex::new(I8042::new(self.ending.clone()))))?;
        self.ports.insert("power", power::PORT, 1, Arc::new(Mutex::new(Power::new(self.ending.clone()))))?;
        Ok(serial)
    }

    /// Disks in their order, so that the first is /dev/vda; then vsock and rng.
    pub(super) fn add_virtio(
        &mut self,
        config: &MachineConfig,
        saved: Option<&[(DeviceState, TransportState)]>,
    ) -> Result<Vec<Arc<Mutex<Transport>>>, BuildError> {
        let devices = match saved {
            None => new_devices(config)?,
            Some(saved) => restored_devices(config, saved)?,
        };
        let mut transports = Vec::new();
        for (index, device) in devices.into_iter().enumerate() {
            let mut transport = self.make_transport(index, device)?;
            if let Some((_, state)) = saved.and_then(|saved| saved.get(index)) {
                transport.restore(state).map_err(RestoreError::Device)?;
            }
            let transport = Arc::new(Mutex::new(transport));
            self.mmio.insert("virtio", virtio_window(index), VIRTIO_WINDOW_BYTES, Arc::clone(&transport) as _)?;
            transports.push(transport);
        }
        Ok(transports)
    }

    fn make_transport(&mut self, index: usize, device: Box<dyn VirtioDevice>) -> Result<Transport, BuildError> {
        let ending = self.ending.clone();
        let on_fault = Arc::new(move |error| ending.set(ExitReason::HostFault(chain(&error))));
        let transport = Transport::new(Arc::clone(self.memory), device, self.irq(virtio_irq(index))?, on_fault)?;
        let notify = IoEventAddress::Mmio(virtio_window(index) + QUEUE_NOTIFY);
        for (queue, kick) in transport.kick_fds().iter().enumerate() {
            // A host without ioeventfds is slower, not unable: the write then comes as an exit to the transport.
            if let Err(error) = self.vm.register_ioevent(kick, &notify, queue as u32) {
                tracing::warn!(device = transport.name(), queue, %error, "No ioeventfd for a queue");
            }
        }
        Ok(transport)
    }

    /// An event descriptor whose writes raise interrupt line `irq`.
    fn irq(&self, irq: u32) -> Result<EventFd, BuildError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(system("an event descriptor"))?;
        self.vm.register_irqfd(&event, irq).map_err(kvm("bind an interrupt line"))?;
        Ok(event)
    }
}

fn new_devices(config: &MachineConfig) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (disk, spec) in config.disks.iter().enumerate() {
        devices.push(Box::new(Block::open(disk, spec).map_err(|source| BuildError::Disk { disk, source })?));
    }
    devices.push(Box::new(Vsock::new(&config.vsock)?));
    devices.push(Box::new(Rng::new()));
    Ok(devices)
}

/// As [`new_devices`], each in its saved state; the kinds must be the same in the same order.
fn restored_devices(
    config: &MachineConfig,
    saved: &[(DeviceState, TransportState)],
) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    let disks = config.disks.len();
    let other = || RestoreError::Devices { saved: saved.len(), here: disks + 2 };
    let [blocks @ .., (DeviceState::Vsock(vsock), _), (DeviceState::Rng, _)] = saved else {
        return Err(other().into());
    };
    if blocks.len() != disks {
        return Err(other().into());
    }
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (disk, (spec, (state, _))) in config.disks.iter().zip(blocks).enumerate() {
        let DeviceState::Block(state) = state else { return Err(other().into()) };
        let block = Block::restore(disk, spec, state).map_err(|error| match error {
            BlockError::Layer(source) => BuildError::Disk { disk, source },
            BlockError::Disk { .. } => RestoreError::Disk(error).into(),
        })?;
        devices.push(Box::new(block));
    }
    let vsock = vsock.clone().try_into().map_err(RestoreError::Vsock)?;
    devices.push(Box::new(Vsock::restore(&config.vsock, &vsock)?));
    devices.push(Box::new(Rng::new()));
    Ok(devices)
}
