//! `Error`: what a caller of the engine can be told. One variant per kind of answer, HTTP-free.
//!
//! A message is a sentence with the values in it; its cause is the `#[source]` and is not repeated in the text. The API
//! turns variants into statuses and codes and prints the chain of causes once, into the log.

use std::path::PathBuf;

use cove_protocol::guest;

use crate::sandbox::{SandboxId, SandboxState};

/// An error of a stream that a caller gave, such as the body of an upload.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why the engine said no, or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is wrong; the caller can fix it.
    #[error("{message}")]
    Invalid {
        /// The field's name in the API.
        field: &'static str,
        /// A sentence with the value and what is allowed.
        message: String,
    },
    /// No sandbox has this id or name.
    #[error("There is no sandbox '{0}'")]
    SandboxNotFound(String),
    /// The sandbox was destroyed; only its record is left.
    #[error("Sandbox {0} was destroyed")]
    SandboxDestroyed(SandboxId),
    /// No snapshot has this id or name.
    #[error("There is no snapshot '{0}'")]
    SnapshotNotFound(String),
    /// Another snapshot has the name.
    #[error("The name '{name}' is taken by snapshot {holder}")]
    SnapshotNameTaken {
        /// The name that was asked for.
        name: String,
        /// Who has it.
        holder: crate::snapshot::SnapshotId,
    },
    /// The snapshot cannot be deleted as long as something needs it.
    #[error("Snapshot {id} is in use: {reason}")]
    SnapshotInUse {
        /// Which snapshot.
        id: crate::snapshot::SnapshotId,
        /// By what, and what to do.
        reason: String,
    },
    /// The host's file system has no room for what was asked; the sandbox is as it was.
    #[error(
        "The host's disk is full: {operation} of sandbox {id} was taken back, and the sandbox is as it was. Free some \
             space and try again"
    )]
    NoSpace {
        /// Which sandbox.
        id: SandboxId,
        /// What was asked, as words ("the pause").
        operation: &'static str,
        /// What said so.
        #[source]
        source: BoxError,
    },
    /// The call was cut off, because the sandbox's machine was ended on purpose.
    #[error("Sandbox {id} was {by} during this call")]
    Interrupted {
        /// Which sandbox.
        id: SandboxId,
        /// What was done with it ("paused").
        by: &'static str,
    },
    /// A preview or share cannot be made or found.
    #[error(transparent)]
    Preview(#[from] crate::preview::PreviewError),
    /// No batch has this id.
    #[error("There is no batch '{0}'")]
    BatchNotFound(String),
    /// No template has this id, slug or alias.
    #[error("There is no template '{0}'")]
    TemplateNotFound(String),
    /// Another live sandbox has the name.
    #[error("The name '{name}' is taken by sandbox {holder}")]
    NameTaken {
        /// The name that was asked for.
        name: String,
        /// Who has it.
        holder: SandboxId,
    },
    /// The sandbox is not command-ready yet; asking again later makes sense.
    #[error("Sandbox {id} is still {state} after {waited_ms} ms")]
    NotReady {
        /// Which sandbox.
        id: SandboxId,
        /// Where it is in its life.
        state: SandboxState,
        /// How long this call waited for it, in milliseconds.
        waited_ms: u64,
    },
    /// The sandbox is in a state in which this cannot be done, now or by waiting.
    #[error("Sandbox {id} is {state}: {operation} is not possible")]
    WrongState {
        /// Which sandbox.
        id: SandboxId,
        /// Where it is in its life.
        state: SandboxState,
        /// What was asked, as words ("running a command").
        operation: &'static str,
    },
    /// The sandbox failed, before or during this call.
    #[error("Sandbox {id} failed: {reason}")]
    SandboxFailed {
        /// Which sandbox.
        id: SandboxId,
        /// What its record says in `last_error`.
        reason: String,
    },
    /// This host cannot run machines at all, or not yet.
    #[error("{problem}")]
    HostNotReady {
        /// What is missing and what to do about it.
        problem: String,
    },
    /// The host has no room for one more sandbox.
    #[error(transparent)]
    Admission(#[from] crate::sandbox::admission::AdmissionError),
    /// The agent refused or could not do an operation inside the sandbox.
    #[error("{message}")]
    Guest {
        /// What kind of failure.
        kind: guest::ErrorKind,
        /// The agent's sentence.
        message: String,
    },
    /// The connection to the agent failed.
    #[error("The agent of sandbox {id} cannot be reached")]
    Agent {
        /// Which sandbox.
        id: SandboxId,
        /// What happened on the connection.
        #[source]
        source: crate::agent::AgentError,
    },
    /// The machine process refused or failed a request.
    #[error("The machine of sandbox {id} failed")]
    Machine {
        /// Which sandbox.
        id: SandboxId,
        /// What happened.
        #[source]
        source: crate::machine::MachineError,
    },
    /// A layer for the sandbox could not be made.
    #[error("The disk of sandbox {id} failed")]
    Disk {
        /// Which sandbox.
        id: SandboxId,
        /// What happened.
        #[source]
        source: crate::disk::DiskError,
    },
    /// The sandbox could not be woken; it stays paused.
    #[error("Sandbox {id} could not be resumed, and stays paused")]
    ResumeFailed {
        /// Which sandbox.
        id: SandboxId,
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// A chain of layers could not be made shorter; it is used as it is.
    #[error("A chain of layers could not be flattened")]
    Flatten {
        /// What happened.
        #[source]
        source: crate::disk::DiskError,
    },
    /// The prepared machine of a template could not be made.
    #[error("The template's machine could not be prepared")]
    WarmFailed {
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// The stream that a caller gave failed before its end; nothing was written.
    #[error("The upload to '{path}' in sandbox {id} broke off")]
    Upload {
        /// Which sandbox.
        id: SandboxId,
        /// Where the file should have gone.
        path: String,
        /// The stream's error.
        #[source]
        source: BoxError,
    },
    /// Another process uses the data directory.
    #[error("{directory} is in use by process {pid} since {since}{}", port.map(|p| format!(" (port {p})")).unwrap_or_default())]
    DataDirLocked {
        /// The data directory.
        directory: PathBuf,
        /// The process that holds it.
        pid: u32,
        /// Since when, ISO 8601.
        since: String,
        /// The port on which it serves, once it said so.
        port: Option<u16>,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// SQLite failed.
    #[error(transparent)]
    Database(#[from] crate::db::DbError),
    /// A file or directory of the engine's own could not be used.
    #[error("Cannot {action} {path}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The engine is shutting down and takes no new work.
    #[error("The server is shutting down")]
    ShuttingDown,
}

impl Error {
    /// The field that is wrong, for [`Error::Invalid`].
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Error::Invalid { field, .. } => Some(field),
            _ => None,
        }
    }

    /// The host's disk is full.
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            Error::NoSpace { .. } => true,
            Error::File { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Error::Database(error) => error.is_no_space(),
            Error::Disk { source: crate::disk::DiskError::Copy { source, .. }, .. } => source.is_no_space(),
            _ => false,
        }
    }

    /// A wrong field and a sentence about it.
    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Error::Invalid { field, message: message.into() }
    }

    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::File { action, path, source }
    }
}
