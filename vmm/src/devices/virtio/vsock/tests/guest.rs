//! Guest sockets as Linux has them, on top of the [`Driver`]: listeners, credit, shutdown, reset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::driver::Driver;
use crate::devices::virtio::vsock::packet::{HOST_CID, Header, Key, Op};

pub const GUEST_CID: u32 = 7;
const SEND: u32 = 2;
const RECEIVE: u32 = 1;
/// Linux: the default of SO_VM_SOCKETS_BUFFER_SIZE.
pub const GUEST_BUFFER: u32 = 256 << 10;
const PACKET_MAX: usize = 64 << 10;

/// One connected guest socket.
#[derive(Debug)]
pub struct Socket {
    /// All bytes that were read.
    pub read: Vec<u8>,
    /// Bytes that arrived and were not read.
    pub unread: VecDeque<u8>,
    /// It reads as soon as there is something.
    pub reads: bool,
    /// Bytes still to be sent.
    pub to_send: VecDeque<u8>,
    /// Credit of the device.
    peer_buffer: u32,
    peer_consumed: u32,
    sent: u32,
    consumed: u32,
    told_consumed: u32,
    pub buffer: u32,
    /// The host accepted (for the guest's own calls).
    pub open: bool,
    /// Flags of the host's shutdown.
    pub host_shutdown: u32,
    /// The host reset it.
    pub reset: bool,
    /// Flags to send when all of `to_send` is sent.
    pub shutdown_after: u32,
    shutdown_sent: u32,
    /// Packets with payload that arrived.
    pub packets: usize,
}

/// A guest.
pub struct Guest {
    pub driver: Driver,
    pub sockets: BTreeMap<Key, Socket>,
    /// Ports on which somebody listens.
    pub listens: BTreeSet<u32>,
    /// New sockets read at once.
    pub readers: bool,
    /// Everything that arrived, headers only.
    pub log: Vec<Header>,
    pub credit_updates_sent: usize,
}

impl Socket {
    fn new(reads: bool, open: bool) -> Self {
        Self {
            read: Vec::new(),
            unread: VecDeque::new(),
            reads,
            to_send: VecDeque::new(),
            peer_buffer: 0,
            peer_consumed: 0,
            sent: 0,
            consumed: 0,
            told_consumed: 0,
            buffer: GUEST_BUFFER,
            open,
            host_shutdown: 0,
            reset: false,
            shutdown_after: 0,
            shutdown_sent: 0,
            packets: 0,
        }
    }

    /// The host will send no more, and all was read.
    pub fn at_end(&self) -> bool {
        self.unread.is_empty() && (self.reset || self.host_shutdown & SEND != 0)
    }

    pub fn shut_send(&mut self) {
        self.shutdown_after |= SEND;
    }

    pub fn close(&mut self) {
        self.shutdown_after |= SEND | RECEIVE;
    }
}

pub fn header(key: Key, op: Op, len: usize) -> Header {
    Header {
        src_cid: GUEST_CID.into(),
        dst_cid: HOST_CID,
        src_port: key.guest_port,
        dst_port: key.host_port,
        len: len as u32,
        socket_type: 1,
        op: op as u16,
        buf_alloc: GUEST_BUFFER,
        ..Header::default()
    }
}

impl Guest {
    pub fn new(driver: Driver) -> Self {
        Self {
            driver,
            sockets: BTreeMap::new(),
            listens: BTreeSet::new(),
            readers: true,
            log: Vec::new(),
            credit_updates_sent: 0,
        }
    }

    pub fn header_of(&mut self, key: Key, op: Op, len: usize) -> Header {
        let socket = self.sockets.get_mut(&key).unwrap();
        socket.told_consumed = socket.consumed;
        Header { buf_alloc: socket.buffer, fwd_cnt: socket.consumed, ..header(key, op, len) }
    }

    pub fn say(&mut self, key: Key, op: Op) {
        let header = self.header_of(key, op, 0);
        self.driver.send(&header, &[]);
    }

    /// Calls the host; the answer comes with a later step.
    pub fn call(&mut self, guest_port: u32, host_port: u32) -> Key {
        let key = Key { host_port, guest_port };
        self.sockets.insert(key, Socket::new(self.readers, false));
        self.say(key, Op::Request);
        key
    }

    pub fn only(&mut self) -> &mut Socket {
        assert_eq!(self.sockets.len(), 1);
        self.sockets.values_mut().next().unwrap()
    }

    /// Goes on until `done`, or a failed test after a while.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < end, "not within a minute: {what}; {:?}", self.sockets.keys());
            if !self.step() && !done(self) {
                self.driver.wait_sources(Duration::from_millis(50));
            }
        }
    }

    /// Goes on until nothing more happens.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the device never comes to rest");
    }

    /// One round of everything. Says whether anything happened.
    pub fn step(&mut self) -> bool {
        let mut any = self.driver.wait_sources(Duration::ZERO);
        for (header, payload) in self.driver.received() {
            any = true;
            self.log.push(header);
            self.receive(&header, payload);
        }
        let keys: Vec<Key> = self.sockets.keys().copied().collect();
        for key in keys {
            any |= self.read_some(key);
            any |= self.send_some(key);
        }
        any
    }

    fn receive(&mut self, header: &Header, payload: Vec<u8>) {
        assert_eq!((header.src_cid, header.dst_cid, header.socket_type), (HOST_CID, GUEST_CID.into(), 1));
        let key = Key { host_port: header.src_port, guest_port: header.dst_port };
        if header.op == Op::Request as u16 {
            if self.listens.contains(&key.guest_port) {
                assert!(!self.sockets.contains_key(&key), "a port pair is used twice");
                self.sockets.insert(key, Socket::new(self.readers, true));
                self.take_credit(key, header);
                self.say(key, Op::Response);
            } else {
                self.driver.send(&super::guest::header(key, Op::Reset, 0), &[]);
            }
            return;
        }
        let Some(socket) = self.sockets.get_mut(&key) else {
            if header.op != Op::Reset as u16 {
                self.driver.send(&super::guest::header(key, Op::Reset, 0), &[]);
            }
            return;
        };
        assert!(!socket.reset, "a packet after a reset: {header:?}");
        match header.op {
            2 => socket.open = true,
            3 => socket.reset = true,
            4 => socket.host_shutdown |= header.flags,
            5 => {
                assert!(header.len > 0);
                assert_eq!(socket.host_shutdown & SEND, 0, "data after shutdown");
                socket.packets += 1;
                socket.unread.extend(&payload);
                let held = socket.unread.len();
                assert!(held <= socket.buffer as usize, "the device overran the guest's credit: {held}");
            }
            6 => {}
            op => panic!("unexpected operation {op}"),
        }
        self.take_credit(key, header);
    }

    fn take_credit(&mut self, key: Key, header: &Header) {
        let socket = self.sockets.get_mut(&key).unwrap();
        if header.op != Op::Reset as u16 {
            socket.peer_buffer = header.buf_alloc;
            socket.peer_consumed = header.fwd_cnt;
        }
    }

    /// Linux: `virtio_transport_stream_do_dequeue`.
    fn read_some(&mut self, key: Key) -> bool {
        let socket = self.sockets.get_mut(&key).unwrap();
        if !socket.reads || (socket.unread.is_empty()) {
            return false;
        }
        let bytes = socket.unread.len() as u32;
        socket.read.extend(socket.unread.drain(..));
        socket.consumed = socket.consumed.wrapping_add(bytes);
        let delta = socket.consumed.wrapping_sub(socket.told_consumed);
        if !socket.reset && delta > 0 {
            self.credit_updates_sent += 1;
            self.say(key, Op::CreditUpdate);
        }
        true
    }

    fn send_some(&mut self, key: Key) -> bool {
        let socket = self.sockets.get_mut(&key).unwrap();
        if !socket.open || socket.reset {
            return false;
        }
        let free = socket.peer_buffer.saturating_sub(socket.sent.wrapping_sub(socket.peer_consumed)) as usize;
        let bytes = free.min(socket.to_send.len()).min(PACKET_MAX);
        if bytes > 0 {
            let payload: Vec<u8> = socket.to_send.iter().take(bytes).copied().collect();
            let header = self.header_of(key, Op::ReadWrite, bytes);
            self.driver.send(&header, &payload);
            let socket = self.sockets.get_mut(&key).unwrap();
            socket.to_send.drain(..bytes);
            socket.sent = socket.sent.wrapping_add(bytes as u32);
            return true;
        }
        let shutdown = socket.shutdown_after;
        if socket.to_send.is_empty() && shutdown != socket.shutdown_sent {
            socket.shutdown_sent = shutdown;
            let header = Header { flags: shutdown, ..self.header_of(key, Op::Shutdown, 0) };
            self.driver.send(&header, &[]);
            return true;
        }
        // Linux: a socket that the host shut down altogether answers with a reset once nothing is unread.
        let socket = self.sockets.get_mut(&key).unwrap();
        if socket.host_shutdown == SEND | RECEIVE && socket.unread.is_empty() {
            socket.reset = true;
            self.say(key, Op::Reset);
            return true;
        }
        false
    }
}
