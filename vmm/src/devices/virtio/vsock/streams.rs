//! The table of streams: host sockets on one side, packets on the other, a [`Connection`] between each pair.
//!
//! The device gives it the guest's packets and the worker's readiness events; it fills the guest's receive buffers from
//! [`Streams::next_packet`], one packet of each ready stream in turn, so that no stream can starve another. A stream
//! that has something to say but no buffer to say it in keeps its place in that queue; its bytes stay in the socket.
//!
//! A stream that ended leaves the table of keys at once, so that the guest may use its port again, and lives on without
//! a key until the host took the last bytes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::AsRawFd;

use super::connection::{Connection, Outcome};
use super::host::{Call, Client, Given, Listener, Stream, Taken};
use super::packet::{Header, Key, Op, Outgoing, Packet, Refused};
use crate::devices::virtio::{Readiness, Source};

/// Most streams at once, those included that wait for the guest's answer or for a slow host.
pub const CONNECTIONS_MAX: usize = 1024;

/// Most clients at once that have not finished their `CONNECT` line. More wait in the listener's backlog.
pub const CLIENTS_MAX: usize = 256;

/// Resets waiting for a buffer beyond which no more packets are taken from the guest (virtio 1.2, 5.10.6.1.2: replies
/// may be held back only within bounds).
const RESETS_MAX: usize = 256;

/// The host's end of its calls gets these ports; lower ones are left to services.
pub const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// The listener's token; streams and clients get the numbers after it, each once.
const LISTENER: u64 = 0;

/// A stream and its socket.
#[derive(Debug)]
struct Entry {
    connection: Connection,
    socket: Stream,
    /// The socket has bytes, or its end, that were not taken yet.
    readable: bool,
    /// The socket had no room for the last bytes.
    full: bool,
    /// It is in the queue of those that may have a packet.
    queued: bool,
    /// The host's client was told that the guest finished, and that it takes no more.
    end_told: bool,
    deaf_told: bool,
}

/// All streams of the device.
#[derive(Debug)]
pub struct Streams {
    guest_cid: u64,
    listener: Listener,
    /// The host is out of descriptors: no client is accepted until the next event, which may have freed one.
    exhausted: bool,
    clients: BTreeMap<u64, Client>,
    entries: BTreeMap<u64, Entry>,
    keys: HashMap<Key, u64>,
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    resets_turn: bool,
    next_token: u64,
    next_port: u32,
    /// The guest still has to learn that its old streams are gone: the host calls only afterwards.
    held_back: bool,
}

impl Streams {
    /// No streams yet. Host ports are given out from `next_port` on, or the first one.
    pub fn new(guest_cid: u32, listener: Listener, next_port: Option<u32>) -> Self {
        Self {
            guest_cid: guest_cid.into(),
            listener,
            exhausted: false,
            clients: BTreeMap::new(),
            entries: BTreeMap::new(),
            keys: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            resets_turn: true,
            next_token: LISTENER + 1,
            next_port: next_port.unwrap_or(HOST_PORTS.start),
            held_back: false,
        }
    }

    /// Streams at present.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The port that the host's next call comes from.
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// The guest's driver is new: its streams are gone. Calls that the guest has not answered are made again.
    pub fn forget_driver(&mut self) {
        self.resets.clear();
        self.ready.clear();
        self.keys.clear();
        for (token, entry) in &mut self.entries {
            entry.queued = entry.connection.is_waiting();
            if entry.queued {
                entry.connection.call_again();
                self.keys.insert(entry.connection.key(), *token);
                self.ready.push_back(*token);
            } else {
                // Nobody is left to tell.
                let _outcome = entry.connection.abort();
            }
        }
        // What the guest sent before is still for its reader.
        self.entries.retain(|_, entry| !entry_is_over(entry));
    }

    /// While set, the host's calls wait.
    pub fn hold_back_calls(&mut self, held_back: bool) {
        self.held_back = held_back;
        if !held_back {
            let waiting: Vec<u64> =
                self.entries.iter().filter(|(_, e)| e.connection.has_control()).map(|(token, _)| *token).collect();
            waiting.into_iter().for_each(|token| self.enqueue(token));
        }
    }

    /// Too many resets wait for a buffer: the guest's packets must wait.
    pub fn is_clogged(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }
}

/// From the guest.
impl Streams {
    /// Takes a packet of the guest. Says whether it made sense.
    pub fn receive(&mut self, header: &Header, payload: &[u8]) -> bool {
        self.exhausted = false;
        let packet = match Packet::check(header, self.guest_cid) {
            Ok(packet) => packet,
            Err(Refused::Answer(reset)) => {
                self.resets.push_back(reset);
                return false;
            }
            Err(Refused::Ignore) => return false,
        };
        match self.keys.get(&packet.key).copied() {
            Some(token) => self.receive_known(token, &packet, payload),
            None if packet.op == Op::Request => self.receive_request(&packet),
            // The answer to our own reset, or to a stream that both ends dropped.
            None if packet.op == Op::Reset => true,
            None => {
                self.reset(packet.key);
                false
            }
        }
    }

    fn receive_known(&mut self, token: u64, packet: &Packet, payload: &[u8]) -> bool {
        let Some(entry) = self.entries.get_mut(&token) else { return false };
        let outcome = entry.connection.receive(packet, payload);
        if outcome == Outcome::Accepted {
            let greeting = format!("OK {}\n", packet.key.host_port);
            // The socket is fresh, so only a client that is gone does not take its answer whole.
            if entry.socket.give(greeting.as_bytes()) != Given::Bytes(greeting.len()) {
                let outcome = entry.connection.abort();
                self.conclude(token, outcome);
                return true;
            }
        }
        let made_sense = outcome != Outcome::Ended { reset: true } || packet.op == Op::Shutdown;
        self.conclude(token, outcome);
        self.flush(token);
        self.enqueue(token);
        made_sense
    }

    fn receive_request(&mut self, packet: &Packet) -> bool {
        let called = if self.has_room() { self.listener.call(packet.key.host_port).ok() } else { None };
        match called {
            Some(socket) => {
                self.insert(Connection::from_guest(packet), socket);
                true
            }
            None => {
                self.reset(packet.key);
                true
            }
        }
    }

    fn reset(&mut self, key: Key) {
        self.resets.push_back(Outgoing::reset(key).header(self.guest_cid));
    }
}

/// To the guest.
impl Streams {
    /// There may be a packet for the guest.
    pub fn has_packets(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    /// The next packet for the guest, with a payload of at most `room` bytes in the front of `payload`. `room` is not 0.
    pub fn next_packet(&mut self, room: usize, payload: &mut [u8]) -> Option<Header> {
        // Resets and streams take turns, so that a guest which provokes resets does not starve its own streams.
        self.resets_turn = !self.resets_turn;
        if self.resets_turn
            && let Some(reset) = self.resets.pop_front()
        {
            return Some(reset);
        }
        while let Some(token) = self.ready.pop_front() {
            if let Some(packet) = self.packet_of(token, room, payload) {
                self.enqueue(token);
                return Some(packet.header(self.guest_cid));
            }
        }
        self.resets.pop_front()
    }

    fn packet_of(&mut self, token: u64, room: usize, payload: &mut [u8]) -> Option<Outgoing> {
        let entry = self.entries.get_mut(&token)?;
        entry.queued = false;
        if self.held_back && entry.connection.is_waiting() {
            return None;
        }
        if let Some(control) = entry.connection.next_control() {
            return Some(control);
        }
        let bytes = entry.connection.credit().min(room).min(payload.len());
        if !entry.readable || bytes == 0 {
            return None;
        }
        let outcome = match entry.socket.take(&mut payload[..bytes]) {
            Taken::Bytes(taken) => {
                // A short read emptied the socket; the worker says when there is more.
                entry.readable = taken == bytes;
                return Some(entry.connection.payload(taken));
            }
            Taken::Nothing => {
                entry.readable = false;
                return None;
            }
            Taken::End => host_ended(entry),
        };
        self.conclude(token, outcome);
        self.entries.get_mut(&token)?.connection.next_control()
    }

    /// Puts a stream into the queue of those that may have a packet, if it may.
    fn enqueue(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let connection = &entry.connection;
        let has_packet = if connection.is_waiting() {
            connection.has_control() && !self.held_back
        } else {
            connection.has_control() || (entry.readable && connection.credit() > 0)
        };
        if has_packet && !entry.queued {
            entry.queued = true;
            self.ready.push_back(token);
        }
    }
}

/// The socket's end: nothing more comes, and where the peer is gone altogether nothing more is taken.
fn host_ended(entry: &mut Entry) -> Outcome {
    entry.readable = false;
    let outcome = entry.connection.host_ended();
    if matches!(outcome, Outcome::Ended { .. }) || !entry.socket.is_hung_up() {
        return outcome;
    }
    entry.connection.host_is_deaf()
}

/// The peer is gone altogether, though it may have left bytes. Where it left none the guest is told all at once.
fn host_hung_up(entry: &mut Entry) -> Outcome {
    if entry.connection.is_waiting() {
        return entry.connection.abort();
    }
    if entry.socket.peek(&mut [0]) == Taken::End {
        entry.readable = false;
        let outcome = entry.connection.host_ended();
        if matches!(outcome, Outcome::Ended { .. }) {
            return outcome;
        }
    }
    entry.connection.host_is_deaf()
}

/// From and to the host.
impl Streams {
    /// What the worker should watch.
    pub fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::with_capacity(1 + self.clients.len() + self.entries.len());
        if self.clients.len() < CLIENTS_MAX && !self.exhausted && self.has_room() {
            sources.push(Source { fd: self.listener.as_raw_fd(), token: LISTENER, readable: true, writable: false });
        }
        for (token, client) in &self.clients {
            sources.push(Source { fd: client.as_raw_fd(), token: *token, readable: true, writable: false });
        }
        for (token, entry) in &self.entries {
            let (readable, writable) = interest(entry);
            if readable || writable || wants_hang_up(entry) {
                sources.push(Source { fd: entry.socket.as_raw_fd(), token: *token, readable, writable });
            }
        }
        sources
    }

    /// A source is ready.
    pub fn handle_source(&mut self, token: u64, readiness: Readiness) {
        self.exhausted = false;
        if token == LISTENER {
            self.accept();
        } else if let Some(client) = self.clients.remove(&token) {
            self.read_line(token, client);
        } else if self.entries.contains_key(&token) {
            self.handle_stream(token, readiness);
        }
    }

    fn accept(&mut self) {
        while self.clients.len() < CLIENTS_MAX && self.has_room() {
            match self.listener.accept() {
                Ok(Some(stream)) => {
                    let token = self.new_token();
                    self.read_line(token, Client::new(stream));
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "Cannot accept a vsock client now");
                    self.exhausted = true;
                    return;
                }
            }
        }
    }

    fn read_line(&mut self, token: u64, client: Client) {
        match client.read_line() {
            Call::Unfinished(client) => {
                self.clients.insert(token, client);
            }
            Call::Port(guest_port, socket) if self.has_room() => {
                let key = Key { host_port: self.free_port(), guest_port };
                self.insert(Connection::from_host(key), socket);
            }
            Call::Port(guest_port, _) => {
                tracing::warn!(guest_port, "All {CONNECTIONS_MAX} vsock streams are taken; a client was refused");
            }
            Call::Refused => {}
        }
    }

    fn handle_stream(&mut self, token: u64, readiness: Readiness) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if readiness.readable {
            entry.readable = true;
        }
        if readiness.writable {
            entry.full = false;
        }
        if (readiness.closed || entry.connection.is_waiting()) && entry.socket.is_hung_up() {
            let outcome = host_hung_up(entry);
            self.conclude(token, outcome);
        }
        self.flush(token);
        self.enqueue(token);
    }

    /// Writes to the host what there is, and passes on the guest's end once all before it is written.
    fn flush(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let mut outcome = Outcome::Live;
        while !entry.full && !entry.connection.to_host().is_empty() {
            match entry.socket.give(entry.connection.to_host()) {
                Given::Bytes(bytes) => entry.connection.host_took(bytes),
                Given::Full => entry.full = true,
                Given::Deaf => outcome = entry.connection.host_is_deaf(),
            }
        }
        if entry.connection.guest_finished() && !entry.end_told {
            entry.end_told = true;
            entry.socket.end();
        }
        if entry.connection.guest_is_deaf() && !entry.deaf_told {
            entry.deaf_told = true;
            entry.readable = false;
            entry.socket.refuse();
        }
        self.conclude(token, outcome);
    }
}

/// The table.
impl Streams {
    /// Acts on what a step led to, and forgets a stream that has nothing left to do.
    fn conclude(&mut self, token: u64, outcome: Outcome) {
        let Some(entry) = self.entries.get(&token) else { return };
        let key = entry.connection.key();
        if let Outcome::Ended { reset } = outcome
            && self.keys.get(&key) == Some(&token)
        {
            self.keys.remove(&key);
            if reset {
                self.reset(key);
            }
        }
        if entry_is_over(&self.entries[&token]) {
            self.entries.remove(&token);
        }
    }

    fn insert(&mut self, connection: Connection, socket: Stream) {
        self.make_room();
        let token = self.new_token();
        self.keys.insert(connection.key(), token);
        let entry = Entry {
            connection,
            socket,
            readable: false,
            full: false,
            queued: false,
            end_told: false,
            deaf_told: false,
        };
        self.entries.insert(token, entry);
        self.enqueue(token);
    }

    /// A stream more fits, if need be in place of one that only waits for the guest's reset.
    fn has_room(&self) -> bool {
        self.entries.len() < CONNECTIONS_MAX || self.entries.values().any(|entry| entry.connection.is_lingering())
    }

    /// Resets the oldest stream that only waits for the guest's reset, if its place is needed. A guest may take any
    /// time for that (5.10.6.5 leaves the limit to us).
    fn make_room(&mut self) {
        if self.entries.len() < CONNECTIONS_MAX {
            return;
        }
        let lingering = self.entries.iter_mut().find(|(_, entry)| entry.connection.is_lingering());
        if let Some((&token, entry)) = lingering {
            let outcome = entry.connection.abort();
            self.conclude(token, outcome);
        }
    }

    fn new_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// A host port that no stream uses. There are far more ports than streams.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if HOST_PORTS.contains(&(port + 1)) { port + 1 } else { HOST_PORTS.start };
            if !self.keys.keys().any(|key| key.host_port == port) {
                return port;
            }
        }
    }
}

fn entry_is_over(entry: &Entry) -> bool {
    entry.connection.is_ended() && entry.connection.to_host().is_empty()
}

/// What to watch a stream's socket for.
fn interest(entry: &Entry) -> (bool, bool) {
    let connection = &entry.connection;
    // Bytes that came before the guest's answer are known once; looking for them again would not end.
    let readable = !entry.readable && (connection.is_waiting() || connection.credit() > 0);
    (readable, entry.full && !connection.to_host().is_empty())
}

/// A client that is gone is noticed at once, even while its bytes find no room in the guest; and noticed once.
fn wants_hang_up(entry: &Entry) -> bool {
    let connection = &entry.connection;
    connection.is_waiting() || !(connection.host_gave_up().receive || connection.is_ended())
}
