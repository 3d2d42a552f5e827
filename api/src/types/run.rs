//! The fused run on the wire (contract 8.3): create, wait, exec in one call.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::exec::{ExecBody, ExecCommand};
use super::{CreateBody, ExecResult, SandboxRecord};

/// The command's part of a run; the rest of the body is that of create. Unlike with exec, `env` is the sandbox's and
/// `timeout_sec` its session's.
#[derive(Debug, Deserialize, ToSchema)]
pub struct RunCommand {
    /// A shell line, or a program and its arguments.
    pub command: ExecCommand,
    /// Where it runs; `/workspace` when absent. `working_dir` means the same.
    #[serde(alias = "working_dir")]
    pub cwd: Option<String>,
    /// Seconds for the command, fractions too, at most 86400. Then it is killed and the exit code is 124. No limit when
    /// absent or 0.
    pub timeout: Option<f64>,
    /// Login name or number; root when absent.
    pub user: Option<String>,
    /// Text for its standard input; otherwise that is empty.
    pub stdin: Option<String>,
    /// The same for bytes that are not text.
    pub stdin_base64: Option<String>,
}

impl From<RunCommand> for ExecBody {
    fn from(run: RunCommand) -> Self {
        ExecBody {
            command: run.command,
            cwd: run.cwd,
            env: None,
            timeout: run.timeout,
            user: run.user,
            stdin: run.stdin,
            stdin_base64: run.stdin_base64,
            output: None,
        }
    }
}

/// What a run takes: the fields of create and those of the command. For the document; see [`RunCommand`].
#[derive(ToSchema)]
#[allow(dead_code, reason = "the two halves are parsed apart, so that errors name their field")]
#[schema(example = json!({"command": "python3 -c 'print(1+1)'", "template_id": "miosa-sandbox", "size": "xs"}))]
pub struct RunBody {
    /// The sandbox.
    #[schema(inline = false)]
    #[serde(flatten)]
    pub sandbox: CreateBody,
    /// The command.
    #[schema(inline = false)]
    #[serde(flatten)]
    pub command: RunCommand,
}

/// The answer of a run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "data": {"id": "sbx_4k2p", "state": "running", "template_id": "miosa-sandbox", "boot_ms": 34, "boot_path": "warm",
             "exec": {"stdout": "2\n", "stderr": "", "exit_code": 0, "duration_ms": 21}},
    "exec": {"stdout": "2\n", "stderr": "", "exit_code": 0, "duration_ms": 21},
    "timings": {"create_ms": 3.1, "wait_ms": 38.4, "exec_ms": 30.2, "server_wait_and_exec_ms": 72}
}))]
pub struct RunAnswer {
    /// The sandbox, which goes on running, and the command's result once more: the SDK passes on nothing else.
    pub data: RunRecord,
    /// What the command did.
    pub exec: ExecResult,
    /// Where the time went.
    pub timings: RunTimings,
    /// Why there is no true result; only when the sandbox failed after the answer had begun. Then the exit code is 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::error::ErrorBody>,
}

/// See [`RunAnswer::data`].
#[derive(Debug, Serialize, ToSchema)]
pub struct RunRecord {
    /// The sandbox.
    #[serde(flatten)]
    pub sandbox: SandboxRecord,
    /// What the command did.
    pub exec: ExecResult,
}

/// Where a run's time went, in milliseconds by the server's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct RunTimings {
    /// From the request to the sandbox's record.
    pub create_ms: f64,
    /// From there to command-ready.
    pub wait_ms: f64,
    /// From there to the command's end.
    pub exec_ms: f64,
    /// All of it.
    pub server_wait_and_exec_ms: u64,
}
