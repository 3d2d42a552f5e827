//! What changes in a directory of the guest, as a stream.
//!
//! A task carries the watch's connection. When nobody takes the changes it stops reading; the agent then counts what it
//! cannot keep, and says so at that place. Dropping the stream ends the watch in the guest.

use std::pin::Pin;
use std::task::{Context, Poll};

use cove_protocol::guest::{Change, Reply, Request};
use futures_util::Stream;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::{Agent, AgentError, unexpected};
use crate::error::Error;

/// Frames of changes that wait for their taker.
const FRAMES_QUEUED_MAX: usize = 8;

/// How long the agent may take to look at all directories before it tells of changes.
const BEGIN_DEADLINE: std::time::Duration = std::time::Duration::from_secs(300);

/// The changes below a directory, some at a time, in their order. Ends when the directory is gone; the last item is an error
/// when it ends otherwise.
#[derive(Debug)]
pub struct FileChanges {
    /// How many directories were looked at when it began.
    pub directories: u64,
    frames: mpsc::Receiver<Result<Vec<Change>, Error>>,
}

impl Stream for FileChanges {
    type Item = Result<Vec<Change>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.poll_recv(context)
    }
}

impl Agent {
    /// Watches a directory and, if `recursive`, all below it.
    pub(crate) async fn watch(&self, path: &str, recursive: bool) -> Result<FileChanges, Error> {
        let (opened, path) = (self.shared.pool.open().await, path.to_owned());
        let begun = self.begin(opened, &Request::Watch { path, recursive }, BEGIN_DEADLINE).await?;
        let (connection, directories) = match begun {
            (connection, Reply::Watching { directories }) => (connection, directories),
            (_, other) => return Err(self.explain(unexpected("watch", &other)).await),
        };
        let (sender, frames) = mpsc::channel(FRAMES_QUEUED_MAX);
        self.pass_on(sender.clone(), pass_changes(connection, sender));
        Ok(FileChanges { directories, frames })
    }
}

/// Passes changes on until the directory is gone; `Some` is the agent's refusal to go on.
async fn pass_changes(
    mut connection: Connection,
    frames: mpsc::Sender<Result<Vec<Change>, Error>>,
) -> Result<Option<Error>, AgentError> {
    loop {
        // Nothing may happen for as long as it likes.
        let reply = connection.framed.reader.read().await;
        match reply.map_err(|source| AgentError::Frame { request: "watch", source })? {
            Some(Reply::Changes(changes)) => {
                // A closed channel ends this future through its caller.
                let _ = frames.send(Ok(changes)).await;
            }
            Some(Reply::Done) => {
                connection.give_back();
                return Ok(None);
            }
            Some(Reply::Error { kind, message }) => {
                connection.give_back();
                return Ok(Some(Error::Guest { kind, message }));
            }
            Some(other) => return Err(unexpected("watch", &other)),
            None => return Err(AgentError::Closed("watch")),
        }
    }
}
