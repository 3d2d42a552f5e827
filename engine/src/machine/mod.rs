//! One machine as the engine sees it: a `vmm` process, its control socket, its end.

use std::io;
use std::path::PathBuf;

use cove_protocol::frame::FrameError;
use cove_protocol::vmm::ErrorKind;

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
