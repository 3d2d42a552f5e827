//! The client of the interpreters inside a sandbox: programs of ours (`code/python.py`, `code/node.cjs`) that run as jobs
//! of the agent and answer lines of JSON.
//!
//! ```text
//!  Interpreters::ask ── Write (one line) ──► job ── forks ──► a context's process
//!        ▲                                    │
//!        └── one waiter an id ◄── follower ◄──┘ output of the job
//! ```
//!
//! What answers lives in the guest's memory alone: pauses, forks and restarts of the server keep it, and whoever comes next
//! finds it by its job's name. What is too long for the job's log travels as a file. All that comes back is the guest's word.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cove_protocol::guest::{Command, Exec, FollowJob, JobAction, StartJob, Stream};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Agent, AgentError, JobEvent, JobOutput};
use crate::error::Error;
use crate::random;

/// What the names of our own jobs begin with; no other job may be called so.
pub(crate) const JOB_NAME_PREFIX: &str = "cove:";

/// Where the programs and what is too long for a line lie in the guest.
const DIRECTORY: &str = "/run/cove/code";

/// Longest line that is written at once; longer code goes as a file.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Longest line that is read; the programs write longer answers into files.
const ANSWER_BYTES_MAX: usize = 128 << 10;

/// Longest answer in a file: three media of 6 MiB cannot be more.
const FILE_BYTES_MAX: usize = 48 << 20;

/// How long an interpreter may take for what is no run.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);

/// A language that code can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Python: each context is a process of its own.
    Python,
    /// JavaScript: all contexts share one node process.
    Javascript,
}

impl Language {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Language::Python => "python",
            Language::Javascript => "javascript",
        }
    }

    fn job_name(self) -> String {
        format!("{JOB_NAME_PREFIX}code:{}", self.as_str())
    }

    fn program(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Language::Python => ("python3", "python.py", include_str!("code/python.py")),
            Language::Javascript => ("node", "node.cjs", include_str!("code/node.cjs")),
        }
    }
}

/// What an interpreter says; the guest's word, with what it may leave out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    pub(crate) id: Option<String>,
    /// The answer is in the file of its id.
    pub(crate) file: Option<Value>,
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) stdout_dropped_bytes: u64,
    pub(crate) stderr_dropped_bytes: u64,
    pub(crate) result: Option<String>,
    pub(crate) results: Vec<CodeOutput>,
    pub(crate) error: Option<CodeFailure>,
    pub(crate) execution_count: u64,
    pub(crate) duration_ms: u64,
    /// `busy`, or `contexts` when there are too many.
    pub(crate) refused: Option<String>,
    /// The context's process ended: its exit code, or minus the signal that killed it.
    pub(crate) died: Option<i64>,
    pub(crate) contexts: Option<Vec<String>>,
    pub(crate) ready: bool,
}

/// Something to show: the value of the last expression, or what the code displayed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CodeOutput {
    /// `result` or `display`.
    pub kind: String,
    /// By media type: `text/plain` always, pictures as base64.
    pub data: Map<String, Value>,
}

/// What the code raised.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CodeFailure {
    /// The error's type.
    pub name: String,
    /// Its message.
    pub value: String,
    /// As a terminal shows it.
    pub traceback: String,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoAnswer {
    /// The program ended, with all of its contexts.
    Ended,
    /// The connection broke.
    Broken,
}

type Waiters = Arc<Mutex<HashMap<String, oneshot::Sender<Result<Answer, NoAnswer>>>>>;

/// One sandbox's interpreters of one language, as long as its machine runs.
#[derive(Debug)]
pub(crate) struct Interpreters {
    agent: Agent,
    language: Language,
    pid: i32,
    waiters: Waiters,
    ended: Arc<AtomicBool>,
}

impl Agent {
    /// The interpreters that run; `None` when there are none.
    pub(crate) async fn find_interpreters(&self, language: Language) -> Result<Option<Interpreters>, Error> {
        let name = language.job_name();
        let jobs = self.jobs().await?;
        let running = jobs.into_iter().find(|job| job.exit.is_none() && job.name.as_ref() == Some(&name));
        match running {
            Some(job) => Ok(Some(self.follow_interpreters(language, job.pid, u64::MAX).await?.0)),
            None => Ok(None),
        }
    }

    /// Starts them.
    pub(crate) async fn start_interpreters(&self, language: Language) -> Result<Interpreters, Error> {
        Ok(self.begin_interpreters(language).await?.0)
    }

    /// Starts them and waits until the first of them has done what a first run would have to do.
    pub(crate) async fn warm_interpreters(&self, language: Language, within: Duration) -> Result<(), Error> {
        let (interpreters, ready) = self.begin_interpreters(language).await?;
        match timeout(within, ready).await {
            Ok(Ok(())) => interpreters.contexts().await.map(drop),
            _ => Err(self.explain(AgentError::Deadline { request: "code", seconds: within.as_secs() }).await),
        }
    }

    async fn begin_interpreters(&self, language: Language) -> Result<(Interpreters, oneshot::Receiver<()>), Error> {
        let (program, file, text) = language.program();
        let path = format!("{DIRECTORY}/{file}");
        let content = stream::iter([Ok(Bytes::from_static(text.as_bytes()))]);
        self.write_file(&path, 0o644, content).await?;
        let exec = Exec {
            command: Command::Argv(vec![program.to_owned(), path]),
            cwd: None,
            env: Vec::new(),
            user: None,
            stdin: true,
            timeout_ms: None,
        };
        let job = self.start_job(StartJob { exec, name: Some(language.job_name()) }).await?;
        self.follow_interpreters(language, job.pid, 0).await
    }

    async fn follow_interpreters(
        &self,
        language: Language,
        pid: i32,
        from: u64,
    ) -> Result<(Interpreters, oneshot::Receiver<()>), Error> {
        let output = self.follow_job(FollowJob { pid, from, follow: true }).await?;
        let (waiters, ended) = (Waiters::default(), Arc::<AtomicBool>::default());
        let (ready, when_ready) = oneshot::channel();
        tokio::spawn(hand_out(output, Arc::clone(&waiters), Arc::clone(&ended), ready));
        Ok((Interpreters { agent: self.clone(), language, pid, waiters, ended }, when_ready))
    }
}

/// Gives each answer to whoever waits for it, until the program or the connection ends.
async fn hand_out(mut output: JobOutput, waiters: Waiters, ended: Arc<AtomicBool>, ready: oneshot::Sender<()>) {
    let mut ready = Some(ready);
    let mut line = BytesMut::new();
    let mut over = NoAnswer::Broken;
    while let Some(event) = output.next().await {
        match event {
            Ok(JobEvent::Output { stream: Stream::Stdout, data }) => line.extend_from_slice(&data),
            // What its Python or node itself complains of is in the job's log for whoever looks.
            Ok(JobEvent::Output { .. }) => continue,
            Ok(JobEvent::Position(_)) => line.clear(),
            Ok(JobEvent::End(_)) => over = NoAnswer::Ended,
            Err(_) => break,
        }
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let whole = line.split_to(end + 1);
            let Ok(answer) = serde_json::from_slice::<Answer>(&whole) else { continue };
            if answer.ready {
                ready.take().map(|ready| ready.send(()));
            }
            let waiter = answer.id.as_ref().and_then(|id| lock(&waiters).remove(id));
            if let Some(waiter) = waiter {
                // Whoever asked may be gone.
                let _ = waiter.send(Ok(answer));
            }
        }
        if line.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    ended.store(true, Ordering::Release);
    let left: Vec<_> = lock(&waiters).drain().collect();
    for (_, waiter) in left {
        let _ = waiter.send(Err(over));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run that was begun.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) answer: oneshot::Receiver<Result<Answer, NoAnswer>>,
}

impl Interpreters {
    /// False once they have to be looked for anew.
    pub(crate) fn are_there(&self) -> bool {
        !self.ended.load(Ordering::Acquire)
    }

    /// Begins to run code in a context, which is made if it is not there.
    pub(crate) async fn run(&self, context: &str, code: String, env: &Value, cwd: &str) -> Result<Run, Error> {
        let id = random::letters::<16>();
        let mut line = json!({ "id": id, "op": "run", "context": context, "env": env, "cwd": cwd });
        if code.len() > LINE_BYTES_MAX / 2 {
            let path = format!("{DIRECTORY}/{id}.in");
            self.agent.write_file(&path, 0o600, stream::iter([Ok(Bytes::from(code))])).await?;
            line["code_file"] = path.into();
        } else {
            line["code"] = code.into();
        }
        let answer = self.say(id.clone(), line).await?;
        Ok(Run { id, answer })
    }

    /// The whole answer of a run.
    pub(crate) async fn whole(&self, answer: Answer) -> Result<Answer, Error> {
        let (Some(id), Some(_)) = (&answer.id, &answer.file) else { return Ok(answer) };
        // Its name is ours: the guest does not choose what is read.
        let path = format!("{DIRECTORY}/{id}.out");
        let (_, mut bytes) = self.agent.read_file(&path).await?;
        let mut text = BytesMut::new();
        while let Some(chunk) = bytes.next().await {
            text.extend_from_slice(&chunk?);
            if text.len() > FILE_BYTES_MAX {
                return Err(self.nonsense().await);
            }
        }
        self.agent.remove(&path, false).await?;
        match serde_json::from_slice(&text) {
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.nonsense().await),
        }
    }

    async fn nonsense(&self) -> Error {
        self.agent.explain(AgentError::Unexpected { request: "code", reply: "answer" }).await
    }

    /// Interrupts a run, as Ctrl-C does.
    pub(crate) async fn interrupt(&self, run: &str) -> Result<(), Error> {
        match self.language {
            Language::Python => self.tell(json!({ "op": "interrupt", "run": run })).await,
            Language::Javascript => self.agent.job(self.pid, JobAction::Signal(2)).await.map(drop),
        }
    }

    /// Ends the process that does not let itself be interrupted.
    pub(crate) async fn kill(&self, run: &str) -> Result<(), Error> {
        match self.language {
            Language::Python => self.tell(json!({ "op": "kill", "run": run })).await,
            Language::Javascript => self.agent.job(self.pid, JobAction::Signal(9)).await.map(drop),
        }
    }

    /// The contexts that there are, oldest first.
    pub(crate) async fn contexts(&self) -> Result<Vec<String>, Error> {
        Ok(self.ask(json!({ "op": "contexts" })).await?.contexts.unwrap_or_default())
    }

    /// Forgets one context, or all.
    pub(crate) async fn reset(&self, context: Option<&str>) -> Result<(), Error> {
        self.ask(json!({ "op": "reset", "context": context })).await.map(drop)
    }

    /// The error of an answer that did not come because the connection broke.
    pub(crate) async fn broken(&self) -> Error {
        self.agent.explain(AgentError::Closed("code")).await
    }

    async fn ask(&self, mut line: Value) -> Result<Answer, Error> {
        let id = random::letters::<16>();
        line["id"] = id.as_str().into();
        let answer = self.say(id.clone(), line).await?;
        match timeout(REPLY_DEADLINE, answer).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Err(_) => {
                lock(&self.waiters).remove(&id);
                let deadline = AgentError::Deadline { request: "code", seconds: REPLY_DEADLINE.as_secs() };
                Err(self.agent.explain(deadline).await)
            }
            Ok(Ok(Err(NoAnswer::Ended))) => Ok(Answer::default()),
            Ok(_) => Err(self.broken().await),
        }
    }

    async fn tell(&self, mut line: Value) -> Result<(), Error> {
        line["id"] = "".into();
        self.write(&line).await
    }

    async fn say(&self, id: String, line: Value) -> Result<oneshot::Receiver<Result<Answer, NoAnswer>>, Error> {
        let (sender, answer) = oneshot::channel();
        lock(&self.waiters).insert(id.clone(), sender);
        if let Err(error) = self.write(&line).await {
            lock(&self.waiters).remove(&id);
            return Err(error);
        }
        if !self.are_there() {
            // It ended between: then nobody gives this waiter an answer.
            lock(&self.waiters).remove(&id);
        }
        Ok(answer)
    }

    async fn write(&self, line: &Value) -> Result<(), Error> {
        let mut bytes = line.to_string().into_bytes();
        bytes.push(b'\n');
        self.agent.job(self.pid, JobAction::Write(bytes.into())).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_leave_everything_out_and_hold_anything() {
        let answer: Answer = serde_json::from_str(r#"{"id":"a","died":-9,"more":[1]}"#).unwrap();
        assert_eq!((answer.id.as_deref(), answer.died, answer.ok), (Some("a"), Some(-9), false));
        let text =
            r#"{"ok":true,"results":[{"kind":"result","data":{"text/plain":"2","image/png":"AA=="}}],"error":null}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        assert_eq!(answer.results[0].data["image/png"], "AA==");
        assert!(serde_json::from_str::<Answer>(r#"{"ok":"yes"}"#).is_err());
    }

    #[test]
    fn our_own_jobs_have_names_that_no_other_may_have() {
        assert!(Language::Python.job_name().starts_with(JOB_NAME_PREFIX));
        assert!(Language::Python.job_name().len() <= cove_protocol::guest::JOB_NAME_BYTES_MAX);
    }
}
