//! Terminal sessions on the wire (contract X33-X35).

use std::collections::BTreeMap;

use cove_engine::protocol::guest::{OpenTerminal, TerminalInfo, WindowSize};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::exec::ExecCommand;
use super::timestamp_us;
use crate::error::ApiError;

/// What stands before a session's number.
const SESSION_PREFIX: &str = "term_";

/// A session to open.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"cols": 120, "rows": 40}))]
pub struct TerminalBody {
    /// Columns, 1 to 500; 80 when absent.
    pub cols: Option<u16>,
    /// Rows, 1 to 200; 24 when absent.
    pub rows: Option<u16>,
    /// A program, or a program and its arguments; the user's login shell when absent.
    pub shell: Option<ExecCommand>,
    /// Where it starts; `/workspace` when absent. `working_dir` means the same.
    #[serde(alias = "working_dir")]
    pub cwd: Option<String>,
    /// Over the sandbox's own environment, and `TERM=xterm-256color`.
    pub env: Option<BTreeMap<String, String>>,
    /// Login name or number; root when absent.
    pub user: Option<String>,
}

impl TerminalBody {
    /// The engine's form.
    pub fn into_open(self) -> OpenTerminal {
        let default = WindowSize::default();
        OpenTerminal {
            command: match self.shell {
                None => Vec::new(),
                Some(ExecCommand::Line(program)) => vec![program],
                Some(ExecCommand::Argv(words)) => words,
            },
            cwd: self.cwd,
            env: self.env.unwrap_or_default().into_iter().collect(),
            user: self.user,
            size: WindowSize { columns: self.cols.unwrap_or(default.columns), rows: self.rows.unwrap_or(default.rows) },
        }
    }
}

/// A terminal session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"session_id": "term_1", "pid": 231, "command": "shell", "cols": 120, "rows": 40, "clients": 1,
    "opened_at": "2026-01-02T03:04:05.000000Z",
    "ws_url": "ws://127.0.0.1:7333/api/v1/sandboxes/sbx_7/terminal/stream?session=term_1"}))]
pub struct TerminalRecord {
    /// Names it.
    pub session_id: String,
    /// Its shell's process id in the sandbox.
    pub pid: i32,
    /// What runs; `shell` for a login shell.
    pub command: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// How many look at it.
    pub clients: u32,
    /// By the sandbox's clock.
    pub opened_at: Option<String>,
    /// Where to look at it.
    pub ws_url: String,
}

impl TerminalRecord {
    /// Of a session whose stream is below `base`, a WebSocket's address.
    pub fn new(info: TerminalInfo, base: &str) -> Self {
        let session_id = session_id(info.session);
        Self {
            pid: info.pid,
            command: info.command,
            cols: info.size.columns,
            rows: info.size.rows,
            clients: info.clients,
            opened_at: i64::try_from(info.opened_us).ok().and_then(timestamp_us),
            ws_url: format!("{base}/terminal/stream?session={session_id}"),
            session_id,
        }
    }
}

/// A session's id in the API.
pub fn session_id(number: u64) -> String {
    format!("{SESSION_PREFIX}{number}")
}

/// A session's number.
pub fn session_number(id: &str) -> Result<u64, ApiError> {
    let number = id.strip_prefix(SESSION_PREFIX).unwrap_or(id).parse().ok();
    number.ok_or_else(|| ApiError::not_found(format!("There is no terminal session '{}'", id.escape_debug())))
}

/// A text frame that is not typed text.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Control {
    /// The client's terminal has this size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

impl Control {
    /// What a text frame says, if it is not typed text.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_resize_is_no_typed_text() {
        let resize = Some(Control::Resize { cols: 100, rows: 30 });
        assert_eq!(Control::parse(r#"{"type":"resize","cols":100,"rows":30}"#), resize);
        assert_eq!(Control::parse(r#" {"rows":30,"type":"resize","cols":100,"more":1} "#), resize);
        for typed in ["ls\n", "{", r#"{"type":"resize"}"#, r#"{"type":"resize","cols":-1,"rows":3}"#, "{}", "1", ""] {
            assert_eq!(Control::parse(typed), None, "{typed}");
        }
    }

    #[test]
    fn a_session_is_named_by_its_number() {
        assert_eq!(session_number(&session_id(7)).unwrap(), 7);
        assert_eq!(session_number("7").unwrap(), 7);
        for wrong in ["", "term_", "term_x", "-1", "term_1/.."] {
            assert_eq!(session_number(wrong).unwrap_err().status().as_u16(), 404, "{wrong}");
        }
    }
}
