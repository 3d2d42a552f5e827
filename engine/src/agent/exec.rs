//! Running a command through the agent.
//!
//! A task of its own carries each command's connection, so that input and output flow at the same time. Output is passed
//! on through a short channel: when nobody takes it, the task stops reading, and the guest's pipe fills.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cove_protocol::guest::{self, CHUNK_BYTES_MAX, Exec, Exit, Input, Reply, Request};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::connection::Connection;
use super::{Agent, AgentError, REPLY_DEADLINE, unexpected};
use crate::error::Error;
use crate::framed::{FrameReader, FrameWriter};

/// Events that wait for their taker.
const EVENTS_QUEUED_MAX: usize = 8;

/// Inputs that wait for the guest.
const INPUTS_QUEUED_MAX: usize = 8;

/// How long after a command's timeout the agent may take to kill it and say so.
const TIMEOUT_GRACE: Duration = Duration::from_secs(30);

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
    Exited(Exit),
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
    events: mpsc::Receiver<Result<ExecEvent, Error>>,
}

impl Stream for ExecOutput {
    type Item = Result<ExecEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

/// The way into a command; clones speak to the same command. Each call tells whether the command still took it.
#[derive(Clone, Debug)]
pub struct ExecInput {
    inputs: mpsc::Sender<Input>,
    stdin: bool,
}

impl ExecInput {
    /// Bytes for standard input, of any length. Returns once they are queued; false when the command ended or was
    /// started without standard input.
    pub async fn data(&self, bytes: Bytes) -> bool {
        for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
            if !self.stdin || self.inputs.send(Input::Data(chunk.to_vec().into())).await.is_err() {
                return false;
            }
        }
        self.stdin
    }

    /// Closes standard input; false as for [`ExecInput::data`].
    pub async fn end(&self) -> bool {
        self.stdin && self.inputs.send(Input::End).await.is_ok()
    }

    /// Sends a signal number to the command's process group; false when the command ended.
    pub async fn signal(&self, number: i32) -> bool {
        self.inputs.send(Input::Signal(number)).await.is_ok()
    }
}

impl Agent {
    /// Starts a command. `on_end` is called once, with the exit if there was one.
    pub(crate) async fn exec(
        &self,
        exec: Exec,
        on_end: impl FnOnce(Option<Exit>) + Send + 'static,
    ) -> Result<Execution, Error> {
        let stdin = exec.stdin;
        let deadline = exec
            .timeout_ms
            .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms).saturating_add(TIMEOUT_GRACE)));
        let opened = self.shared.pool.open().await;
        let (connection, pid) = match self.begin(opened, &Request::Exec(Box::new(exec)), REPLY_DEADLINE).await? {
            (connection, Reply::Started { pid }) => (connection, pid),
            (_, other) => return Err(self.explain(unexpected("exec", &other)).await),
        };
        let (event_sender, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let (inputs, input_receiver) = mpsc::channel(INPUTS_QUEUED_MAX);
        let agent = self.clone();
        let task = async move {
            let exit = agent.carry(connection, input_receiver, &event_sender, deadline).await;
            on_end(exit.as_ref().ok().and_then(|exit| *exit));
            let last = match exit {
                Ok(Some(exit)) => Ok(ExecEvent::Exited(exit)),
                // Nobody listens any more.
                Ok(None) => return,
                Err(error) => Err(agent.explain(error).await),
            };
            let _ = event_sender.send(last).await;
        };
        tokio::spawn(task.in_current_span());
        Ok(Execution { pid, output: ExecOutput { events }, input: ExecInput { inputs, stdin } })
    }

    /// Carries a command's connection to the command's end; `None` when nobody listens any more, which closes the
    /// connection, and the agent then kills the command.
    async fn carry(
        &self,
        mut connection: Connection,
        inputs: mpsc::Receiver<Input>,
        events: &mpsc::Sender<Result<ExecEvent, Error>>,
        deadline: Option<Instant>,
    ) -> Result<Option<Exit>, AgentError> {
        let mut input_sent = false;
        let exit = tokio::select! {
            exit = read_events(&mut connection.framed.reader, events) => exit?,
            () = write_inputs(&mut connection.framed.writer, inputs, &mut input_sent) => None,
            () = events.closed() => None,
            () = until(deadline) => {
                return Err(AgentError::Deadline { request: "exec", seconds: TIMEOUT_GRACE.as_secs() });
            }
        };
        // An input on its way when the command ended would be taken for the next request.
        if exit.is_some() && !input_sent {
            connection.give_back();
        }
        Ok(exit)
    }
}

/// Passes events on until the exit; `None` when nobody listens any more.
async fn read_events(
    reader: &mut FrameReader,
    events: &mpsc::Sender<Result<ExecEvent, Error>>,
) -> Result<Option<Exit>, AgentError> {
    loop {
        let reply = reader.read().await.map_err(|source| AgentError::Frame { request: "exec", source })?;
        match reply {
            Some(Reply::Output { stream, data }) => {
                let data = Bytes::from(data.into_vec());
                if events.send(Ok(ExecEvent::Output { stream, data })).await.is_err() {
                    return Ok(None);
                }
            }
            Some(Reply::Exited(exit)) => return Ok(Some(exit)),
            Some(other) => return Err(unexpected("exec", &other)),
            None => return Err(AgentError::Closed("exec")),
        }
    }
}

/// Passes inputs on for as long as there are any; never returns, since the end is what the reader sees.
async fn write_inputs(writer: &mut FrameWriter, mut inputs: mpsc::Receiver<Input>, sent: &mut bool) {
    while let Some(input) = inputs.recv().await {
        *sent = true;
        if writer.write(&input).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
