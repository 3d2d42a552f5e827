//! A TCP stream to a program in the guest, relayed over a connection: what previews and tunnels are made of.
//!
//! ```text
//!   connecting ──► open ──End from both sides──► finished (Done is queued)
//!       └── refused, too late, reset by the program ──► failed (Error is queued)
//! ```
//!
//! The loop of `server` drives it; the socket never blocks and is watched by edge. Neither side can make the agent hold
//! more than [`IN_BYTES_MAX`] and [`OUT_BYTES_MAX`] for it: past them its socket or its connection is not read.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use cove_protocol::guest::{CHUNK_BYTES_MAX, ErrorKind, Input, Reply};
use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, connect, recv, send, shutdown,
        socket_with, sockopt,
    },
};

use crate::{failure::Failure, transport::Transport};

/// A connection with more than this many bytes to send gets no more of a relay's queued.
pub const OUT_BYTES_MAX: usize = 128 << 10;

/// With more than this many bytes waiting for the program, the connection is not read.
const IN_BYTES_MAX: usize = 128 << 10;

/// How long a program may leave a connection unaccepted: only one whose backlog is full does.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Where a program that serves the machine itself may listen, the most likely first.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    /// Nothing to do until an event.
    Waits,
    /// It moved something, so there may be more.
    GoesOn,
    /// Another socket took the place of the one that was refused, and is to be watched.
    Reconnects,
    /// It is over; this is the last reply.
    Ends(Reply),
}

/// A stream to a port of the guest's loopback.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    socket: OwnedFd,
    /// Addresses that are still to be tried, and until when; `None` once it stands.
    connecting: Option<(&'static [IpAddr], Instant)>,
    /// The socket may hold bytes, or an end or error.
    readable: bool,
    /// The program ended or broke the stream: what is still to be read ends with that, and no event will say so again.
    ending: bool,
    /// The socket may take bytes.
    writable: bool,
    /// Bytes for the program.
    input: Vec<u8>,
    written: usize,
    /// The peer sends no more.
    input_ended: bool,
    /// The program was told so, or takes no more.
    input_closed: bool,
    /// The program sends no more.
    output_ended: bool,
}

impl Relay {
    /// Begins to connect.
    ///
    /// # Errors
    /// Nothing listens on the port.
    pub fn connect(port: u16) -> Result<Self, Failure> {
        if port == 0 {
            return Err(Failure::request("The port is 0, and must be 1 to 65535".into()));
        }
        let (socket, rest) = first_that_connects(port, &ADDRESSES)?;
        Ok(Self {
            port,
            socket,
            connecting: Some((rest, Instant::now() + CONNECT_DEADLINE)),
            readable: false,
            ending: false,
            writable: false,
            input: Vec::new(),
            written: 0,
            input_ended: false,
            input_closed: false,
            output_ended: false,
        })
    }

    /// What the set reports of the socket.
    pub fn note(&mut self, flags: EventFlags) {
        self.ending |= flags.intersects(EventFlags::RDHUP | EventFlags::ERR | EventFlags::HUP);
        self.readable |= self.ending || flags.contains(EventFlags::IN);
        self.writable |= flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP);
    }

    /// When connecting takes too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.connecting.map(|(_, deadline)| deadline)
    }

    /// True while another [`Input`] may be taken from the connection.
    pub fn takes_input(&self) -> bool {
        self.connecting.is_none() && self.waiting() < IN_BYTES_MAX
    }

    /// One bounded piece of work.
    ///
    /// # Errors
    /// The connection failed, or its peer sent what it may not.
    pub fn step(&mut self, transport: &mut Transport, buffer: &mut [u8]) -> io::Result<Step> {
        if self.connecting.is_some() {
            return self.step_connecting(transport);
        }
        let mut moved = false;
        while self.takes_input()
            && let Some(input) = transport.next::<Input>().map_err(io::Error::other)?
        {
            self.take(input)?;
            moved = true;
        }
        moved |= self.write();
        if self.readable && !self.output_ended && transport.backlog() < OUT_BYTES_MAX {
            match self.read(transport, buffer)? {
                Ok(read) => moved |= read,
                Err(reply) => return Ok(Step::Ends(reply)),
            }
        }
        if self.output_ended && self.input_closed && self.input_ended {
            return Ok(Step::Ends(Reply::Done));
        }
        Ok(if moved { Step::GoesOn } else { Step::Waits })
    }

    fn step_connecting(&mut self, transport: &mut Transport) -> io::Result<Step> {
        let Some((rest, deadline)) = self.connecting else { return Ok(Step::Waits) };
        if !self.writable {
            let late = Instant::now() >= deadline;
            let text = || format!("Port {} took no connection within {} s", self.port, CONNECT_DEADLINE.as_secs());
            return Ok(if late { Step::Ends(refused(text())) } else { Step::Waits });
        }
        match sockopt::socket_error(&self.socket)? {
            Ok(()) => {
                self.connecting = None;
                // Small answers must not wait for acknowledgements; a socket that cannot be told is only slower.
                let _ = sockopt::set_tcp_nodelay(&self.socket, true);
                transport.queue(&Reply::Connected).map_err(io::Error::other)?;
                Ok(Step::GoesOn)
            }
            Err(_) => match first_that_connects(self.port, rest) {
                Ok((socket, rest)) => {
                    (self.socket, self.connecting) = (socket, Some((rest, deadline)));
                    (self.readable, self.ending, self.writable) = (false, false, false);
                    Ok(Step::Reconnects)
                }
                Err(failure) => Ok(Step::Ends(failure.into())),
            },
        }
    }

    fn waiting(&self) -> usize {
        self.input.len() - self.written
    }

    fn take(&mut self, input: Input) -> io::Result<()> {
        match input {
            // What the program does not take any more is dropped, as its own kernel would.
            Input::Data(bytes) if !self.input_ended && !self.input_closed => {
                if self.written == self.input.len() {
                    (self.input, self.written) = (bytes.into_vec(), 0);
                } else {
                    self.input.extend_from_slice(&bytes);
                }
            }
            Input::Data(_) if !self.input_ended => {}
            Input::End if !self.input_ended => self.input_ended = true,
            Input::Data(_) | Input::End | Input::Signal(_) | Input::Resize(_) => {
                return Err(io::Error::other("a stream to a port got what it cannot take"));
            }
        }
        Ok(())
    }

    /// Writes what waits for the program, and its end. True if it did anything.
    fn write(&mut self) -> bool {
        let mut moved = false;
        while self.writable && !self.input_closed && self.waiting() > 0 {
            match send(&self.socket, &self.input[self.written..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.written += count;
                    moved = true;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                // It takes no more, but what it said before may still be there to read.
                Err(_) => {
                    (self.input_closed, moved) = (true, true);
                }
            }
        }
        if self.waiting() == 0 || self.input_closed {
            (self.input, self.written) = (Vec::new(), 0);
            if self.input_ended && !self.input_closed {
                let _ = shutdown(&self.socket, Shutdown::Write);
                (self.input_closed, moved) = (true, true);
            }
        }
        moved
    }

    /// Reads once and queues what came; the inner error is the last reply.
    fn read(&mut self, transport: &mut Transport, buffer: &mut [u8]) -> io::Result<Result<bool, Reply>> {
        let wanted = buffer.len().min(CHUNK_BYTES_MAX);
        let reply = match recv(&self.socket, &mut buffer[..wanted], RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                (self.output_ended, self.readable) = (true, false);
                Reply::End
            }
            Ok((count, _)) => {
                self.readable = count == wanted || self.ending;
                Reply::Data(buffer[..count].to_vec().into())
            }
            Err(Errno::INTR) => return Ok(Ok(true)),
            Err(Errno::AGAIN) => {
                self.readable = false;
                return Ok(Ok(false));
            }
            Err(error) => {
                let message = format!("The program on port {} broke the stream: {error}", self.port);
                return Ok(Err(Reply::Error { kind: ErrorKind::Io, message }));
            }
        };
        transport.queue(&reply).map_err(io::Error::other)?;
        Ok(Ok(true))
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Relay {
    /// A stream that did not end cleanly is reset, so that the program does not take half of a message for all of it.
    fn drop(&mut self) {
        if !(self.input_closed && self.output_ended) {
            let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }
}

/// A socket that connects to the first of these addresses where it is not refused at once, and the addresses after it.
fn first_that_connects(port: u16, addresses: &'static [IpAddr]) -> Result<(OwnedFd, &'static [IpAddr]), Failure> {
    let mut rest = addresses;
    while let Some((address, after)) = rest.split_first() {
        rest = after;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match socket_with(family, SocketType::STREAM, flags, None) {
            Ok(socket) => socket,
            // A kernel without IPv6.
            Err(Errno::AFNOSUPPORT) => continue,
            Err(error) => return Err(Failure::io("Cannot make a socket".into(), &error.into())),
        };
        match connect(&socket, &SocketAddr::new(*address, port)) {
            Ok(()) | Err(Errno::INPROGRESS) => return Ok((socket, rest)),
            Err(_) => {}
        }
    }
    Err(Failure { kind: ErrorKind::Refused, message: format!("Nothing listens on port {port}") })
}

fn refused(message: String) -> Reply {
    Reply::Error { kind: ErrorKind::Refused, message }
}
