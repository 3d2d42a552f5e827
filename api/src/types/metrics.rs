//! What sandboxes use, on the wire (contract X03-X06). What is not measured is `null`, never 0.

use cove_engine::{Metrics, Sample, Usage};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::timestamp;

/// What a sandbox used in all its sessions.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({
    "sandbox_id": "sbx_7", "state": "running", "runtime_sec": 61.5, "provisioned_vcpu_ms": 123000,
    "provisioned_memory_mb_ms": 251904000, "creation_count": 1, "active_cpu_ms": 4210,
    "network_ingress_bytes": null, "network_egress_bytes": null,
    "measurement_status": {"active_cpu": "sampled", "network": "unavailable", "provisioned_resources": "measured"},
    "estimated_cost_cents": 0, "timeout_sec": 300, "timeout_remaining_ms": 238500
}))]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
pub struct UsageRecord {
    pub sandbox_id: String,
    pub state: String,
    /// Seconds that it ran.
    pub runtime_sec: f64,
    /// Milliseconds that it ran, times the vCPUs that it had.
    pub provisioned_vcpu_ms: u64,
    /// Milliseconds that it ran, times its memory in MiB.
    pub provisioned_memory_mb_ms: u64,
    /// 1.
    pub creation_count: u32,
    /// Milliseconds of the host's processors, the work for its devices among them; `null` when nobody ever looked.
    pub active_cpu_ms: Option<u64>,
    /// `null`: sandboxes have no network.
    pub network_ingress_bytes: Option<u64>,
    /// `null`: sandboxes have no network.
    pub network_egress_bytes: Option<u64>,
    pub measurement_status: MeasurementStatus,
    /// 0: nothing is charged.
    pub estimated_cost_cents: u32,
    pub timeout_sec: u32,
    pub timeout_remaining_ms: Option<u64>,
}

/// How each kind of figure came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MeasurementStatus {
    /// `sampled`: read every 5 s while it runs, so of each ended session up to its last 5 s may be missing; or `unavailable`.
    #[schema(value_type = String)]
    pub active_cpu: &'static str,
    /// `unavailable`.
    #[schema(value_type = String)]
    pub network: &'static str,
    /// `measured`, or `unavailable` when it never ran.
    #[schema(value_type = String)]
    pub provisioned_resources: &'static str,
}

impl From<Usage> for UsageRecord {
    fn from(usage: Usage) -> Self {
        let sandbox = usage.sandbox;
        let ran = sandbox.ready_at.is_some();
        let vcpus = sandbox.cpu_granted.unwrap_or(sandbox.shape.cpu_count);
        let word = |there, word| if there { word } else { "unavailable" };
        Self {
            runtime_sec: usage.runtime_ms as f64 / 1000.0,
            provisioned_vcpu_ms: usage.runtime_ms.saturating_mul(vcpus.into()),
            provisioned_memory_mb_ms: usage.runtime_ms.saturating_mul(sandbox.shape.memory_mb.into()),
            creation_count: 1,
            active_cpu_ms: usage.active_cpu_ms,
            network_ingress_bytes: None,
            network_egress_bytes: None,
            measurement_status: MeasurementStatus {
                active_cpu: word(usage.active_cpu_ms.is_some(), "sampled"),
                network: "unavailable",
                provisioned_resources: word(ran, "measured"),
            },
            estimated_cost_cents: 0,
            timeout_sec: sandbox.timeout_sec,
            timeout_remaining_ms: sandbox.timeout_remaining_ms(OffsetDateTime::now_utc()),
            state: sandbox.state.as_str().to_owned(),
            sandbox_id: sandbox.id.to_string(),
        }
    }
}

/// Figures of a sandbox over time.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({
    "resource_type": "sandbox", "sandbox_id": "sbx_7", "window": "1h", "resolution_sec": 5,
    "current": {"state": "running", "cpu_count": 2, "cpu_granted": 1, "memory_mb": 4096, "disk_size_mb": 20480,
        "cpu_percent": 3.5, "memory_resident_bytes": 83886080, "disk_bytes": 12582912,
        "network_ingress_bytes": null, "network_egress_bytes": null, "ts": "2026-01-02T03:04:05.000000Z"},
    "samples": [{"ts": "2026-01-02T03:04:05.000000Z", "cpu_percent": 3.5, "memory_resident_bytes": 83886080,
        "disk_bytes": 12582912}]
}))]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
pub struct MetricsRecord {
    /// `sandbox`.
    #[schema(value_type = String)]
    pub resource_type: &'static str,
    pub sandbox_id: String,
    /// As it was asked for.
    pub window: String,
    /// Seconds between two samples while it ran: 5 up to an hour, 60 up to a day.
    pub resolution_sec: u64,
    pub current: CurrentFigures,
    /// Oldest first. There are none of times at which it was paused or this server did not run.
    pub samples: Vec<SampleRecord>,
}

/// The present state; figures are `null` while it does not run and in its first seconds.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
pub struct CurrentFigures {
    pub state: String,
    /// As asked for.
    pub cpu_count: u32,
    /// As the host grants it.
    pub cpu_granted: Option<u32>,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
    /// Of one processor: 200 when two are busy.
    pub cpu_percent: Option<f32>,
    /// Bytes that the host holds for it alone.
    pub memory_resident_bytes: Option<u64>,
    /// Bytes on the host's disk that it wrote since its last snapshot or fork.
    pub disk_bytes: Option<u64>,
    /// `null`: sandboxes have no network.
    pub network_ingress_bytes: Option<u64>,
    /// `null`: sandboxes have no network.
    pub network_egress_bytes: Option<u64>,
    /// When these figures were read.
    pub ts: Option<String>,
}

/// Figures at one time.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SampleRecord {
    /// When.
    pub ts: String,
    /// Of one processor, since the sample before.
    pub cpu_percent: f32,
    /// Bytes that the host holds for it alone.
    pub memory_resident_bytes: u64,
    /// Bytes on the host's disk that it wrote since its last snapshot or fork.
    pub disk_bytes: Option<u64>,
}

impl From<Sample> for SampleRecord {
    fn from(sample: Sample) -> Self {
        Self {
            ts: time_of(sample),
            cpu_percent: tenths(sample.cpu_percent),
            memory_resident_bytes: sample.memory_bytes,
            disk_bytes: sample.disk_bytes,
        }
    }
}

fn time_of(sample: Sample) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(sample.at_ms) * 1_000_000);
    timestamp(at.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// More digits say more than was measured.
fn tenths(percent: f32) -> f32 {
    (percent * 10.0).round() / 10.0
}

impl MetricsRecord {
    /// Of the figures in `window`.
    pub fn of(metrics: Metrics, window: String) -> Self {
        let Metrics { sandbox, present, samples, every_sec } = metrics;
        Self {
            resource_type: "sandbox",
            sandbox_id: sandbox.id.to_string(),
            window,
            resolution_sec: every_sec,
            current: CurrentFigures {
                state: sandbox.state.as_str().to_owned(),
                cpu_count: sandbox.shape.cpu_count,
                cpu_granted: sandbox.cpu_granted,
                memory_mb: sandbox.shape.memory_mb,
                disk_size_mb: sandbox.shape.disk_size_mb,
                cpu_percent: present.map(|sample| tenths(sample.cpu_percent)),
                memory_resident_bytes: present.map(|sample| sample.memory_bytes),
                disk_bytes: present.and_then(|sample| sample.disk_bytes),
                network_ingress_bytes: None,
                network_egress_bytes: None,
                ts: present.map(time_of),
            },
            samples: samples.into_iter().map(SampleRecord::from).collect(),
        }
    }
}

/// What a sandbox has, and what of it can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "sbx_7", "resources": {"cpu": 2, "cpu_granted": 1, "memory_mb": 4096, "disk_size_mb": 20480},
    "capabilities": {"live_cpu": false, "live_memory": false, "live_disk": false,
        "reason": "A machine keeps the shape that it was made with"}
}))]
pub struct ResourcesRecord {
    /// Of which sandbox.
    pub id: String,
    /// What it has.
    pub resources: Resources,
    /// What of it can change while it runs.
    pub capabilities: ResizeCapabilities,
}

/// See [`ResourcesRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract")]
pub struct Resources {
    /// As asked for.
    pub cpu: u32,
    /// As the host grants it.
    pub cpu_granted: Option<u32>,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
}

/// See [`ResourcesRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract")]
pub struct ResizeCapabilities {
    pub live_cpu: bool,
    pub live_memory: bool,
    pub live_disk: bool,
    /// Why not.
    #[schema(value_type = String)]
    pub reason: &'static str,
}

/// A shape to change to.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"cpu_count": 4}))]
pub struct ResizeBody {
    /// vCPUs.
    pub cpu_count: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u32>,
}

/// The sandbox has the shape that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract")]
pub struct Resized {
    pub applied_live: bool,
    pub requires_restart: bool,
    /// What changed: nothing, since it had that shape.
    #[schema(value_type = Object)]
    pub changes: serde_json::Map<String, serde_json::Value>,
    pub resources: Resources,
    pub capabilities: ResizeCapabilities,
    /// `null`: nothing is charged.
    pub billing: Option<String>,
}
