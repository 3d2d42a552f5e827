//! One queue's registers (virtio 1.2, 4.2.2): what the driver says of it, and the checks that make a queue of that.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::devices::virtio::Memory;

/// Bytes of a ring beside its entries: flags, index and event field (2.7).
const RING_FIXED_BYTES: usize = 6;
const DESCRIPTOR_BYTES: usize = 16;
const DRIVER_ENTRY_BYTES: usize = 2;
const DEVICE_ENTRY_BYTES: usize = 8;

/// One queue as the driver configures it: untrusted until [`QueueRegisters::queue`] made a [`Queue`] of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) size_max: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) driver_ring: u64,
    pub(super) device_ring: u64,
}

impl QueueRegisters {
    pub(super) fn new(size_max: u16) -> Self {
        Self { size_max, size: size_max.into(), ready: false, descriptors: 0, driver_ring: 0, device_ring: 0 }
    }

    /// The queue that the registers describe, or `None` when its size, alignment or place is wrong.
    pub(super) fn queue(&self, memory: &Memory, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.size_max).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver_ring)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.device_ring)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // virtio-queue takes a driver ring at address 0 for a queue that was reset. (Its own `is_valid` logs an error for
        // each refusal, as often as a guest likes.)
        let size = usize::from(queue.size());
        let within = |start, bytes, access| memory.check_range(GuestAddress(start), bytes, access);
        let valid = self.driver_ring != 0
            && within(self.descriptors, DESCRIPTOR_BYTES * size, Permissions::Read)
            && within(self.driver_ring, RING_FIXED_BYTES + DRIVER_ENTRY_BYTES * size, Permissions::Read)
            && within(self.device_ring, RING_FIXED_BYTES + DEVICE_ENTRY_BYTES * size, Permissions::Write);
        valid.then_some(queue)
    }
}

/// Sets an address register's low half.
pub(super) fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

/// Sets an address register's high half.
pub(super) fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
