//! Terminal sessions through the agent: open, list, close, and look at one.
//!
//! A client's connection is carried by a task of its own. When nobody takes the output, the task stops reading, and after
//! it the agent, the terminal and at last the program in it wait.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use cove_protocol::guest::{
    AttachTerminal, CHUNK_BYTES_MAX, Exit, Input, OpenTerminal, Reply, Request, TerminalInfo, WindowSize,
};
use futures_util::Stream;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::connection::Connection;
use super::{Agent, AgentError, Final, REPLY_DEADLINE, unexpected};
use crate::error::Error;
use crate::framed::{FrameReader, FrameWriter};

/// Events that wait for their taker, each at most a chunk.
const EVENTS_QUEUED_MAX: usize = 2;

/// Inputs that wait for the guest.
const INPUTS_QUEUED_MAX: usize = 4;

/// What a terminal does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TerminalEvent {
    /// It wrote something. What comes first draws the screen as it was.
    Output(Bytes),
    /// Its program ended; always the last event.
    Exited(Exit),
}

/// A client's view of a session. Dropping `output` leaves the session alone.
#[derive(Debug)]
pub struct Terminal {
    /// The session when it was looked at.
    pub info: TerminalInfo,
    /// What it writes, and its end.
    pub output: TerminalOutput,
    /// What is typed, and its size.
    pub input: TerminalInput,
}

/// The events of a terminal as a stream: any number of outputs, then one exit or one error.
#[derive(Debug)]
pub struct TerminalOutput {
    events: mpsc::Receiver<Result<TerminalEvent, Error>>,
}

impl Stream for TerminalOutput {
    type Item = Result<TerminalEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

/// The way into a terminal; each call tells whether it was still taken.
#[derive(Clone, Debug)]
pub struct TerminalInput {
    inputs: mpsc::Sender<Input>,
}

impl TerminalInput {
    /// What was typed. Returns once it is queued.
    pub async fn data(&self, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
            if self.inputs.send(Input::Data(chunk.to_vec().into())).await.is_err() {
                return false;
            }
        }
        true
    }

    /// The size that it has from now on; one that is not possible is ignored.
    pub async fn resize(&self, size: WindowSize) -> bool {
        self.inputs.send(Input::Resize(size)).await.is_ok()
    }
}

impl Agent {
    /// Opens a session.
    pub(crate) async fn open_terminal(&self, open: OpenTerminal) -> Result<TerminalInfo, Error> {
        match self.ask(&Request::OpenTerminal(Box::new(open)), REPLY_DEADLINE).await {
            Ok(Final::Reply(Reply::Terminal(terminal))) => Ok(terminal),
            other => Err(self.refused("open_terminal", other).await),
        }
    }

    /// The sessions whose shell runs, the oldest first.
    pub(crate) async fn terminals(&self) -> Result<Vec<TerminalInfo>, Error> {
        match self.ask(&Request::ListTerminals, REPLY_DEADLINE).await {
            Ok(Final::Reply(Reply::Terminals(terminals))) => Ok(terminals),
            other => Err(self.refused("list_terminals", other).await),
        }
    }

    /// Hangs up a session.
    pub(crate) async fn close_terminal(&self, session: u64) -> Result<(), Error> {
        self.ask_for_done(&Request::CloseTerminal { session }).await
    }

    /// Looks at a session.
    pub(crate) async fn attach_terminal(&self, attach: AttachTerminal) -> Result<Terminal, Error> {
        let opened = self.shared.pool.open_stream().await;
        let (connection, info) = match self.begin(opened, &Request::AttachTerminal(attach), REPLY_DEADLINE).await? {
            (connection, Reply::Terminal(info)) => (connection, info),
            (_, other) => return Err(self.explain(unexpected("attach_terminal", &other)).await),
        };
        let (sender, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let (inputs, input_receiver) = mpsc::channel(INPUTS_QUEUED_MAX);
        let agent = self.clone();
        let task = async move {
            let last = match carry(connection, input_receiver, &sender).await {
                Ok(Some(exit)) => Ok(TerminalEvent::Exited(exit)),
                // Nobody looks any more.
                Ok(None) => return,
                Err(error) => Err(agent.explain(error).await),
            };
            let _ = sender.send(last).await;
        };
        tokio::spawn(task.in_current_span());
        Ok(Terminal { info, output: TerminalOutput { events }, input: TerminalInput { inputs } })
    }
}

/// Carries a client's connection to the session's end; `None` when nobody looks any more. The connection is not used again:
/// input may be on its way.
async fn carry(
    mut connection: Connection,
    inputs: mpsc::Receiver<Input>,
    events: &mpsc::Sender<Result<TerminalEvent, Error>>,
) -> Result<Option<Exit>, AgentError> {
    tokio::select! {
        exit = read(&mut connection.framed.reader, events) => exit,
        () = write(&mut connection.framed.writer, inputs) => Ok(None),
        () = events.closed() => Ok(None),
    }
}

async fn read(
    reader: &mut FrameReader,
    events: &mpsc::Sender<Result<TerminalEvent, Error>>,
) -> Result<Option<Exit>, AgentError> {
    loop {
        let reply = reader.read().await.map_err(|source| AgentError::Frame { request: "attach_terminal", source })?;
        match reply {
            Some(Reply::Output { data, .. }) => {
                if events.send(Ok(TerminalEvent::Output(data.into_vec().into()))).await.is_err() {
                    return Ok(None);
                }
            }
            Some(Reply::Exited(exit)) => return Ok(Some(exit)),
            Some(other) => return Err(unexpected("attach_terminal", &other)),
            None => return Err(AgentError::Closed("attach_terminal")),
        }
    }
}

/// Passes inputs on for as long as there are any; never returns, since the end is what the reader sees.
async fn write(writer: &mut FrameWriter, mut inputs: mpsc::Receiver<Input>) {
    while let Some(input) = inputs.recv().await {
        if writer.write(&input).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}
