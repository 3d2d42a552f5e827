//! Terminal sessions: a shell on a pseudo-terminal that the agent keeps, with any number of clients looking at it. A
//! session outlives its clients, the server, and a restore of the machine; it ends with its shell.

use serde::{Deserialize, Serialize};

/// Most columns and rows of a terminal.
pub const COLUMNS_MAX: u16 = 500;

/// As [`COLUMNS_MAX`].
pub const ROWS_MAX: u16 = 200;

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Columns, 1 to [`COLUMNS_MAX`].
    pub columns: u16,
    /// Rows, 1 to [`ROWS_MAX`].
    pub rows: u16,
}

impl Default for WindowSize {
    /// What terminals have been since the VT100.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

impl WindowSize {
    /// True when a terminal can have this size.
    pub fn is_possible(self) -> bool {
        (1..=COLUMNS_MAX).contains(&self.columns) && (1..=ROWS_MAX).contains(&self.rows)
    }
}

/// A session to open. Answered by [`super::Reply::Terminal`] as the final reply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTerminal {
    /// A program, looked up in PATH, and its arguments; the user's login shell when empty.
    pub command: Vec<String>,
    /// Working directory; [`super::DEFAULT_CWD`] when absent.
    pub cwd: Option<String>,
    /// Over the sandbox's environment and `TERM=xterm-256color`.
    pub env: Vec<(String, String)>,
    /// Login name or number; root when absent.
    pub user: Option<String>,
    /// Its first size.
    pub size: WindowSize,
}

/// Look at a session. Answered by [`super::Reply::Terminal`], then [`super::Reply::Output`]: first what draws the session's
/// scrollback and screen as they are, then what it writes, and [`super::Reply::Exited`] at its end. The connection carries
/// [`super::Input::Data`] and [`super::Input::Resize`]; closing it leaves the session alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachTerminal {
    /// Which session; the one opened last when absent.
    pub session: Option<u64>,
    /// The session's size from now on; it keeps its own when absent.
    pub size: Option<WindowSize>,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalInfo {
    /// Counts up from 1 in a machine.
    pub session: u64,
    /// The shell's process id.
    pub pid: i32,
    /// What runs, cut off after some hundred characters.
    pub command: String,
    /// When it was opened, microseconds since 1970 by the guest's clock.
    pub opened_us: u64,
    /// Its size.
    pub size: WindowSize,
    /// Who looks at it.
    pub clients: u32,
}
