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

pub mod block;
pub mod context;
pub mod interrupt;
pub mod mmio;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
pub mod rng;
#[cfg(test)]
mod tests;
pub mod vsock;
pub mod worker;

use std::os::fd::RawFd;
use std::sync::Arc;

use cove_protocol::vmm::DeviceStats;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use block::Block;
use block::state::BlockState;
pub use context::{Chain, Context};
pub use interrupt::Interrupt;
use vsock::VsockState;

/// Guest memory as devices see it; clones share the mapping.
pub type Memory = Arc<GuestMemoryMmap>;

/// What a snapshot keeps of a device, beside its transport's registers and queues. Untrusted when read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A disk.
    Block(BlockState),
    /// The vsock device.
    Vsock(VsockState),
    /// The entropy device, which keeps nothing.
    Rng,
}

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

    /// Descriptors besides the queue kicks that the worker should watch now, each with a token that comes back in
    /// [`VirtioDevice::handle_source`]. Asked after every call below, so the set may change. A descriptor may be closed
    /// at any time; a new descriptor must have a new token even if the kernel gives it the old number.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Queue `index` was kicked, or the worker (re)started: handle what is in it, or a bounded part and say with
    /// [`Context::handle_again`] that there is more. Called only for queues that the driver made ready.
    fn handle_queue(&mut self, index: usize, context: &mut Context);

    /// A descriptor from [`VirtioDevice::sources`] is ready. Level-triggered: it comes again until the cause is gone or
    /// the device no longer asks. Readiness is a hint and may be stale: reads and writes must not block.
    fn handle_source(&mut self, _token: u64, _readiness: Readiness, _context: &mut Context) {}

    /// The worker is about to give the device back, for a pause, a reset or the machine's end: finish what is under
    /// way and make acknowledged data durable.
    fn come_to_rest(&mut self, _context: &mut Context) {}

    /// Figures since the machine's start.
    fn stats(&self) -> DeviceStats;

    /// What a snapshot keeps of it. Asked at rest.
    fn state(&self) -> DeviceState;

    /// The block device that this is, for a change of its layers at rest.
    fn as_block(&mut self) -> Option<&mut Block> {
        None
    }
}

/// A descriptor that a device wants watched. A hang-up is reported whatever else is asked for, again and again: who
/// does not care must not name the descriptor.
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
