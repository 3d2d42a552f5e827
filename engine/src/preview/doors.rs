//! Doors: the open listeners of previews, and the records behind them, in memory.
//!
//! Whoever serves them (`cove-api`) takes the queue of doors once; a door is in it for each preview that is opened, at start
//! and later. A preview that is deleted, or whose sandbox is destroyed, closes its door.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Preview, PreviewError, PreviewId, address};
use crate::sandbox::SandboxId;

/// Addresses that are tried for a sandbox's first preview, when the port is taken on all of them, as by a server of the
/// host's that listens on every address.
const ADDRESSES_TRIED_MAX: usize = 4;

/// An open listener. Serve it until `closed`; then drop it.
#[derive(Debug)]
pub struct Door {
    /// The preview; ask [`crate::Engine::open_preview`] for its record at each use.
    pub preview: PreviewId,
    /// Whose it is.
    pub sandbox: SandboxId,
    /// The port in the guest.
    pub port: u16,
    /// Where it is on the host.
    pub at: SocketAddrV4,
    /// The listener, non-blocking.
    pub listener: TcpListener,
    /// The preview is no more.
    pub closed: CancellationToken,
}

/// All previews of this server.
#[derive(Debug)]
pub(crate) struct Previews {
    open: Mutex<HashMap<PreviewId, OpenPreview>>,
    sender: mpsc::UnboundedSender<Door>,
    queue: Mutex<Option<mpsc::UnboundedReceiver<Door>>>,
    /// Held while an address is chosen, from the look at the rows to the row that takes it.
    pub(crate) choosing: tokio::sync::Mutex<()>,
}

/// A preview that is open.
#[derive(Clone, Debug)]
pub struct OpenPreview {
    /// Its record now.
    pub record: Arc<Preview>,
    /// Cancelled when it is no more: what runs through it is to end.
    pub closed: CancellationToken,
}

impl Default for Previews {
    fn default() -> Self {
        // Doors are few: see PREVIEWS_MAX and the limit of sandboxes.
        let (sender, queue) = mpsc::unbounded_channel();
        Self { open: Mutex::default(), sender, queue: Mutex::new(Some(queue)), choosing: tokio::sync::Mutex::default() }
    }
}

impl Previews {
    /// The queue of doors; the first caller has it.
    pub(crate) fn take_queue(&self) -> Option<mpsc::UnboundedReceiver<Door>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Opens a preview: from now on it is found, and its door is in the queue.
    pub(crate) fn open(&self, preview: Preview, listener: TcpListener) {
        let closed = CancellationToken::new();
        let door = Door {
            preview: preview.id.clone(),
            sandbox: preview.sandbox_id.clone(),
            port: preview.port,
            at: preview.at,
            listener,
            closed: closed.clone(),
        };
        self.map().insert(preview.id.clone(), OpenPreview { record: Arc::new(preview), closed });
        // Without a server of doors they stay closed: connections wait in the kernel's queue.
        let _ = self.sender.send(door);
    }

    /// A preview's record changed.
    pub(crate) fn change(&self, preview: &Preview) {
        if let Some(open) = self.map().get_mut(&preview.id) {
            open.record = Arc::new(preview.clone());
        }
    }

    pub(crate) fn close(&self, id: &PreviewId) {
        if let Some(open) = self.map().remove(id) {
            open.closed.cancel();
        }
    }

    /// Closes all of a sandbox.
    pub(crate) fn close_all(&self, sandbox: &SandboxId) {
        self.map().retain(|_, open| {
            let stays = open.record.sandbox_id != *sandbox;
            if !stays {
                open.closed.cancel();
            }
            stays
        });
    }

    pub(crate) fn get(&self, id: &PreviewId) -> Option<OpenPreview> {
        self.map().get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<OpenPreview> {
        self.map().values().cloned().collect()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<PreviewId, OpenPreview>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener for a guest's port: on the sandbox's address, or where it has none yet on one that `is_free`.
pub(crate) fn listen(
    own: Option<Ipv4Addr>,
    port: u16,
    is_free: impl Fn(Ipv4Addr) -> bool,
) -> Result<(SocketAddrV4, TcpListener), PreviewError> {
    let address = match own {
        Some(address) => address,
        None => {
            let mut fresh = std::iter::repeat_with(address::random).filter(|address| is_free(*address));
            let first_port = address::host_ports(port).next().unwrap_or(port);
            let mut last = Ipv4Addr::LOCALHOST;
            // The filter ends, since 16 million addresses are never all taken.
            for address in fresh.by_ref().take(ADDRESSES_TRIED_MAX) {
                if let Ok(listener) = bind(SocketAddrV4::new(address, first_port)) {
                    return Ok((SocketAddrV4::new(address, first_port), listener));
                }
                last = address;
            }
            last
        }
    };
    let mut first_failure = None;
    for host_port in address::host_ports(port) {
        let at = SocketAddrV4::new(address, host_port);
        match bind(at) {
            Ok(listener) => return Ok((at, listener)),
            Err(source) => first_failure = first_failure.or(Some((at, source))),
        }
    }
    let (address, source) =
        first_failure.unwrap_or((SocketAddrV4::new(address, port), io::ErrorKind::AddrNotAvailable.into()));
    Err(PreviewError::Bind { port, address, source })
}

/// A listener at exactly this place.
pub(crate) fn bind(at: SocketAddrV4) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_on_every_address_gives_way_to_the_next() {
        let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let taken = everywhere.local_addr().unwrap().port();
        let (first, _listener) = listen(None, taken, |_| true).unwrap();
        assert!(first.port() != taken && first.ip().is_loopback() && *first.ip() != Ipv4Addr::LOCALHOST);
        // The second port of a sandbox stays on its address.
        let (second, _) = listen(Some(*first.ip()), first.port(), |_| true).unwrap();
        assert_eq!(second.ip(), first.ip());
        assert_ne!(second.port(), first.port());
    }

    #[test]
    fn an_address_that_another_sandbox_has_is_not_chosen() {
        let tried = std::cell::RefCell::new(Vec::new());
        let (at, _listener) = listen(None, 30_123, |address| {
            tried.borrow_mut().push(address);
            tried.borrow().len() > 3
        })
        .unwrap();
        assert_eq!(Some(at.ip()), tried.borrow().last());
    }
}
