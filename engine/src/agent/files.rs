//! Files through the agent: streamed in chunks, whatever their size.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cove_protocol::frame::FrameError;
use cove_protocol::guest::{CHUNK_BYTES_MAX, Entry, Input, Reply, Request};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::Connection;
use super::{Agent, AgentError, Final, REPLY_DEADLINE, unexpected};
use crate::error::{BoxError, Error};
use crate::framed::FrameWriter;
use crate::sandbox::Active;

/// Chunks of a file that wait for their taker.
const CHUNKS_QUEUED_MAX: usize = 4;

/// How long after a broken connection its last words may come.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(1);

/// Most entries of one listing that are held.
const ENTRIES_MAX: usize = 100_000;

/// The bytes of a file as a stream; ends early with an error when the file cannot be read to its end.
#[derive(Debug)]
pub struct FileStream {
    chunks: mpsc::Receiver<Result<Bytes, Error>>,
    /// The sandbox is not idle while it is read.
    active: Option<Active>,
}

impl FileStream {
    /// Keeps the sandbox from being idle for as long as this lives.
    pub(crate) fn keeping(mut self, active: Active) -> Self {
        self.active = Some(active);
        self
    }
}

impl Stream for FileStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(context)
    }
}

impl Agent {
    pub(crate) async fn read_file(&self, path: &str) -> Result<(Entry, FileStream), Error> {
        let opened = self.shared.pool.open().await;
        match self.begin(opened, &Request::ReadFile { path: path.to_owned() }, REPLY_DEADLINE).await? {
            (connection, Reply::FileInfo(entry)) => Ok((entry, self.stream("read_file", connection, None))),
            (_, other) => Err(self.explain(unexpected("read_file", &other)).await),
        }
    }

    /// Packs paths into one tar archive.
    pub(crate) async fn archive(&self, paths: &[String]) -> Result<FileStream, Error> {
        let opened = self.shared.pool.open().await;
        match self.begin(opened, &Request::Archive { paths: paths.to_vec() }, REPLY_DEADLINE).await? {
            (connection, Reply::Data(data)) => {
                Ok(self.stream("archive", connection, Some(Bytes::from(data.into_vec()))))
            }
            (_, other) => Err(self.explain(unexpected("archive", &other)).await),
        }
    }

    /// The bytes that come on a connection, after those that came already.
    fn stream(&self, name: &'static str, connection: Connection, first: Option<Bytes>) -> FileStream {
        let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED_MAX);
        self.pass_on(sender.clone(), pass_chunks(name, connection, first, sender));
        FileStream { chunks, active: None }
    }

    /// Writes a file, all or nothing; returns its length in bytes.
    pub(crate) async fn write_file<S>(&self, path: &str, mode: u32, content: S) -> Result<u64, Error>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        match self.send_file(path, mode, content).await {
            Ok(bytes) => Ok(bytes),
            Err(WriteError::Refused(error)) => Err(error),
            Err(WriteError::Agent(error)) => Err(self.explain(error).await),
            Err(WriteError::Content(source)) => {
                Err(Error::Upload { id: self.shared.sandbox.clone(), path: path.to_owned(), source })
            }
        }
    }

    async fn send_file<S>(&self, path: &str, mode: u32, content: S) -> Result<u64, WriteError>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        const NAME: &str = "write_file";
        let mut connection = self.shared.pool.open().await?;
        connection.send(NAME, &Request::WriteFile { path: path.to_owned(), mode }).await?;
        // The agent may refuse before all is sent, and then takes no more.
        let sent = tokio::select! {
            reply = connection.framed.reader.read::<Reply>() => Err(reply),
            sent = send_content(&mut connection.framed.writer, content) => match sent {
                // Closed: the refusal may have come just before.
                Err(WriteError::Agent(error)) => match connection.receive(NAME, REFUSAL_DEADLINE).await {
                    Ok(reply @ Reply::Error { .. }) => Err(Ok(Some(reply))),
                    _ => return Err(error.into()),
                },
                other => Ok(other?),
            },
        };
        let (bytes, reply) = match sent {
            Ok(bytes) => (Some(bytes), connection.receive(NAME, REPLY_DEADLINE).await?),
            Err(Ok(Some(reply))) => (None, reply),
            Err(Ok(None)) => return Err(AgentError::Closed(NAME).into()),
            Err(Err(source)) => return Err(AgentError::Frame { request: NAME, source }.into()),
        };
        match (bytes, reply) {
            (Some(bytes), Reply::Done) => {
                connection.give_back();
                Ok(bytes)
            }
            (_, Reply::Error { kind, message }) => Err(WriteError::Refused(Error::Guest { kind, message })),
            (_, other) => Err(unexpected(NAME, &other).into()),
        }
    }

    pub(crate) async fn list(&self, path: &str, depth: u32) -> Result<Vec<Entry>, Error> {
        match self.receive_list(path, depth).await {
            Ok(result) => result,
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn receive_list(&self, path: &str, depth: u32) -> Result<Result<Vec<Entry>, Error>, AgentError> {
        let mut connection = self.shared.pool.open().await?;
        connection.send("list", &Request::List { path: path.to_owned(), depth }).await?;
        let mut all = Vec::new();
        loop {
            match connection.receive("list", REPLY_DEADLINE).await? {
                Reply::Entries(entries) => all.extend(entries),
                Reply::Done => {
                    connection.give_back();
                    return Ok(Ok(all));
                }
                Reply::Error { kind, message } => {
                    connection.give_back();
                    return Ok(Err(Error::Guest { kind, message }));
                }
                other => return Err(unexpected("list", &other)),
            }
            if all.len() > ENTRIES_MAX {
                return Err(AgentError::TooManyEntries { max: ENTRIES_MAX });
            }
        }
    }

    pub(crate) async fn stat(&self, path: &str) -> Result<Entry, Error> {
        match self.ask(&Request::Stat { path: path.to_owned() }, REPLY_DEADLINE).await {
            Ok(Final::Reply(Reply::FileInfo(entry))) => Ok(entry),
            other => Err(self.refused("stat", other).await),
        }
    }

    pub(crate) async fn make_dir(&self, path: &str) -> Result<(), Error> {
        self.ask_for_done(&Request::MakeDir { path: path.to_owned() }).await
    }

    pub(crate) async fn remove(&self, path: &str, recursive: bool) -> Result<(), Error> {
        self.ask_for_done(&Request::Remove { path: path.to_owned(), recursive }).await
    }

    pub(crate) async fn move_path(&self, from: &str, to: &str) -> Result<(), Error> {
        self.ask_for_done(&Request::Move { from: from.to_owned(), to: to.to_owned() }).await
    }
}

/// Why a file was not written.
enum WriteError {
    Refused(Error),
    Agent(AgentError),
    Content(BoxError),
}

impl From<AgentError> for WriteError {
    fn from(error: AgentError) -> Self {
        WriteError::Agent(error)
    }
}

/// Passes chunks on to their end, after the one that came already; `Some` is the agent's refusal to go on.
async fn pass_chunks(
    name: &'static str,
    mut connection: Connection,
    first: Option<Bytes>,
    chunks: mpsc::Sender<Result<Bytes, Error>>,
) -> Result<Option<Error>, AgentError> {
    if let Some(first) = first {
        let _ = chunks.send(Ok(first)).await;
    }
    loop {
        match connection.receive(name, REPLY_DEADLINE).await? {
            Reply::Data(data) => {
                // A closed channel ends this future through its caller.
                let _ = chunks.send(Ok(Bytes::from(data.into_vec()))).await;
            }
            Reply::Done => {
                connection.give_back();
                return Ok(None);
            }
            Reply::Error { kind, message } => {
                connection.give_back();
                return Ok(Some(Error::Guest { kind, message }));
            }
            other => return Err(unexpected(name, &other)),
        }
    }
}

/// Sends a file's bytes and its end; returns how many they were.
async fn send_content<S>(writer: &mut FrameWriter, content: S) -> Result<u64, WriteError>
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send,
{
    let mut content = pin!(content);
    let mut bytes = 0;
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(WriteError::Content)?;
        for chunk in piece.chunks(CHUNK_BYTES_MAX) {
            send_input(writer, &Input::Data(chunk.to_vec().into())).await?;
        }
        bytes += piece.len() as u64;
    }
    send_input(writer, &Input::End).await?;
    Ok(bytes)
}

async fn send_input(writer: &mut FrameWriter, input: &Input) -> Result<(), AgentError> {
    let failed = |source: FrameError| AgentError::Frame { request: "write_file", source };
    match timeout(REPLY_DEADLINE, writer.write(input)).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(AgentError::Deadline { request: "write_file", seconds: REPLY_DEADLINE.as_secs() }),
    }
}
