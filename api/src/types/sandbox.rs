//! A sandbox on the wire: its record (contract 6.1), and how far it is (8.7).

use cove_engine::{Sandbox, SandboxState, Size};
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{UrlInfo, timestamp};

/// A sandbox as everyone sees it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
pub struct SandboxRecord {
    pub id: String,
    /// `creating`, `running`, `pausing`, `paused`, `resuming`, `snapshotting`, `error`, `destroying`, `destroyed`.
    #[schema(value_type = String)]
    pub state: SandboxState,
    /// Commands can run.
    pub ready: bool,
    pub template_id: String,
    pub image_id: String,
    pub name: Option<String>,
    pub slug: Option<String>,
    /// `null` for custom shapes.
    #[schema(value_type = Option<String>)]
    pub size: Option<Size>,
    pub resource_contract: ResourceContract,
    /// As asked for.
    pub cpu_count: u32,
    /// As the host grants it; `null` until the machine ran.
    pub cpu_granted: Option<u32>,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
    pub disk_mb: u32,
    pub timeout_sec: u32,
    pub idle_timeout_sec: u32,
    /// What is left of a running session; `null` when none runs or none is enforced.
    pub timeout_remaining_ms: Option<u64>,
    pub always_on: bool,
    pub persistent: bool,
    /// The caller's own data; in state `error` also `last_error`, the reason.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    pub tags: Vec<String>,
    /// Milliseconds of its latest start, from the request to command-ready.
    pub boot_ms: Option<u64>,
    /// How it came to run: `cold` (booted), `warm` (from its template's prepared machine), `snapshot` (resume, restore, fork).
    #[schema(value_type = Option<String>)]
    pub boot_path: Option<cove_engine::sandbox::BootPath>,
    /// `false`: a pause is whole when it is answered.
    pub checkpoint_pending: bool,
    pub checkpoint_phase: Option<String>,
    pub preview_url: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub url_info: Option<Value>,
    pub url_class: Option<String>,
    pub stable_for_embedding: bool,
    pub recommended_next_action: Option<String>,
    pub preview_domain: Option<String>,
    pub created_at: String,
    pub inserted_at: String,
    pub started_at: Option<String>,
    pub ready_at: Option<String>,
    /// Since when it is paused.
    pub paused_at: Option<String>,
    pub destroyed_at: Option<String>,
    /// Seconds that it ran in all its sessions; `null` when it never was command-ready.
    pub total_runtime_sec: Option<u64>,
    /// The sandbox that it is a fork of.
    pub forked_from: Option<String>,
    /// The snapshot that it last came from or took.
    pub snapshot_id: Option<String>,
    /// How many restores led to its machine.
    pub generation: u64,
    pub tenant_id: Option<String>,
    pub owner_id: Option<String>,
    pub workspace_id: Option<String>,
    pub workspace_slug: Option<String>,
    pub workspace_name: Option<String>,
    pub project_id: Option<String>,
    pub project_slug: Option<String>,
    pub project_name: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
}

/// The shape in words that other MIOSA clients compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract")]
pub struct ResourceContract {
    /// Such as `sandbox/small@v1` or `sandbox/custom-3x3000x9000@v1`.
    pub id: String,
    pub version: String,
    pub product: String,
    #[schema(value_type = Option<String>)]
    pub size: Option<Size>,
    pub vcpus: u32,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
}

impl ResourceContract {
    fn of(sandbox: &Sandbox) -> Self {
        let shape = sandbox.shape;
        let name = match sandbox.size {
            Some(size) => size_name(size).to_owned(),
            None => format!("custom-{}x{}x{}", shape.cpu_count, shape.memory_mb, shape.disk_size_mb),
        };
        Self {
            id: format!("sandbox/{name}@v1"),
            version: "v1".into(),
            product: "sandbox".into(),
            size: sandbox.size,
            vcpus: shape.cpu_count,
            memory_mb: shape.memory_mb,
            disk_size_mb: shape.disk_size_mb,
        }
    }
}

fn size_name(size: Size) -> &'static str {
    match size {
        Size::Xs => "xs",
        Size::Small => "small",
        Size::Medium => "medium",
        Size::Large => "large",
        Size::Xl => "xl",
    }
}

impl SandboxRecord {
    /// The record of `sandbox` at the time `now`.
    pub fn at(sandbox: Sandbox, now: OffsetDateTime) -> Self {
        let contract = ResourceContract::of(&sandbox);
        let timeout_remaining_ms = sandbox.timeout_remaining_ms(now);
        // One that never ran has no time, rather than none yet.
        let total_runtime_sec = sandbox.ready_at.map(|_| sandbox.runtime_ms(now) / 1000);
        let mut metadata = sandbox.metadata;
        if let Some(reason) = sandbox.last_error {
            metadata.insert("last_error".into(), reason.into());
        }
        Self {
            id: sandbox.id.to_string(),
            state: sandbox.state,
            ready: sandbox.state == SandboxState::Running,
            image_id: sandbox.template_id.clone(),
            template_id: sandbox.template_id,
            name: sandbox.name,
            slug: sandbox.slug,
            size: sandbox.size,
            resource_contract: contract,
            cpu_count: sandbox.shape.cpu_count,
            cpu_granted: sandbox.cpu_granted,
            memory_mb: sandbox.shape.memory_mb,
            disk_size_mb: sandbox.shape.disk_size_mb,
            disk_mb: sandbox.shape.disk_size_mb,
            timeout_sec: sandbox.timeout_sec,
            idle_timeout_sec: sandbox.idle_timeout_sec,
            timeout_remaining_ms,
            always_on: sandbox.always_on,
            persistent: sandbox.persistent,
            metadata,
            tags: sandbox.tags,
            boot_ms: sandbox.boot_ms,
            boot_path: sandbox.boot_path,
            checkpoint_pending: false,
            checkpoint_phase: None,
            preview_url: None,
            url_info: None,
            url_class: None,
            stable_for_embedding: false,
            recommended_next_action: None,
            preview_domain: None,
            created_at: timestamp(sandbox.created_at),
            inserted_at: timestamp(sandbox.created_at),
            started_at: sandbox.started_at.map(timestamp),
            ready_at: sandbox.ready_at.map(timestamp),
            paused_at: sandbox.paused_at.map(timestamp),
            destroyed_at: sandbox.destroyed_at.map(timestamp),
            total_runtime_sec,
            forked_from: sandbox.forked_from.map(|id| id.to_string()),
            snapshot_id: sandbox.snapshot_id.map(|id| id.to_string()),
            generation: sandbox.generation,
            tenant_id: None,
            owner_id: None,
            workspace_id: None,
            workspace_slug: None,
            workspace_name: None,
            project_id: None,
            project_slug: None,
            project_name: None,
            external_workspace_id: sandbox.external.workspace_id,
            external_user_id: sandbox.external.user_id,
            external_project_id: sandbox.external.project_id,
        }
    }

    /// The same with the URL of its first preview.
    pub fn with_preview(mut self, preview: Option<UrlInfo>) -> Self {
        let Some(info) = preview else { return self };
        self.preview_url = Some(info.url.clone());
        self.preview_domain = info.url.split('/').nth(2).map(str::to_owned);
        self.url_class = Some(info.url_class.to_owned());
        self.stable_for_embedding = info.stable_for_embedding;
        self.recommended_next_action = Some(info.recommended_next_action.to_owned());
        self.url_info = serde_json::to_value(info).ok();
        self
    }

    /// The record of `sandbox` now.
    pub fn now(sandbox: Sandbox) -> Self {
        Self::at(sandbox, OffsetDateTime::now_utc())
    }
}

/// What destroy answers: enough for a client to see that the sandbox is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DestroyedRecord {
    /// The sandbox.
    pub id: String,
    /// `destroyed`.
    #[schema(value_type = String)]
    pub state: SandboxState,
    /// When it was gone.
    pub destroyed_at: Option<String>,
}

impl From<Sandbox> for DestroyedRecord {
    fn from(sandbox: Sandbox) -> Self {
        Self { id: sandbox.id.to_string(), state: sandbox.state, destroyed_at: sandbox.destroyed_at.map(timestamp) }
    }
}

/// Whether a sandbox is command-ready, and how far each part of it is (contract 8.7).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Readiness {
    /// Commands can run.
    pub ready: bool,
    /// `ready` or `pending`; `failed` when it never will be.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// Where the sandbox is in its life.
    #[schema(value_type = String)]
    pub state: SandboxState,
    /// Each component: `ready` or `pending`.
    #[schema(value_type = Object)]
    pub components: Map<String, Value>,
    /// Why the sandbox is in state `error`.
    pub last_error: Option<String>,
}

impl From<cove_engine::Readiness> for Readiness {
    fn from(readiness: cove_engine::Readiness) -> Self {
        let word = |ready: bool| if ready { "ready" } else { "pending" };
        let failed =
            matches!(readiness.state, SandboxState::Error | SandboxState::Destroying | SandboxState::Destroyed);
        Self {
            ready: readiness.ready,
            status: if failed { "failed" } else { word(readiness.ready) },
            state: readiness.state,
            components: readiness
                .components
                .into_iter()
                .map(|(name, ready)| (name.to_owned(), word(ready).into()))
                .collect(),
            last_error: readiness.last_error,
        }
    }
}

/// The payload of the readiness stream's last frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WaitOver {
    /// Where the sandbox is in its life.
    #[schema(value_type = String)]
    pub state: SandboxState,
    /// Since when it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<String>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use cove_engine::{External, SandboxId, Shape};
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    /// A running sandbox.
    pub fn sandbox() -> Sandbox {
        Sandbox {
            id: SandboxId::parse("sbx_1").unwrap(),
            state: SandboxState::Running,
            last_error: None,
            template_id: "miosa-sandbox".into(),
            size: Some(Size::Small),
            shape: Size::Small.shape(),
            cpu_granted: Some(1),
            timeout_sec: 300,
            idle_timeout_sec: 0,
            always_on: false,
            persistent: true,
            env: BTreeMap::from([("SECRET".into(), "x".into())]),
            metadata: Map::from_iter([("k".into(), json!(1))]),
            name: None,
            slug: None,
            tags: vec!["a".into()],
            external: External { workspace_id: Some("acme".into()), ..Default::default() },
            boot_ms: Some(34),
            boot_path: Some(cove_engine::sandbox::BootPath::Cold),
            created_at: datetime!(2026-01-02 03:04:05 UTC),
            started_at: Some(datetime!(2026-01-02 03:04:06.5 UTC)),
            extended_at: None,
            paused_at: None,
            ran_ms: 0,
            ready_at: None,
            destroyed_at: None,
            generation: 0,
            forked_from: None,
            snapshot_id: None,
        }
    }

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:05:06.5 UTC);

    #[test]
    fn the_record_has_every_field_of_the_contract() {
        let record = serde_json::to_value(SandboxRecord::at(sandbox(), NOW)).unwrap();
        let fields = "id state ready template_id image_id name slug size resource_contract cpu_count memory_mb disk_size_mb \
             timeout_sec idle_timeout_sec timeout_remaining_ms always_on persistent metadata tags boot_ms boot_path \
             checkpoint_pending checkpoint_phase preview_url url_info url_class stable_for_embedding \
             recommended_next_action preview_domain created_at started_at ready_at destroyed_at total_runtime_sec tenant_id \
             owner_id workspace_id workspace_slug workspace_name project_id project_slug project_name \
             external_workspace_id external_user_id external_project_id";
        for field in fields.split_whitespace() {
            assert!(record.get(field).is_some(), "{field}");
        }
        assert_eq!(record["state"], "running");
        assert_eq!(record["ready"], true);
        assert_eq!(record["size"], "small");
        assert_eq!(record["boot_path"], "cold");
        assert_eq!(record["created_at"], "2026-01-02T03:04:05.000000Z");
        assert_eq!(record["started_at"], "2026-01-02T03:04:06.500000Z");
        assert_eq!(record["timeout_remaining_ms"], 240_000);
        assert_eq!(record["total_runtime_sec"], serde_json::Value::Null, "it never was command-ready");
        assert_eq!(record["external_workspace_id"], "acme");
        assert_eq!(record["resource_contract"]["id"], "sandbox/small@v1");
        assert!(!record.to_string().contains("SECRET"));
    }

    #[test]
    fn a_paused_sandbox_says_since_when_and_how_long_it_ran() {
        let mut paused = sandbox();
        (paused.state, paused.ran_ms) = (SandboxState::Paused, 90_500);
        (paused.ready_at, paused.paused_at) = (paused.started_at, Some(NOW));
        paused.forked_from = SandboxId::parse("sbx_2");
        let record = SandboxRecord::at(paused, NOW);
        assert_eq!((record.total_runtime_sec, record.timeout_remaining_ms), (Some(90), None));
        assert_eq!(record.paused_at.as_deref(), Some("2026-01-02T03:05:06.500000Z"));
        assert_eq!((record.forked_from.as_deref(), record.checkpoint_pending), (Some("sbx_2"), false));
    }

    #[test]
    fn a_failed_sandbox_says_why_in_its_metadata() {
        let mut failed = sandbox();
        failed.state = SandboxState::Error;
        failed.last_error = Some("The kernel panicked".into());
        let record = SandboxRecord::at(failed, NOW);
        assert_eq!(record.metadata["last_error"], "The kernel panicked");
        assert_eq!(record.metadata["k"], 1);
        assert_eq!((record.ready, record.timeout_remaining_ms), (false, None));
    }

    #[test]
    fn a_custom_shape_names_its_figures() {
        let mut custom = sandbox();
        custom.size = None;
        custom.shape = Shape { cpu_count: 3, memory_mb: 3000, disk_size_mb: 9000 };
        let record = SandboxRecord::at(custom, NOW);
        assert_eq!(record.resource_contract.id, "sandbox/custom-3x3000x9000@v1");
    }
}
