//! What a device may touch while it works: guest memory, its queues, its interrupt.
//!
//! [`Context::drain`] is the loop that a simple device needs: take a chain, handle it, give it back, tell the driver.
//! A device that holds chains back (vsock) uses the queues directly, and [`Context::signal`]. A ring that makes no
//! sense is the driver's fault: the device then asks for a reset and leaves its queues alone.

use std::num::Wrapping;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{Interrupt, Memory};

/// A chain of guest buffers. What it yields is the guest's word: each address and length is checked at its use.
pub type Chain = DescriptorChain<Memory>;

/// What a device may touch while it works.
pub struct Context {
    /// Guest memory.
    pub memory: Memory,
    /// The device's queues, in order. Those that the driver left alone are not ready; the rings of the others lie in
    /// guest memory.
    pub queues: Vec<Queue>,
    /// Tells the driver.
    pub interrupt: Interrupt,
    again: Vec<bool>,
}

impl Context {
    /// A context for a device at rest.
    pub fn new(memory: Memory, queues: Vec<Queue>, interrupt: Interrupt) -> Self {
        let again = vec![false; queues.len()];
        Self { memory, queues, interrupt, again }
    }

    /// Handles the chains of queue `index`, at most one queue's worth before other events get their turn. `handle`
    /// returns how many bytes it wrote into the chain's device-writable part, or `None` to leave the chain in the queue
    /// as if it had not been looked at: the device drains again when it can go on.
    ///
    /// The driver is told once per round, and not at all where its `used_event` says that it does not care.
    pub fn drain(&mut self, index: usize, mut handle: impl FnMut(Chain) -> Option<u32>) {
        let Some(queue) = self.queues.get(index) else { return };
        let mut budget = queue.size();
        while let Some(more) = self.drain_round(index, &mut budget, &mut handle) {
            if !more {
                return;
            }
            if budget == 0 {
                return self.handle_again(index);
            }
        }
        self.break_queue(index);
    }

    /// One round: kicks off, all chains, interrupt, kicks on. Says whether the driver added more meanwhile, or `None`
    /// when the ring makes no sense.
    fn drain_round(
        &mut self,
        index: usize,
        budget: &mut u16,
        handle: &mut impl FnMut(Chain) -> Option<u32>,
    ) -> Option<bool> {
        let memory = self.memory.clone();
        self.queues[index].disable_notification(&*memory).ok()?;
        let first = Wrapping(self.queues[index].next_used());
        let mut left = false;
        while *budget > 0 {
            let Some(chain) = self.queues[index].iter(memory.clone()).ok()?.next() else { break };
            *budget -= 1;
            let head = chain.head_index();
            if head >= self.queues[index].size() {
                return None;
            }
            let Some(bytes) = handle(chain) else {
                self.queues[index].go_to_previous_position();
                left = true;
                break;
            };
            self.queues[index].add_used(&*memory, head, bytes).ok()?;
        }
        let used = Wrapping(self.queues[index].next_used()) != first;
        if used {
            self.signal(index);
        }
        if left {
            // Without kicks, which would only bring the same chain again.
            return Some(false);
        }
        if !used {
            // A round without a chain must not repeat for ever.
            *budget = budget.saturating_sub(1);
        }
        self.queues[index].enable_notification(&*memory).ok()
    }

    /// Tells the driver that chains of queue `index` were used, unless it does not care.
    pub fn signal(&mut self, index: usize) {
        match self.queues[index].needs_notification(&*self.memory) {
            Ok(true) => self.interrupt.used_queue(),
            Ok(false) => {}
            Err(_) => self.break_queue(index),
        }
    }

    /// The rings of queue `index` make no sense: nothing more is taken from any queue until the driver resets the
    /// device.
    pub fn break_queue(&mut self, index: usize) {
        let times = self.interrupt.ask_for_reset();
        // A guest may do this as often as it likes; the log needs a few of them.
        if times.is_power_of_two() {
            tracing::warn!(queue = index, times, "The guest's driver broke a queue; the device waits for a reset");
        }
    }

    /// Queue `index` has more to handle, after other events.
    pub fn handle_again(&mut self, index: usize) {
        if let Some(again) = self.again.get_mut(index) {
            *again = true;
        }
    }

    /// Some queue wants to be handled again.
    pub(super) fn has_more(&self) -> bool {
        self.again.contains(&true)
    }

    /// Takes one queue that wants to be handled again.
    pub(super) fn take_more(&mut self) -> Vec<usize> {
        let more = self.again.iter().enumerate().filter_map(|(index, again)| again.then_some(index)).collect();
        self.again.fill(false);
        more
    }

    /// The queue may be handled: the driver made it ready and the device is not broken.
    pub(super) fn is_live(&self, index: usize) -> bool {
        !self.interrupt.needs_reset() && self.queues.get(index).is_some_and(QueueT::ready)
    }
}
