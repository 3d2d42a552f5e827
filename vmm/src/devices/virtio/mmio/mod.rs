//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): a device's registers as the guest's driver sees them.
//!
//! ```text
//!   status 0 ─ACKNOWLEDGE─DRIVER─► features ─FEATURES_OK─► queues ─DRIVER_OK─► worker runs
//!      ▲                                                                          │
//!      └───────────────── write 0: the worker comes to rest ◄─────────────────────┘
//! ```
//!
//! Every register takes a value only in the state in which the driver may write it; anything else is ignored and
//! counted as an error of the device. The machine calls [`Transport::pause`] and [`Transport::resume`] around a stop of
//! its vCPUs; dropping the transport brings the device to rest.

mod queue;
mod registers;
pub mod state;

use std::io;
use std::sync::Arc;

use cove_protocol::vmm::DeviceStats;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::worker::{FaultHandler, Worker};
use super::{Context, DeviceState, Interrupt, Memory, VirtioDevice};
use queue::QueueRegisters;
use registers::Registers;

/// Size of a transport's address window, in bytes.
pub const WINDOW_BYTES: u64 = 0x1000;

/// Offset of the QueueNotify register: where a kick is written, with the queue's index as a 32-bit value. To be bound
/// to [`Transport::kick_fds`] as ioeventfds.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Where the configuration space starts, and how much of it a device may have.
const CONFIG: u64 = 0x100;
const CONFIG_BYTES_MAX: usize = 256;

/// Why a transport could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The host gave no event descriptor.
    #[error("Cannot make the kick descriptor of queue {queue} of {device}")]
    Kick {
        /// The device's name.
        device: String,
        /// The queue's index.
        queue: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The device asks for a queue that cannot be.
    #[error("Queue {queue} of {device} has size {size}, which is not a power of two up to 32768")]
    QueueSize {
        /// The device's name.
        device: String,
        /// The queue's index.
        queue: usize,
        /// The size asked for.
        size: u16,
    },
}

/// One device behind its registers.
pub struct Transport {
    name: String,
    device_id: u32,
    features: u64,
    memory: Memory,
    interrupt: Interrupt,
    kicks: Arc<[EventFd]>,
    on_fault: FaultHandler,
    phase: Phase,
    registers: Registers,
    queues: Vec<QueueRegisters>,
    /// The configuration space as of the last time the device was at rest.
    config: [u8; CONFIG_BYTES_MAX],
    /// Accesses that the driver may not make.
    violations: u64,
}

/// Where the device is.
enum Phase {
    /// Here, without a driver.
    Rest(Box<dyn VirtioDevice>),
    /// On its worker's thread.
    Active(Worker),
    /// Here, with the driver's queues, until the machine goes on.
    Paused(Box<dyn VirtioDevice>, Context),
    /// Gone with a failed worker; its last figures. The machine was told.
    Lost(DeviceStats),
}

impl Transport {
    /// A device at rest behind its registers. `irq` is the eventfd that the VM holds as irqfd; `on_fault` is told when
    /// the device stopped working for good.
    ///
    /// # Errors
    /// [`TransportError`] when the host is out of descriptors or the device asks for an impossible queue.
    pub fn new(
        memory: Memory,
        device: Box<dyn VirtioDevice>,
        irq: EventFd,
        on_fault: FaultHandler,
    ) -> Result<Self, TransportError> {
        let name = device.name().to_owned();
        let mut kicks = Vec::new();
        let mut queues = Vec::new();
        for (queue, &size) in device.queue_sizes().iter().enumerate() {
            Queue::new(size).map_err(|_| TransportError::QueueSize { device: name.clone(), queue, size })?;
            let kick = EventFd::new(EFD_NONBLOCK);
            kicks.push(kick.map_err(|source| TransportError::Kick { device: name.clone(), queue, source })?);
            queues.push(QueueRegisters::new(size));
        }
        let mut config = [0; CONFIG_BYTES_MAX];
        device.read_config(0, &mut config);
        Ok(Self {
            name,
            device_id: device.device_id(),
            features: device.features(),
            memory,
            interrupt: Interrupt::new(irq),
            kicks: kicks.into(),
            on_fault,
            phase: Phase::Rest(device),
            registers: Registers::default(),
            queues,
            config,
            violations: 0,
        })
    }

    /// The device's name, such as `block0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kick of each queue, in order: bind number n to a 32-bit write of n at [`QUEUE_NOTIFY`].
    pub fn kick_fds(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The irqfd that was given to [`Transport::new`].
    pub fn irq_fd(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// Figures since the machine's start.
    pub fn stats(&self) -> DeviceStats {
        let mut stats = match &self.phase {
            Phase::Rest(device) | Phase::Paused(device, _) => device.stats(),
            Phase::Active(worker) => worker.stats(),
            Phase::Lost(stats) => *stats,
        };
        stats.errors += self.violations;
        stats
    }

    /// Brings the device to rest with its queues as they are; returns when its acknowledged data is durable. Called
    /// with the vCPUs stopped. A no-op while the device is at rest.
    pub fn pause(&mut self) {
        self.phase = match self.take_phase() {
            Phase::Active(worker) => {
                let stats = worker.stats();
                worker.stop().map_or(Phase::Lost(stats), |(device, context)| Phase::Paused(device, context))
            }
            other => other,
        };
    }

    /// Lets the device go on after [`Transport::pause`]. Called before the vCPUs go on. A failure to start its thread
    /// goes to the fault handler.
    pub fn resume(&mut self) {
        self.phase = match self.take_phase() {
            Phase::Paused(device, context) => self.start(device, context),
            other => other,
        };
        self.interrupt.raise_pending();
    }

    /// The device, while it is at rest.
    pub fn device(&mut self) -> Option<&mut dyn VirtioDevice> {
        match &mut self.phase {
            Phase::Rest(device) | Phase::Paused(device, _) => Some(device.as_mut()),
            Phase::Active(_) | Phase::Lost(_) => None,
        }
    }

    /// Takes the device from the driver: registers as after power-on, worker at rest. The driver's write of 0 to the
    /// status register does the same.
    pub fn reset(&mut self) {
        self.pause();
        self.phase = match self.take_phase() {
            Phase::Rest(mut device) | Phase::Paused(mut device, _) => {
                device.reset();
                device.read_config(0, &mut self.config);
                Phase::Rest(device)
            }
            other => other,
        };
        self.registers = Registers::default();
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.size_max);
        }
        self.interrupt.clear();
        if matches!(self.phase, Phase::Lost(_)) {
            self.interrupt.ask_for_reset();
        }
    }

    fn take_phase(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Lost(DeviceStats::default()))
    }

    /// Starts the worker; a failure is the machine's, not the driver's.
    fn start(&self, device: Box<dyn VirtioDevice>, context: Context) -> Phase {
        let stats = device.stats();
        match Worker::start(device, context, Arc::clone(&self.kicks), Arc::clone(&self.on_fault)) {
            Ok(worker) => Phase::Active(worker),
            Err(error) => {
                self.interrupt.ask_for_reset();
                (self.on_fault)(error);
                Phase::Lost(stats)
            }
        }
    }

    /// DRIVER_OK: the device and its queues go to a worker.
    fn activate(&mut self) {
        match self.make_queues() {
            Ok(queues) => {
                self.wake(queues);
                self.resume();
            }
            Err(_) => self.refuse_queue(),
        }
    }

    /// The queues that the registers describe, or the index of the first that cannot be.
    fn make_queues(&self) -> Result<Vec<Queue>, usize> {
        let event_idx = self.acknowledged(VIRTIO_RING_F_EVENT_IDX);
        let queue = |(index, registers): (usize, &QueueRegisters)| {
            let queue = match registers.ready {
                true => registers.queue(&self.memory, event_idx),
                false => Queue::new(registers.size_max).ok(),
            };
            queue.ok_or(index)
        };
        self.queues.iter().enumerate().map(queue).collect()
    }

    /// Gives the device its features and queues; it is paused then. A device that is lost stays so.
    fn wake(&mut self, queues: Vec<Queue>) {
        self.phase = match self.take_phase() {
            Phase::Rest(mut device) => {
                device.activate(self.registers.driver_features);
                device.read_config(0, &mut self.config);
                Phase::Paused(device, Context::new(Arc::clone(&self.memory), queues, self.interrupt.clone()))
            }
            other => other,
        };
    }
}
