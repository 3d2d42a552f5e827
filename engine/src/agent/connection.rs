//! Connections to an agent: the handshake with the vmm, the pool of those at rest, the bound on those in use.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_protocol::guest::{Reply, Request};
use cove_protocol::vmm::AGENT_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::{AgentError, REPLY_DEADLINE};
use crate::framed::Framed;

/// Operations at one time. With the streams and the connections at rest this stays within the 192 that an agent takes.
const OPERATIONS_MAX: usize = 60;

/// Streams to ports at one time, counted apart: a page with many connections must not keep commands from running.
const STREAMS_MAX: usize = 128;

/// Connections kept at rest: as many as callers that ask at once, since a new one costs a guest more than a short request.
const IDLE_MAX: usize = 16;

/// How many times its deadline a request may wait in all, while the agent answers others.
const DEADLINES_MAX: u32 = 5;

/// How long an operation waits for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// How long the guest may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// Longest answer to `CONNECT`: `OK <u32>\n`.
const ANSWER_BYTES_MAX: usize = 32;

/// The connections to one agent.
#[derive(Debug)]
pub(super) struct Pool {
    socket: PathBuf,
    idle: Arc<Mutex<Vec<Framed>>>,
    turns: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    heard: Arc<Mutex<Instant>>,
}

/// A connection that carries one operation. Dropped, it is closed, unless it was given back.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) framed: Framed,
    idle: Arc<Mutex<Vec<Framed>>>,
    /// When the agent last said something, on whichever connection.
    heard: Arc<Mutex<Instant>>,
    _turn: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(socket: PathBuf) -> Self {
        let (turns, streams) = (Semaphore::new(OPERATIONS_MAX), Semaphore::new(STREAMS_MAX));
        let heard = Arc::new(Mutex::new(Instant::now()));
        Self { socket, idle: Arc::default(), turns: Arc::new(turns), streams: Arc::new(streams), heard }
    }

    /// A connection at rest, or a new one.
    pub(super) async fn open(&self) -> Result<Connection, AgentError> {
        self.open_within(&self.turns, OPERATIONS_MAX).await
    }

    /// As [`Pool::open`], for a stream to a port.
    pub(super) async fn open_stream(&self) -> Result<Connection, AgentError> {
        self.open_within(&self.streams, STREAMS_MAX).await
    }

    async fn open_within(&self, turns: &Arc<Semaphore>, operations: usize) -> Result<Connection, AgentError> {
        let busy = || AgentError::Busy { operations, seconds: TURN_DEADLINE.as_secs() };
        let turn = timeout(TURN_DEADLINE, Arc::clone(turns).acquire_owned()).await;
        // The semaphore is never closed.
        let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let framed = match self.take_idle() {
            Some(framed) => framed,
            None => connect(&self.socket).await?,
        };
        Ok(Connection { framed, idle: Arc::clone(&self.idle), heard: Arc::clone(&self.heard), _turn: turn })
    }

    fn take_idle(&self) -> Option<Framed> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|framed| framed.reader.is_at_rest())
    }
}

impl Connection {
    /// The operation ended cleanly: the connection may carry the next one.
    pub(super) fn give_back(self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(self.framed);
        }
    }

    pub(super) async fn send(&mut self, name: &'static str, request: &Request) -> Result<(), AgentError> {
        match timeout(REPLY_DEADLINE, self.framed.writer.write(request)).await {
            Ok(result) => result.map_err(|source| AgentError::Frame { request: name, source }),
            Err(_) => Err(AgentError::Deadline { request: name, seconds: REPLY_DEADLINE.as_secs() }),
        }
    }

    /// The next reply. An agent that answers others is only busy, and is waited for longer than one that says nothing.
    pub(super) async fn receive(&mut self, name: &'static str, within: Duration) -> Result<Reply, AgentError> {
        let asked = Instant::now();
        let mut reading = pin!(self.framed.reader.read());
        let mut deadline = asked + within;
        let read = loop {
            if let Ok(read) = timeout_at(deadline, &mut reading).await {
                break read;
            }
            let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let later = (heard + within).min(asked + within * DEADLINES_MAX);
            if later <= deadline {
                return Err(AgentError::Deadline { request: name, seconds: asked.elapsed().as_secs() });
            }
            deadline = later;
        };
        match read {
            Ok(Some(reply)) => {
                *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(reply)
            }
            Ok(None) => Err(AgentError::Closed(name)),
            Err(source) => Err(AgentError::Frame { request: name, source }),
        }
    }
}

/// Asks the vmm for a stream to the agent (`protocol::vmm::VsockSpec`).
async fn connect(socket: &Path) -> Result<Framed, AgentError> {
    let handshake = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            let mut bytes = [0; ANSWER_BYTES_MAX];
            let count = stream.read(&mut bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            answer.extend_from_slice(&bytes[..count]);
            if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
                if !answer.starts_with(b"OK ") {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                return Ok(Framed::new(stream, &answer[end + 1..]));
            }
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
        }
    };
    match timeout(CONNECT_DEADLINE, handshake).await {
        Ok(result) => result.map_err(AgentError::Connect),
        Err(_) => Err(AgentError::Connect(io::ErrorKind::TimedOut.into())),
    }
}
