//! The client of the agent inside a machine: exec and files over the machine's vsock socket.
//!
//! One connection carries one operation at a time (`protocol::guest`). A connection whose operation ended cleanly goes
//! back to a small pool, since a new stream costs the guest kernel work. Dropping an operation closes its connection,
//! and that cancels it in the guest. The guest is hostile: frames are bounded, and every reply that does not fit the
//! request is an error.

mod connection;

mod connect;

mod code;

mod exec;

mod files;

mod changes;

mod jobs;

mod ready;

mod terminals;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cove_protocol::frame::FrameError;
use cove_protocol::guest::{Configure, Reply, Request};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::Instrument;

pub use self::changes::FileChanges;
pub(crate) use self::code::{Answer, Interpreters, JOB_NAME_PREFIX, NoAnswer, Run};
pub use self::code::{CodeFailure, CodeOutput, Language};
pub use self::connect::GuestStream;
pub use self::exec::{ExecEvent, ExecInput, ExecOutput, Execution};
pub use self::files::FileStream;
pub use self::jobs::{JobEvent, JobOutput};
pub(crate) use self::ready::ReadySocket;
pub use self::terminals::{Terminal, TerminalEvent, TerminalInput, TerminalOutput};

use self::connection::{Connection, Pool};
use crate::clock;
use crate::error::Error;
use crate::sandbox::{Sandbox, SandboxId, SandboxState};

/// How long the agent may take for its next frame, where it is its turn. Hosts that emulate the guest's kernel need
/// some of it: a busy guest there takes seconds for what is milliseconds elsewhere.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);

/// How long a failed connection waits for the driver to say that the machine is no more.
const EXPLANATION_DEADLINE: Duration = Duration::from_millis(1500);

/// Why the conversation with an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket does not accept, or the machine closed the connection before the agent accepted it.
    #[error("The machine's vsock socket does not connect to the agent")]
    Connect(#[source] io::Error),
    /// The agent closed the connection inside an operation.
    #[error("The agent closed the connection during '{0}'")]
    Closed(&'static str),
    /// Nothing came for too long.
    #[error("The agent did not answer '{request}' within {seconds} s")]
    Deadline {
        /// The request.
        request: &'static str,
        /// How long the engine waited.
        seconds: u64,
    },
    /// A frame could not be read or written.
    #[error("A frame of '{request}' failed")]
    Frame {
        /// The request.
        request: &'static str,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// The agent sent something that does not belong there.
    #[error("The agent answered '{request}' with an unexpected '{reply}'")]
    Unexpected {
        /// The request.
        request: &'static str,
        /// The reply's name.
        reply: &'static str,
    },
    /// The agent speaks another version of the protocol.
    #[error("The agent speaks protocol version {agent}, this server speaks version {engine}; rebuild the guest image")]
    Version {
        /// The agent's version.
        agent: u32,
        /// Ours.
        engine: u32,
    },
    /// Too much runs at once.
    #[error(
        "{operations} operations run in the sandbox, which is the most at one time, and none ended within {seconds} s"
    )]
    Busy {
        /// How many may run.
        operations: usize,
        /// How long the engine waited.
        seconds: u64,
    },
    /// A listing does not end.
    #[error("The listing has more than {max} entries; list a smaller directory or fewer levels")]
    TooManyEntries {
        /// The bound.
        max: usize,
    },
}

/// Speaks with one machine's agent; clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sandbox: SandboxId,
    pool: Pool,
    /// Tells whether a connection broke because the machine is no more.
    record: Option<watch::Receiver<Sandbox>>,
    /// What was done with the machine, once it is ended on purpose ("paused").
    ended: watch::Sender<Option<&'static str>>,
}

impl Agent {
    /// An agent behind the vsock socket of a machine. Connects when it has something to ask.
    pub(crate) fn new(socket: PathBuf, record: watch::Receiver<Sandbox>) -> Self {
        let sandbox = record.borrow().id.clone();
        Self::of(socket, sandbox, Some(record))
    }

    /// As [`Agent::new`], of a machine that is no sandbox's.
    pub(crate) fn alone(socket: PathBuf, id: SandboxId) -> Self {
        Self::of(socket, id, None)
    }

    fn of(socket: PathBuf, sandbox: SandboxId, record: Option<watch::Receiver<Sandbox>>) -> Self {
        let ended = watch::Sender::new(None);
        Self { shared: Arc::new(Shared { sandbox, pool: Pool::new(socket), record, ended }) }
    }

    /// Checks that the agent is there and speaks our version.
    pub(crate) async fn hello(&self, within: Duration) -> Result<(), AgentError> {
        match self.ask(&Request::Hello, within).await? {
            Final::Reply(Reply::Hello { version, .. }) => check_version(version),
            Final::Reply(other) => Err(unexpected("hello", &other)),
            Final::Refused { .. } => Err(AgentError::Unexpected { request: "hello", reply: "error" }),
        }
    }

    /// Gives the machine its name, its clock and the sandbox's environment.
    pub(crate) async fn configure(&self, configure: Configure) -> Result<(), Error> {
        self.ask_for_done(&Request::Configure(configure)).await
    }

    /// Sets the machine's wall clock to the host's.
    pub(crate) async fn set_clock(&self) -> Result<(), Error> {
        self.ask_for_done(&Request::SetClock { clock_us: clock::now_us() }).await
    }

    /// Asks it to do now what would otherwise be done when it is first asked for.
    pub(crate) async fn prepare(&self, within: Duration) -> Result<(), Error> {
        self.ask_for_done_within(&Request::Prepare, within).await
    }

    /// Asks it to write all dirty pages to the disks.
    pub(crate) async fn sync(&self, within: Duration) -> Result<(), Error> {
        self.ask_for_done_within(&Request::Sync, within).await
    }

    /// Says that the machine is being ended on purpose: whoever still uses it is told that it was `by` ("paused").
    pub(crate) fn end(&self, by: &'static str) {
        self.shared.ended.send_replace(Some(by));
    }

    /// Takes [`Agent::end`] back: the machine runs on.
    pub(crate) fn go_on(&self) {
        self.shared.ended.send_replace(None);
    }

    /// Asks what is answered by one final reply.
    async fn ask(&self, request: &Request, within: Duration) -> Result<Final, AgentError> {
        let name = request.name();
        let mut connection = self.shared.pool.open().await?;
        connection.send(name, request).await?;
        let reply: Reply = connection.receive(name, within).await?;
        if reply.is_final(request) {
            connection.give_back();
        }
        Ok(Final::from(reply))
    }

    /// Asks what is answered by `Done`.
    async fn ask_for_done(&self, request: &Request) -> Result<(), Error> {
        self.ask_for_done_within(request, REPLY_DEADLINE).await
    }

    async fn ask_for_done_within(&self, request: &Request, within: Duration) -> Result<(), Error> {
        match self.ask(request, within).await {
            Ok(Final::Reply(Reply::Done)) => Ok(()),
            other => Err(self.refused(request.name(), other).await),
        }
    }

    /// The error of an answer that is not what was asked for.
    async fn refused(&self, request: &'static str, answer: Result<Final, AgentError>) -> Error {
        match answer {
            Ok(Final::Refused { kind, message }) => Error::Guest { kind, message },
            Ok(Final::Reply(other)) => self.explain(unexpected(request, &other)).await,
            Err(error) => self.explain(error).await,
        }
    }

    /// Sends a request on a connection that it has for itself, and takes the first of its replies.
    async fn begin(
        &self,
        connection: Result<Connection, AgentError>,
        request: &Request,
        within: Duration,
    ) -> Result<(Connection, Reply), Error> {
        let name = request.name();
        let begun = async {
            let mut connection = connection?;
            connection.send(name, request).await?;
            let reply = connection.receive(name, within).await?;
            Ok::<_, AgentError>((connection, reply))
        };
        match begun.await {
            Ok((connection, Reply::Error { kind, message })) => {
                connection.give_back();
                Err(Error::Guest { kind, message })
            }
            Ok(begun) => Ok(begun),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Runs `passing`, which passes what comes on a connection on to `items`, in a task of its own: until it is done, or
    /// nobody takes the items any more. What it refuses or fails with is the last item.
    fn pass_on<T: Send + 'static>(
        &self,
        items: mpsc::Sender<Result<T, Error>>,
        passing: impl Future<Output = Result<Option<Error>, AgentError>> + Send + 'static,
    ) {
        let agent = self.clone();
        let task = async move {
            let result = tokio::select! {
                result = passing => result,
                () = items.closed() => return,
            };
            let error = match result {
                Ok(None) => return,
                Ok(Some(refused)) => refused,
                Err(error) => agent.explain(error).await,
            };
            let _ = items.send(Err(error)).await;
        };
        tokio::spawn(task.in_current_span());
    }

    /// What a caller is told: that the sandbox failed or was destroyed, if that is why its connection broke.
    async fn explain(&self, error: AgentError) -> Error {
        use SandboxState::{Creating, Pausing, Resuming, Running, Snapshotting};
        let id = self.shared.sandbox.clone();
        let broken = matches!(error, AgentError::Connect(_) | AgentError::Closed(_) | AgentError::Frame { .. });
        let Some(mut record) = self.shared.record.clone().filter(|_| broken) else {
            return Error::Agent { id, source: error };
        };
        let mut ended = self.shared.ended.subscribe();
        let gone = |sandbox: &Sandbox| !matches!(sandbox.state, Creating | Running | Snapshotting | Pausing | Resuming);
        // A watched value's guard must not be held across an await.
        let by = async { ended.wait_for(Option::is_some).await.ok().and_then(|by| *by) };
        let end = async { record.wait_for(gone).await.ok().map(|sandbox| sandbox.clone()) };
        let why = async {
            tokio::select! {
                biased;
                Some(by) = by => Err(by),
                Some(sandbox) = end => Ok(sandbox),
                else => std::future::pending().await,
            }
        };
        match timeout(EXPLANATION_DEADLINE, why).await {
            Ok(Err(by)) => Error::Interrupted { id, by },
            Ok(Ok(sandbox)) => match sandbox.state {
                SandboxState::Destroying | SandboxState::Destroyed => Error::SandboxDestroyed(id),
                SandboxState::Paused => Error::Interrupted { id, by: "paused" },
                _ => Error::SandboxFailed { id, reason: sandbox.last_error.unwrap_or_default() },
            },
            Err(_) => Error::Agent { id, source: error },
        }
    }
}

/// A reply that may be a refusal.
enum Final {
    Reply(Reply),
    Refused { kind: cove_protocol::guest::ErrorKind, message: String },
}

impl From<Reply> for Final {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Error { kind, message } => Final::Refused { kind, message },
            other => Final::Reply(other),
        }
    }
}

fn check_version(agent: u32) -> Result<(), AgentError> {
    let engine = cove_protocol::VERSION;
    if agent == engine { Ok(()) } else { Err(AgentError::Version { agent, engine }) }
}

fn unexpected(request: &'static str, reply: &Reply) -> AgentError {
    let reply = match reply {
        Reply::Hello { .. } => "hello",
        Reply::Started { .. } => "started",
        Reply::Output { .. } => "output",
        Reply::Exited(_) => "exited",
        Reply::Data(_) => "data",
        Reply::Entries(_) => "entries",
        Reply::FileInfo(_) => "file_info",
        Reply::Watching { .. } => "watching",
        Reply::Changes(_) => "changes",
        Reply::Done => "done",
        Reply::Error { .. } => "error",
        Reply::Connected => "connected",
        Reply::End => "end",
        Reply::Listeners(_) => "listeners",
        Reply::Job(_) => "job",
        Reply::Jobs(_) => "jobs",
        Reply::Position { .. } => "position",
        Reply::Terminal(_) => "terminal",
        Reply::Terminals(_) => "terminals",
    };
    AgentError::Unexpected { request, reply }
}

#[cfg(test)]
pub(crate) mod tests;
