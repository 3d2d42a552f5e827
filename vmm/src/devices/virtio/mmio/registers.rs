//! The registers as the driver reads and writes them, and the rules of the status register (virtio 1.2, 2.1 and 4.2.2).

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::queue::{QueueRegisters, set_high, set_low};
use super::{CONFIG, Phase, QUEUE_NOTIFY, Transport};
use crate::devices::BusDevice;

/// "virt", little-endian (4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "COVE", little-endian: who made the device.
const VENDOR: u32 = 0x4556_4f43;

/// Device status bits (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
pub(super) const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// The bits that a driver may set.
pub(super) const KNOWN_STATUS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// The driver's side of the registers that are not of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) status: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
}

impl Transport {
    /// The driver acknowledged feature bit `feature`.
    pub(super) fn acknowledged(&self, feature: u32) -> bool {
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
        if new & !KNOWN_STATUS != 0 || !in_order(status | new) {
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

    /// The registers may have come to be by a driver's writes.
    pub(super) fn status_is_possible(&self) -> bool {
        let negotiated = self.registers.status & FEATURES_OK != 0;
        in_order(self.registers.status) && (!negotiated || self.features_acceptable())
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
    pub(super) fn refuse_queue(&mut self) {
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

/// Each status bit is there with those that it needs (3.1.1).
fn in_order(status: u32) -> bool {
    const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
    STEPS.windows(2).all(|step| status & step[1] == 0 || status & step[0] != 0)
}
