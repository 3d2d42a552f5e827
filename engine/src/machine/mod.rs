//! One machine as the engine sees it: a `vmm` process, its control socket, its end.
//!
//! The process outlives the server. What is lost with a server is only its view: [`Machine::attach`] gives it back.

pub(crate) mod process;

pub(crate) mod control;

pub(crate) mod log;

#[cfg(test)]
pub(crate) mod mock;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use cove_protocol::frame::FrameError;
use cove_protocol::vmm::{
    ErrorKind, ExitReason, MachineSpec, Request, RestoreSpec, SnapshotFigures, SnapshotSpec, Stats,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use self::control::{Control, Started};
use self::process::{Process, ProcessEnd};
use crate::db::MachineRow;
use crate::host::Tools;

/// How long a killed process may take to be gone; the kernel has to give back its memory first.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// How long a stopped process may take to be gone.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How long the reason that a vmm gives may come after its end.
const REASON_DEADLINE: Duration = Duration::from_millis(200);

/// Why a machine could not be started or asked something.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The process could not be started.
    #[error("Cannot start {program}")]
    Spawn {
        /// The vmm binary.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file or socket of the machine cannot be used.
    #[error("Cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The process does not take control connections.
    #[error("The control socket {path} does not accept a connection")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A control frame could not be read or written.
    #[error("A control frame of '{request}' failed")]
    Frame {
        /// The request.
        request: &'static str,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// The machine refused or failed the request.
    #[error("The machine refused '{request}': {message}")]
    Refused {
        /// The request.
        request: &'static str,
        /// What kind of failure.
        kind: ErrorKind,
        /// The vmm's sentence.
        message: String,
    },
    /// The vmm answered something that does not belong there.
    #[error("The machine answered '{request}' with an unexpected {reply}")]
    Unexpected {
        /// The request.
        request: &'static str,
        /// The reply's name.
        reply: &'static str,
    },
    /// The vmm speaks another version of the protocol.
    #[error("The vmm speaks protocol version {vmm}, this server speaks version {engine}; rebuild both")]
    Version {
        /// The vmm's version.
        vmm: u32,
        /// Ours.
        engine: u32,
    },
    /// Nothing came for too long.
    #[error("The machine did not do '{request}' within {seconds} s")]
    Deadline {
        /// The request.
        request: &'static str,
        /// How long the engine waited.
        seconds: u64,
    },
    /// The process ended.
    #[error("{0}")]
    Exited(String),
}

impl MachineError {
    /// The vmm's kind of failure, if it answered with one.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        match self {
            MachineError::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }
}

/// A machine's process and sockets.
#[derive(Debug)]
pub(crate) struct Machine {
    process: Process,
    control: PathBuf,
    vmm_log: PathBuf,
    console_log: PathBuf,
    /// What the vmm says about its end; closed without a value when it says nothing.
    reason: watch::Receiver<Option<ExitReason>>,
    reason_sender: watch::Sender<Option<ExitReason>>,
}

/// Where a machine's files are.
#[derive(Clone, Debug)]
pub(crate) struct MachineFiles {
    pub(crate) control: PathBuf,
    pub(crate) vmm_log: PathBuf,
    pub(crate) console_log: PathBuf,
}

impl Machine {
    /// Starts the process; `start` or `restore` is to follow.
    pub(crate) fn spawn(tools: &Tools, files: MachineFiles) -> Result<Self, MachineError> {
        let process = Process::spawn(tools, &files.control, &files.vmm_log)?;
        Ok(Self::of(process, files))
    }

    /// The machine that an earlier server started, if its process is alive.
    pub(crate) fn attach(identity: MachineRow, files: MachineFiles) -> io::Result<Option<Self>> {
        Ok(Process::attach(identity, &files.control)?.map(|process| Self::of(process, files)))
    }

    fn of(process: Process, files: MachineFiles) -> Self {
        let (reason_sender, reason) = watch::channel(None);
        let MachineFiles { control, vmm_log, console_log } = files;
        Self { process, control, vmm_log, console_log, reason, reason_sender }
    }

    /// Boots the machine and begins to listen for what it says of its end.
    pub(crate) async fn start(&self, spec: MachineSpec) -> Result<Started, MachineError> {
        let started = self.or_ended(async {
            let mut control = Control::connect(&self.control).await?;
            control.start(spec).await
        });
        let started = started.await?;
        self.listen_for_the_end().await?;
        Ok(started)
    }

    /// Makes the machine from a capture, and begins to listen for what it says of its end.
    pub(crate) async fn restore(&self, spec: RestoreSpec) -> Result<Started, MachineError> {
        let started = self.or_ended(async {
            let mut control = Control::connect(&self.control).await?;
            control.restore(spec).await
        });
        let started = started.await?;
        self.listen_for_the_end().await?;
        Ok(started)
    }

    /// Captures the machine.
    pub(crate) async fn snapshot(&self, spec: SnapshotSpec) -> Result<SnapshotFigures, MachineError> {
        self.or_ended(async { Control::connect(&self.control).await?.snapshot(spec).await }).await
    }

    /// Lets the vCPUs stand still.
    pub(crate) async fn pause(&self) -> Result<(), MachineError> {
        self.or_ended(async { Control::connect(&self.control).await?.tell("pause", &Request::Pause).await }).await
    }

    /// Lets the vCPUs go on.
    pub(crate) async fn resume(&self) -> Result<(), MachineError> {
        self.or_ended(async { Control::connect(&self.control).await?.tell("resume", &Request::Resume).await }).await
    }

    /// Lets the host's other processes go first, for the rest of its life.
    pub(crate) fn yield_to_others(&self) {
        self.process.yield_to_others();
    }

    /// Flushes the disks and ends the process; kills it when it does not do so by itself. Returns when it is gone.
    pub(crate) async fn stop(&self) -> Result<(), MachineError> {
        let told = async { Control::connect(&self.control).await?.tell("stop", &Request::Stop).await }.await;
        let gone = match told {
            Ok(()) => timeout(STOP_DEADLINE, self.process.ended()).await.is_ok(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a machine does not stop when it is told to");
                false
            }
        };
        if gone { Ok(()) } else { self.kill().await }
    }

    /// Begins to listen for what the machine says of its end.
    pub(crate) async fn listen_for_the_end(&self) -> Result<(), MachineError> {
        let ending = self.or_ended(async { Control::connect(&self.control).await?.subscribe().await }).await?;
        let sender = self.reason_sender.clone();
        tokio::spawn(async move {
            if let Some(reason) = ending.reason().await {
                sender.send_replace(Some(reason));
            }
        });
        Ok(())
    }

    /// `work`, or the reason why the process ended before it was done.
    pub(crate) async fn or_ended<T>(
        &self,
        work: impl Future<Output = Result<T, MachineError>>,
    ) -> Result<T, MachineError> {
        tokio::select! {
            result = work => match result {
                // A connection that breaks is mostly the first sign of the process's end, which says more.
                Err(error @ (MachineError::Connect { .. } | MachineError::Frame { .. })) => {
                    // Only its end is waited for here: what it said last has a deadline of its own.
                    match timeout(REASON_DEADLINE, self.process.ended()).await {
                        Ok(_) => Err(MachineError::Exited(self.ended().await)),
                        Err(_) => Err(error),
                    }
                }
                other => other,
            },
            reason = self.ended() => Err(MachineError::Exited(reason)),
        }
    }

    /// What to note in the database.
    pub(crate) fn identity(&self) -> MachineRow {
        self.process.identity()
    }

    /// The process ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Returns when the process ended, with a sentence about why: what the vmm said, how its process ended, and the last
    /// words of the log that says more.
    pub(crate) async fn ended(&self) -> String {
        let end = self.process.ended().await;
        let mut reason = self.reason.clone();
        let said = timeout(REASON_DEADLINE, reason.wait_for(Option::is_some)).await;
        let said = said.ok().and_then(Result::ok).and_then(|reason| reason.clone());
        sentence(said.as_ref(), end, &log::last_words(&self.vmm_log), &log::last_words(&self.console_log))
    }

    pub(crate) async fn stats(&self) -> Result<Stats, MachineError> {
        self.or_ended(async { Control::connect(&self.control).await?.stats().await }).await
    }

    pub(crate) async fn console_tail(&self, bytes_max: u32) -> Result<Vec<u8>, MachineError> {
        self.or_ended(async { Control::connect(&self.control).await?.console_tail(bytes_max).await }).await
    }

    /// Pulls the plug. Returns when the process is gone; nothing when it already is.
    pub(crate) async fn kill(&self) -> Result<(), MachineError> {
        self.process.kill();
        match timeout(KILL_DEADLINE, self.process.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MachineError::Deadline { request: "kill", seconds: KILL_DEADLINE.as_secs() }),
        }
    }
}

/// Lets one wait until a descriptor is readable.
#[expect(
    deprecated,
    reason = "the safe constructor is deprecated for types whose descriptor may change; an OwnedFd's cannot"
)]
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Why a machine ended, as one sentence. Where the guest failed its console says more, else the vmm's log does.
fn sentence(said: Option<&ExitReason>, end: ProcessEnd, vmm_log: &str, console: &str) -> String {
    let (text, (whose, words)) = match said {
        Some(ExitReason::Stopped) => ("the machine was stopped".to_owned(), ("", "")),
        Some(ExitReason::PowerOff) => ("the guest powered off".to_owned(), ("", "")),
        Some(ExitReason::Reset) => ("the guest asked for a reset".to_owned(), ("console", console)),
        Some(ExitReason::GuestFault(what)) => (format!("the guest failed: {what}"), ("console", console)),
        Some(ExitReason::HostFault(what)) => (format!("the machine failed: {what}"), ("vmm log", vmm_log)),
        None => (end.to_string(), ("vmm log", vmm_log)),
    };
    if words.is_empty() { text } else { format!("{text}; the end of its {whose}: {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_what_is_known() {
        let text = sentence(None, ProcessEnd::Signal(9), "last words", "c");
        assert_eq!(text, "the vmm process was killed by signal 9; the end of its vmm log: last words");
        assert_eq!(sentence(Some(&ExitReason::PowerOff), ProcessEnd::Code(0), "v", "c"), "the guest powered off");
        let fault = ExitReason::GuestFault("triple fault".into());
        assert_eq!(sentence(Some(&fault), ProcessEnd::Code(1), "v", ""), "the guest failed: triple fault");
        let text = sentence(Some(&ExitReason::Reset), ProcessEnd::Code(0), "v", "Kernel panic");
        assert_eq!(text, "the guest asked for a reset; the end of its console: Kernel panic");
    }
}
