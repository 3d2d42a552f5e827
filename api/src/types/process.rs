//! Background processes and commands on the wire (contract X15-X28).

use std::collections::BTreeMap;

use cove_engine::protocol::guest::{Exit, ExitStatus, JobInfo, StartJob};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::exec::{ExecBody, ExecCommand};
use super::timestamp_us;
use crate::error::ApiError;

/// Longest time that a command of X24 may take, in seconds.
pub const COMMAND_SECONDS_MAX: f64 = 600.0;

/// A process to start.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"command": "npm run dev", "name": "dev-server", "env": {"PORT": "3000"}}))]
pub struct ProcessBody {
    /// A shell line, or a program and its arguments.
    pub command: ExecCommand,
    /// For people.
    pub name: Option<String>,
    /// Where it runs; `/workspace` when absent. `working_dir` means the same.
    #[serde(alias = "working_dir")]
    pub cwd: Option<String>,
    /// Over the sandbox's own environment.
    pub env: Option<BTreeMap<String, String>>,
    /// Seconds, after which it is killed; no limit when absent or 0. `timeout_sec` means the same.
    #[serde(alias = "timeout_sec")]
    pub timeout: Option<f64>,
    /// Login name or number; root when absent.
    pub user: Option<String>,
}

impl ProcessBody {
    /// The engine's form.
    pub fn into_job(self) -> Result<StartJob, ApiError> {
        let Self { command, name, cwd, env, timeout, user } = self;
        let (exec, _) =
            ExecBody { command, cwd, env, timeout, user, stdin: None, stdin_base64: None, output: None }.into_exec()?;
        Ok(StartJob { exec, name })
    }
}

/// A background process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"pid": 214, "name": "dev-server", "command": "npm run dev", "status": "running", "state": "running",
    "exit_code": null, "signal": null, "started_at": "2026-01-02T03:04:05.000000Z", "duration_ms": null,
    "output_from": 0, "output_to": 1432, "stdin_open": true}))]
pub struct ProcessRecord {
    /// Its process id in the sandbox, which names it.
    pub pid: i32,
    /// For people.
    pub name: Option<String>,
    /// What runs, cut off after some hundred characters.
    pub command: String,
    /// `running` or `exited`.
    pub status: &'static str,
    /// The same.
    pub state: &'static str,
    /// 128 + the number of the signal that killed it, 124 when its time ran out; `null` while it runs.
    pub exit_code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// By the sandbox's clock.
    pub started_at: Option<String>,
    /// From its start to its end.
    pub duration_ms: Option<u64>,
    /// The cursor of the first byte of output that is kept.
    pub output_from: u64,
    /// The cursor behind the last byte that it wrote.
    pub output_to: u64,
    /// It can be written to.
    pub stdin_open: bool,
}

impl From<JobInfo> for ProcessRecord {
    fn from(job: JobInfo) -> Self {
        let status = if job.exit.is_some() { "exited" } else { "running" };
        Self {
            pid: job.pid,
            name: job.name,
            command: job.command,
            status,
            state: status,
            exit_code: job.exit.map(exit_code),
            signal: job.exit.and_then(|exit| match exit.status {
                ExitStatus::Signal(signal) => Some(signal),
                ExitStatus::Code(_) | ExitStatus::TimedOut => None,
            }),
            started_at: i64::try_from(job.started_us).ok().and_then(timestamp_us),
            duration_ms: job.exit.map(|exit| exit.duration_us / 1000),
            output_from: job.output_from,
            output_to: job.output_to,
            stdin_open: job.stdin_open,
        }
    }
}

/// As shells have it.
pub fn exit_code(exit: Exit) -> i32 {
    match exit.status {
        ExitStatus::Code(code) => i32::from(code),
        ExitStatus::Signal(signal) => signal.saturating_add(128),
        ExitStatus::TimedOut => 124,
    }
}

/// The output of a background process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"data": "ready on port 3000\n", "cursor": 1432, "gap": false}))]
pub struct ProcessLogs {
    /// Both streams as text, in the order they were written; bytes that are not UTF-8 are U+FFFD.
    pub data: String,
    /// Where to go on reading: `?cursor=`.
    pub cursor: u64,
    /// Output between the cursor that was asked for and `data` is not kept any more.
    pub gap: bool,
}

/// A signal to send.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"signal": "SIGINT"}))]
pub struct SignalBody {
    /// A name, such as `SIGKILL` or `KILL`, or a number; SIGTERM when absent.
    #[schema(value_type = Option<String>)]
    pub signal: Option<SignalName>,
}

/// A name or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected the name or the number of a signal")]
pub enum SignalName {
    /// Its number.
    Number(i32),
    /// Its name.
    Name(String),
}

/// Signals by name (signal(7), x86).
const SIGNALS: [(&str, i32); 20] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("WINCH", 28),
];

impl SignalBody {
    /// The signal's number.
    pub fn number(&self) -> Result<i32, ApiError> {
        let unknown =
            |text: &str| ApiError::invalid("signal", format!("signal is '{text}', which is no signal of Linux"));
        match &self.signal {
            None => Ok(15),
            Some(SignalName::Number(number)) if (1..=64).contains(number) => Ok(*number),
            Some(SignalName::Number(number)) => Err(unknown(&number.to_string())),
            Some(SignalName::Name(name)) => {
                let upper = name.trim().to_ascii_uppercase();
                let short = upper.strip_prefix("SIG").unwrap_or(&upper);
                let known = SIGNALS.iter().find(|(known, _)| *known == short).map(|(_, number)| *number);
                let number = known.or_else(|| short.parse().ok().filter(|number| (1..=64).contains(number)));
                number.ok_or_else(|| unknown(name))
            }
        }
    }
}

/// What is written to a process.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"data": "yes\n"}))]
pub struct StdinBody {
    /// Text; at most 256 KiB at once.
    pub data: Option<String>,
    /// The same for bytes that are not text.
    pub data_base64: Option<String>,
    /// Close standard input afterwards.
    #[serde(default, alias = "eof")]
    pub end: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StdinWritten {
    /// Which process.
    pub pid: i32,
    /// Bytes.
    pub written: usize,
    /// More can be written.
    pub stdin_open: bool,
}

/// A command of X24.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"command": "make test", "cwd": "app", "timeout_seconds": 120}))]
pub struct CommandBody {
    /// A shell line, or a program and its arguments.
    pub command: ExecCommand,
    /// Where it runs; relative to `/workspace`.
    #[serde(alias = "working_dir")]
    pub cwd: Option<String>,
    /// Over the sandbox's own environment.
    pub env: Option<BTreeMap<String, String>>,
    /// Seconds, at most 600, which is the default. A detached command has no limit unless one is given.
    #[serde(alias = "timeout")]
    pub timeout_seconds: Option<f64>,
    /// Text for its standard input.
    pub stdin: Option<String>,
    /// Start it and answer at once, with its `pid`: it is a background process from then on.
    #[serde(default)]
    pub detached: bool,
    /// A name for a detached command.
    pub name: Option<String>,
    /// Run it on a terminal of 80 columns and 24 rows: `stdout` has all that it writes there. Not with `detached`.
    #[serde(default)]
    pub tty: bool,
    /// Accepted: standard input of a detached command is open anyway, and other commands get `stdin`.
    #[serde(default)]
    #[allow(dead_code, reason = "listed for the document; see there")]
    pub interactive: bool,
    /// Run it as root, which is the default; `user` is then not looked at.
    #[serde(default)]
    pub sudo: bool,
    /// Login name or number.
    pub user: Option<String>,
}

impl CommandBody {
    /// Checks the time limit; the command's directory and user as the engine knows them.
    pub fn check(&mut self) -> Result<(), ApiError> {
        if let Some(seconds) = self.timeout_seconds.filter(|seconds| *seconds > COMMAND_SECONDS_MAX) {
            let message = format!(
                "timeout_seconds is {seconds}; a command may take at most {COMMAND_SECONDS_MAX} seconds. Longer work runs \
                 detached"
            );
            return Err(ApiError::timeout_too_long(message));
        }
        if self.tty && self.detached {
            let message = "tty is true, which is not possible together with detached; open a terminal session instead";
            return Err(ApiError::invalid("tty", message));
        }
        self.cwd = self.cwd.take().map(|cwd| if cwd.starts_with('/') { cwd } else { format!("/workspace/{cwd}") });
        if self.sudo {
            self.user = None;
        }
        Ok(())
    }
}

/// A detached command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Detached {
    /// Its process id.
    pub pid: i32,
    /// `running`.
    pub status: &'static str,
    /// As given.
    pub name: Option<String>,
    /// What runs.
    pub command: String,
    /// By the sandbox's clock.
    pub started_at: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let number = |value: serde_json::Value| serde_json::from_value::<SignalBody>(value).unwrap().number();
        for (value, expected) in [
            (json!({}), 15),
            (json!({"signal": "SIGKILL"}), 9),
            (json!({"signal": "int"}), 2),
            (json!({"signal": 10}), 10),
            (json!({"signal": "34"}), 34),
        ] {
            assert_eq!(number(value.clone()).unwrap(), expected, "{value}");
        }
        for wrong in [json!("SIGNOTHING"), json!(0), json!(65), json!("")] {
            assert_eq!(number(json!({ "signal": wrong })).unwrap_err().status().as_u16(), 422);
        }
    }

    #[test]
    fn a_command_has_a_relative_directory_and_at_most_600_seconds() {
        let body = |value: serde_json::Value| serde_json::from_value::<CommandBody>(value).unwrap();
        let mut command =
            body(json!({"command": "x", "cwd": "app", "timeout_seconds": 600, "sudo": true, "user": "a"}));
        command.check().unwrap();
        assert_eq!((command.cwd.as_deref(), command.user), (Some("/workspace/app"), None));
        let error = body(json!({"command": "x", "timeout_seconds": 601})).check().unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (422, "TIMEOUT_TOO_LONG"));
        let error = body(json!({"command": "x", "tty": true, "detached": true})).check().unwrap_err();
        assert_eq!(error.code(), "VALIDATION_ERROR");
    }
}
