//! What a sandbox is: its id, what a caller asks for, the checked shape, and the record that everyone sees.

pub mod state;

pub mod spec;

pub mod admission;

pub(crate) mod start;

pub(crate) mod driver;

pub(crate) mod recovery;

pub(crate) mod fork;

mod activity;

mod inside;

mod jobs;

pub(crate) mod code;

mod life;

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use activity::{Active, Activity};
pub use code::{
    CODE_BYTES_MAX, CODE_TIMEOUT_DEFAULT, CODE_TIMEOUT_MAX, CONTEXT_NAME_CHARS_MAX, CodeResult, CodeSpec,
    DEFAULT_CONTEXT,
};
pub use state::{Action, SandboxState};

use crate::id::text_id;
use crate::snapshot::SnapshotId;

text_id! {
    /// A sandbox's id: `sbx_` and lower-case letters and digits; needs no escaping in a URL.
    pub SandboxId, "sbx_"
}

/// The named sizes of the contract (6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// 1 vCPU, 2 GiB, 10 GiB.
    Xs,
    /// 2 vCPUs, 4 GiB, 20 GiB; the default.
    Small,
    /// 4 vCPUs, 8 GiB, 50 GiB.
    Medium,
    /// 8 vCPUs, 16 GiB, 100 GiB.
    Large,
    /// 16 vCPUs, 32 GiB, 200 GiB.
    Xl,
}

/// vCPUs, memory and disk of a sandbox, within the contract's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// vCPUs, 1-16.
    pub cpu_count: u32,
    /// Memory in MiB, 512-32768.
    pub memory_mb: u32,
    /// Disk in MiB, 1024-204800.
    pub disk_size_mb: u32,
}

impl Size {
    /// Every size, smallest first.
    pub const ALL: [Size; 5] = [Size::Xs, Size::Small, Size::Medium, Size::Large, Size::Xl];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Size::Xs => "xs",
            Size::Small => "small",
            Size::Medium => "medium",
            Size::Large => "large",
            Size::Xl => "xl",
        }
    }

    /// The size's shape.
    pub fn shape(self) -> Shape {
        let (cpu_count, memory_gib, disk_gib) = match self {
            Size::Xs => (1, 2, 10),
            Size::Small => (2, 4, 20),
            Size::Medium => (4, 8, 50),
            Size::Large => (8, 16, 100),
            Size::Xl => (16, 32, 200),
        };
        Shape { cpu_count, memory_mb: memory_gib << 10, disk_size_mb: disk_gib << 10 }
    }
}

/// The text is not the name of a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size; the sizes are xs, small, medium, large and xl")]
pub struct UnknownSize(pub String);

impl FromStr for Size {
    type Err = UnknownSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|size| size.as_str() == text).ok_or_else(|| UnknownSize(text.to_owned()))
    }
}

/// What a caller asks for: everything as given, nothing checked yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Template id, slug or alias; the default template when absent.
    pub template: Option<String>,
    /// A named size; conflicts with single figures that differ from it.
    pub size: Option<Size>,
    /// vCPUs.
    pub cpu_count: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u32>,
    /// Disk in MiB.
    pub disk_size_mb: Option<u32>,
    /// Seconds until the session ends, 1-86400; 300 when absent.
    pub timeout_sec: Option<u32>,
    /// Seconds of inactivity, 0 (off) to 86400; 0 when absent.
    pub idle_timeout_sec: Option<u32>,
    /// No timeout is enforced.
    pub always_on: Option<bool>,
    /// Kept when it stops; true when absent.
    pub persistent: Option<bool>,
    /// Environment of every process.
    pub env: BTreeMap<String, String>,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Unique among live sandboxes.
    pub name: Option<String>,
    /// A short name for URLs.
    pub slug: Option<String>,
    /// Labels to filter by.
    pub tags: Vec<String>,
    /// The ids that a caller's own system gives, stored and echoed.
    pub external: External,
}

/// Ids from the caller's own system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// `external_workspace_id`
    pub workspace_id: Option<String>,
    /// `external_user_id`
    pub user_id: Option<String>,
    /// `external_project_id`
    pub project_id: Option<String>,
}

/// What everyone sees of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Why it is in state `error`.
    pub last_error: Option<String>,
    /// The template it was made from.
    pub template_id: String,
    /// The named size, when its shape was asked for by name or by default.
    pub size: Option<Size>,
    /// The shape that was asked for.
    pub shape: Shape,
    /// vCPUs that the host really grants; `None` until it ran.
    pub cpu_granted: Option<u32>,
    /// Seconds of a session.
    pub timeout_sec: u32,
    /// Seconds of inactivity, 0 = off.
    pub idle_timeout_sec: u32,
    /// No timeout is enforced.
    pub always_on: bool,
    /// Kept when it stops.
    pub persistent: bool,
    /// Environment of every process.
    pub env: BTreeMap<String, String>,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Unique among live sandboxes.
    pub name: Option<String>,
    /// A short name for URLs.
    pub slug: Option<String>,
    /// Labels.
    pub tags: Vec<String>,
    /// Ids from the caller's own system.
    pub external: External,
    /// Milliseconds from the request to command-ready.
    pub boot_ms: Option<u64>,
    /// How it came to run.
    pub boot_path: Option<BootPath>,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// When its session began: it became command-ready, by a boot or a resume.
    pub started_at: Option<OffsetDateTime>,
    /// When its session's clock was started anew, later than `started_at`.
    pub extended_at: Option<OffsetDateTime>,
    /// When it was paused, while it is.
    pub paused_at: Option<OffsetDateTime>,
    /// Milliseconds that its earlier sessions ran, together.
    pub ran_ms: u64,
    /// When it first was command-ready.
    pub ready_at: Option<OffsetDateTime>,
    /// When it was destroyed.
    pub destroyed_at: Option<OffsetDateTime>,
    /// Counts the restores that led to its machine.
    pub generation: u64,
    /// The sandbox that it is a fork of.
    pub forked_from: Option<SandboxId>,
    /// The snapshot that it last came from or took.
    pub snapshot_id: Option<SnapshotId>,
}

impl Sandbox {
    /// Milliseconds until the session ends; `None` when none runs or its end is not enforced.
    pub fn timeout_remaining_ms(&self, now: OffsetDateTime) -> Option<u64> {
        if self.state != SandboxState::Running || self.always_on {
            return None;
        }
        let end = self.extended_at.or(self.started_at)? + time::Duration::seconds(i64::from(self.timeout_sec));
        Some(u64::try_from((end - now).whole_milliseconds()).unwrap_or(0))
    }

    /// Milliseconds that it ran in all its sessions.
    pub fn runtime_ms(&self, now: OffsetDateTime) -> u64 {
        let session = match (self.state, self.started_at) {
            (SandboxState::Running | SandboxState::Snapshotting | SandboxState::Pausing, Some(began)) => now - began,
            _ => time::Duration::ZERO,
        };
        self.ran_ms + u64::try_from(session.whole_milliseconds()).unwrap_or(0)
    }
}

/// How a sandbox came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootPath {
    /// Booted from its disk.
    Cold,
    /// Made from its template's prepared machine.
    Warm,
    /// Went on from a captured machine: a resume, a restore or a fork.
    Snapshot,
}

impl BootPath {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            BootPath::Cold => "cold",
            BootPath::Warm => "warm",
            BootPath::Snapshot => "snapshot",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [BootPath::Cold, BootPath::Warm, BootPath::Snapshot].into_iter().find(|path| path.as_str() == text)
    }
}

/// What to change of a sandbox; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxUpdate {
    /// A new name; an inner `None` takes the name away.
    pub name: Option<Option<String>>,
    /// A new slug; an inner `None` takes it away.
    pub slug: Option<Option<String>>,
    /// New tags, in place of the old ones.
    pub tags: Option<Vec<String>>,
    /// Laid over the metadata; `null` removes a key. `miosa_persistent`, `keep_last_snapshots` and
    /// `snapshot_expiration_sec` in it are honoured.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Seconds of a session, 1-86400.
    pub timeout_sec: Option<u32>,
    /// Seconds of inactivity, 0 (off) to 86400.
    pub idle_timeout_sec: Option<u32>,
    /// No timeout is enforced.
    pub always_on: Option<bool>,
    /// Kept when it stops.
    pub persistent: Option<bool>,
    /// Laid over the environment; processes that are started afterwards see it. `None` as a value removes a variable.
    pub env: BTreeMap<String, Option<String>>,
}

/// Which sandboxes to list; every field that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// In this state; without it all but the destroyed.
    pub state: Option<SandboxState>,
    /// Has all of these tags.
    pub tags: Vec<String>,
    /// Made from this template.
    pub template_id: Option<String>,
    /// Has this name.
    pub name: Option<String>,
    /// Has these ids.
    pub external: External,
}
