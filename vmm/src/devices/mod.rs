//! The machine's devices and the bus that finds them.
//!
//! A device is told of port and memory accesses on the vCPU threads ([`BusDevice`]); the real work of a virtio device
//! happens on a worker thread of its own (`virtio::worker`).

pub mod bus;
pub mod console;
pub mod i8042;
pub mod power;
pub mod serial;
pub mod virtio;

/// A device that answers accesses to an address range. Called on vCPU threads, under the device's lock, so an
/// implementation returns at once and never waits for the guest.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` from the range's start. Every byte of `data` must be set.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` from the range's start. Nonsense is ignored and counted, never a panic.
    fn write(&mut self, offset: u64, data: &[u8]);
}
