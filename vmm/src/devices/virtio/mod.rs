//! What every virtio device is (virtio 1.2), seen from the transport and from the worker.
//!
//! ```text
//!   guest ── registers ──► mmio::Transport ── activate ──► worker thread { device, queues }
//!         ── kick ───────► ioeventfd ───────────────────►   device.handle_queue(n)
//!         ◄─ irqfd ───────────────────────────────────────  interrupt.used_queue()
//! ```
//!
//! The transport owns a device at rest. When the driver sets DRIVER_OK the transport hands the device with its queues
//! to a worker; a reset or a pause stops the worker and takes them back, so that a snapshot is of something at rest.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cove_protocol::vmm::DeviceStats;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as devices see it; clones share the mapping.
pub type Memory = Arc<GuestMemoryMmap>;

/// A virtio device: its identity, its configuration space, and what it does with its queues.
///
/// The transport calls the first group while the device is at rest; the worker calls the second group on its own
/// thread while the device is active. Never both at once.
pub trait VirtioDevice: Send {
    /// Virtio device id (virtio 1.2, section 5): 2 block, 4 entropy, 19 socket.
    fn device_id(&self) -> u32;

    /// The name in log lines and figures, such as `block0`.
    fn name(&self) -> &str;

    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Features offered, `VIRTIO_F_VERSION_1` among them.
    fn features(&self) -> u64;

    /// Reads the device's configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space; what is not writable is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver acknowledged these features and the queues are ready. Called by the transport before the worker starts.
    fn activate(&mut self, features: u64);

    /// The driver reset the device: forget all that belongs to the driver's session.
    fn reset(&mut self);

    /// Descriptors besides the queue kicks that the worker should watch for input now, each with a token that comes
    /// back in [`VirtioDevice::handle_source`]. Asked after every call below, so the set may change.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Queue `index` was kicked, or the worker (re)started: handle all that is in it.
    fn handle_queue(&mut self, index: usize, context: &mut Context);

    /// A descriptor from [`VirtioDevice::sources`] is ready.
    fn handle_source(&mut self, _token: u64, _readiness: Readiness, _context: &mut Context) {}

    /// The worker is about to give the device back, for a pause, a reset or the machine's end: finish what is under
    /// way and make acknowledged data durable.
    fn come_to_rest(&mut self, _context: &mut Context) {}

    /// Figures since the machine's start.
    fn stats(&self) -> DeviceStats;
}

/// What a device may touch while it works.
pub struct Context {
    /// Guest memory.
    pub memory: Memory,
    /// The device's queues, in order; indices and addresses in them were checked when they were made.
    pub queues: Vec<Queue>,
    /// Tells the driver.
    pub interrupt: Interrupt,
}

/// A descriptor that a device wants watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The descriptor; stays open while the device names it.
    pub fd: RawFd,
    /// Comes back with the event.
    pub token: u64,
    /// Watch for input.
    pub readable: bool,
    /// Watch for room to write.
    pub writable: bool,
}

/// What a [`Source`] is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Input waits, or the peer closed.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The descriptor failed or was hung up.
    pub closed: bool,
}

/// The device's line to the driver: the status register and the irqfd behind it (virtio 1.2, 4.2.2).
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

/// Interrupt status: a used buffer was added.
pub const INTERRUPT_USED: u32 = 1;

/// Interrupt status: the configuration changed.
pub const INTERRUPT_CONFIG: u32 = 2;

impl Interrupt {
    /// An interrupt that raises `line`, an eventfd that the VM holds as irqfd.
    pub fn new(line: EventFd) -> Self {
        Self { status: Arc::default(), line: Arc::new(line) }
    }

    /// A buffer was used: the driver should look at its used rings.
    pub fn used_queue(&self) {
        self.raise(INTERRUPT_USED);
    }

    /// The configuration space changed.
    pub fn config_changed(&self) {
        self.raise(INTERRUPT_CONFIG);
    }

    /// The status register's value.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver acknowledges `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The irqfd to register with the VM.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        if let Err(error) = self.line.write(1) {
            tracing::error!(%error, "Cannot raise an interrupt line");
        }
    }
}
