//! The socket on which a machine's agent reports once, when it is ready.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cove_protocol::guest::Reply;
use cove_protocol::vmm::READY_PORT;
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::{AgentError, check_version, unexpected};
use crate::framed::Framed;

/// How long a caller may take for its one frame.
const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// What a ready agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Microseconds from the kernel's start to the agent's readiness, by the guest's clock.
    pub(crate) boot_us: u64,
    /// The guest kernel's release.
    pub(crate) kernel: String,
}

/// Listens for the report; the socket's file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct ReadySocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ReadySocket {
    /// Listens beside the vsock socket. To be called before the machine is started.
    pub(crate) fn listen(vsock_socket: &Path) -> io::Result<Self> {
        let mut name = vsock_socket.as_os_str().to_owned();
        name.push(format!("_{READY_PORT}"));
        let path = PathBuf::from(name);
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }

    /// Waits, without a bound of its own, until the agent reports.
    pub(crate) async fn wait(self) -> Result<Ready, AgentError> {
        loop {
            let (stream, _) = self.listener.accept().await.map_err(AgentError::Connect)?;
            let mut framed = Framed::new(stream, &[]);
            match timeout(FRAME_DEADLINE, framed.reader.read::<Reply>()).await {
                Ok(Ok(Some(Reply::Hello { version, boot_us, kernel }))) => {
                    check_version(version)?;
                    return Ok(Ready { boot_us, kernel });
                }
                Ok(Ok(Some(other))) => return Err(unexpected("ready", &other)),
                Ok(Err(source)) => return Err(AgentError::Frame { request: "ready", source }),
                // A connection without a word is nothing; the agent may call again.
                Ok(Ok(None)) | Err(_) => {}
            }
        }
    }
}

impl Drop for ReadySocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}
