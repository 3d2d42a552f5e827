//! One stream as a pure state machine: no queue, no socket, no clock.
//!
//! ```text
//!   host calls                      guest calls
//!   RequestDue ─► RequestSent       ResponseDue
//!                     │ RESPONSE         │ RESPONSE sent
//!                     └─────► Open ◄─────┘
//!                              │ reset, or both directions given up
//!                              ▼
//!                            Ended      what the guest sent before is still written to the host
//! ```
//!
//! The table of streams ([`super::streams`]) feeds it with the guest's packets and with what happens at the host's
//! socket, and asks it what to send. Credit works both ways (virtio 1.2, 5.10.6.3): the guest may have
//! [`BUFFER_BYTES`] under way to the host, which bounds what a connection holds; the host never sends more than the
//! guest's buffer takes. Bytes from the host are not held here at all: they stay in the socket until the guest has room.

use std::collections::VecDeque;

use super::packet::{Key, Op, Outgoing, Packet, Shutdown};

/// The receive buffer promised to the guest for each connection (`buf_alloc`), and so the most bytes a connection holds.
pub const BUFFER_BYTES: u32 = 256 << 10;

/// Consumed bytes that are worth a packet of their own to tell the guest; with less it has room enough left. A guest's
/// time to handle a packet is dear where its kernel is emulated.
const CREDIT_UPDATE_BYTES: u32 = BUFFER_BYTES / 2;

/// The most of the guest's own `buf_alloc` that is believed, so that a distance between two counts keeps its sign.
const PEER_BUFFER_BYTES_MAX: u32 = 1 << 30;

/// An idle buffer is given back to the host's memory when it grew past this.
const BUFFER_KEPT_BYTES_MAX: usize = 16 << 10;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    RequestDue,
    RequestSent,
    ResponseDue,
    Open,
    Ended,
}

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The connection goes on.
    Live,
    /// The guest accepted the host's call.
    Accepted,
    /// The connection ended; its key is free. What is left of [`Connection::to_host`] is still to be written.
    Ended {
        /// The guest must be sent a reset.
        reset: bool,
    },
}

/// A stream between a host socket and a guest socket.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    phase: Phase,
    /// Bytes from the guest that the host has not taken yet.
    to_host: VecDeque<u8>,
    /// Bytes the host took, modulo 2^32: our `fwd_cnt`.
    consumed: u32,
    /// The `consumed` that the guest was last told.
    told_consumed: u32,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    /// Of these, bytes the guest took: its `fwd_cnt`.
    peer_consumed: u32,
    /// The guest's `buf_alloc`.
    peer_buffer: u32,
    /// The guest asked for our credit.
    credit_asked: bool,
    /// Directions that the guest gave up.
    guest: Shutdown,
    /// Directions that the host gave up, all its bytes being sent.
    host: Shutdown,
    /// Of these, what the guest was told.
    told: Shutdown,
}

impl Connection {
    /// A call from the host: a request is due.
    pub fn from_host(key: Key) -> Self {
        Self::new(key, Phase::RequestDue)
    }

    /// A call from the guest that the host's socket accepted: a response is due.
    pub fn from_guest(request: &Packet) -> Self {
        let mut connection = Self::new(request.key, Phase::ResponseDue);
        // A first packet can only lie by a count that is ahead of ours; then nothing is believed and no credit given.
        let _believed = connection.take_credit(request);
        connection
    }

    fn new(key: Key, phase: Phase) -> Self {
        Self {
            key,
            phase,
            to_host: VecDeque::new(),
            consumed: 0,
            told_consumed: 0,
            sent: 0,
            peer_consumed: 0,
            peer_buffer: 0,
            credit_asked: false,
            guest: Shutdown::default(),
            host: Shutdown::default(),
            told: Shutdown::default(),
        }
    }

    /// What names it.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The host called and the guest has not answered: the host's client waits.
    pub fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::RequestDue | Phase::RequestSent)
    }

    /// The guest's driver forgot the call: it must be made again.
    pub fn call_again(&mut self) {
        if self.phase == Phase::RequestSent {
            self.phase = Phase::RequestDue;
        }
    }

    /// The connection ended; only [`Connection::to_host`] may be left.
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Takes a packet of this connection with its payload.
    pub fn receive(&mut self, packet: &Packet, payload: &[u8]) -> Outcome {
        if self.phase == Phase::Ended || packet.op == Op::Reset {
            return self.end(false);
        }
        if !self.take_credit(packet) {
            return self.end(true);
        }
        match (self.phase, packet.op) {
            (Phase::RequestSent, Op::Response) => {
                self.phase = Phase::Open;
                Outcome::Accepted
            }
            (Phase::Open | Phase::ResponseDue, Op::ReadWrite) => self.take_payload(payload),
            (Phase::Open | Phase::ResponseDue, Op::Shutdown) => {
                self.guest = self.guest.and(packet.shutdown);
                self.settle()
            }
            (Phase::Open | Phase::ResponseDue, Op::CreditUpdate) => Outcome::Live,
            (Phase::Open | Phase::ResponseDue, Op::CreditRequest) => {
                self.credit_asked = true;
                Outcome::Live
            }
            // A second request, an answer to nothing, data before the answer: the ends disagree about the stream.
            _ => self.end(true),
        }
    }

    /// Believes the credit of a packet, unless it claims bytes that were never sent. Packets of one socket can overtake
    /// each other in the guest, so an older count is passed over.
    fn take_credit(&mut self, packet: &Packet) -> bool {
        let under_way = self.sent.wrapping_sub(self.peer_consumed);
        let claimed = self.sent.wrapping_sub(packet.fwd_cnt);
        if claimed.cast_signed() < 0 {
            return false;
        }
        if claimed <= under_way {
            self.peer_consumed = packet.fwd_cnt;
            self.peer_buffer = packet.buf_alloc.min(PEER_BUFFER_BYTES_MAX);
        }
        true
    }

    fn take_payload(&mut self, payload: &[u8]) -> Outcome {
        let held = self.to_host.len();
        if self.guest.send || held + payload.len() > BUFFER_BYTES as usize {
            return self.end(true);
        }
        if self.host.receive {
            // Nobody takes it any more; the guest was or will be told, and its credit must not run dry meanwhile.
            self.consumed = self.consumed.wrapping_add(payload.len() as u32);
        } else {
            self.to_host.extend(payload);
        }
        Outcome::Live
    }

    /// The next bytes for the host, in one run; empty when there are none.
    pub fn to_host(&self) -> &[u8] {
        let (first, second) = self.to_host.as_slices();
        if first.is_empty() { second } else { first }
    }

    /// The host took the first `bytes` of [`Connection::to_host`].
    pub fn host_took(&mut self, bytes: usize) {
        let bytes = bytes.min(self.to_host.len());
        self.to_host.drain(..bytes);
        self.consumed = self.consumed.wrapping_add(bytes as u32);
        if self.to_host.is_empty() && self.to_host.capacity() > BUFFER_KEPT_BYTES_MAX {
            self.to_host = VecDeque::new();
        }
    }

    /// All that the guest will ever send has been taken by the host.
    pub fn guest_finished(&self) -> bool {
        (self.guest.send || self.is_ended()) && self.to_host.is_empty()
    }

    /// The guest takes no more bytes.
    pub fn guest_is_deaf(&self) -> bool {
        self.guest.receive || self.is_ended()
    }

    /// How many bytes may be taken from the host for the guest now.
    pub fn credit(&self) -> usize {
        if self.phase != Phase::Open || self.guest.receive || self.host.send {
            return 0;
        }
        self.peer_buffer.saturating_sub(self.sent.wrapping_sub(self.peer_consumed)) as usize
    }

    /// The host's bytes are at their end, and all were sent.
    pub fn host_ended(&mut self) -> Outcome {
        self.host.send = true;
        self.settle()
    }

    /// The host takes no more bytes.
    pub fn host_is_deaf(&mut self) -> Outcome {
        self.host.receive = true;
        let lost = self.to_host.len();
        self.host_took(lost);
        self.settle()
    }

    /// Directions that the host gave up.
    pub fn host_gave_up(&self) -> Shutdown {
        self.host
    }

    /// The host gave up both directions and the guest was told: only the guest's reset is missing.
    pub fn is_lingering(&self) -> bool {
        self.phase == Phase::Open && self.told == Shutdown::BOTH
    }

    /// Ends the connection where no byte can flow any more. Where the host alone gave up both directions, the guest is
    /// told so first and answers with the reset itself (5.10.6.5).
    fn settle(&mut self) -> Outcome {
        if self.phase == Phase::Ended {
            return Outcome::Ended { reset: false };
        }
        if self.is_waiting() {
            let gone = self.host == Shutdown::BOTH;
            return if gone { self.end(self.phase == Phase::RequestSent) } else { Outcome::Live };
        }
        let nothing_to_host = self.guest.send || self.host.receive;
        let nothing_to_guest = self.guest.receive || self.host.send;
        if nothing_to_host && nothing_to_guest && self.guest != Shutdown::default() {
            return self.end(true);
        }
        Outcome::Live
    }

    /// Ends it from our side, whatever its phase. Says whether the guest must be told.
    pub fn abort(&mut self) -> Outcome {
        self.end(!matches!(self.phase, Phase::RequestDue | Phase::Ended))
    }

    fn end(&mut self, reset: bool) -> Outcome {
        self.phase = Phase::Ended;
        Outcome::Ended { reset }
    }

    /// A packet without payload is due.
    pub fn has_control(&self) -> bool {
        match self.phase {
            Phase::RequestDue | Phase::ResponseDue => true,
            Phase::Open => self.untold() != Shutdown::default() || self.credit_is_due(),
            Phase::RequestSent | Phase::Ended => false,
        }
    }

    /// Takes the packet without payload that is due.
    pub fn next_control(&mut self) -> Option<Outgoing> {
        match self.phase {
            Phase::RequestDue => {
                self.phase = Phase::RequestSent;
                Some(self.outgoing(Op::Request, 0))
            }
            Phase::ResponseDue => {
                self.phase = Phase::Open;
                Some(self.outgoing(Op::Response, 0))
            }
            Phase::Open if self.untold() != Shutdown::default() => {
                self.told = self.host;
                Some(self.outgoing(Op::Shutdown, 0))
            }
            Phase::Open if self.credit_is_due() => Some(self.outgoing(Op::CreditUpdate, 0)),
            _ => None,
        }
    }

    /// The packet for `bytes` that were taken from the host, at most [`Connection::credit`].
    pub fn payload(&mut self, bytes: usize) -> Outgoing {
        debug_assert!(bytes <= self.credit());
        self.sent = self.sent.wrapping_add(bytes as u32);
        self.outgoing(Op::ReadWrite, bytes as u32)
    }

    /// What the host gave up, the guest does not know, and makes a difference to it.
    fn untold(&self) -> Shutdown {
        Shutdown {
            receive: self.host.receive && !self.told.receive && !self.guest.send,
            send: self.host.send && !self.told.send && !self.guest.receive,
        }
    }

    fn credit_is_due(&self) -> bool {
        let untold_bytes = self.consumed.wrapping_sub(self.told_consumed);
        self.credit_asked || (untold_bytes >= CREDIT_UPDATE_BYTES && !self.guest.send)
    }

    /// Every packet carries our credit, so a credit update of its own is due no more.
    fn outgoing(&mut self, op: Op, len: u32) -> Outgoing {
        self.told_consumed = self.consumed;
        self.credit_asked = false;
        let shutdown = if op == Op::Shutdown { self.told } else { Shutdown::default() };
        Outgoing { key: self.key, op, shutdown, len, buf_alloc: BUFFER_BYTES, fwd_cnt: self.consumed }
    }
}
