//! What a snapshot keeps of a transport: the registers and how far each queue was worked off. Untrusted until
//! [`Transport::restore`] has checked it against the device and the memory.
//!
//! Saved and restored at rest only, so no request is under way; the device's own state is kept beside it.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::queue::QueueRegisters;
use super::registers::{DRIVER_OK, KNOWN_STATUS, Registers};
use super::{DeviceState, Phase, Transport};

/// The saved form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Virtio device id.
    pub device_id: u32,
    /// Device status without DEVICE_NEEDS_RESET.
    pub status: u32,
    /// The device waits for a reset.
    pub needs_reset: bool,
    /// Interrupt status.
    pub interrupt_status: u32,
    /// Selector registers: device features, driver features, queue.
    pub selectors: [u32; 3],
    /// Features that the driver wrote.
    pub driver_features: u64,
    /// The queues in order.
    pub queues: Vec<QueueState>,
}

/// One queue's registers and position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Number of entries as written.
    pub size: u32,
    /// The driver made it ready.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the driver's ring.
    pub driver_ring: u64,
    /// Guest address of the device's ring.
    pub device_ring: u64,
    /// Next chain to take.
    pub next_available: u16,
    /// Next chain to give back.
    pub next_used: u16,
}

/// Why a saved form is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The transport is in use, or the device failed.
    #[error("Device {0} is not at rest")]
    NotAtRest(String),
    /// It is of another device.
    #[error("The saved state is of a device of kind {saved} with {queues} queues, not of {device}")]
    Device {
        /// The device here.
        device: String,
        /// The saved device id.
        saved: u32,
        /// The saved number of queues.
        queues: usize,
    },
    /// Registers that no driver can have written.
    #[error("The saved registers of {0} contradict each other")]
    Registers(String),
    /// A ready queue that cannot be.
    #[error("The saved queue {queue} of {device} cannot be")]
    Queue {
        /// The device here.
        device: String,
        /// The queue's index.
        queue: usize,
    },
}

impl Transport {
    /// The saved form. Legal after [`Transport::pause`].
    ///
    /// # Errors
    /// [`StateError::NotAtRest`] while the device works or when it failed.
    pub fn save(&self) -> Result<(DeviceState, TransportState), StateError> {
        let (device, positions): (_, Vec<(u16, u16)>) = match &self.phase {
            Phase::Rest(device) => (device, vec![(0, 0); self.queues.len()]),
            Phase::Paused(device, context) => {
                (device, context.queues.iter().map(|q| (q.next_avail(), q.next_used())).collect())
            }
            Phase::Active(_) | Phase::Lost(_) => return Err(StateError::NotAtRest(self.name.clone())),
        };
        let queues = self.queues.iter().zip(positions).map(|(queue, (next_available, next_used))| QueueState {
            size: queue.size,
            ready: queue.ready,
            descriptors: queue.descriptors,
            driver_ring: queue.driver_ring,
            device_ring: queue.device_ring,
            next_available,
            next_used,
        });
        let Registers { status, driver_features, .. } = self.registers;
        let Registers { device_features_select, driver_features_select, queue_select, .. } = self.registers;
        let state = TransportState {
            device_id: self.device_id,
            status,
            needs_reset: self.interrupt.needs_reset(),
            interrupt_status: self.interrupt.status(),
            selectors: [device_features_select, driver_features_select, queue_select],
            driver_features,
            queues: queues.collect(),
        };
        Ok((device.state(), state))
    }

    /// Puts a new transport where the saved one was: paused if its driver was up, so that [`Transport::resume`] lets it
    /// go on. Guest memory must be as it was when the state was saved.
    ///
    /// # Errors
    /// [`StateError`] when the state does not fit the device or the memory; the transport is then as new.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        if !matches!(self.phase, Phase::Rest(_)) || self.registers != Registers::default() {
            return Err(StateError::NotAtRest(self.name.clone()));
        }
        if state.device_id != self.device_id || state.queues.len() != self.queues.len() {
            let (device, saved, queues) = (self.name.clone(), state.device_id, state.queues.len());
            return Err(StateError::Device { device, saved, queues });
        }
        let result = self.take_registers(state);
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn take_registers(&mut self, state: &TransportState) -> Result<(), StateError> {
        let [device_features_select, driver_features_select, queue_select] = state.selectors;
        let TransportState { status, driver_features, .. } = *state;
        self.registers =
            Registers { status, device_features_select, driver_features_select, driver_features, queue_select };
        if !self.status_is_possible() || status & !KNOWN_STATUS != 0 {
            return Err(StateError::Registers(self.name.clone()));
        }
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            let QueueState { size, ready, descriptors, driver_ring, device_ring, .. } = *saved;
            *queue = QueueRegisters { size_max: queue.size_max, size, ready, descriptors, driver_ring, device_ring };
        }
        self.interrupt.restore(state.interrupt_status, state.needs_reset);
        if status & DRIVER_OK == 0 {
            return Ok(());
        }
        let wrong = |queue| StateError::Queue { device: self.name.clone(), queue };
        let mut queues = self.make_queues().map_err(wrong)?;
        for (index, (queue, saved)) in queues.iter_mut().zip(&state.queues).enumerate() {
            // Chains that were taken are at most all that there are.
            if saved.next_available.wrapping_sub(saved.next_used) > queue.size() {
                return Err(wrong(index));
            }
            queue.set_next_avail(saved.next_available);
            queue.set_next_used(saved.next_used);
        }
        self.wake(queues);
        Ok(())
    }
}
