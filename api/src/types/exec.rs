//! A command on the wire (contract 8.8, 8.9).

use std::collections::BTreeMap;

use bytes::Bytes;
use cove_engine::protocol::guest::{Command, Exec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::base64::decoded;
use crate::error::ApiError;

/// Longest time limit of a command, in seconds: a day.
const TIMEOUT_SECONDS_MAX: f64 = 86_400.0;

/// A command to run.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ExecBody {
    /// A shell line, or a program and its arguments.
    pub command: ExecCommand,
    /// Where it runs; `/workspace` when absent. `working_dir` means the same.
    #[serde(alias = "working_dir")]
    pub cwd: Option<String>,
    /// Over the sandbox's own environment.
    pub env: Option<BTreeMap<String, String>>,
    /// Seconds, fractions too, at most 86400. Then its process group is killed and the exit code is 124. No limit when
    /// absent or 0. `timeout_sec` means the same.
    #[serde(alias = "timeout_sec")]
    pub timeout: Option<f64>,
    /// Login name or number; root when absent.
    pub user: Option<String>,
    /// Text for its standard input; otherwise that is empty.
    pub stdin: Option<String>,
    /// The same for bytes that are not text.
    pub stdin_base64: Option<String>,
    /// How a stream sends output: `lines` of text, the default, or `base64`, pieces of bytes as they come.
    #[schema(value_type = Option<String>)]
    pub output: Option<OutputAs>,
}

/// See [`ExecBody::output`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputAs {
    /// Frames of [`LineData`].
    #[default]
    Lines,
    /// Frames of [`ChunkData`].
    Base64,
}

/// A shell line, or argv.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string (a shell line) or a list of strings (program and arguments)")]
pub enum ExecCommand {
    /// For the shell.
    Line(String),
    /// A program, found in PATH, and its arguments.
    Argv(Vec<String>),
}

impl ExecBody {
    /// The engine's form, and the bytes for standard input.
    pub fn into_exec(self) -> Result<(Exec, Option<Bytes>), ApiError> {
        let stdin = match (self.stdin_base64, self.stdin) {
            (Some(text), _) => Some(decoded("stdin_base64", &text)?),
            (None, text) => text.map(Bytes::from),
        };
        let command = match self.command {
            ExecCommand::Line(line) if line.trim().is_empty() => {
                return Err(ApiError::invalid("command", "command is empty"));
            }
            ExecCommand::Argv(argv) if argv.first().is_none_or(String::is_empty) => {
                return Err(ApiError::invalid("command", "command names no program"));
            }
            ExecCommand::Line(line) => Command::Shell(line),
            ExecCommand::Argv(argv) => Command::Argv(argv),
        };
        let exec = Exec {
            command,
            cwd: self.cwd,
            env: self.env.unwrap_or_default().into_iter().collect(),
            user: self.user,
            stdin: stdin.is_some(),
            timeout_ms: self.timeout.map(timeout_ms).transpose()?.flatten(),
        };
        Ok((exec, stdin))
    }
}

/// Milliseconds, at least one; `None` for 0, which means no limit.
fn timeout_ms(seconds: f64) -> Result<Option<u64>, ApiError> {
    if !(0.0..=TIMEOUT_SECONDS_MAX).contains(&seconds) {
        let message =
            format!("timeout is {seconds}; it must be between 0 (no limit) and {TIMEOUT_SECONDS_MAX} seconds");
        return Err(ApiError::invalid("timeout", message));
    }
    Ok((seconds > 0.0).then(|| (seconds * 1000.0).ceil() as u64))
}

/// What a command did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ExecResult {
    /// Standard output; bytes that are not UTF-8 are U+FFFD.
    pub stdout: String,
    /// Standard error, and the server's own note when it ended the command.
    pub stderr: String,
    /// 128 + the number of the signal that killed it; 124 when its time ran out.
    pub exit_code: i32,
    /// From its start to its end.
    pub duration_ms: u64,
    /// The command wrote more than is kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdout_truncated: bool,
    /// The command wrote more than is kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stderr_truncated: bool,
}

/// The document of exec. `error` is there only when the sandbox failed after the answer had begun: then `data` has what
/// the command wrote until then, and exit code 255.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecData {
    /// The result.
    pub data: ExecResult,
    /// Why there is no true result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::error::ErrorBody>,
}

/// The payload of a `stdout` or `stderr` frame.
#[derive(Debug, Serialize, ToSchema)]
pub struct LineData {
    /// One line without its newline.
    pub line: String,
    /// This is a piece of a line longer than 4 MiB, and more of it follows.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// The payload of a `stdout` or `stderr` frame when the caller asked for bytes.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkData {
    /// Some bytes, in base64.
    pub chunk_base64: String,
}

/// The payload of the `exit` frame.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExitData {
    /// As in [`ExecResult`].
    pub exit_code: i32,
    /// As in [`ExecResult`].
    pub duration_ms: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn exec(body: Value) -> Result<(Exec, Option<Bytes>), ApiError> {
        serde_json::from_value::<ExecBody>(body).unwrap().into_exec()
    }

    #[test]
    fn a_line_goes_to_the_shell_and_a_list_does_not() {
        let (line, stdin) = exec(json!({"command": "ls | wc", "working_dir": "/tmp"})).unwrap();
        assert_eq!((line.command, line.cwd.as_deref()), (Command::Shell("ls | wc".into()), Some("/tmp")));
        assert_eq!((line.stdin, stdin, line.timeout_ms), (false, None, None));
        let (argv, stdin) = exec(json!({"command": ["ls", "a b"], "stdin": ""})).unwrap();
        assert_eq!(argv.command, Command::Argv(vec!["ls".into(), "a b".into()]));
        assert_eq!((argv.stdin, stdin), (true, Some(Bytes::new())));
    }

    #[test]
    fn standard_input_is_text_or_base64() {
        assert_eq!(exec(json!({"command": "x", "stdin": "é"})).unwrap().1.unwrap(), "é".as_bytes());
        assert_eq!(exec(json!({"command": "x", "stdin_base64": "/wA="})).unwrap().1.unwrap(), &[255, 0][..]);
        let error = exec(json!({"command": "x", "stdin_base64": "!"})).unwrap_err();
        assert!(error.message().starts_with("stdin_base64 is not base64"));
    }

    #[test]
    fn a_timeout_is_seconds_with_fractions() {
        let ms = |value: Value| exec(json!({"command": "x", "timeout": value})).map(|(exec, _)| exec.timeout_ms);
        assert_eq!(ms(json!(30)).unwrap(), Some(30_000));
        assert_eq!(ms(json!(0.0001)).unwrap(), Some(1));
        assert_eq!(ms(json!(1.5)).unwrap(), Some(1500));
        assert_eq!(ms(json!(0)).unwrap(), None);
        for wrong in [json!(-1), json!(1e9)] {
            assert!(ms(wrong).unwrap_err().message().starts_with("timeout is"));
        }
    }

    #[test]
    fn an_empty_command_is_refused() {
        for command in [json!(""), json!(" \n"), json!([]), json!([""])] {
            assert_eq!(exec(json!({ "command": command })).unwrap_err().status().as_u16(), 422);
        }
    }
}
