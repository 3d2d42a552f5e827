//! Starting a template's application on the wire (contract X10).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to install and start, and how to see that it is ready. What is absent is the template's own.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"install_command": "npm ci", "start_command": "npm run dev", "port": 3000,
    "readiness_probe": {"type": "http", "path": "/"}}))]
pub struct StartBody {
    /// False leaves the installation out.
    pub install: Option<bool>,
    /// A shell line that must succeed before the start.
    pub install_command: Option<String>,
    /// A shell line that goes on; it becomes a background process. An earlier one of this call is stopped first.
    pub start_command: Option<String>,
    /// Seconds; 600 when absent.
    pub install_timeout_sec: Option<u32>,
    /// Seconds until it must be ready; 120 when absent.
    pub start_timeout_sec: Option<u32>,
    /// Where it listens; 3000 when absent.
    pub port: Option<u16>,
    /// Where both run; `/workspace` when absent.
    pub workdir: Option<String>,
    /// How to see that it is ready; a TCP connection when absent.
    pub readiness_probe: Option<ProbeBody>,
}

/// How to see that an application is ready.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct ProbeBody {
    /// `tcp` (the default), `http` (a status below 400) or `exec` (exit code 0).
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Other than the application's.
    pub port: Option<u16>,
    /// For `http`; `/` when absent.
    pub path: Option<String>,
    /// The same; of a whole URL the path counts.
    pub url: Option<String>,
    /// For `exec`: a shell line.
    pub command: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({"sandbox_id": "sbx_4k2p", "template_id": "miosa-sandbox", "status": "ready", "pid": 214, "port": 3000,
    "workdir": "/workspace", "preview_url": "http://127.5.6.7:3000/", "url": "http://127.5.6.7:3000/",
    "steps": [{"step": "install", "command": "npm ci", "status": "succeeded", "exit_code": 0, "duration_ms": 4200, "output": "added 12 packages\n"}]}))]
pub struct StartManifest {
    /// Where.
    pub sandbox_id: String,
    /// Its template.
    pub template_id: String,
    /// `ready`.
    pub status: &'static str,
    /// The background process.
    pub pid: i32,
    /// Where it listens.
    pub port: u16,
    /// Where it runs.
    pub workdir: String,
    /// Where it can be reached.
    pub preview_url: String,
    /// The same.
    pub url: String,
    /// What was done, in order.
    pub steps: Vec<StartStep>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct StartStep {
    /// `install`, `start` or `ready`.
    pub step: &'static str,
    /// What ran, or what was asked.
    pub command: String,
    /// `succeeded` or `failed`.
    pub status: &'static str,
    /// Of a command that ended.
    pub exit_code: Option<i32>,
    /// How long it took.
    pub duration_ms: u64,
    /// The end of what it wrote.
    pub output: String,
}
