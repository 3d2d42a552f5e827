//! The device: queues on one side, the table of streams on the other.
//!
//! A guest's time is dear where its kernel is emulated, so it is disturbed as rarely as can be: a receive buffer is
//! filled whole, one interrupt tells of a batch, receive buffers are only asked for (by a kick) when none is left, and
//! used transmit buffers travel with the next interrupt that is due anyway. The last holds within bounds, so that the
//! driver never runs short of descriptors or memory ([`UsedTransmit`]).

use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use cove_protocol::vmm::{DeviceStats, VsockSpec};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{QueueOwnedT, QueueT};

use super::VsockError;
use super::host::Listener;
use super::packet::{HEADER_BYTES, Header, Op, PAYLOAD_BYTES_MAX};
use super::state::{CheckedState, VsockState};
use super::streams::Streams;
use crate::devices::virtio::{Chain, Context, DeviceState, Memory, Readiness, Source, VirtioDevice};

/// Socket device (virtio 1.2, section 5).
const DEVICE_ID: u32 = 19;

/// `VIRTIO_VSOCK_F_STREAM` (5.10.3).
const F_STREAM: u32 = 0;

/// The queues, in order (5.10.2).
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// Linux fills the receive queue with 4 KiB buffers at start, each of which costs an emulated kernel about a
/// millisecond, and refills it at half: 64 are 256 KiB, as much as a stream's default credit.
const QUEUE_SIZES: &[u16] = &[64, 64, 16];

/// The least and the first reserved guest CID (5.10.4).
const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` as `struct virtio_vsock_event` (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Used transmit buffers are given back at once when so many descriptors are held. A quarter of the queue's leaves the
/// driver enough for any packet.
const HELD_DESCRIPTORS_MAX: usize = 16;

/// As [`HELD_DESCRIPTORS_MAX`], in bytes. Linux charges a packet to its socket until its buffer is given back, and wakes a
/// sender that waits for credit only while less than half of the socket's send buffer (208 KiB by default) is charged
/// (`sock_writeable`): with more held here, a sender that has its credit would sleep until the next packet, which may
/// never come. A packet may be charged with twice its length.
const HELD_BYTES_MAX: usize = 16 << 10;

/// Whether the guest has learned that its streams are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransportReset {
    /// It knows, or had none.
    None,
    /// It is to be told.
    Due,
    /// It was told, and gives the event's buffer back when it has acted on it; the ring's index was this then.
    Told(u16),
}

/// The vsock device of a machine.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    streams: Streams,
    used_transmit: UsedTransmit,
    transport_reset: TransportReset,
    buffer: Vec<u8>,
    stats: DeviceStats,
}

impl Vsock {
    /// A device that listens at the spec's socket. Clients may connect at once; they wait until the driver is up.
    ///
    /// # Errors
    /// [`VsockError`] names the field of the spec.
    pub fn new(spec: &VsockSpec) -> Result<Self, VsockError> {
        Self::with(spec, None, TransportReset::None)
    }

    /// A device of a machine that goes on from a snapshot. The streams of then are gone: the guest is told so before
    /// the host's first call reaches it.
    ///
    /// # Errors
    /// [`VsockError`] as for [`Vsock::new`], and when the guest knows itself by another CID.
    pub fn restore(spec: &VsockSpec, state: &CheckedState) -> Result<Self, VsockError> {
        if state.guest_cid() != spec.guest_cid {
            return Err(VsockError::GuestCidChanged { asked: spec.guest_cid, saved: state.guest_cid() });
        }
        let mut device = Self::with(spec, Some(state.next_port()), TransportReset::Due)?;
        device.streams.hold_back_calls(true);
        Ok(device)
    }

    fn with(spec: &VsockSpec, next_port: Option<u32>, transport_reset: TransportReset) -> Result<Self, VsockError> {
        check_guest_cid(spec.guest_cid)?;
        let listener = Listener::new(&spec.socket)?;
        Ok(Self {
            guest_cid: spec.guest_cid,
            streams: Streams::new(spec.guest_cid, listener, next_port),
            used_transmit: UsedTransmit::default(),
            transport_reset,
            buffer: vec![0; PAYLOAD_BYTES_MAX],
            stats: DeviceStats::default(),
        })
    }

    /// What a snapshot keeps of it. Streams are not kept.
    pub fn vsock_state(&self) -> VsockState {
        VsockState { guest_cid: self.guest_cid, next_port: self.streams.next_port() }
    }

    /// Streams at present, those included that wait for an answer or for a slow host.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Handles the guest's packets, then fills its buffers. `None` when a queue makes no sense.
    fn work(&mut self, context: &mut Context) -> Option<()> {
        let clogged = self.take_packets(context)?;
        let filled = self.fill_buffers(context)?;
        if clogged && !self.streams.is_clogged() {
            context.handle_again(TX);
        }
        self.tell_driver(filled, context)
    }

    /// Takes packets from the transmit queue, at most a queue's worth. Says whether the rest waits for resets to go out.
    fn take_packets(&mut self, context: &mut Context) -> Option<bool> {
        let memory = context.memory.clone();
        let queue = &mut context.queues[TX];
        if !queue.ready() {
            return Some(false);
        }
        queue.disable_notification(&*memory).ok()?;
        for _ in 0..queue.size() {
            // Kicks stay off: the next round comes from a used receive buffer.
            if self.streams.is_clogged() {
                return Some(true);
            }
            match queue.iter(memory.clone()).ok()?.next() {
                Some(chain) => self.take_packet(&memory, chain),
                // What came just before the kicks were on again is taken as if kicked.
                None if queue.enable_notification(&*memory).ok()? => {}
                None => return Some(false),
            }
        }
        context.handle_again(TX);
        Some(false)
    }

    fn take_packet(&mut self, memory: &Memory, chain: Chain) {
        self.stats.requests += 1;
        self.used_transmit.hold(&chain);
        let Some((header, bytes)) = read_packet(memory, chain, &mut self.buffer) else {
            self.stats.errors += 1;
            return;
        };
        self.stats.write_bytes += bytes as u64;
        if !self.streams.receive(&header, &self.buffer[..bytes]) {
            self.stats.errors += 1;
        }
    }

    /// Fills receive buffers while there are both packets and buffers. Says whether any was used.
    fn fill_buffers(&mut self, context: &mut Context) -> Option<bool> {
        let memory = context.memory.clone();
        let queue = &mut context.queues[RX];
        if !queue.ready() {
            return Some(false);
        }
        let mut budget = queue.size();
        let mut filled = false;
        queue.disable_notification(&*memory).ok()?;
        while self.streams.has_packets() {
            if budget == 0 {
                context.handle_again(RX);
                break;
            }
            budget -= 1;
            let Some(chain) = queue.iter(memory.clone()).ok()?.next() else {
                // Only now is a kick of use.
                if queue.enable_notification(&*memory).ok()? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let Some(bytes) = self.fill_buffer(&memory, chain) else {
                queue.go_to_previous_position();
                break;
            };
            queue.add_used(&*memory, head, bytes).ok()?;
            filled = true;
        }
        Some(filled)
    }

    /// Writes the next packet into the chain. `None` when there is no packet; 0 bytes when the chain is of no use.
    fn fill_buffer(&mut self, memory: &Memory, chain: Chain) -> Option<u32> {
        let writer = chain.writer(memory).ok().filter(|writer| writer.available_bytes() > HEADER_BYTES);
        let Some(mut writer) = writer else {
            self.stats.errors += 1;
            return Some(0);
        };
        let room = writer.available_bytes() - HEADER_BYTES;
        let header = self.streams.next_packet(room, &mut self.buffer)?;
        let bytes = header.len as usize;
        let written = writer.write_all(&header.to_bytes()).and_then(|()| writer.write_all(&self.buffer[..bytes]));
        self.stats.requests += 1;
        self.stats.read_bytes += bytes as u64;
        if written.is_err() {
            // The writer has checked the chain, so this is a fault of ours; the guest then sees a shorter packet.
            self.stats.errors += 1;
        }
        Some(writer.bytes_written() as u32)
    }

    /// One interrupt for all that was used, if the driver wants it.
    fn tell_driver(&mut self, filled: bool, context: &mut Context) -> Option<()> {
        let memory = context.memory.clone();
        let mut due = filled && context.queues[RX].needs_notification(&*memory).ok()?;
        if due || self.used_transmit.is_full() {
            due |= self.used_transmit.give_back(context)?;
        }
        if due {
            context.interrupt.used_queue();
        }
        Some(())
    }

    /// Tells the guest that its streams are gone, and lets the host call once it has acted on that.
    fn handle_transport_reset(&mut self, context: &mut Context) -> Option<()> {
        let memory = context.memory.clone();
        let queue = &mut context.queues[EVENT];
        if !queue.ready() {
            return Some(());
        }
        let offered = queue.avail_idx(&*memory, Ordering::Acquire).ok()?.0;
        match self.transport_reset {
            TransportReset::Due => {
                let Some(chain) = queue.iter(memory.clone()).ok()?.next() else {
                    queue.enable_notification(&*memory).ok()?;
                    return Some(());
                };
                let head = chain.head_index();
                let written = chain.writer(&memory).ok().and_then(|mut w| w.write_all(&TRANSPORT_RESET).ok());
                queue.add_used(&*memory, head, if written.is_some() { 4 } else { 0 }).ok()?;
                self.transport_reset = TransportReset::Told(offered);
                // The kick wanted is the one for the next buffer added, not for those that are there already.
                let position = queue.next_avail();
                queue.set_next_avail(offered);
                queue.enable_notification(&*memory).ok()?;
                queue.set_next_avail(position);
                context.signal(EVENT);
            }
            TransportReset::Told(before) if offered != before => {
                self.transport_reset = TransportReset::None;
                self.streams.hold_back_calls(false);
            }
            TransportReset::Told(_) | TransportReset::None => {}
        }
        Some(())
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &str {
        "vsock"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    /// Indirect descriptors are not offered: the driver would allocate a table for each packet that it sends.
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.guest_cid).to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
        self.used_transmit = UsedTransmit::default();
        self.streams.forget_driver();
        // A driver that starts anew has no streams to lose.
        self.transport_reset = TransportReset::None;
        self.streams.hold_back_calls(false);
    }

    fn sources(&self) -> Vec<Source> {
        self.streams.sources()
    }

    fn handle_queue(&mut self, index: usize, context: &mut Context) {
        if index == EVENT && self.handle_transport_reset(context).is_none() {
            return context.break_queue(EVENT);
        }
        if self.work(context).is_none() {
            context.break_queue(index);
        }
    }

    fn handle_source(&mut self, token: u64, readiness: Readiness, context: &mut Context) {
        self.streams.handle_source(token, readiness);
        if !context.interrupt.needs_reset() && self.work(context).is_none() {
            context.break_queue(RX);
        }
    }

    /// Streams live on while the machine is paused; only what the queues are owed is settled.
    fn come_to_rest(&mut self, context: &mut Context) {
        match self.used_transmit.give_back(context) {
            Some(true) => context.interrupt.used_queue(),
            Some(false) => {}
            None => context.break_queue(TX),
        }
    }

    fn stats(&self) -> DeviceStats {
        self.stats
    }

    fn state(&self) -> DeviceState {
        DeviceState::Vsock(self.vsock_state())
    }
}

/// Transmit buffers that were read and not yet given back to the driver.
#[derive(Debug, Default)]
struct UsedTransmit {
    heads: Vec<u16>,
    descriptors: usize,
    bytes: usize,
}

impl UsedTransmit {
    fn hold(&mut self, chain: &Chain) {
        self.heads.push(chain.head_index());
        for descriptor in chain.clone() {
            self.descriptors += 1;
            self.bytes = self.bytes.saturating_add(descriptor.len() as usize);
        }
    }

    fn is_full(&self) -> bool {
        // A chain without a descriptor is a hostile one, and counts by its head.
        self.heads.len() >= HELD_DESCRIPTORS_MAX
            || self.descriptors >= HELD_DESCRIPTORS_MAX
            || self.bytes >= HELD_BYTES_MAX
    }

    /// Gives all of them back. Says whether the driver wants an interrupt, or `None` when the queue makes no sense.
    fn give_back(&mut self, context: &mut Context) -> Option<bool> {
        if self.heads.is_empty() {
            return Some(false);
        }
        let memory = context.memory.clone();
        let queue = &mut context.queues[TX];
        for head in std::mem::take(self).heads {
            queue.add_used(&*memory, head, 0).ok()?;
        }
        queue.needs_notification(&*memory).ok()
    }
}

/// Reads a packet's header, and its payload into the front of `buffer`. `None` when the chain is shorter than it says,
/// or the payload longer than any driver sends.
fn read_packet(memory: &Memory, chain: Chain, buffer: &mut [u8]) -> Option<(Header, usize)> {
    let mut reader = chain.reader(memory).ok()?;
    let mut bytes = [0; HEADER_BYTES];
    reader.read_exact(&mut bytes).ok()?;
    let header = Header::from_bytes(&bytes);
    // Other operations have no payload (5.10.6.4), whatever their header claims.
    let len = if header.op == Op::ReadWrite as u16 { header.len as usize } else { 0 };
    reader.read_exact(buffer.get_mut(..len)?).ok()?;
    Some((header, len))
}

/// Checks a CID for a guest.
pub(super) fn check_guest_cid(guest_cid: u32) -> Result<(), VsockError> {
    if GUEST_CIDS.contains(&guest_cid) { Ok(()) } else { Err(VsockError::GuestCid(guest_cid)) }
}
