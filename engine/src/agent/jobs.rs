//! Jobs through the agent: start, list, act, and read what they write.
//!
//! A reader's connection is carried by a task of its own; the job runs on without it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use cove_protocol::guest::{self, FollowJob, JobAction, JobInfo, Reply, Request, StartJob};
use futures_util::Stream;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::connection::Connection;
use super::{Agent, AgentError, Answer, REPLY_DEADLINE, unexpected};
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
            Ok(Answer::Reply(Reply::Jobs(jobs))) => Ok(jobs),
            other => Err(self.refused("list_jobs", other).await),
        }
    }

    async fn ask_for_job(&self, request: &Request) -> Result<JobInfo, Error> {
        match self.ask(request, REPLY_DEADLINE).await {
            Ok(Answer::Reply(Reply::Job(job))) => Ok(job),
            other => Err(self.refused(request.name(), other).await),
        }
    }

    /// The error of an answer that is not what was asked for.
    pub(super) async fn refused(&self, request: &'static str, answer: Result<Answer, AgentError>) -> Error {
        match answer {
            Ok(Answer::Refused { kind, message }) => Error::Guest { kind, message },
            Ok(Answer::Reply(other)) => self.explain(unexpected(request, &other)).await,
            Err(error) => self.explain(error).await,
        }
    }

    /// Reads a job's output.
    pub(crate) async fn follow_job(&self, follow: FollowJob) -> Result<JobOutput, Error> {
        let begun = async {
            let mut connection = self.shared.pool.open_stream().await?;
            connection.send("follow_job", &Request::FollowJob(follow)).await?;
            let reply = connection.receive("follow_job", REPLY_DEADLINE).await?;
            Ok((connection, reply))
        };
        let (connection, position) = match begun.await {
            Ok((connection, Reply::Position { at })) => (connection, at),
            Ok((connection, Reply::Error { kind, message })) => {
                connection.give_back();
                return Err(Error::Guest { kind, message });
            }
            Ok((_, other)) => return Err(self.explain(unexpected("follow_job", &other)).await),
            Err(error) => return Err(self.explain(error).await),
        };
        let (sender, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let agent = self.clone();
        let task = async move {
            // There is room for it.
            let _ = sender.send(Ok(JobEvent::Position(position))).await;
            let read = tokio::select! {
                read = read(connection, &sender) => read,
                () = sender.closed() => return,
            };
            if let Err(error) = read {
                let _ = sender.send(Err(agent.explain(error).await)).await;
            }
        };
        tokio::spawn(task.in_current_span());
        Ok(JobOutput { events })
    }
}

/// Passes events on until the end.
async fn read(mut connection: Connection, events: &mpsc::Sender<Result<JobEvent, Error>>) -> Result<(), AgentError> {
    loop {
        let reply = connection.framed.reader.read().await;
        let event = match reply.map_err(|source| AgentError::Frame { request: "follow_job", source })? {
            Some(Reply::Output { stream, data }) => JobEvent::Output { stream, data: data.into_vec().into() },
            Some(Reply::Position { at }) => JobEvent::Position(at),
            Some(Reply::Job(job)) => {
                connection.give_back();
                let _ = events.send(Ok(JobEvent::End(job))).await;
                return Ok(());
            }
            Some(Reply::Error { kind, message }) => {
                connection.give_back();
                let _ = events.send(Err(Error::Guest { kind, message })).await;
                return Ok(());
            }
            Some(other) => return Err(unexpected("follow_job", &other)),
            None => return Err(AgentError::Closed("follow_job")),
        };
        if events.send(Ok(event)).await.is_err() {
            return Ok(());
        }
    }
}
