//! Connections come, get their bounded turns, and go.

use std::io;

use cove_protocol::guest::Request;
use rustix::{
    event::epoll,
    io::Errno,
    net::{SocketFlags, accept_with, sockopt::socket_error},
};

use super::{
    Server,
    connection::{Connection, Work},
};
use crate::{
    token::{SOCKET_EVENTS, Token},
    transport::{Received, Transport},
    workers::{Job, Task},
};

/// Connections at one time, those of streams to ports among them; a further one is closed at once.
const CONNECTIONS_MAX: usize = 192;

/// Steps of one connection before the others get their turn.
const STEPS_PER_TURN: usize = 8;

/// What a connection's turn came to.
pub(super) enum Turn {
    Waits,
    GoesOn,
    Ends,
    Lends(Task),
    PowersOff,
}

impl Server<'_> {
    pub(super) fn accept(&mut self) {
        let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        if self.connections.len() + self.lent >= CONNECTIONS_MAX {
            return;
        }
        let id = self.watch.next_id();
        self.admit(id, Transport::new(socket));
    }

    /// Takes a connection into the loop. The set reports at once what its socket already holds.
    pub(super) fn admit(&mut self, id: u64, transport: Transport) {
        match epoll::add(&self.watch, &transport.socket, Token::Socket(id).data(), SOCKET_EVENTS) {
            Ok(()) => self.connections.push(Connection::new(id, transport)),
            Err(error) => eprintln!("cove-agent: cannot watch a connection: {error}"),
        }
    }

    /// A turn for each connection that has something to do.
    pub(super) fn turns(&mut self) -> Option<Transport> {
        let mut at = 0;
        while at < self.connections.len() {
            if !std::mem::take(&mut self.connections[at].due) {
                at += 1;
                continue;
            }
            match self.turn(at) {
                Turn::Waits => at += 1,
                Turn::GoesOn => {
                    self.connections[at].due = true;
                    at += 1;
                }
                Turn::Ends => {
                    let ended = self.connections.swap_remove(at);
                    self.end(ended);
                }
                Turn::Lends(task) => {
                    let Connection { id, transport, .. } = self.connections.swap_remove(at);
                    let _ = epoll::delete(&self.watch, &transport.socket);
                    self.lent += 1;
                    if matches!(task, Task::Start(..)) {
                        self.starting.push(id);
                    }
                    self.workers.start(Job { id, transport, task });
                }
                Turn::PowersOff => return Some(self.connections.swap_remove(at).transport),
            }
        }
        None
    }

    /// A peer that closed cancelled its command. A stream that a restore broke did not: the command is as much a part of
    /// the machine as any process.
    fn end(&mut self, connection: Connection) {
        let Work::Command(command) = connection.work else { return };
        let restored = self.host.restores_reset_streams()
            && matches!(socket_error(&connection.transport.socket), Ok(Err(Errno::CONNRESET)));
        if restored {
            self.orphans.adopt(*command, &mut self.buffer);
        } else {
            command.kill();
        }
    }

    fn turn(&mut self, at: usize) -> Turn {
        for _ in 0..STEPS_PER_TURN {
            match self.step(at) {
                Ok(Turn::GoesOn) => {}
                Ok(turn) => return turn,
                Err(error) => {
                    eprintln!("cove-agent: a connection is dropped: {error}");
                    return Turn::Ends;
                }
            }
        }
        Turn::GoesOn
    }

    /// One bounded piece of work. `GoesOn` when it moved something, so that there may be more.
    fn step(&mut self, at: usize) -> io::Result<Turn> {
        if self.connections[at].gone {
            return Ok(Turn::Ends);
        }
        // Only after the socket said that it has room again: each step leaves nothing unsent that could be sent.
        self.connections[at].flush(&self.watch)?;
        let mut turn = match self.connections[at].work {
            Work::Idle => self.step_idle(at)?,
            Work::Command(_) => self.step_command(at)?,
            Work::Relay(_) => self.step_relay(at)?,
            Work::Follow(_) => self.step_follow(at)?,
            Work::Attached(_) => self.step_attached(at)?,
        };
        // Bytes are taken only where no whole frame waits, so that a peer cannot pile up frames here.
        let wanted = matches!(turn, Turn::Waits) && self.connections[at].readable && self.takes_bytes(at);
        let connection = &mut self.connections[at];
        if wanted {
            turn = Turn::GoesOn;
            match connection.transport.receive(&mut self.buffer) {
                Received::More => {}
                Received::Last | Received::Nothing => connection.readable = false,
                Received::Closed => return Ok(Turn::Ends),
            }
        }
        let had_room = self.connections[at].has_room();
        self.connections[at].flush(&self.watch)?;
        // What waited for room would wait for an event that does not come if the room came right here.
        if !had_room && self.connections[at].has_room() {
            turn = Turn::GoesOn;
        }
        Ok(turn)
    }

    fn step_idle(&mut self, at: usize) -> io::Result<Turn> {
        let connection = &mut self.connections[at];
        if !connection.has_room() {
            return Ok(Turn::Waits);
        }
        match connection.transport.next::<Request>().map_err(io::Error::other)? {
            None => Ok(Turn::Waits),
            Some(Request::PowerOff) => Ok(Turn::PowersOff),
            Some(request) => self.begin(at, request),
        }
    }

    /// True when there is a place for what the peer sends.
    fn takes_bytes(&mut self, at: usize) -> bool {
        let connection = &self.connections[at];
        match &connection.work {
            Work::Idle => connection.has_room(),
            Work::Command(command) => command.takes_input(),
            Work::Relay(relay) => relay.takes_input(),
            // Nothing is to be said; its end is told by the socket.
            Work::Follow(_) => false,
            Work::Attached(client) => self.terminals.get(client.session).is_none_or(|session| session.takes_input()),
        }
    }
}
