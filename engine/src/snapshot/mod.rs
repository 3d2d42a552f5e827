//! Snapshots: a sandbox's disk and memory as they were at one moment, kept until they are deleted.
//!
//! A snapshot costs what its sandbox changes afterwards: it holds a frozen layer and a memory image, and shares all that
//! lies below. Its record exists only once it is whole.

mod facade;

pub(crate) mod files;

pub mod compare;

pub(crate) mod retention;

pub(crate) use facade::delete_expired;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::text_id;
use crate::sandbox::{SandboxId, Shape, Size};
use crate::storage::Share;

text_id! {
    /// A snapshot's id: `snap_` and lower-case letters and digits; needs no escaping in a URL.
    pub SnapshotId, "snap_"
}

/// What everyone sees of a snapshot. It is ready: a snapshot that is being taken has no record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The sandbox of which it was taken, which may be gone.
    pub sandbox_id: SandboxId,
    /// That sandbox's name then.
    pub sandbox_name: Option<String>,
    /// The snapshot that the sandbox had last come from or taken: its parent in the tree of snapshots.
    pub parent_id: Option<SnapshotId>,
    /// Unique among snapshots; a named snapshot is kept by every retention rule.
    pub name: Option<String>,
    /// For people.
    pub comment: Option<String>,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The template of the sandbox.
    pub template_id: String,
    /// The named size of the sandbox.
    pub size: Option<Size>,
    /// Its shape.
    pub shape: Shape,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Memory was captured: what comes from it goes on where it was, instead of booting from the disk.
    pub has_memory: bool,
    /// What it takes on this host's disk; as of this answer.
    pub share: Share,
    /// Counts the restores that led to the captured machine.
    pub generation: u64,
    /// Microseconds that the machine stood still for it; `None` when it was paused anyway.
    pub paused_us: Option<u64>,
    /// When it was taken.
    pub created_at: OffsetDateTime,
    /// When its name, comment or metadata last changed.
    pub updated_at: OffsetDateTime,
    /// When it is deleted by itself.
    pub expires_at: Option<OffsetDateTime>,
}

/// What a caller says about a new snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// Unique among snapshots.
    pub name: Option<String>,
    /// For people.
    pub comment: Option<String>,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Seconds until it is deleted by itself; what the sandbox's `metadata.snapshot_expiration_sec` says when absent; 0 is
    /// never.
    pub expiration_sec: Option<u64>,
}

/// What to change of a snapshot; absent fields stay, an inner `None` takes the value away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotUpdate {
    /// A new name.
    pub name: Option<Option<String>>,
    /// A new comment.
    pub comment: Option<Option<String>>,
    /// New metadata, in place of the old.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Which snapshots to list; every field that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotFilter {
    /// Taken of this sandbox.
    pub sandbox_id: Option<SandboxId>,
    /// With a name only.
    pub named: bool,
    /// Its id, name, comment or sandbox's name holds this text.
    pub text: Option<String>,
}

/// What a fork comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForkSource {
    /// A running or paused sandbox as it is now.
    Sandbox(SandboxId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// What is to be different in a fork; absent fields are as in the source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForkSpec {
    /// Unique among live sandboxes; a source's name is not taken over.
    pub name: Option<String>,
    /// A short name for URLs.
    pub slug: Option<String>,
    /// Laid over the source's metadata.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// In place of the source's tags.
    pub tags: Option<Vec<String>>,
    /// Seconds of a session, 1-86400.
    pub timeout_sec: Option<u32>,
    /// Seconds of inactivity, 0 (off) to 86400.
    pub idle_timeout_sec: Option<u32>,
    /// No timeout is enforced.
    pub always_on: Option<bool>,
    /// Kept when it stops.
    pub persistent: Option<bool>,
    /// Laid over the source's environment.
    pub env: BTreeMap<String, String>,
    /// The source's environment is not taken over.
    pub no_env: bool,
    /// Ids from the caller's own system, over those of the source.
    pub external: crate::sandbox::External,
}
