//! Jobs through the agent: start, list, act, and read what they write.
//!
//! A reader's connection is carried by a task of its own; the job runs on without it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use cove_protocol::guest::{self, FollowJob, JobAction, JobInfo, Reply, Request, StartJob};
use futures_util::Stream;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::{Agent, AgentError, Final, REPLY_DEADLINE, unexpected};
use crate::error::Error;

/// Events that wait for their taker.
const EVENTS_QUEUED_MAX: usize = 4;

/// What a reader of a job's output gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// The cursor of the output that comes next: always first, and again where output was overwritten before it was read.
    Position(u64),
    /// It wrote something.
    Output {
        /// Which stream.
        stream: guest::Stream,
        /// The bytes.
        data: Bytes,
    },
    /// There is no more, or nothing more was asked for; always the last event.
    End(JobInfo),
}

/// A job's output as a stream: events, then one end or one error. Dropping it leaves the job alone.
#[derive(Debug)]
pub struct JobOutput {
    events: mpsc::Receiver<Result<JobEvent, Error>>,
}

impl Stream for JobOutput {
    type Item = Result<JobEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

impl Agent {
    /// Starts a job.
    pub(crate) async fn start_job(&self, start: StartJob) -> Result<JobInfo, Error> {
        self.ask_for_job(&Request::StartJob(Box::new(start))).await
    }

    /// Does something with a job.
    pub(crate) async fn job(&self, pid: i32, action: JobAction) -> Result<JobInfo, Error> {
        self.ask_for_job(&Request::Job { pid, action }).await
    }

    /// All jobs that run, and the last ones that ended.
    pub(crate) async fn jobs(&self) -> Result<Vec<JobInfo>, Error> {
        match self.ask(&Request::ListJobs, REPLY_DEADLINE).await {
            Ok(Final::Reply(Reply::Jobs(jobs))) => Ok(jobs),
            other => Err(self.refused("list_jobs", other).await),
        }
    }

    async fn ask_for_job(&self, request: &Request) -> Result<JobInfo, Error> {
        match self.ask(request, REPLY_DEADLINE).await {
            Ok(Final::Reply(Reply::Job(job))) => Ok(job),
            other => Err(self.refused(request.name(), other).await),
        }
    }

    /// Reads a job's output.
    pub(crate) async fn follow_job(&self, follow: FollowJob) -> Result<JobOutput, Error> {
        let opened = self.shared.pool.open_stream().await;
        let (connection, position) = match self.begin(opened, &Request::FollowJob(follow), REPLY_DEADLINE).await? {
            (connection, Reply::Position { at }) => (connection, at),
            (_, other) => return Err(self.explain(unexpected("follow_job", &other)).await),
        };
        let (sender, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        self.pass_on(sender.clone(), read(connection, position, sender));
        Ok(JobOutput { events })
    }
}

/// Passes events on until the end, from the position where they begin; `Some` is the agent's refusal to go on.
async fn read(
    mut connection: Connection,
    position: u64,
    events: mpsc::Sender<Result<JobEvent, Error>>,
) -> Result<Option<Error>, AgentError> {
    let mut event = JobEvent::Position(position);
    loop {
        // A closed channel ends this future through its caller.
        let _ = events.send(Ok(event)).await;
        let reply = connection.framed.reader.read().await;
        event = match reply.map_err(|source| AgentError::Frame { request: "follow_job", source })? {
            Some(Reply::Output { stream, data }) => JobEvent::Output { stream, data: data.into_vec().into() },
            Some(Reply::Position { at }) => JobEvent::Position(at),
            Some(Reply::Job(job)) => {
                connection.give_back();
                let _ = events.send(Ok(JobEvent::End(job))).await;
                return Ok(None);
            }
            Some(Reply::Error { kind, message }) => {
                connection.give_back();
                return Ok(Some(Error::Guest { kind, message }));
            }
            Some(other) => return Err(unexpected("follow_job", &other)),
            None => return Err(AgentError::Closed("follow_job")),
        };
    }
}
