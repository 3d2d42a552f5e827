//! The control-socket client: one request and its reply on a connection, each with a deadline.

use std::io;
use std::path::Path;
use std::time::Duration;

use cove_protocol::frame::FrameError;
use cove_protocol::vmm::{
    Event, ExitReason, MachineSpec, Reply, Request, RestoreSpec, SnapshotFigures, SnapshotSpec, Stats,
};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::MachineError;
use crate::framed::Framed;

/// How long `Start` may take: the machine is built and its kernel loaded before the reply.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long any other request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// How long a capture may take: all of the largest memory has to be written.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(300);

/// What `Start` was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) vcpus: u8,
    pub(crate) assist: bool,
}

/// A control connection.
#[derive(Debug)]
pub(crate) struct Control {
    framed: Framed,
}

impl Control {
    /// Connects to a vmm that listens.
    pub(crate) async fn connect(path: &Path) -> Result<Self, MachineError> {
        match timeout(REQUEST_DEADLINE, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Self { framed: Framed::new(stream, &[]) }),
            Ok(Err(source)) => Err(MachineError::Connect { path: path.into(), source }),
            Err(_) => Err(MachineError::Connect { path: path.into(), source: io::ErrorKind::TimedOut.into() }),
        }
    }

    pub(crate) async fn start(&mut self, spec: MachineSpec) -> Result<Started, MachineError> {
        match self.ask("start", &Request::Start(Box::new(spec)), START_DEADLINE).await? {
            Reply::Started { version, .. } if version != cove_protocol::VERSION => {
                Err(MachineError::Version { vmm: version, engine: cove_protocol::VERSION })
            }
            Reply::Started { vcpus, assist, .. } => Ok(Started { vcpus, assist }),
            other => Err(unexpected("start", &other)),
        }
    }

    pub(crate) async fn restore(&mut self, spec: RestoreSpec) -> Result<Started, MachineError> {
        let name = "restore";
        match self.ask(name, &Request::Restore(Box::new(spec)), START_DEADLINE).await? {
            Reply::Started { version, .. } if version != cove_protocol::VERSION => {
                Err(MachineError::Version { vmm: version, engine: cove_protocol::VERSION })
            }
            Reply::Started { vcpus, assist, .. } => Ok(Started { vcpus, assist }),
            other => Err(unexpected(name, &other)),
        }
    }

    pub(crate) async fn snapshot(&mut self, spec: SnapshotSpec) -> Result<SnapshotFigures, MachineError> {
        match self.ask("snapshot", &Request::Snapshot(Box::new(spec)), SNAPSHOT_DEADLINE).await? {
            Reply::Snapshot(figures) => Ok(figures),
            other => Err(unexpected("snapshot", &other)),
        }
    }

    /// Asks what is answered by `Done`: pause, resume, stop.
    pub(crate) async fn tell(&mut self, name: &'static str, request: &Request) -> Result<(), MachineError> {
        match self.ask(name, request, REQUEST_DEADLINE).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(name, &other)),
        }
    }

    pub(crate) async fn stats(&mut self) -> Result<Stats, MachineError> {
        match self.ask("stats", &Request::Stats, REQUEST_DEADLINE).await? {
            Reply::Stats(stats) => Ok(*stats),
            other => Err(unexpected("stats", &other)),
        }
    }

    pub(crate) async fn console_tail(&mut self, bytes_max: u32) -> Result<Vec<u8>, MachineError> {
        match self.ask("console_tail", &Request::ConsoleTail { bytes_max }, REQUEST_DEADLINE).await? {
            Reply::Console(bytes) => Ok(bytes),
            other => Err(unexpected("console_tail", &other)),
        }
    }

    /// Turns the connection into one that waits for the machine's end.
    pub(crate) async fn subscribe(mut self) -> Result<Ending, MachineError> {
        match self.ask("subscribe", &Request::Subscribe, REQUEST_DEADLINE).await? {
            Reply::Done => Ok(Ending { framed: self.framed }),
            other => Err(unexpected("subscribe", &other)),
        }
    }

    async fn ask(&mut self, name: &'static str, request: &Request, within: Duration) -> Result<Reply, MachineError> {
        let failed = |source| MachineError::Frame { request: name, source };
        let answer = async {
            self.framed.writer.write(request).await.map_err(failed)?;
            self.framed.reader.read().await.map_err(failed)
        };
        match timeout(within, answer).await {
            Err(_) => Err(MachineError::Deadline { request: name, seconds: within.as_secs() }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) => Err(failed(FrameError::Io(io::ErrorKind::UnexpectedEof.into()))),
            Ok(Ok(Some(Reply::Error { kind, message }))) => Err(MachineError::Refused { request: name, kind, message }),
            Ok(Ok(Some(reply))) => Ok(reply),
        }
    }
}

/// Waits for a machine's end.
#[derive(Debug)]
pub(crate) struct Ending {
    framed: Framed,
}

impl Ending {
    /// The reason that the vmm gives, or `None` when its process ended without giving one.
    pub(crate) async fn reason(mut self) -> Option<ExitReason> {
        match self.framed.reader.read().await {
            Ok(Some(Event::Exited(reason))) => Some(reason),
            Ok(None) | Err(_) => None,
        }
    }
}

fn unexpected(request: &'static str, reply: &Reply) -> MachineError {
    let reply = match reply {
        Reply::Started { .. } => "started",
        Reply::Done => "done",
        Reply::Snapshot(_) => "snapshot",
        Reply::Stats(_) => "stats",
        Reply::Console(_) => "console",
        Reply::Error { .. } => "error",
    };
    MachineError::Unexpected { request, reply }
}
