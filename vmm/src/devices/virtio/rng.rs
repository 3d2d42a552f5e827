//! The entropy device (virtio 1.2, section 5.4): fills the guest's buffers from the host's random pool.
//!
//! The smallest device there is: copy it for a new one.

use std::io::Write;

use cove_protocol::vmm::DeviceStats;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{Chain, Context, DeviceState, Memory, VirtioDevice};

/// Entropy device (virtio 1.2, section 5).
const DEVICE_ID: u32 = 4;

/// The one queue's largest size; Linux keeps a single buffer in it.
const QUEUE_SIZES: &[u16] = &[16];

/// Most bytes given for one request; the driver asks again (5.4.6.2 allows less than the buffer).
const REQUEST_BYTES_MAX: usize = 4096;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    stats: DeviceStats,
}

impl Rng {
    /// A device that has given nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn handle_queue(&mut self, index: usize, context: &mut Context) {
        let memory = context.memory.clone();
        context.drain(index, |chain| {
            self.stats.requests += 1;
            let bytes = fill(&memory, chain).unwrap_or_default();
            if bytes == 0 {
                self.stats.errors += 1;
            }
            self.stats.read_bytes += u64::from(bytes);
            Some(bytes)
        });
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }

    fn state(&self) -> DeviceState {
        DeviceState::Rng
    }
}

/// Writes random bytes into the chain's buffers; says how many, or `None` when the chain is malformed.
fn fill(memory: &Memory, chain: Chain) -> Option<u32> {
    let mut writer = chain.writer(memory).ok()?;
    let mut bytes = [0; REQUEST_BYTES_MAX];
    let wanted = writer.available_bytes().min(REQUEST_BYTES_MAX);
    let given = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).ok()?;
    writer.write_all(&bytes[..given]).ok()?;
    u32::try_from(given).ok()
}
