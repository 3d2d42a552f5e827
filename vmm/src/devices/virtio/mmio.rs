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

use std::io;
use std::sync::Arc;

use cove_protocol::vmm::DeviceStats;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::worker::{FaultHandler, Worker};
use super::{Context, Interrupt, Memory, VirtioDevice};
use crate::devices::BusDevice;

/// Size of a transport's address window, in bytes.
pub const WINDOW_BYTES: u64 = 0x1000;

/// Offset of the QueueNotify register: where a kick is written, with the queue's index as a 32-bit value. To be bound
/// to [`Transport::kick_fds`] as ioeventfds.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// "virt", little-endian (4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "COVE", little-endian: who made the device.
const VENDOR: u32 = 0x4556_4f43;

/// Device status bits (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

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

/// The driver's side of the registers that are not of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

/// One queue as the driver configures it: untrusted until [`QueueRegisters::queue`] made a [`Queue`] of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct QueueRegisters {
    size_max: u16,
    size: u32,
    ready: bool,
    descriptors: u64,
    driver_ring: u64,
    device_ring: u64,
}

impl QueueRegisters {
    fn new(size_max: u16) -> Self {
        Self { size_max, size: size_max.into(), ready: false, descriptors: 0, driver_ring: 0, device_ring: 0 }
    }

    /// The queue that the registers describe, or `None` when its size, alignment or place is wrong.
    fn queue(&self, memory: &Memory, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.size_max).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver_ring)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.device_ring)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // virtio-queue takes a driver ring at address 0 for a queue that was reset.
        (self.driver_ring != 0 && queue.is_valid(&**memory)).then_some(queue)
    }
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
        let Phase::Rest(mut device) = self.take_phase() else {
            // DRIVER_OK is taken once between two resets, so only a lost device gets here.
            return self.interrupt.ask_for_reset();
        };
        let event_idx = self.acknowledged(VIRTIO_RING_F_EVENT_IDX);
        let queue = |registers: &QueueRegisters| match registers.ready {
            true => registers.queue(&self.memory, event_idx),
            false => Queue::new(registers.size_max).ok(),
        };
        let Some(queues) = self.queues.iter().map(queue).collect() else {
            self.phase = Phase::Rest(device);
            return self.refuse_queue();
        };
        device.activate(self.registers.driver_features);
        device.read_config(0, &mut self.config);
        let context = Context::new(Arc::clone(&self.memory), queues, self.interrupt.clone());
        self.phase = self.start(device, context);
    }

    fn acknowledged(&self, feature: u32) -> bool {
        self.registers.driver_features >> feature & 1 == 1
    }

    fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.needs_reset() { NEEDS_RESET } else { 0 };
        self.registers.status | needs_reset
    }

    /// The status register's rules (2.1, 3.1.1): 0 resets; bits are only ever added, each after those it needs.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let status = self.registers.status;
        let new = value & !status & !NEEDS_RESET;
        if value & status != status || self.registers.status & FAILED != 0 {
            return self.violation("status", value);
        }
        // What each bit needs: `(bit, all that must be set with it)`.
        const NEEDS: [(u32, u32); 5] = [
            (ACKNOWLEDGE, ACKNOWLEDGE),
            (DRIVER, ACKNOWLEDGE | DRIVER),
            (FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
            (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
            (FAILED, FAILED),
        ];
        let known = NEEDS.iter().fold(0, |bits, (bit, _)| bits | bit);
        let legal = NEEDS.iter().all(|(bit, needs)| new & bit == 0 || (status | new) & needs == *needs);
        if !legal || new & !known != 0 {
            return self.violation("status", value);
        }
        if new & FEATURES_OK != 0 && !self.features_acceptable() {
            // The driver finds the bit still clear and gives up (3.1.1, step 6).
            self.registers.status |= new & !(FEATURES_OK | DRIVER_OK);
            return self.violation("features", self.registers.driver_features as u32);
        }
        self.registers.status |= new;
        if new & DRIVER_OK != 0 && !self.interrupt.needs_reset() {
            self.activate();
        }
    }

    fn features_acceptable(&self) -> bool {
        self.registers.driver_features & !self.features == 0 && self.acknowledged(VIRTIO_F_VERSION_1)
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.registers.status & (DRIVER | FEATURES_OK) != DRIVER {
            return self.violation("driver features", value);
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_select {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            _ if value == 0 => {}
            _ => self.violation("driver features", value),
        }
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.registers.queue_select as usize)
    }

    /// Writes one of the selected queue's registers, which may change only between FEATURES_OK and DRIVER_OK and only
    /// while the queue is not ready.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let open = self.status() & (FEATURES_OK | DRIVER_OK | FAILED | NEEDS_RESET) == FEATURES_OK;
        let queue = self.queues.get_mut(self.registers.queue_select as usize);
        let Some(queue) = queue.filter(|queue| open && !queue.ready) else {
            return self.violation("queue", value);
        };
        match offset {
            0x38 => queue.size = value,
            0x80 => set_low(&mut queue.descriptors, value),
            0x84 => set_high(&mut queue.descriptors, value),
            0x90 => set_low(&mut queue.driver_ring, value),
            0x94 => set_high(&mut queue.driver_ring, value),
            0xa0 => set_low(&mut queue.device_ring, value),
            _ => set_high(&mut queue.device_ring, value),
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        let open = self.status() & (FEATURES_OK | DRIVER_OK | FAILED | NEEDS_RESET) == FEATURES_OK;
        let index = self.registers.queue_select as usize;
        let (true, true, Some(queue)) = (open, value <= 1, self.queues.get(index)) else {
            return self.violation("queue ready", value);
        };
        if value == 1 && queue.queue(&self.memory, false).is_none() {
            return self.refuse_queue();
        }
        self.queues[index].ready = value == 1;
    }

    /// A queue that cannot be used: the driver must start over.
    fn refuse_queue(&mut self) {
        self.violation("queue", self.registers.queue_select);
        self.interrupt.ask_for_reset();
    }

    /// A kick that did not come through its ioeventfd.
    fn notify(&mut self, index: u32) {
        let kick = self.kicks.get(index as usize).filter(|_| matches!(self.phase, Phase::Active(_)));
        let Some(kick) = kick else { return self.violation("queue notify", index) };
        if let Err(error) = kick.write(1) {
            tracing::error!(device = self.name, %error, "Cannot kick a queue");
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.selected();
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device_id,
            0x0c => VENDOR,
            0x10 => match self.registers.device_features_select {
                0 => self.features as u32,
                1 => (self.features >> 32) as u32,
                _ => 0,
            },
            0x34 => queue.map_or(0, |queue| queue.size_max.into()),
            0x44 => queue.is_some_and(|queue| queue.ready).into(),
            0x60 => self.interrupt.status(),
            0x70 => self.status(),
            // No shared memory region: its length is -1 (4.2.2).
            0xb0..=0xbc => u32::MAX,
            // ConfigGeneration: the configuration never changes under a driver.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.registers.device_features_select = value,
            0x20 => self.write_driver_features(value),
            0x24 => self.registers.driver_features_select = value,
            0x30 => self.registers.queue_select = value,
            0x38 | 0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => self.write_queue(offset, value),
            0x44 => self.write_queue_ready(value),
            QUEUE_NOTIFY => self.notify(value),
            0x64 => self.interrupt.acknowledge(value),
            0x70 => self.write_status(value),
            // SHMSel: there is no region to select.
            0xac => {}
            _ => self.violation("register", offset as u32),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else { return };
        match &self.phase {
            Phase::Rest(device) | Phase::Paused(device, _) => device.read_config(offset as u64, data),
            Phase::Active(_) | Phase::Lost(_) => {
                let known = self.config.get(offset..).unwrap_or_default();
                let bytes = known.len().min(data.len());
                data[..bytes].copy_from_slice(&known[..bytes]);
            }
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        match &mut self.phase {
            Phase::Rest(device) | Phase::Paused(device, _) => device.write_config(offset, data),
            // No device of ours has a field that a running driver writes.
            Phase::Active(_) | Phase::Lost(_) => self.violation("configuration", offset as u32),
        }
    }

    fn violation(&mut self, what: &'static str, value: u32) {
        self.violations += 1;
        tracing::debug!(device = self.name, what, value, "A guest's write was refused");
    }
}

impl BusDevice for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset.checked_sub(CONFIG), <&mut [u8; 4]>::try_from(&mut *data)) {
            (Some(offset), _) => self.read_config(offset, data),
            (None, Ok(word)) if offset.is_multiple_of(4) => *word = self.read_register(offset).to_le_bytes(),
            _ => {
                data.fill(0);
                self.violation("read", offset as u32);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset.checked_sub(CONFIG), <[u8; 4]>::try_from(data)) {
            (Some(offset), _) => self.write_config(offset, data),
            (None, Ok(word)) if offset.is_multiple_of(4) => self.write_register(offset, u32::from_le_bytes(word)),
            _ => self.violation("write", offset as u32),
        }
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
