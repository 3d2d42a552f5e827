//! Snapshots and forks on the wire (contract 6.7, 8.12; X79-X91).

use std::collections::BTreeMap;

use cove_engine::{
    Comparison, Difference, DiskOwner, External, ForkSpec, OwnerKind, Sandbox, Shape, Share, Size, Snapshot,
    SnapshotSpec, SnapshotUpdate,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::files::FileEntry;
use super::life::EnvironmentSelectors;
use super::timestamp;
use crate::error::ApiError;

/// What a new snapshot may be told.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"comment": "before the upgrade"}))]
pub struct SnapshotBody {
    /// For people.
    pub comment: Option<String>,
    /// Unique among snapshots; a snapshot with a name is kept by every retention rule.
    pub name: Option<String>,
    /// The caller's own data.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Seconds until it is deleted by itself, 0 for never; as the sandbox's `metadata.snapshot_expiration_sec` says when
    /// absent. `snapshot_expiration_sec` means the same.
    #[serde(alias = "snapshot_expiration_sec")]
    pub expiration_sec: Option<u64>,
}

impl From<SnapshotBody> for SnapshotSpec {
    fn from(body: SnapshotBody) -> Self {
        SnapshotSpec {
            name: body.name,
            comment: body.comment,
            metadata: body.metadata.unwrap_or_default(),
            expiration_sec: body.expiration_sec,
        }
    }
}

/// What to change of a snapshot; fields that are absent stay, `null` takes away.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"comment": "works"}))]
pub struct SnapshotUpdateBody {
    /// A new name.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Option<String>>,
    /// A new comment.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub comment: Option<Option<String>>,
    /// In place of the old metadata.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl From<SnapshotUpdateBody> for SnapshotUpdate {
    fn from(body: SnapshotUpdateBody) -> Self {
        SnapshotUpdate { name: body.name, comment: body.comment, metadata: body.metadata }
    }
}

/// A snapshot as everyone sees it. There is none that is not ready.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
#[schema(example = json!({
    "id": "snap_1q7x", "snapshot_id": "snap_1q7x", "status": "ready", "sandbox_id": "sbx_4k2p", "sandbox_name": "build",
    "resource": {"type": "sandbox", "id": "sbx_4k2p", "name": "build"}, "parent_id": null, "name": null,
    "comment": "before the upgrade", "metadata": {}, "template_id": "miosa-sandbox", "size": "xs", "cpu_count": 1,
    "memory_mb": 2048, "disk_size_mb": 10240, "has_memory": true, "size_bytes": 50331648, "exclusive_bytes": 12582912,
    "shared_bytes": 37748736, "generation": 1, "pause_ms": 41.2, "created_at": "2026-01-02T03:04:05.000000Z",
    "updated_at": "2026-01-02T03:04:05.000000Z", "expires_at": null
}))]
pub struct SnapshotRecord {
    pub id: String,
    /// The same as `id`.
    pub snapshot_id: String,
    /// `ready`.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// The sandbox of which it was taken, which may be gone.
    pub sandbox_id: String,
    /// That sandbox's name then.
    pub sandbox_name: Option<String>,
    pub resource: Resource,
    /// The snapshot that the sandbox had last come from or taken: its parent in the tree.
    pub parent_id: Option<String>,
    pub name: Option<String>,
    pub comment: Option<String>,
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    pub template_id: String,
    /// `null` for custom shapes.
    #[schema(value_type = Option<String>)]
    pub size: Option<Size>,
    pub cpu_count: u32,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
    /// What comes from it goes on where it was, instead of booting from the disk.
    pub has_memory: bool,
    /// What it needs on this host's disk, beside its template.
    pub size_bytes: u64,
    /// Of `size_bytes`, what is free again when it is deleted.
    pub exclusive_bytes: u64,
    /// Of `size_bytes`, what others need too.
    pub shared_bytes: u64,
    /// How many restores led to it.
    pub generation: u64,
    /// Milliseconds that the sandbox stood still for it; `null` when it was paused.
    pub pause_ms: Option<f64>,
    pub created_at: String,
    pub updated_at: String,
    /// When it is deleted by itself.
    pub expires_at: Option<String>,
}

/// What a snapshot was taken of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Resource {
    /// `sandbox`.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
}

impl Resource {
    /// A sandbox.
    pub fn sandbox(id: impl ToString, name: Option<String>) -> Self {
        Self { kind: "sandbox", id: id.to_string(), name }
    }
}

impl From<Snapshot> for SnapshotRecord {
    fn from(snapshot: Snapshot) -> Self {
        let Share { exclusive_bytes, shared_bytes } = snapshot.share;
        Self {
            id: snapshot.id.to_string(),
            snapshot_id: snapshot.id.to_string(),
            status: "ready",
            resource: Resource::sandbox(&snapshot.sandbox_id, snapshot.sandbox_name.clone()),
            sandbox_id: snapshot.sandbox_id.to_string(),
            sandbox_name: snapshot.sandbox_name,
            parent_id: snapshot.parent_id.map(|id| id.to_string()),
            name: snapshot.name,
            comment: snapshot.comment,
            metadata: snapshot.metadata,
            template_id: snapshot.template_id,
            size: snapshot.size,
            cpu_count: snapshot.shape.cpu_count,
            memory_mb: snapshot.shape.memory_mb,
            disk_size_mb: snapshot.shape.disk_size_mb,
            has_memory: snapshot.has_memory,
            size_bytes: exclusive_bytes + shared_bytes,
            exclusive_bytes,
            shared_bytes,
            generation: snapshot.generation,
            pause_ms: snapshot.paused_us.map(|micros| micros as f64 / 1000.0),
            created_at: timestamp(snapshot.created_at),
            updated_at: timestamp(snapshot.updated_at),
            expires_at: snapshot.expires_at.map(timestamp),
        }
    }
}

/// A page of snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SnapshotPage {
    /// Newest first.
    pub data: Vec<SnapshotRecord>,
    /// How many there are on all pages.
    pub total: usize,
}

/// The snapshots of one sandbox, together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SnapshotGroup {
    /// The sandbox, which may be gone.
    pub resource: Resource,
    /// How many.
    pub snapshot_count: usize,
    /// What is free again when all of them are deleted, at least.
    pub exclusive_bytes: u64,
    /// The newest one.
    pub latest_snapshot_id: String,
    /// When that was taken.
    pub latest_at: String,
    /// When the oldest was taken.
    pub oldest_at: String,
}

/// A page of groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SnapshotGroups {
    /// Newest activity first.
    pub data: Vec<SnapshotGroup>,
    /// How many there are on all pages.
    pub total: usize,
}

/// A snapshot and what last came from it or took it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SnapshotWithDependents {
    /// The snapshot.
    pub data: SnapshotRecord,
    /// Live sandboxes; deleting the snapshot does not harm them.
    pub dependents: Vec<Dependent>,
}

/// A sandbox that last came from a snapshot or took it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Dependent {
    /// Which.
    #[serde(flatten)]
    pub resource: Resource,
    /// Where it is in its life.
    #[schema(value_type = String)]
    pub state: cove_engine::SandboxState,
}

impl From<Sandbox> for Dependent {
    fn from(sandbox: Sandbox) -> Self {
        Self { resource: Resource::sandbox(&sandbox.id, sandbox.name), state: sandbox.state }
    }
}

/// A snapshot is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedSnapshot {
    /// Which.
    pub id: String,
    /// `deleted`.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// Bytes that are free again.
    pub freed_bytes: u64,
}

impl From<Snapshot> for DeletedSnapshot {
    fn from(snapshot: Snapshot) -> Self {
        Self { id: snapshot.id.to_string(), status: "deleted", freed_bytes: snapshot.share.exclusive_bytes }
    }
}

/// Which snapshots to delete: `ids`, or everything of one sandbox.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"ids": ["snap_1q7x"]}))]
pub struct DeleteManyBody {
    /// These, at most 1000.
    pub ids: Option<Vec<String>>,
    /// The sandbox whose snapshots without a name are deleted; needs `all` and `confirm`.
    pub resource_id: Option<String>,
    /// `true`.
    pub all: Option<bool>,
    /// The same as `resource_id`.
    pub confirm: Option<String>,
}

/// What became of many snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedMany {
    /// These are gone.
    pub deleted: Vec<String>,
    /// These are not.
    pub failed: Vec<super::BulkFailure>,
}

/// What a fork takes; fields that are absent are as in the source.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"name": "try-2", "metadata": {"attempt": 2}}))]
pub struct ForkBody {
    /// Fork from this snapshot, an id or a name, instead of the sandbox as it is now.
    pub snapshot_id: Option<String>,
    /// Unique among live sandboxes; the source's is not taken over.
    pub name: Option<String>,
    /// A short name for URLs.
    pub slug: Option<String>,
    /// Laid over the source's metadata.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
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
    pub env: Option<BTreeMap<String, String>>,
    /// The source's environment is not taken over.
    pub no_env: Option<bool>,
    /// The source's template: a fork cannot have another.
    pub template_id: Option<String>,
    /// Stored, echoed, and a filter of the list.
    pub external_workspace_id: Option<String>,
    /// Stored, echoed, and a filter of the list.
    pub external_user_id: Option<String>,
    /// Stored, echoed, and a filter of the list.
    pub external_project_id: Option<String>,
    /// When the host has no room: answer `NO_READY_MACHINE`, which clients do not repeat.
    pub fail_fast: Option<bool>,
    /// See [`EnvironmentSelectors`].
    #[serde(flatten)]
    #[schema(ignore)]
    pub selectors: EnvironmentSelectors,
}

impl ForkBody {
    /// The engine's form of what is to be different.
    pub fn into_spec(self) -> Result<ForkSpec, ApiError> {
        self.selectors.check()?;
        Ok(ForkSpec {
            name: self.name,
            slug: self.slug,
            metadata: self.metadata.unwrap_or_default(),
            tags: self.tags,
            timeout_sec: self.timeout_sec,
            idle_timeout_sec: self.idle_timeout_sec,
            always_on: self.always_on,
            persistent: self.persistent,
            env: self.env.unwrap_or_default(),
            no_env: self.no_env.unwrap_or(false),
            external: External {
                workspace_id: self.external_workspace_id,
                user_id: self.external_user_id,
                project_id: self.external_project_id,
            },
        })
    }
}

/// A name and the snapshot that it keeps; exactly one source.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"name": "golden", "snapshot_id": "snap_1q7x"}))]
pub struct NameBody {
    /// Unique among snapshots.
    pub name: String,
    /// This snapshot gets the name.
    pub snapshot_id: Option<String>,
    /// A new snapshot of this sandbox gets it.
    pub sandbox_id: Option<String>,
    /// There are none on this server.
    #[schema(ignore)]
    pub computer_id: Option<String>,
}

/// A name that keeps a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct NamedSnapshot {
    /// Unique among snapshots.
    pub name: String,
    /// The snapshot.
    pub snapshot_id: String,
    /// `ready`.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// What the snapshot was taken of.
    pub resource: Resource,
    /// What the snapshot needs on this host's disk.
    pub size_bytes: u64,
    /// When the snapshot was taken.
    pub created_at: String,
    /// The whole snapshot.
    pub snapshot: SnapshotRecord,
}

impl From<Snapshot> for NamedSnapshot {
    fn from(snapshot: Snapshot) -> Self {
        let snapshot = SnapshotRecord::from(snapshot);
        Self {
            name: snapshot.name.clone().unwrap_or_default(),
            snapshot_id: snapshot.id.clone(),
            status: snapshot.status,
            resource: snapshot.resource.clone(),
            size_bytes: snapshot.size_bytes,
            created_at: snapshot.created_at.clone(),
            snapshot,
        }
    }
}

/// All names.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct NamedSnapshots {
    /// Newest first.
    pub data: Vec<NamedSnapshot>,
    /// What names cost here: nothing.
    pub allowance: Allowance,
}

/// See [`NamedSnapshots::allowance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Allowance {
    /// Names in use.
    pub used: usize,
    /// Most names; `null` is no bound.
    pub limit: Option<usize>,
    /// Cents for each name.
    pub price_cents: u32,
}

/// A name and what its snapshot's dependents are.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct NamedWithDependents {
    /// The name.
    pub data: NamedSnapshot,
    /// Live sandboxes.
    pub dependents: Vec<Dependent>,
}

/// A name was taken away.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct NameRemoved {
    /// The snapshot, which has no name now and stays in the history.
    pub data: SnapshotRecord,
    /// `released`.
    #[schema(value_type = String)]
    pub outcome: &'static str,
}

/// What everything takes on the disk.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct DiskUse {
    /// By the id of a sandbox or snapshot, or by the key of a template's prepared machine.
    pub owners: BTreeMap<String, DiskShare>,
    /// What is free again, at least, when all of them go: the exclusive parts together.
    pub exclusive_bytes: u64,
    /// What all of them take, each file counted once. Templates' own disks are not in it.
    pub owned_bytes: u64,
    /// What templates' own disks take, by template.
    pub templates: BTreeMap<String, u64>,
    /// Prepared machines go, the least recently used first, when they take more than this.
    pub prepared_bytes_max: u64,
    /// Of the file system on which all of it lies.
    pub total_bytes: u64,
    /// Of it, free for this server.
    pub free_bytes: u64,
    /// New sandboxes are refused when less than this is free.
    pub reserve_bytes: u64,
}

/// What one owner takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DiskShare {
    /// Free again when this owner is removed.
    pub exclusive_bytes: u64,
    /// Needed by others too.
    pub shared_bytes: u64,
    /// `sandbox`; `snapshot`; `prepared`, a template's machine that creates go on from; `viewer`, through which a snapshot's
    /// files are read, and which ends by itself.
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// Of a prepared machine: what it is for.
    pub prepared: Option<PreparedKind>,
}

/// For which creates a prepared machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the create body")]
pub struct PreparedKind {
    pub template_id: String,
    pub cpu_count: u32,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
    /// When a sandbox was last made from it.
    pub used_at: String,
}

impl From<cove_engine::DiskUse> for DiskUse {
    fn from(disk: cove_engine::DiskUse) -> Self {
        let share = |owner: DiskOwner| {
            let (kind, prepared) = match owner.kind {
                OwnerKind::Sandbox => ("sandbox", None),
                OwnerKind::Snapshot => ("snapshot", None),
                OwnerKind::Viewer => ("viewer", None),
                OwnerKind::Prepared { template_id, shape, used_at } => {
                    let Shape { cpu_count, memory_mb, disk_size_mb } = shape;
                    let used_at = timestamp(used_at);
                    ("prepared", Some(PreparedKind { template_id, cpu_count, memory_mb, disk_size_mb, used_at }))
                }
            };
            let Share { exclusive_bytes, shared_bytes } = owner.share;
            (owner.id, DiskShare { exclusive_bytes, shared_bytes, kind, prepared })
        };
        Self {
            exclusive_bytes: disk.owners.iter().map(|owner| owner.share.exclusive_bytes).sum(),
            owners: disk.owners.into_iter().map(share).collect(),
            owned_bytes: disk.owned_bytes,
            templates: disk.templates.into_iter().collect(),
            prepared_bytes_max: disk.prepared_bytes_max,
            total_bytes: disk.total_bytes,
            free_bytes: disk.free_bytes,
            reserve_bytes: disk.reserve_bytes,
        }
    }
}

/// What differs between the files of a snapshot and those of something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileComparison {
    /// The directory below which was compared.
    pub path: String,
    /// By path, in byte order.
    pub differences: Vec<FileDifference>,
    /// How many more there are.
    pub more: usize,
    /// Entries of both sides that were looked at.
    pub compared: usize,
}

/// One path that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileDifference {
    /// Which.
    pub path: String,
    /// `added`, `removed`, `modified` (also of another kind), or `permissions` when nothing else differs.
    #[schema(value_type = String)]
    pub change: &'static str,
    /// In the snapshot.
    pub before: Option<FileEntry>,
    /// In what it was compared with.
    pub after: Option<FileEntry>,
}

impl FileComparison {
    /// What the engine found below `path`.
    pub fn of(path: String, found: Comparison) -> Self {
        let differences = found.differences.into_iter().map(FileDifference::from).collect();
        Self { path, differences, more: found.more, compared: found.compared }
    }
}

impl From<Difference> for FileDifference {
    fn from(Difference { before, after, content }: Difference) -> Self {
        let change = match (&before, &after) {
            (None, _) => "added",
            (_, None) => "removed",
            _ if content => "modified",
            _ => "permissions",
        };
        let path = before.as_ref().or(after.as_ref()).map(|entry| entry.path.clone()).unwrap_or_default();
        Self { path, change, before: before.map(Into::into), after: after.map(Into::into) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fork_is_as_its_source_where_nothing_is_said() {
        let spec = |body: Value| serde_json::from_value::<ForkBody>(body).unwrap().into_spec();
        assert_eq!(spec(json!({"snapshot_id": "snap_1"})).unwrap(), ForkSpec::default());
        let full = spec(json!({"name": "f", "env": {"A": "1"}, "no_env": true, "external_user_id": "u"})).unwrap();
        assert_eq!((full.name.as_deref(), full.no_env), (Some("f"), true));
        assert_eq!(full.external.user_id.as_deref(), Some("u"));
        assert!(spec(json!({"environment": "prod"})).unwrap_err().message().starts_with("environment"));
    }
}
