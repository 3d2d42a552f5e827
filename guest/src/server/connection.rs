//! One connection and what it carries at the moment.

use std::time::Instant;

use rustix::event::epoll;

use crate::{
    command::{OUT_BYTES_MAX, RunningCommand},
    jobs::Follower,
    relay::{self, Relay},
    terminal::Client,
    token::{ROOM_EVENTS, SOCKET_EVENTS, Token},
    transport::Transport,
    watch::Watch,
};

/// What a connection carries.
pub enum Work {
    /// Nothing: the next frame is a request.
    Idle,
    /// A command.
    Command(Box<RunningCommand>),
    /// A stream to a port.
    Relay(Box<Relay>),
    /// The output of a job.
    Follow(Follower),
    /// The terminal of a session.
    Attached(Box<Client>),
}

/// A peer of the server.
pub struct Connection {
    /// Names it among the server's events.
    pub id: u64,
    /// Its socket.
    pub transport: Transport,
    /// What it carries.
    pub work: Work,
    /// The socket may hold bytes.
    pub readable: bool,
    /// The peer closed, or the stream broke.
    pub gone: bool,
    /// The socket took no more bytes, and has not said since that it would.
    pub blocked: bool,
    /// The set reports when the socket takes bytes again.
    pub watched_for_room: bool,
    /// It has something to do in this round.
    pub due: bool,
}

impl Connection {
    /// A connection that may have bytes already.
    pub fn new(id: u64, transport: Transport) -> Self {
        Self {
            id,
            transport,
            work: Work::Idle,
            readable: false,
            gone: false,
            blocked: false,
            watched_for_room: false,
            // Frames that came with the last operation's may wait already.
            due: true,
        }
    }

    /// The command it carries.
    pub fn command(&self) -> Option<&RunningCommand> {
        match &self.work {
            Work::Command(command) => Some(command),
            Work::Idle | Work::Relay(_) | Work::Follow(_) | Work::Attached(_) => None,
        }
    }

    /// The command it carries.
    pub fn command_mut(&mut self) -> Option<&mut RunningCommand> {
        match &mut self.work {
            Work::Command(command) => Some(command),
            Work::Idle | Work::Relay(_) | Work::Follow(_) | Work::Attached(_) => None,
        }
    }

    /// The place it has in a terminal session.
    pub fn client(&self) -> Option<&Client> {
        match &self.work {
            Work::Attached(client) => Some(client),
            Work::Idle | Work::Command(_) | Work::Relay(_) | Work::Follow(_) => None,
        }
    }

    /// When something is to be looked at again that no event tells of.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.work {
            Work::Command(command) => command.deadline(),
            Work::Relay(relay) => relay.deadline(),
            Work::Idle | Work::Follow(_) | Work::Attached(_) => None,
        }
    }

    /// True while more may be queued for the peer.
    pub fn has_room(&self) -> bool {
        let most = if matches!(self.work, Work::Relay(_)) { relay::OUT_BYTES_MAX } else { OUT_BYTES_MAX };
        self.transport.backlog() < most
    }

    /// Sends what the socket takes, and has the set report when it takes more.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn flush(&mut self, watch: &Watch) -> std::io::Result<()> {
        if self.transport.backlog() == 0 || self.blocked {
            return Ok(());
        }
        self.blocked = !self.transport.flush()?;
        // Watched for room only while there is none: the set would speak up at each acknowledgement otherwise.
        if self.blocked != self.watched_for_room {
            let events = if self.blocked { SOCKET_EVENTS | ROOM_EVENTS } else { SOCKET_EVENTS };
            epoll::modify(watch, &self.transport.socket, Token::Socket(self.id).data(), events)?;
            self.watched_for_room = self.blocked;
        }
        Ok(())
    }
}
