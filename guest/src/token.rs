//! What the server's epoll set watches, and how an event says what it is about.
//!
//! Ids are never used twice, so an event that was under way when its connection or command ended finds nobody.

use cove_protocol::guest::Stream;
use rustix::event::epoll;

/// What an event is about, packed into the 64 bits that epoll gives back: an id above, the kind in the last 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A peer wants to connect.
    Listener,
    /// A child ended.
    Children,
    /// A connection came back.
    Workers,
    /// Mounts changed.
    Mounts,
    /// A connection's socket.
    Socket(u64),
    /// An output pipe of a command.
    Output(u64, Stream),
    /// The standard input's pipe of a command.
    Stdin(u64),
    /// The socket of a connection's relay; the id is the connection's.
    Relay(u64),
    /// The terminal of a session.
    Terminal(u64),
}

impl Token {
    /// For the set.
    pub fn data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Token::Listener => 0,
            Token::Children => 1,
            Token::Workers => 2,
            Token::Mounts => 7,
            Token::Socket(id) => id << 4 | 3,
            Token::Output(id, Stream::Stdout) => id << 4 | 4,
            Token::Output(id, Stream::Stderr) => id << 4 | 5,
            Token::Stdin(id) => id << 4 | 6,
            Token::Relay(id) => id << 4 | 8,
            Token::Terminal(id) => id << 4 | 9,
        })
    }

    /// From the set.
    pub fn of(data: epoll::EventData) -> Self {
        let id = data.u64() >> 4;
        match data.u64() & 15 {
            0 => Token::Listener,
            1 => Token::Children,
            2 => Token::Workers,
            3 => Token::Socket(id),
            4 => Token::Output(id, Stream::Stdout),
            5 => Token::Output(id, Stream::Stderr),
            6 => Token::Stdin(id),
            8 => Token::Relay(id),
            9 => Token::Terminal(id),
            _ => Token::Mounts,
        }
    }
}

/// A connection's socket: bytes, or the peer closed.
pub const SOCKET_EVENTS: epoll::EventFlags =
    epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ET);
/// The peer closed, or the stream broke.
pub const GONE_EVENTS: epoll::EventFlags =
    epoll::EventFlags::RDHUP.union(epoll::EventFlags::HUP).union(epoll::EventFlags::ERR);
/// An output pipe: bytes.
pub const OUTPUT_EVENTS: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);
/// A terminal: output.
pub const TERMINAL_EVENTS: epoll::EventFlags = OUTPUT_EVENTS;
/// The table of mounts: it changed.
pub const MOUNT_EVENTS: epoll::EventFlags = epoll::EventFlags::PRI.union(epoll::EventFlags::ET);
/// A socket or pipe that was full: room.
pub const ROOM_EVENTS: epoll::EventFlags = epoll::EventFlags::OUT.union(epoll::EventFlags::ET);
/// A relay's socket: bytes, room, the end of what its program says.
pub const RELAY_EVENTS: epoll::EventFlags = SOCKET_EVENTS.union(epoll::EventFlags::OUT);
