//! The client of the agent inside a machine: exec and files over the machine's vsock socket.
//!
//! One connection carries one operation at a time (`protocol::guest`). A connection whose operation ended cleanly goes
//! back to a small pool, since a new stream costs the guest kernel work. Dropping an operation closes its connection,
//! and that cancels it in the guest. The guest is hostile: frames are bounded, and every reply that does not fit the
//! request is an error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use cove_protocol::frame::FrameError;
use cove_protocol::guest;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::error::Error;

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
    #[error("The agent answered '{request}' with an unexpected {reply}")]
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
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote something. Order is kept within a stream.
    Output {
        /// Which stream.
        stream: guest::Stream,
        /// The bytes.
        data: Bytes,
    },
    /// It ended; always the last event.
    Exited(guest::Exit),
}

/// A running command. Dropping its `output` before the end kills it.
#[derive(Debug)]
pub struct Execution {
    /// Its process id in the guest.
    pub pid: i32,
    /// What it writes, and its end.
    pub output: ExecOutput,
    /// Its standard input, and signals.
    pub input: ExecInput,
}

/// The events of a command as a stream: any number of outputs, then one exit or one error.
#[derive(Debug)]
pub struct ExecOutput {
    pub(crate) events: mpsc::Receiver<Result<ExecEvent, Error>>,
}

impl Stream for ExecOutput {
    type Item = Result<ExecEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

/// The way into a command; clones speak to the same command. Everything fails softly once the command ended.
#[derive(Clone, Debug)]
pub struct ExecInput {
    pub(crate) inputs: mpsc::Sender<guest::Input>,
}

impl ExecInput {
    /// Bytes for standard input, in chunks of any size. Returns once they are queued; false when the command ended.
    pub async fn data(&self, bytes: Bytes) -> bool {
        for chunk in bytes.chunks(guest::CHUNK_BYTES_MAX) {
            if self.inputs.send(guest::Input::Data(chunk.to_vec().into())).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Closes standard input; false when the command ended.
    pub async fn end(&self) -> bool {
        self.inputs.send(guest::Input::End).await.is_ok()
    }

    /// Sends a signal number to the command's process group; false when the command ended.
    pub async fn signal(&self, number: i32) -> bool {
        self.inputs.send(guest::Input::Signal(number)).await.is_ok()
    }
}

/// The bytes of a file as a stream; ends early with an error when the file cannot be read to its end.
#[derive(Debug)]
pub struct FileStream {
    pub(crate) chunks: mpsc::Receiver<Result<Bytes, Error>>,
}

impl Stream for FileStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(context)
    }
}
