//! The lifecycle of a sandbox as one pure table.
//!
//! ```text
//!              Booted            PauseBegun          Saved
//!  Creating ──────────► Running ──────────► Pausing ──────► Paused
//!     │                  ▲  │  ▲ └ PauseUndone ─┘             │ ▲
//!     │                  │  │  └───────────┐                  │ │
//!     │           Woken  │  └─ SnapshotBegun ─► Snapshotting ─┼─┘ SnapshotDone...
//!     │         Resuming ◄──────────────────────── ResumeBegun┘
//!     │            ▲ └ ResumeUndone ─► Paused
//!     │            └── RestoreBegun ── Running | Paused | Error        (ResumeBegun: also from Error)
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
    /// It failed; the reason is in the record. It can be destroyed; a restore from a snapshot, or
    /// a resume from what its disk holds, may bring it back.
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
    /// The pause failed, and the machine runs on.
    PauseUndone,
    /// The pause is done.
    Saved,
    /// A resume begins.
    ResumeBegun,
    /// A restore in place begins: the machine is ended, and another goes on from the snapshot.
    RestoreBegun,
    /// The resume failed, and the sandbox stays paused.
    ResumeUndone,
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

impl Action {
    /// Every action.
    pub const ALL: [Action; 14] = [
        Action::Booted,
        Action::PauseBegun,
        Action::PauseUndone,
        Action::Saved,
        Action::ResumeBegun,
        Action::RestoreBegun,
        Action::ResumeUndone,
        Action::Woken,
        Action::SnapshotBegun,
        Action::SnapshotDoneRunning,
        Action::SnapshotDonePaused,
        Action::Failed,
        Action::DestroyBegun,
        Action::Gone,
    ];
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
            (Pausing, PauseUndone) => Some(Running),
            (Pausing, Saved) => Some(Paused),
            (Paused | Error, ResumeBegun) => Some(Resuming),
            (Running | Paused | Error, RestoreBegun) => Some(Resuming),
            (Resuming, ResumeUndone) => Some(Paused),
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Every state that can come after `state`, by any actions.
    fn reachable(state: SandboxState) -> HashSet<SandboxState> {
        let (mut found, mut todo) = (HashSet::from([state]), vec![state]);
        while let Some(state) = todo.pop() {
            let next = Action::ALL.into_iter().filter_map(|action| state.after(action));
            todo.extend(next.filter(|next| found.insert(*next)));
        }
        found
    }

    #[test]
    fn a_sandbox_boots_runs_and_goes() {
        use SandboxState::*;
        assert_eq!(Creating.after(Action::Booted), Some(Running));
        assert_eq!(Running.after(Action::DestroyBegun), Some(Destroying));
        assert_eq!(Destroying.after(Action::Gone), Some(Destroyed));
        assert_eq!(Running.after(Action::Booted), None);
        assert_eq!(Paused.after(Action::Booted), None);
        assert_eq!(Destroying.after(Action::DestroyBegun), Some(Destroying));
    }

    #[test]
    fn every_state_can_reach_destroyed_and_nothing_leaves_it() {
        for state in SandboxState::ALL {
            assert!(reachable(state).contains(&SandboxState::Destroyed), "{state}");
        }
        assert_eq!(reachable(SandboxState::Destroyed), HashSet::from([SandboxState::Destroyed]));
        assert_eq!(reachable(SandboxState::Creating).len(), SandboxState::ALL.len(), "a state that nothing reaches");
    }

    #[test]
    fn an_error_can_only_be_destroyed_resumed_and_restored() {
        for action in Action::ALL {
            let expected = match action {
                Action::DestroyBegun => Some(SandboxState::Destroying),
                Action::ResumeBegun | Action::RestoreBegun => Some(SandboxState::Resuming),
                _ => None,
            };
            assert_eq!(SandboxState::Error.after(action), expected, "{action:?}");
        }
    }

    #[test]
    fn every_transitional_state_may_fail_and_no_settled_one_is_left_by_the_end_of_a_transition() {
        for state in SandboxState::ALL.into_iter().filter(|state| state.is_transitional()) {
            assert_eq!(state.after(Action::Failed), Some(SandboxState::Error), "{state}");
        }
        let endings = [
            Action::Booted,
            Action::PauseUndone,
            Action::Saved,
            Action::ResumeUndone,
            Action::Woken,
            Action::SnapshotDoneRunning,
            Action::SnapshotDonePaused,
            Action::Gone,
        ];
        for ending in endings {
            for state in SandboxState::ALL.into_iter().filter(|state| !state.is_transitional()) {
                assert_eq!(state.after(ending), None, "{state} {ending:?}");
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for state in SandboxState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("provisioning".parse(), Ok(SandboxState::Creating));
        assert_eq!("stopped".parse::<SandboxState>(), Err(UnknownState("stopped".into())));
    }

    proptest! {
        #[test]
        fn no_sequence_of_actions_leaves_destroyed_or_error_but_by_destroy_and_restore(
            start in proptest::sample::select(SandboxState::ALL.to_vec()),
            actions in proptest::collection::vec(proptest::sample::select(Action::ALL.to_vec()), 0..40),
        ) {
            let mut state = start;
            for action in actions {
                let Some(next) = state.after(action) else { continue };
                prop_assert_ne!(state, SandboxState::Destroyed);
                if state == SandboxState::Error {
                    prop_assert!(matches!(next, SandboxState::Destroying | SandboxState::Resuming));
                }
                if next == SandboxState::Destroyed {
                    prop_assert_eq!(state, SandboxState::Destroying);
                }
                state = next;
            }
            // Whatever happened, a destroy that succeeds is the end.
            if state != SandboxState::Destroyed {
                let end = state.after(Action::DestroyBegun).and_then(|state| state.after(Action::Gone));
                prop_assert_eq!(end, Some(SandboxState::Destroyed));
            }
        }
    }
}
