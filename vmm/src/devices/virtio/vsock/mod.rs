//! The socket device (virtio 1.2, section 5.10), its host side all in this process.
//!
//! ```text
//!   guest socket ══ queues ══ device ── streams ── host ══ unix socket ══ engine
//!                               │          │
//!                             packet   connection (pure)
//! ```
//!
//! A client of the unix socket writes `CONNECT <port>\n`, reads `OK <host port>\n` once the guest accepted, and has a
//! byte stream. A guest's call to host port P goes to the unix socket `<socket>_<P>`. No byte of a stream is read here.

mod connection;
mod device;
mod host;
mod packet;
mod state;
mod streams;
#[cfg(test)]
mod tests;

pub use connection::BUFFER_BYTES;
pub use device::Vsock;
pub use host::ListenError;
pub use state::{CheckedState, VsockState};
pub use streams::{CLIENTS_MAX, CONNECTIONS_MAX};

/// Why a vsock device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Reserved (5.10.4).
    #[error("vsock.guest_cid {0} is reserved, a guest's is from 3 to 4294967294")]
    GuestCid(u32),
    /// The guest of a snapshot keeps its own.
    #[error("vsock.guest_cid {asked} is not the {saved} of the snapshot")]
    GuestCidChanged {
        /// The spec's.
        asked: u32,
        /// The snapshot's.
        saved: u32,
    },
    /// Not a port that is ever given out.
    #[error("The snapshot's next vsock port {0} is out of range")]
    SavedPort(u32),
    /// The unix socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
}
