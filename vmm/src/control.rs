//! The control socket: frames of [`cove_protocol`] in, replies and events out. Several connections at once, none of which
//! can hold the others up: sockets do not block, and a connection whose peer does not read is not read from either.
//!
//! Knows nothing of machines: what a request means is [`crate::event_loop`]'s part.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cove_protocol::frame::{self, Decoder};
use cove_protocol::vmm::{Event, Reply, Request};
use rustix::net::sockopt::socket_acceptconn;

/// Most connections at once; one more is closed at once.
pub const CONNECTIONS_MAX: usize = 16;
/// Bytes taken from a connection at once.
const READ_BYTES: usize = 16 << 10;
/// How long the end waits for a peer to take the last words.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);

/// Names a connection.
pub type ConnectionId = u32;

/// The socket file, removed when this is dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "Cannot remove the control socket");
        }
    }
}

/// The listening socket and its connections.
pub struct Control {
    listener: UnixListener,
    _file: SocketFile,
    connections: HashMap<ConnectionId, Connection>,
    next: ConnectionId,
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    /// Bytes that the peer has not taken yet; at most one reply and one event.
    out: Vec<u8>,
    subscribed: bool,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Requests.
    Read,
    /// Room for the reply.
    Write,
}

impl Control {
    /// Takes the socket that listens at `path` from standard input, where the starter of this process may have put it: then
    /// it need not wait for us to listen. Otherwise as [`Control::bind`].
    ///
    /// # Errors
    /// As [`Control::bind`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let input = io::stdin();
        match socket_acceptconn(input.as_fd()) {
            Ok(true) => Self::of(input.as_fd().try_clone_to_owned()?.into(), path),
            // Not a socket, or one that does not listen.
            _ => Self::bind(path),
        }
    }

    /// Listens at `path`. A socket that a dead process left there is replaced. The path appears only once a connection is
    /// possible, so whoever waits for it need not try again.
    ///
    /// # Errors
    /// When the path cannot be bound; [`ErrorKind::AddrInUse`] when somebody listens there.
    fn bind(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).is_ok() {
            return Err(ErrorKind::AddrInUse.into());
        }
        let mut new = OsString::from(path);
        new.push(".new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::rename(&new, path)?;
        Self::of(listener, path)
    }

    fn of(listener: UnixListener, path: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, _file: SocketFile(path.into()), connections: HashMap::new(), next: 0 })
    }

    /// Takes the connections that wait; gives their names.
    pub fn accept(&mut self) -> Vec<ConnectionId> {
        let mut new = Vec::new();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => new.extend(self.add(stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return new,
                Err(error) => {
                    tracing::warn!(%error, "Cannot take a control connection");
                    return new;
                }
            }
        }
    }

    fn add(&mut self, stream: UnixStream) -> Option<ConnectionId> {
        if self.connections.len() >= CONNECTIONS_MAX {
            tracing::warn!("More than {CONNECTIONS_MAX} control connections: the newest is closed");
            return None;
        }
        stream.set_nonblocking(true).ok()?;
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let connection = Connection { stream, decoder: Decoder::default(), out: Vec::new(), subscribed: false };
        self.connections.insert(id, connection);
        Some(id)
    }

    /// Serves what is ready on connection `id`: sends what waits, then takes requests and sends what `answer` makes of
    /// them, until the peer has no more or does not read. Gives what to wait for next, or `None` when the connection is over.
    pub fn serve(&mut self, id: ConnectionId, mut answer: impl FnMut(Request) -> Reply) -> Option<Interest> {
        let connection = self.connections.get_mut(&id)?;
        match connection.serve(&mut answer) {
            Ok(interest) => Some(interest),
            Err(reason) => {
                if let Some(reason) = reason {
                    tracing::warn!(
                        connection = id,
                        reason = crate::host::chain(&reason),
                        "A control connection is closed"
                    );
                }
                None
            }
        }
    }

    /// The descriptor of connection `id`.
    pub fn descriptor(&self, id: ConnectionId) -> Option<RawFd> {
        self.connections.get(&id).map(|connection| connection.stream.as_raw_fd())
    }

    /// Closes connection `id`.
    pub fn remove(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
    }

    /// Tells every subscriber `event`, and lets every peer take what waits for it, for a short time at most.
    pub fn farewell(&mut self, event: &Event) {
        let Ok(frame) = frame::encode(event) else { return };
        for connection in self.connections.values_mut() {
            if connection.subscribed {
                connection.out.extend_from_slice(&frame);
            }
            // A peer that does not read, or is gone, does not hold up the end.
            let _ = connection.finish();
        }
    }
}

impl AsRawFd for Control {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Connection {
    /// As [`Control::serve`]; the error says why the connection is over, `None` when the peer closed it.
    fn serve(&mut self, answer: &mut impl FnMut(Request) -> Reply) -> Result<Interest, Option<frame::FrameError>> {
        loop {
            if !self.send()? {
                return Ok(Interest::Write);
            }
            match self.decoder.next::<Request>()? {
                Some(_) if self.subscribed => {
                    // "Sends nothing more": a peer that does is not one of ours.
                    return Err(None);
                }
                Some(request) => {
                    let subscribes = request == Request::Subscribe;
                    let reply = answer(request);
                    self.subscribed = subscribes && reply == Reply::Done;
                    self.out = frame::encode(&reply)?;
                }
                None if !self.receive()? => return Ok(Interest::Read),
                None => {}
            }
        }
    }

    /// Sends what waits; false when the peer does not take all of it now.
    fn send(&mut self) -> Result<bool, frame::FrameError> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Takes bytes from the peer; false when there are none now.
    fn receive(&mut self) -> Result<bool, Option<frame::FrameError>> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(None),
            Ok(count) => {
                self.decoder.feed(&bytes[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(Some(error.into())),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(FAREWELL_TIMEOUT))?;
        self.stream.write_all(&self.out)
    }
}

#[cfg(test)]
mod tests {
    use cove_protocol::vmm::ExitReason;

    use super::*;

    fn pair() -> (tempfile::TempDir, Control, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let mut control = Control::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        assert_eq!(control.accept(), [0]);
        (folder, control, client)
    }

    #[test]
    fn requests_are_answered_in_order_on_one_connection() {
        let (_folder, mut control, mut client) = pair();
        for request in [Request::Pause, Request::Subscribe] {
            frame::write(&mut client, &request).unwrap();
        }
        let mut asked = Vec::new();
        let interest = control.serve(0, |request| {
            asked.push(request);
            Reply::Done
        });
        assert_eq!(interest, Some(Interest::Read));
        assert_eq!(asked, [Request::Pause, Request::Subscribe]);
        assert_eq!(frame::read::<Reply>(&mut client).unwrap(), Some(Reply::Done));
        assert_eq!(frame::read::<Reply>(&mut client).unwrap(), Some(Reply::Done));
        control.farewell(&Event::Exited(ExitReason::PowerOff));
        assert_eq!(frame::read::<Event>(&mut client).unwrap(), Some(Event::Exited(ExitReason::PowerOff)));
    }

    #[test]
    fn a_peer_that_sends_nonsense_or_goes_away_loses_its_connection_only() {
        let (_folder, mut control, mut client) = pair();
        client.write_all(&[0xff; 64]).unwrap();
        assert_eq!(control.serve(0, |_| Reply::Done), None);
        control.remove(0);
        let (_folder, mut control, client) = pair();
        drop(client);
        assert_eq!(control.serve(0, |_| Reply::Done), None);
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_read_from() {
        let (_folder, mut control, mut client) = pair();
        for _ in 0..40 {
            frame::write(&mut client, &Request::ConsoleTail { bytes_max: 0 }).unwrap();
        }
        let mut answered = 0;
        let interest = control.serve(0, |_| {
            answered += 1;
            Reply::Console(vec![0; 200 << 10])
        });
        assert_eq!(interest, Some(Interest::Write));
        assert!(answered < 10, "{answered}");
    }

    #[test]
    fn connections_are_bounded_and_one_that_leaves_makes_room() {
        let (folder, mut control, _client) = pair();
        let path = folder.path().join("control");
        let others: Vec<_> = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(control.accept().len(), CONNECTIONS_MAX - 1);
        assert!(frame::read::<Reply>(&mut others.last().unwrap()).unwrap().is_none());
        control.remove(0);
        let _one_more = UnixStream::connect(&path).unwrap();
        assert_eq!(control.accept().len(), 1);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        drop(UnixListener::bind(&path).unwrap());
        let living = Control::bind(&path).unwrap();
        assert_eq!(Control::bind(&path).err().unwrap().kind(), ErrorKind::AddrInUse);
        drop(living);
        assert!(!path.exists());
    }
}
