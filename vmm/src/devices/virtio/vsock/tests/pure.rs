//! The parts that know neither queue nor socket, against a model.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::noise;
use crate::devices::virtio::vsock::connection::{BUFFER_BYTES, Connection, Outcome};
use crate::devices::virtio::vsock::host::parse_connect;
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Key, Op, Outgoing, Packet, Shutdown};
use crate::devices::virtio::vsock::{CheckedState, VsockState};

const KEY: Key = Key { host_port: 1 << 30, guest_port: 1024 };

fn packet(op: Op) -> Packet {
    Packet { key: KEY, op, shutdown: Shutdown::default(), buf_alloc: 256 << 10, fwd_cnt: 0 }
}

fn open() -> Connection {
    let mut connection = Connection::from_host(KEY);
    assert_eq!(connection.next_control().unwrap().op, Op::Request);
    assert_eq!(connection.receive(&packet(Op::Response), &[]), Outcome::Accepted);
    connection
}

#[test]
fn credit_is_told_when_half_is_consumed_or_when_asked() {
    let mut connection = open();
    let half = BUFFER_BYTES as usize / 2;
    assert_eq!(connection.receive(&packet(Op::ReadWrite), &vec![0; half]), Outcome::Live);
    connection.host_took(half - 1);
    assert!(!connection.has_control());
    connection.host_took(1);
    let update = connection.next_control().unwrap();
    assert_eq!((update.op, update.fwd_cnt as usize, update.buf_alloc), (Op::CreditUpdate, half, BUFFER_BYTES));
    assert!(!connection.has_control());
    assert_eq!(connection.receive(&packet(Op::CreditRequest), &[]), Outcome::Live);
    assert_eq!(connection.next_control().unwrap().op, Op::CreditUpdate);
    // Payload carries the credit too.
    assert_eq!(connection.receive(&packet(Op::ReadWrite), &vec![0; half]), Outcome::Live);
    connection.host_took(half);
    assert_eq!(connection.payload(1).fwd_cnt as usize, 2 * half);
    assert!(!connection.has_control());
}

#[test]
fn a_connection_that_ended_says_nothing_more() {
    let mut connection = open();
    assert_eq!(connection.receive(&packet(Op::ReadWrite), b"left"), Outcome::Live);
    assert_eq!(connection.receive(&packet(Op::Reset), &[]), Outcome::Ended { reset: false });
    assert!(connection.next_control().is_none() && connection.credit() == 0);
    assert_eq!(connection.to_host(), b"left");
    assert_eq!(connection.host_ended(), Outcome::Ended { reset: false });
    assert!(!connection.guest_finished());
    connection.host_took(4);
    assert!(connection.guest_finished());
}

#[test]
fn both_half_closes_end_it_with_a_reset() {
    let send = Packet { shutdown: Shutdown { send: true, receive: false }, ..packet(Op::Shutdown) };
    let mut connection = open();
    assert_eq!(connection.receive(&send, &[]), Outcome::Live);
    assert_eq!(connection.host_ended(), Outcome::Ended { reset: true });
    let mut connection = open();
    assert_eq!(connection.host_ended(), Outcome::Live);
    assert_eq!(connection.receive(&send, &[]), Outcome::Ended { reset: true });
    // The host alone: the guest is told and has the last word.
    let mut connection = open();
    assert_eq!(connection.host_ended(), Outcome::Live);
    assert_eq!(connection.host_is_deaf(), Outcome::Live);
    assert_eq!(connection.next_control().unwrap().shutdown, Shutdown::BOTH);
    assert!(connection.is_lingering());
    assert_eq!(connection.receive(&packet(Op::Reset), &[]), Outcome::Ended { reset: false });
}

#[test]
fn connect_lines() {
    assert_eq!(parse_connect(b"CONNECT 1024\n"), Some(1024));
    assert_eq!(parse_connect(b"CONNECT 0\n"), Some(0));
    for line in [
        "CONNECT 4294967295\n",
        "CONNECT 4294967296\n",
        "CONNECT -1\n",
        "CONNECT +1\n",
        "CONNECT \n",
        "CONNECT  1\n",
        "connect 1\n",
        "CONNECT 1",
        "\n",
        "",
    ] {
        assert_eq!(parse_connect(line.as_bytes()), None, "{line:?}");
    }
}

#[test]
fn a_saved_state_is_checked() {
    let state = VsockState { guest_cid: 3, next_port: 1 << 30 };
    assert!(CheckedState::try_from(state.clone()).is_ok());
    for wrong in [VsockState { guest_cid: 2, ..state.clone() }, VsockState { next_port: 1024, ..state.clone() }] {
        assert!(CheckedState::try_from(wrong).is_err());
    }
    assert!(CheckedState::try_from(VsockState { next_port: 1 << 31, ..state }).is_err());
}

/// One thing that happens to a connection.
#[derive(Clone, Debug)]
enum Step {
    /// An honest guest sends so many bytes, as far as its credit goes.
    GuestSends(usize),
    /// The host takes so many bytes.
    HostTakes(usize),
    /// The host has so many bytes for the guest.
    HostSends(usize),
    /// The guest reads so many bytes and tells.
    GuestReads(usize),
    /// The guest changes its buffer's size.
    GuestResizes(u32),
    /// Control packets go out.
    Control,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..70_000_usize).prop_map(Step::GuestSends),
        (1..100_000_usize).prop_map(Step::HostTakes),
        (1..70_000_usize).prop_map(Step::HostSends),
        (1..100_000_usize).prop_map(Step::GuestReads),
        (0..300_000_u32).prop_map(Step::GuestResizes),
        Just(Step::Control),
    ];
    prop::collection::vec(step, 1..200)
}

/// An honest guest at the other end of a connection.
struct Model {
    connection: Connection,
    guest_buffer: u32,
    guest_holds: u32,
    guest_read: u32,
    guest_sent: u32,
    device_buffer: u32,
    device_consumed: u32,
    up: VecDeque<u8>,
    bytes: Vec<u8>,
}

impl Model {
    fn tell(&mut self, op: Op, payload: &[u8]) -> Outcome {
        let packet = Packet { buf_alloc: self.guest_buffer, fwd_cnt: self.guest_read, ..packet(op) };
        self.connection.receive(&packet, payload)
    }

    fn hear(&mut self, packet: &Outgoing) {
        self.device_buffer = packet.buf_alloc;
        self.device_consumed = packet.fwd_cnt;
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::GuestSends(bytes) => {
                let credit = self.device_buffer - self.guest_sent.wrapping_sub(self.device_consumed);
                let bytes = bytes.min(credit as usize).min(64 << 10);
                let payload = &self.bytes[self.guest_sent as usize % 1000..][..bytes];
                self.up.extend(payload);
                self.guest_sent = self.guest_sent.wrapping_add(bytes as u32);
                let payload = payload.to_vec();
                prop_assert_eq!(self.tell(Op::ReadWrite, &payload), Outcome::Live);
            }
            Step::HostTakes(bytes) => {
                let taken = self.connection.to_host();
                let taken = &taken[..bytes.min(taken.len())];
                let expected = &self.up.make_contiguous()[..taken.len()];
                prop_assert!(taken == expected, "bytes were lost or came in another order");
                let taken = taken.len();
                self.up.drain(..taken);
                self.connection.host_took(taken);
            }
            Step::HostSends(bytes) => {
                let credit = self.connection.credit();
                prop_assert!(self.guest_holds as usize + credit <= self.guest_buffer as usize || credit == 0);
                let bytes = bytes.min(credit);
                if bytes > 0 {
                    let packet = self.connection.payload(bytes);
                    prop_assert_eq!(packet.len as usize, bytes);
                    self.guest_holds += packet.len;
                    self.hear(&packet);
                }
            }
            Step::GuestReads(bytes) => {
                let bytes = (bytes as u32).min(self.guest_holds);
                self.guest_holds -= bytes;
                self.guest_read = self.guest_read.wrapping_add(bytes);
                prop_assert_eq!(self.tell(Op::CreditUpdate, &[]), Outcome::Live);
            }
            Step::GuestResizes(bytes) => {
                self.guest_buffer = bytes;
                prop_assert_eq!(self.tell(Op::CreditUpdate, &[]), Outcome::Live);
            }
            Step::Control => {
                while let Some(packet) = self.connection.next_control() {
                    self.hear(&packet);
                }
            }
        }
        Ok(())
    }
}

/// One thing that a hostile guest or a host does.
fn hostile_step() -> impl Strategy<Value = (u8, u16, u32, u32, usize)> {
    let count = || prop_oneof![2 => 0..5000_u32, 1 => any::<u32>()];
    (0..10_u8, 1..8_u16, count(), count(), 0..66_000_usize)
}

proptest! {
    #[test]
    fn an_honest_guest_loses_no_byte_and_no_credit(steps in steps()) {
        let mut model = Model {
            connection: open(),
            guest_buffer: 256 << 10,
            guest_holds: 0,
            guest_read: 0,
            guest_sent: 0,
            device_buffer: BUFFER_BYTES,
            device_consumed: 0,
            up: VecDeque::new(),
            bytes: noise(1, 70_000),
        };
        for step in &steps {
            model.step(step)?;
        }
        // Nothing is stuck: all arrives, and the guest's whole credit comes back.
        model.step(&Step::HostTakes(usize::MAX))?;
        model.step(&Step::HostTakes(usize::MAX))?;
        model.step(&Step::Control)?;
        prop_assert!(model.up.is_empty());
        let free = BUFFER_BYTES - model.guest_sent.wrapping_sub(model.device_consumed);
        prop_assert!(free > BUFFER_BYTES / 2, "only {} bytes of credit came back", free);
    }

    #[test]
    fn a_hostile_guest_gets_no_more_than_its_buffer(from_host: bool, steps in prop::collection::vec(hostile_step(), 1..100)) {
        let mut connection = if from_host { open() } else { Connection::from_guest(&packet(Op::Request)) };
        for (what, op, buf_alloc, fwd_cnt, bytes) in steps {
            let ended = connection.is_ended();
            let outcome = match what {
                0 => connection.host_ended(),
                1 => connection.host_is_deaf(),
                2 => { connection.host_took(bytes); Outcome::Live }
                3 => { connection.next_control(); Outcome::Live }
                4 => {
                    let bytes = bytes.min(connection.credit());
                    if bytes > 0 {
                        prop_assert!(!ended);
                        let _packet = connection.payload(bytes);
                    }
                    Outcome::Live
                }
                _ => {
                    let header = Header {
                        src_cid: 7, dst_cid: HOST_CID, src_port: KEY.guest_port, dst_port: KEY.host_port,
                        socket_type: 1, op, flags: buf_alloc, buf_alloc, fwd_cnt, len: bytes as u32,
                    };
                    let packet = Packet::check(&header, 7).unwrap();
                    connection.receive(&packet, &vec![0; bytes.min(64 << 10)])
                }
            };
            prop_assert!(connection.to_host().len() <= BUFFER_BYTES as usize);
            if ended {
                prop_assert!([Outcome::Live, Outcome::Ended { reset: false }].contains(&outcome), "{:?}", outcome);
                prop_assert!(connection.is_ended() && !connection.has_control() && connection.credit() == 0);
            }
        }
    }

    #[test]
    fn headers_keep_their_bytes(bytes in prop::array::uniform32(any::<u8>()), rest in prop::array::uniform12(any::<u8>())) {
        let mut wire = [0; HEADER_BYTES];
        wire[..32].copy_from_slice(&bytes);
        wire[32..].copy_from_slice(&rest);
        prop_assert_eq!(Header::from_bytes(&wire).to_bytes(), wire);
        // Whatever they are, checking them is safe.
        let _checked = Packet::check(&Header::from_bytes(&wire), 7);
    }
}
