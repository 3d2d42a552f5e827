//! The lifecycle of a sandbox as one pure table.
//!
//! ```text
//!              Booted            PauseBegun          Saved
//!  Creating ──────────► Running ──────────► Pausing ──────► Paused
//!     │                  ▲  │                                 │
//!     │           Woken  │  └──────── SnapshotBegun ──► Snapshotting ──► Running | Paused
//!     │         Resuming ◄──────────────────────── ResumeBegun
//!     │
//!     └─ any of these ── Failed ──► Error       any but Destroyed ── DestroyBegun ──► Destroying ── Gone ──► Destroyed
//! ```
//!
//! The driver asks this table before it acts, so a refused request has no side effect.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life. The names are those of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Being made; nothing runs in it yet.
    Creating,
    /// Command-ready.
    Running,
    /// On its way to `Paused`.
    Pausing,
    /// CPU stopped; memory and disk kept.
    Paused,
    /// On its way to `Running`.
    Resuming,
    /// File system and memory are being captured.
    Snapshotting,
    /// It failed; the reason is in the record. Only destroy is possible.
    Error,
    /// Being removed.
    Destroying,
    /// Gone; only the record is left for a while.
    Destroyed,
}

/// What moves a sandbox from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The agent answered after a boot.
    Booted,
    /// A pause, a stop or a timeout begins.
    PauseBegun,
    /// The pause is done.
    Saved,
    /// A resume begins.
    ResumeBegun,
    /// The agent answered after a resume.
    Woken,
    /// A snapshot begins.
    SnapshotBegun,
    /// The snapshot is done and the machine runs on.
    SnapshotDoneRunning,
    /// The snapshot is done and the machine stays paused.
    SnapshotDonePaused,
    /// Something broke.
    Failed,
    /// Destroy begins.
    DestroyBegun,
    /// Nothing is left.
    Gone,
}

impl SandboxState {
    /// Every state.
    pub const ALL: [SandboxState; 9] = [
        SandboxState::Creating,
        SandboxState::Running,
        SandboxState::Pausing,
        SandboxState::Paused,
        SandboxState::Resuming,
        SandboxState::Snapshotting,
        SandboxState::Error,
        SandboxState::Destroying,
        SandboxState::Destroyed,
    ];

    /// The state after `action`, or `None` when the action makes no sense here.
    pub fn after(self, action: Action) -> Option<SandboxState> {
        use Action::*;
        use SandboxState::*;
        match (self, action) {
            (Creating, Booted) => Some(Running),
            (Running, PauseBegun) => Some(Pausing),
            (Pausing, Saved) => Some(Paused),
            (Paused, ResumeBegun) => Some(Resuming),
            (Resuming, Woken) => Some(Running),
            (Running | Paused, SnapshotBegun) => Some(Snapshotting),
            (Snapshotting, SnapshotDoneRunning) => Some(Running),
            (Snapshotting, SnapshotDonePaused) => Some(Paused),
            (Creating | Running | Pausing | Paused | Resuming | Snapshotting | Destroying, Failed) => Some(Error),
            (Creating | Running | Pausing | Paused | Resuming | Snapshotting | Error | Destroying, DestroyBegun) => {
                Some(Destroying)
            }
            (Destroying, Gone) => Some(Destroyed),
            _ => None,
        }
    }

    /// The state will change by itself; a caller may wait for the next one.
    pub fn is_transitional(self) -> bool {
        use SandboxState::*;
        matches!(self, Creating | Pausing | Resuming | Snapshotting | Destroying)
    }

    /// The word used in the API and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            SandboxState::Creating => "creating",
            SandboxState::Running => "running",
            SandboxState::Pausing => "pausing",
            SandboxState::Paused => "paused",
            SandboxState::Resuming => "resuming",
            SandboxState::Snapshotting => "snapshotting",
            SandboxState::Error => "error",
            SandboxState::Destroying => "destroying",
            SandboxState::Destroyed => "destroyed",
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a sandbox state")]
pub struct UnknownState(pub String);

impl FromStr for SandboxState {
    type Err = UnknownState;

    /// Reads [`SandboxState::as_str`], and `provisioning`, the old name of `creating`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "provisioning" {
            return Ok(SandboxState::Creating);
        }
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| UnknownState(text.to_owned()))
    }
}
