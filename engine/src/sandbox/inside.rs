//! What is done inside a sandbox: commands and files. Runs at the same time as everything else; the driver is not asked,
//! only where it says the sandbox is in its life.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cove_protocol::guest::{self, Command, Exec, Exit, ExitStatus};
use futures_util::Stream;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::driver::Handle;
use super::spec::check_env;
use super::{Active, Sandbox, SandboxId, SandboxState};
use crate::Engine;
use crate::agent::{Agent, Execution, FileChanges, FileStream, GuestStream};
use crate::error::{BoxError, Error};
use crate::events::EventKind;

/// How long a call waits for a sandbox that is being made.
const READY_WAIT: Duration = Duration::from_secs(60);

/// How long a call waits for the reason why there is no agent any more.
const FAILURE_WAIT: Duration = Duration::from_secs(2);

/// How long the guest may take to say who listens.
const LISTENERS_DEADLINE: Duration = Duration::from_secs(30);

/// Longest path (PATH_MAX of Linux, without its closing zero).
const PATH_BYTES_MAX: usize = 4095;

/// Most bytes of a command, its arguments and environment: what one frame holds, with room for the rest.
const COMMAND_BYTES_MAX: usize = 768 << 10;

/// Longest command in an event, in characters.
const EVENT_COMMAND_CHARS_MAX: usize = 1000;

impl Engine {
    /// Starts a command; waits (bounded) while the sandbox is being made.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotReady`], [`Error::SandboxFailed`] ..., or [`Error::Guest`] when it cannot be
    /// started in the guest.
    pub async fn exec(&self, id: &SandboxId, exec: Exec) -> Result<Execution, Error> {
        check_exec(&exec)?;
        let span = tracing::info_span!("exec", sandbox = %id);
        let (agent, active) = self.agent(id, "running a command").await?;
        let (exec_id, command) = (self.shared.next_exec_id(), exec.command.text(EVENT_COMMAND_CHARS_MAX));
        let (events, of, begun, ended_id) = (self.shared.events.clone(), id.clone(), Instant::now(), exec_id.clone());
        let on_end = move |exit: Option<Exit>| {
            let duration_ms = exit.map_or_else(|| begun.elapsed().as_millis() as u64, |exit| exit.duration_us / 1000);
            let exit_code = exit.map(|exit| exit_code(exit.status));
            drop(active);
            tracing::debug!(?exit_code, duration_ms, "command ended");
            events.tell(&of, EventKind::ExecCompleted { exec_id: ended_id, exit_code, duration_ms });
        };
        let execution = agent.exec(exec, on_end).instrument(span).await?;
        self.shared.events.tell(id, EventKind::ExecStarted { exec_id, command });
        Ok(execution)
    }

    /// What a file is, and its bytes.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn read_file(&self, id: &SandboxId, path: &str) -> Result<(guest::Entry, FileStream), Error> {
        check_path(path)?;
        let (agent, active) = self.agent(id, "reading a file").await?;
        let (entry, bytes) = agent.read_file(path).instrument(span("read_file", id)).await?;
        Ok((entry, bytes.keeping(active)))
    }

    /// Writes a file, all or nothing; returns how many bytes it has. Missing parents are made.
    ///
    /// # Errors
    /// As [`Engine::exec`], and [`Error::Upload`] when `content` fails.
    pub async fn write_file<S>(&self, id: &SandboxId, path: &str, mode: u32, content: S) -> Result<u64, Error>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        check_path(path)?;
        let (agent, _active) = self.agent(id, "writing a file").await?;
        agent.write_file(path, mode, content).instrument(span("write_file", id)).await
    }

    /// The entries below a directory, depth first; `depth` 1 is its entries alone.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn list_dir(&self, id: &SandboxId, path: &str, depth: u32) -> Result<Vec<guest::Entry>, Error> {
        check_path(path)?;
        if depth == 0 {
            return Err(Error::invalid("depth", "depth is 0, and must be 1 or more"));
        }
        let (agent, _active) = self.agent(id, "listing a directory").await?;
        agent.list(path, depth).instrument(span("list", id)).await
    }

    /// What is at a path; a symbolic link is not followed.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn stat(&self, id: &SandboxId, path: &str) -> Result<guest::Entry, Error> {
        check_path(path)?;
        let (agent, _active) = self.agent(id, "looking at a file").await?;
        agent.stat(path).instrument(span("stat", id)).await
    }

    /// Makes a directory and its parents; one that exists is fine.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn make_dir(&self, id: &SandboxId, path: &str) -> Result<(), Error> {
        check_path(path)?;
        let (agent, _active) = self.agent(id, "making a directory").await?;
        agent.make_dir(path).instrument(span("make_dir", id)).await
    }

    /// Removes a file or, with `recursive`, a directory and all in it.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn remove(&self, id: &SandboxId, path: &str, recursive: bool) -> Result<(), Error> {
        check_path(path)?;
        let (agent, _active) = self.agent(id, "removing a file").await?;
        agent.remove(path, recursive).instrument(span("remove", id)).await
    }

    /// Renames, across file systems too; missing parents of `to` are made.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn move_path(&self, id: &SandboxId, from: &str, to: &str) -> Result<(), Error> {
        check_path(from)?;
        check_path(to)?;
        let (agent, _active) = self.agent(id, "moving a file").await?;
        agent.move_path(from, to).instrument(span("move", id)).await
    }

    /// Opens a stream to a TCP port of the sandbox's own loopback; a paused persistent sandbox is resumed. The stream does not
    /// keep the sandbox from being idle: whoever moves bytes on it touches its [`Engine::activity`].
    ///
    /// # Errors
    /// As [`Engine::exec`]; [`Error::Guest`] with [`guest::ErrorKind::Refused`] when nothing listens there.
    pub async fn connect(&self, id: &SandboxId, port: u16) -> Result<GuestStream, Error> {
        if port == 0 {
            return Err(Error::invalid("port", "port is 0, and must be 1 to 65535"));
        }
        let (agent, _active) = self.agent(id, "opening a connection").await?;
        agent.connect(port).instrument(tracing::info_span!("connect", sandbox = %id, port)).await
    }

    /// Who listens on TCP ports in a running sandbox; of one that does not run, nobody. It is neither resumed nor kept awake.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::SandboxDestroyed`], [`Error::Agent`].
    pub async fn listeners(&self, id: &SandboxId) -> Result<Vec<guest::Listener>, Error> {
        let handle = self.handle(id).await?;
        let state = handle.record.borrow().state;
        match ready_agent(&handle, state) {
            Some(agent) => agent.listeners(LISTENERS_DEADLINE).await,
            None => Ok(Vec::new()),
        }
    }

    /// Files, links and directories with all in them, as one tar archive.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn archive(&self, id: &SandboxId, paths: &[String]) -> Result<FileStream, Error> {
        paths.iter().try_for_each(|path| check_path(path))?;
        let bytes: usize = paths.iter().map(|path| path.len() + 8).sum();
        if bytes > COMMAND_BYTES_MAX {
            let message = format!("paths have {bytes} bytes together, and at most {COMMAND_BYTES_MAX} are possible");
            return Err(Error::invalid("paths", message));
        }
        let (agent, active) = self.agent(id, "packing files").await?;
        Ok(agent.archive(paths).instrument(span("archive", id)).await?.keeping(active))
    }

    /// What changes in a directory and, if `recursive`, in all below it, from now on. Watching does not keep a sandbox from
    /// being idle; when it is paused, the stream ends with [`Error::Interrupted`].
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn watch_files(&self, id: &SandboxId, path: &str, recursive: bool) -> Result<FileChanges, Error> {
        check_path(path)?;
        let (agent, _active) = self.agent(id, "watching files").await?;
        agent.watch(path, recursive).instrument(span("watch", id)).await
    }

    /// The agent of a sandbox that is or becomes command-ready; a paused persistent one is resumed. While the second part
    /// lives the sandbox is not idle.
    pub(crate) async fn agent(&self, id: &SandboxId, operation: &'static str) -> Result<(Agent, Active), Error> {
        use SandboxState::{Creating, Destroyed, Destroying, Paused, Pausing, Resuming, Running, Snapshotting};
        let handle = self.handle(id).await?;
        let active = handle.activity.begin();
        let begun = Instant::now();
        loop {
            let sandbox = wait_for(&handle, begun + READY_WAIT, |state| {
                !matches!(state, Creating | Pausing | Resuming | Snapshotting) || ready_agent(&handle, state).is_some()
            });
            let sandbox = sandbox.await;
            if let Some(agent) = ready_agent(&handle, sandbox.state) {
                return Ok((agent, active));
            }
            let id = id.clone();
            return Err(match sandbox.state {
                Paused if sandbox.persistent => {
                    // One that is resumed by several is resumed once: the driver does one thing at a time.
                    self.resume(&id, BTreeMap::new()).await?;
                    continue;
                }
                // Its machine is no more, and the record is about to say so.
                Running if begun.elapsed() < FAILURE_WAIT => {
                    let _ = wait_for(&handle, begun + FAILURE_WAIT, |state| state != Running).await;
                    continue;
                }
                state @ (Creating | Running | Pausing | Resuming | Snapshotting) => {
                    let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    Error::NotReady { id, state, waited_ms }
                }
                SandboxState::Error => Error::SandboxFailed { id, reason: sandbox.last_error.unwrap_or_default() },
                Destroying | Destroyed => Error::SandboxDestroyed(id),
                state @ Paused => Error::WrongState { id, state, operation },
            });
        }
    }

    /// The agent of a sandbox, if it can be asked right now.
    pub(super) async fn ready_agent(&self, id: &SandboxId) -> Result<Option<Agent>, Error> {
        let handle = self.handle(id).await?;
        let state = handle.record.borrow().state;
        Ok(ready_agent(&handle, state))
    }

    /// The record of a sandbox once it is not being made any more, or after a while.
    pub(crate) async fn wait_made(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        let handle = self.handle(id).await?;
        Ok(wait_for(&handle, Instant::now() + READY_WAIT, |state| state != SandboxState::Creating).await)
    }
}

/// The agent that can be asked in this state.
fn ready_agent(handle: &Handle, state: SandboxState) -> Option<Agent> {
    let usable = matches!(state, SandboxState::Running | SandboxState::Snapshotting);
    handle.live.borrow().agent.clone().filter(|_| usable)
}

/// The record once its state is a wanted one, or at the deadline, or when the driver is gone.
async fn wait_for(handle: &Handle, deadline: Instant, wanted: impl Fn(SandboxState) -> bool) -> Sandbox {
    let mut record = handle.record.clone();
    // The record that is then there is the answer in every case.
    let _ = timeout_at(deadline, record.wait_for(|sandbox| wanted(sandbox.state))).await;
    record.borrow().clone()
}

fn span(operation: &'static str, id: &SandboxId) -> tracing::Span {
    tracing::info_span!("files", operation, sandbox = %id)
}

/// The exit code that a shell would show: 128 + signal for a signal, 124 for a timeout (contract 8.8).
fn exit_code(status: ExitStatus) -> i32 {
    match status {
        ExitStatus::Code(code) => i32::from(code),
        ExitStatus::Signal(signal) => 128 + signal,
        ExitStatus::TimedOut => 124,
    }
}

/// What can be seen to be wrong without asking the guest.
pub(super) fn check_exec(exec: &Exec) -> Result<(), Error> {
    let words: Vec<&str> = match &exec.command {
        Command::Shell(line) => vec![line],
        Command::Argv(words) => words.iter().map(String::as_str).collect(),
    };
    if words.first().is_none_or(|word| word.is_empty()) {
        return Err(Error::invalid("command", "command is empty"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Error::invalid("command", "command holds a zero byte"));
    }
    check_env("env", exec.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
    let bytes: usize = words.iter().map(|word| word.len() + 8).sum();
    if bytes > COMMAND_BYTES_MAX {
        let message = format!("command has {bytes} bytes, and at most {COMMAND_BYTES_MAX} are possible");
        return Err(Error::invalid("command", message));
    }
    if exec.timeout_ms == Some(0) {
        return Err(Error::invalid("timeout", "timeout is 0, and must be more"));
    }
    exec.cwd.as_deref().map_or(Ok(()), check_path)
}

/// Paths in a guest are absolute and name something Linux can name.
pub(super) fn check_path(path: &str) -> Result<(), Error> {
    let wrong = |message: String| Err(Error::Guest { kind: guest::ErrorKind::InvalidPath, message });
    if !path.starts_with('/') {
        return wrong(format!("The path '{}' is not absolute", path.escape_debug().take(200).collect::<String>()));
    }
    if path.contains('\0') {
        return wrong("The path holds a zero byte".into());
    }
    if path.len() > PATH_BYTES_MAX {
        return wrong(format!("The path has {} bytes, and at most {PATH_BYTES_MAX} are possible", path.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(command: Command) -> Exec {
        Exec { command, cwd: None, env: vec![], user: None, stdin: false, timeout_ms: None }
    }

    #[test]
    fn a_wrong_command_names_its_field() {
        let field = |exec: Exec| check_exec(&exec).unwrap_err().field();
        assert_eq!(field(exec(Command::Shell(String::new()))), Some("command"));
        assert_eq!(field(exec(Command::Argv(vec![]))), Some("command"));
        assert_eq!(field(exec(Command::Shell("a\0b".into()))), Some("command"));
        assert_eq!(field(exec(Command::Shell("x".repeat(COMMAND_BYTES_MAX)))), Some("command"));
        assert_eq!(
            field(Exec { env: vec![("1".into(), String::new())], ..exec(Command::Shell("a".into())) }),
            Some("env")
        );
        assert_eq!(field(Exec { timeout_ms: Some(0), ..exec(Command::Shell("a".into())) }), Some("timeout"));
        assert!(check_exec(&exec(Command::Argv(vec!["ls".into(), String::new()]))).is_ok());
    }

    #[test]
    fn a_wrong_path_says_so() {
        for path in ["", "a", "./a", "/a\0", &format!("/{}", "x".repeat(5000))] {
            let error = check_path(path).unwrap_err();
            assert!(matches!(error, Error::Guest { kind: guest::ErrorKind::InvalidPath, .. }), "{error}");
        }
        assert!(check_path("/work space/é#1").is_ok());
    }
}
