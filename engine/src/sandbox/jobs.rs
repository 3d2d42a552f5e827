//! Jobs and terminal sessions of a sandbox. They live in its machine's agent, so here calls are only checked and passed on;
//! unlike commands they neither keep the sandbox from being idle nor end with whoever asked for them.

use std::time::Duration;

use bytes::Bytes;
use cove_protocol::guest::{
    AttachTerminal, COLUMNS_MAX, ErrorKind, FollowJob, JOB_NAME_BYTES_MAX, JobAction, JobInfo, OpenTerminal, ROWS_MAX,
    StartJob, TerminalInfo, WindowSize,
};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::SandboxId;
use super::inside::{check_exec, check_path};
use super::spec::check_env;
use crate::Engine;
use crate::agent::{Agent, JOB_NAME_PREFIX, JobEvent, JobOutput, Terminal};
use crate::error::Error;

/// From SIGTERM to SIGKILL, in milliseconds.
const STOP_GRACE_MS: u32 = 5000;

/// How long a job that is killed may take to be gone.
const STOP_DEADLINE: Duration = Duration::from_secs(35);

/// Most bytes of standard input in one call: what the agent holds for a job that does not read.
const JOB_INPUT_BYTES_MAX: usize = 256 << 10;

impl Engine {
    /// Starts a job: a command that goes on when its caller is gone. Its standard input stays open.
    ///
    /// # Errors
    /// As [`Engine::exec`]; [`Error::Guest`] with [`ErrorKind::Busy`] when too many run.
    pub async fn start_job(&self, id: &SandboxId, mut start: StartJob) -> Result<JobInfo, Error> {
        check_exec(&start.exec)?;
        start.exec.stdin = true;
        if start.name.as_ref().is_some_and(|name| name.len() > JOB_NAME_BYTES_MAX) {
            let message = format!("name is longer than {JOB_NAME_BYTES_MAX} bytes");
            return Err(Error::invalid("name", message));
        }
        if start.name.as_ref().is_some_and(|name| name.starts_with(JOB_NAME_PREFIX)) {
            let message = format!("name begins with '{JOB_NAME_PREFIX}', as only our own processes' names do");
            return Err(Error::invalid("name", message));
        }
        let (agent, _active) = self.agent(id, "starting a process").await?;
        agent.start_job(start).await
    }

    /// The jobs that run, and the last ones that ended, oldest first.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn jobs(&self, id: &SandboxId) -> Result<Vec<JobInfo>, Error> {
        let mut jobs = self.quiet_agent(id, "listing processes").await?.jobs().await?;
        jobs.retain(|job| job.name.as_ref().is_none_or(|name| !name.starts_with(JOB_NAME_PREFIX)));
        Ok(jobs)
    }

    /// One job.
    ///
    /// # Errors
    /// As [`Engine::exec`]; [`Error::Guest`] with [`ErrorKind::NotFound`] when there is none with this process id.
    pub async fn job(&self, id: &SandboxId, pid: i32) -> Result<JobInfo, Error> {
        self.quiet_agent(id, "looking at a process").await?.job(pid, JobAction::Describe).await
    }

    /// Sends a signal to a job's process group.
    ///
    /// # Errors
    /// As [`Engine::job`].
    pub async fn signal_job(&self, id: &SandboxId, pid: i32, signal: i32) -> Result<JobInfo, Error> {
        let (agent, _active) = self.agent(id, "sending a signal").await?;
        agent.job(pid, JobAction::Signal(signal)).await
    }

    /// Ends a job: SIGTERM to its process group, SIGKILL after five seconds. Returns when it is over.
    ///
    /// # Errors
    /// As [`Engine::job`].
    pub async fn stop_job(&self, id: &SandboxId, pid: i32) -> Result<JobInfo, Error> {
        let (agent, _active) = self.agent(id, "stopping a process").await?;
        let job = agent.job(pid, JobAction::Stop { grace_ms: STOP_GRACE_MS }).await?;
        if job.exit.is_some() {
            return Ok(job);
        }
        let mut output = agent.follow_job(FollowJob { pid, from: u64::MAX, follow: true }).await?;
        let end = async {
            while let Some(event) = output.next().await {
                if let JobEvent::End(job) = event? {
                    return Ok(job);
                }
            }
            agent.job(pid, JobAction::Describe).await
        };
        match timeout(STOP_DEADLINE, end).await {
            Ok(ended) => ended,
            Err(_) => agent.job(pid, JobAction::Describe).await,
        }
    }

    /// Writes to a job's standard input; with `end` it is closed afterwards.
    ///
    /// # Errors
    /// As [`Engine::job`]; [`ErrorKind::Busy`] when the job does not read, [`ErrorKind::InvalidRequest`] when its input is
    /// closed.
    pub async fn write_job(&self, id: &SandboxId, pid: i32, data: Bytes, end: bool) -> Result<JobInfo, Error> {
        if data.len() > JOB_INPUT_BYTES_MAX {
            let message = format!("data has {} bytes, and at most {JOB_INPUT_BYTES_MAX} go at once", data.len());
            return Err(Error::invalid("data", message));
        }
        let (agent, _active) = self.agent(id, "writing to a process").await?;
        let job = agent.job(pid, JobAction::Write(data.to_vec().into())).await?;
        if end { agent.job(pid, JobAction::CloseStdin).await } else { Ok(job) }
    }

    /// Reads a job's output from a cursor on. It is not kept awake by that.
    ///
    /// # Errors
    /// As [`Engine::job`].
    pub async fn follow_job(&self, id: &SandboxId, follow: FollowJob) -> Result<JobOutput, Error> {
        self.quiet_agent(id, "reading a process's output").await?.follow_job(follow).await
    }

    /// Opens a terminal session.
    ///
    /// # Errors
    /// As [`Engine::exec`]; [`Error::Guest`] with [`ErrorKind::Busy`] when too many are open.
    pub async fn open_terminal(&self, id: &SandboxId, open: OpenTerminal) -> Result<TerminalInfo, Error> {
        check_size(open.size)?;
        check_env("env", open.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        if open.command.first().is_some_and(String::is_empty) || open.command.iter().any(|word| word.contains('\0')) {
            return Err(Error::invalid("shell", "shell names no program, or holds a zero byte"));
        }
        open.cwd.as_deref().map_or(Ok(()), check_path)?;
        let (agent, _active) = self.agent(id, "opening a terminal").await?;
        agent.open_terminal(open).await
    }

    /// The terminal sessions that are open, oldest first.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn terminals(&self, id: &SandboxId) -> Result<Vec<TerminalInfo>, Error> {
        self.quiet_agent(id, "listing terminals").await?.terminals().await
    }

    /// Hangs up a terminal session: SIGHUP to its shell, SIGKILL after five seconds.
    ///
    /// # Errors
    /// As [`Engine::exec`]; [`Error::Guest`] with [`ErrorKind::NotFound`] when there is none with this number.
    pub async fn close_terminal(&self, id: &SandboxId, session: u64) -> Result<(), Error> {
        let (agent, _active) = self.agent(id, "closing a terminal").await?;
        agent.close_terminal(session).await
    }

    /// Looks at a terminal session, or at the one opened last. The view does not keep the sandbox from being idle: whoever
    /// passes on input touches its [`Engine::activity`].
    ///
    /// # Errors
    /// As [`Engine::close_terminal`].
    pub async fn attach_terminal(&self, id: &SandboxId, attach: AttachTerminal) -> Result<Terminal, Error> {
        attach.size.map_or(Ok(()), check_size)?;
        let (agent, _active) = self.agent(id, "attaching to a terminal").await?;
        agent.attach_terminal(attach).await
    }

    /// As [`Engine::attach_terminal`] of the session opened last; opens one when there is none.
    ///
    /// # Errors
    /// As [`Engine::open_terminal`].
    pub async fn attach_any_terminal(&self, id: &SandboxId, size: Option<WindowSize>) -> Result<Terminal, Error> {
        match self.attach_terminal(id, AttachTerminal { session: None, size }).await {
            Err(Error::Guest { kind: ErrorKind::NotFound, .. }) => {
                let open = OpenTerminal { size: size.unwrap_or_default(), ..OpenTerminal::default() };
                let session = self.open_terminal(id, open).await?.session;
                self.attach_terminal(id, AttachTerminal { session: Some(session), size }).await
            }
            attached => attached,
        }
    }

    /// The agent of a sandbox, for looking: a running one is not kept awake by it, a paused one is resumed.
    async fn quiet_agent(&self, id: &SandboxId, operation: &'static str) -> Result<Agent, Error> {
        match self.ready_agent(id).await? {
            Some(agent) => Ok(agent),
            None => Ok(self.agent(id, operation).await?.0),
        }
    }
}

fn check_size(size: WindowSize) -> Result<(), Error> {
    if size.is_possible() {
        return Ok(());
    }
    let (field, value, max) = if (1..=COLUMNS_MAX).contains(&size.columns) {
        ("rows", size.rows, ROWS_MAX)
    } else {
        ("cols", size.columns, COLUMNS_MAX)
    };
    Err(Error::invalid(field, format!("{field} is {value}, and must be 1 to {max}")))
}
