//! The host's end: one listening unix socket, its clients, and calls to the sockets beside it.
//!
//! All descriptors are non-blocking, and no call here waits. What a client says before it has a stream is one line,
//! `CONNECT <port>\n`; what it writes after that line stays in its socket until the guest can take it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, send, shutdown, socket_with,
};

/// Clients that may wait in the kernel before the device accepts them, such as while the guest boots.
const BACKLOG: i32 = 256;

/// Longest `CONNECT` line, its newline included.
pub const LINE_BYTES_MAX: usize = 32;

/// Longest addition to the socket's path for a guest's call: `_` and a port.
const SUFFIX_BYTES_MAX: usize = 11;

/// Longest path that fits into a socket address (`sun_path`, with its closing zero).
const PATH_BYTES_MAX: usize = 107;

/// Why the listening socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit.
    #[error("vsock.socket {path} is {bytes} bytes long, at most {max} fit into a socket address with a port")]
    PathLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The most allowed.
        max: usize,
    },
    /// Another process listens there.
    #[error("vsock.socket {0} is in use by another process")]
    InUse(PathBuf),
    /// A system call failed.
    #[error("Cannot {action} vsock.socket {path}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The listening socket. Dropping it removes it from the file system.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, readable and writable for the owner alone. A socket that a dead process left there is
    /// replaced.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn new(path: &Path) -> Result<Self, ListenError> {
        let bytes = path.as_os_str().len();
        let max = PATH_BYTES_MAX - SUFFIX_BYTES_MAX;
        if bytes > max {
            return Err(ListenError::PathLong { path: path.to_owned(), bytes, max });
        }
        let system = |action, errno: Errno| ListenError::System { action, path: path.to_owned(), source: errno.into() };
        let address = SocketAddrUnix::new(path).map_err(|e| system("use the path of", e))?;
        let fd = stream_socket().map_err(|e| system("make a descriptor for", e))?;
        // Linux gives the socket's file the mode of the descriptor, so there is no moment at which others may connect.
        fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(|e| system("restrict", e))?;
        match bind(&fd, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_dead_socket(path, &address)?;
                bind(&fd, &address).map_err(|e| system("bind", e))?;
            }
            result => result.map_err(|e| system("bind", e))?,
        }
        let listener = Self { fd, path: path.to_owned() };
        listen(&listener.fd, BACKLOG).map_err(|e| system("listen on", e))?;
        Ok(listener)
    }

    /// The next client, if one waits.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        match retry(|| accept_with(&self.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)) {
            Ok(fd) => Ok(Some(Stream { fd })),
            // A client that gave up while it waited is not a failure.
            Err(Errno::AGAIN | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Calls whoever listens for the guest's calls to `port`.
    ///
    /// # Errors
    /// Nobody listens there, or its backlog is full.
    pub fn call(&self, port: u32) -> io::Result<Stream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path)?;
        let fd = stream_socket()?;
        retry(|| connect(&fd, &address))?;
        Ok(Stream { fd })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "Cannot remove the vsock socket");
        }
    }
}

/// Removes the socket file at `path` if no process listens there.
fn remove_dead_socket(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let system = |action, source| ListenError::System { action, path: path.to_owned(), source };
    let probe = stream_socket().map_err(|e| system("make a descriptor to try", e.into()))?;
    match retry(|| connect(&probe, address)) {
        // Refused: a socket without a listener. Anything that is no socket is refused as well, so it is looked at.
        Err(Errno::CONNREFUSED) => {
            use std::os::unix::fs::FileTypeExt;
            let kind = std::fs::symlink_metadata(path).map_err(|e| system("look at", e))?.file_type();
            if !kind.is_socket() {
                return Err(system("replace", io::ErrorKind::AlreadyExists.into()));
            }
            std::fs::remove_file(path).map_err(|e| system("replace", e))
        }
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::InUse(path.to_owned())),
        Err(errno) => Err(system("try", errno.into())),
    }
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// What a read from a [`Stream`] gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The peer sends no more, or is gone.
    End,
}

/// What a write to a [`Stream`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// So many bytes were taken, at least one.
    Bytes(usize),
    /// There is no room now.
    Full,
    /// The peer takes no more, or is gone.
    Deaf,
}

/// A connected unix socket.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    /// Takes bytes from the peer.
    pub fn take(&self, buffer: &mut [u8]) -> Taken {
        self.receive(buffer, RecvFlags::empty())
    }

    /// Looks at the peer's next bytes without taking them.
    pub fn peek(&self, buffer: &mut [u8]) -> Taken {
        self.receive(buffer, RecvFlags::PEEK)
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> Taken {
        match retry(|| recv(&self.fd, &mut *buffer, flags)) {
            Ok((0, _)) => Taken::End,
            Ok((bytes, _)) => Taken::Bytes(bytes),
            Err(Errno::AGAIN) => Taken::Nothing,
            // The peer closed with our bytes unread: what it sent before was taken already.
            Err(_) => Taken::End,
        }
    }

    /// Gives bytes to the peer.
    pub fn give(&self, bytes: &[u8]) -> Given {
        match retry(|| send(&self.fd, bytes, SendFlags::NOSIGNAL)) {
            Ok(bytes) => Given::Bytes(bytes),
            Err(Errno::AGAIN) => Given::Full,
            Err(_) => Given::Deaf,
        }
    }

    /// The peer closed its socket altogether: it will neither send nor take.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::empty())];
        let polled = retry(|| poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
        polled.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Tells the peer that no more bytes come.
    pub fn end(&self) {
        // Only a peer that is gone refuses, and it needs not be told.
        let _gone = shutdown(&self.fd, Shutdown::Write);
    }

    /// Tells the peer that no more bytes are taken.
    pub fn refuse(&self) {
        // As above.
        let _gone = shutdown(&self.fd, Shutdown::Read);
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Again, when a signal came between.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A client that has not said yet where it wants to.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    line: Vec<u8>,
}

/// What a [`Client`] has said so far.
#[derive(Debug)]
pub enum Call {
    /// Not its whole line.
    Unfinished(Client),
    /// A guest port; the stream is at the byte after the line.
    Port(u32, Stream),
    /// Nonsense, or it went away.
    Refused,
}

impl Client {
    /// A client that has said nothing.
    pub fn new(stream: Stream) -> Self {
        Self { stream, line: Vec::new() }
    }

    /// Takes what there is of the line, and nothing of what comes after it.
    pub fn read_line(mut self) -> Call {
        loop {
            let mut buffer = [0; LINE_BYTES_MAX];
            let room = LINE_BYTES_MAX - self.line.len();
            let seen = match self.stream.peek(&mut buffer[..room]) {
                Taken::Bytes(seen) => seen,
                Taken::Nothing => return Call::Unfinished(self),
                Taken::End => return Call::Refused,
            };
            let newline = buffer[..seen].iter().position(|&byte| byte == b'\n');
            let wanted = newline.map_or(seen, |at| at + 1);
            let Taken::Bytes(taken) = self.stream.take(&mut buffer[..wanted]) else { return Call::Refused };
            self.line.extend_from_slice(&buffer[..taken]);
            if newline.is_some() {
                return parse_connect(&self.line).map_or(Call::Refused, |port| Call::Port(port, self.stream));
            }
            if self.line.len() == LINE_BYTES_MAX {
                return Call::Refused;
            }
        }
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// The port of a whole `CONNECT <port>\n` line. The all-ones port means "any" to a listener and cannot be called.
pub fn parse_connect(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|&port| port != u32::MAX)
}
