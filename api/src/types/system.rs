//! The server and the machines on the wire: health, limits, figures, console.

use std::collections::BTreeMap;

use cove_engine::doctor::{Report, Status};
use cove_engine::protocol::vmm::Stats;
use cove_engine::{Engine, Limits, Shape, Size};
use serde::Serialize;
use utoipa::ToSchema;

/// The server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// The server's version.
    #[schema(value_type = String)]
    pub version: &'static str,
}

/// What this server is and grants.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SystemInfo {
    /// The server's version.
    #[schema(value_type = String)]
    pub version: &'static str,
    /// What may be asked for.
    pub limits: LimitsInfo,
    /// What the host can do.
    pub host: HostInfo,
}

/// What may be asked for: each range is least and most.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the create body")]
pub struct LimitsInfo {
    #[schema(value_type = Vec<u32>)]
    pub cpu_count: [u32; 2],
    #[schema(value_type = Vec<u32>)]
    pub memory_mb: [u32; 2],
    #[schema(value_type = Vec<u32>)]
    pub disk_size_mb: [u32; 2],
    /// The shape when nothing is asked for.
    #[schema(value_type = Object)]
    pub default_shape: Shape,
    /// The sizes that have a name, smallest first.
    pub sizes: Vec<NamedSize>,
    #[schema(value_type = Vec<u32>)]
    pub timeout_sec: [u32; 2],
    pub timeout_sec_default: u32,
    #[schema(value_type = Vec<u32>)]
    pub idle_timeout_sec: [u32; 2],
    /// Most sandboxes that are not destroyed.
    pub sandboxes_max: u64,
    /// Most vCPUs that a machine is really granted here.
    pub cpu_granted_max: u32,
}

/// A shape that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the create body")]
pub struct NamedSize {
    /// What create takes as `size`.
    #[schema(value_type = String)]
    pub name: &'static str,
    pub cpu_count: u32,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
}

impl From<Size> for NamedSize {
    fn from(size: Size) -> Self {
        let Shape { cpu_count, memory_mb, disk_size_mb } = size.shape();
        Self { name: size.as_str(), cpu_count, memory_mb, disk_size_mb }
    }
}

impl From<Limits> for LimitsInfo {
    fn from(limits: Limits) -> Self {
        let ends = |range: std::ops::RangeInclusive<u32>| [*range.start(), *range.end()];
        Self {
            cpu_count: ends(limits.cpu_count),
            memory_mb: ends(limits.memory_mb),
            disk_size_mb: ends(limits.disk_size_mb),
            default_shape: limits.default_shape,
            sizes: Size::ALL.into_iter().map(NamedSize::from).collect(),
            timeout_sec: ends(limits.timeout_sec),
            timeout_sec_default: limits.timeout_sec_default,
            idle_timeout_sec: ends(limits.idle_timeout_sec),
            sandboxes_max: limits.sandboxes_max,
            cpu_granted_max: limits.cpu_granted_max,
        }
    }
}

/// What the host can do, as the machine's own probe says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HostInfo {
    /// The KVM device.
    pub kvm: String,
    /// Why no sandbox can be made here, and what to do.
    pub problem: Option<String>,
    /// The host emulates the guest's kernel, and the vmm helps.
    pub assist: bool,
    /// Most vCPUs a machine can be granted here.
    pub vcpus_max: u8,
    /// The host's CPU.
    pub cpu_model: String,
    /// `kvm_intel`, `kvm_amd`, `kvm_pvm` or `unknown`.
    pub module: String,
}

impl HostInfo {
    /// What `engine` found at its start.
    pub fn of(engine: &Engine) -> Self {
        let probe = engine.host();
        Self {
            kvm: probe.kvm.display().to_string(),
            problem: engine.host_problem().map(str::to_owned),
            assist: probe.assist,
            vcpus_max: probe.vcpus_max,
            cpu_model: probe.cpu_model.clone(),
            module: probe.module.clone(),
        }
    }
}

/// What this computer has and lacks for machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({ "status": "warning", "checks": [
    { "name": "disk", "status": "warning", "detail": "3 GiB free", "advice": "Free some space" }
] }))]
pub struct Diagnosis {
    /// The worst of the checks.
    pub status: CheckStatus,
    /// In a fixed order.
    pub checks: Vec<CheckInfo>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CheckInfo {
    /// What was looked at; stable.
    pub name: String,
    /// How it went.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to do about it; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How a check went: `warning` when Cove works but something is less than it could be, `error` when it cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's own line says it")]
pub enum CheckStatus {
    Ok,
    Warning,
    Error,
}

impl From<Status> for CheckStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => Self::Ok,
            Status::Warning => Self::Warning,
            Status::Error => Self::Error,
        }
    }
}

impl From<Report> for Diagnosis {
    fn from(report: Report) -> Self {
        let checks = report.checks.into_iter().map(|check| CheckInfo {
            name: check.name.to_owned(),
            status: check.status.into(),
            detail: check.detail,
            advice: check.advice,
        });
        Self { status: report.status.into(), checks: checks.collect() }
    }
}

/// The end of a sandbox's console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Logs {
    /// Oldest first.
    pub lines: Vec<String>,
}

/// Figures of a sandbox's machine since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MachineFigures {
    /// Microseconds since the vCPUs first ran.
    pub uptime_us: u64,
    /// The vCPUs are stopped.
    pub paused: bool,
    /// In order.
    pub vcpus: Vec<VcpuFigures>,
    /// Guest memory that the host really holds; `null` where it cannot be told.
    pub memory_resident_bytes: Option<u64>,
    /// By name.
    pub devices: BTreeMap<String, DeviceFigures>,
    /// Times the assist finished an instruction, by its name.
    pub assist: BTreeMap<String, u64>,
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct VcpuFigures {
    /// Exits from the guest, by reason.
    pub exits: BTreeMap<String, u64>,
    /// Microseconds inside `KVM_RUN`.
    pub run_us: u64,
    /// Microseconds between them: the vmm's own work for this vCPU.
    pub exit_us: u64,
    /// Microseconds of processor time of its thread; waiting is not in it.
    pub cpu_us: u64,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeviceFigures {
    /// Bytes the guest got from it.
    pub read_bytes: u64,
    /// Bytes the guest gave to it.
    pub write_bytes: u64,
    /// Requests handled.
    pub requests: u64,
    /// Requests refused as malformed, and host failures.
    pub errors: u64,
    /// A write waits, with all that follow it, since the host's file system has no room for it.
    pub held: bool,
}

impl From<Stats> for MachineFigures {
    fn from(stats: Stats) -> Self {
        let vcpu = |vcpu: cove_engine::protocol::vmm::VcpuStats| VcpuFigures {
            exits: vcpu.exits.into_iter().collect(),
            run_us: vcpu.run_us,
            exit_us: vcpu.exit_us,
            cpu_us: vcpu.cpu_us,
        };
        let device = |device: cove_engine::protocol::vmm::DeviceStats| DeviceFigures {
            read_bytes: device.read_bytes,
            write_bytes: device.write_bytes,
            requests: device.requests,
            errors: device.errors,
            held: device.held,
        };
        Self {
            uptime_us: stats.uptime_us,
            paused: stats.paused,
            vcpus: stats.vcpus.into_iter().map(vcpu).collect(),
            memory_resident_bytes: stats.memory_resident_bytes,
            devices: stats.devices.into_iter().map(|(name, figures)| (name, device(figures))).collect(),
            assist: stats.assist.into_iter().collect(),
        }
    }
}
