//! The steps of a start: files, process, a boot or a restore, the agent's configuration. Run by drivers and by the builder
//! of warm templates, which may drop them at any moment.
//!
//! ```text
//!  boot:     directories ─► listen for the agent ─► vmm process ─► Start ─► agent reports ─► Configure ─► command-ready
//!  restore:  directories ─► vmm process ─► Restore ────────────────────────────────────────► Configure ─► command-ready
//! ```
//!
//! Whatever was made before a failure or a drop is found by its name: [`remove_files`] and the machine in [`Made`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cove_protocol::guest::Configure;
use cove_protocol::vmm::{ConsoleSpec, DiskSpec, ErrorKind, MachineSpec, RestoreSpec, VsockSpec};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::driver::{Live, Progress};
use super::{Sandbox, SandboxId, Shape, spec};
use crate::agent::{Agent, AgentError, ReadySocket};
use crate::clock;
use crate::config::Paths;
use crate::data_dir::make_dir;
use crate::db::DbError;
use crate::disk::DiskError;
use crate::error::Error;
use crate::host::Tools;
use crate::machine::log::last_words;
use crate::machine::{Machine, MachineError, MachineFiles};
use crate::random;
use crate::shared::Shared;
use crate::storage::{Image, Layer, LayerId, Pin, layers};

/// How long a machine may take from `Start` to the agent's report. Hosts that emulate the guest's kernel take ten
/// seconds alone, and many times that when many start at once.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);

/// How long a start may wait for its turn to boot.
pub(crate) const TURN_DEADLINE: Duration = Duration::from_secs(600);

/// How long a whole start may take, its turn waited for: what the journal notes.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(900);

/// The context id of every guest: each has a vsock device and a host side of its own, so they cannot collide.
const GUEST_CID: u32 = 3;

/// Newest bytes of a console that are kept.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// Random bytes that a guest's kernel gets: as many as its pool holds.
const ENTROPY_BYTES: usize = 64;

/// Why a start failed; the chain of causes becomes the record's `last_error`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("other sandboxes were starting for {} s, and its turn did not come", TURN_DEADLINE.as_secs())]
    Turn,
    #[error("the disk could not be made")]
    Disk(#[source] DiskError),
    #[error("its files could not be made")]
    Files(#[source] Box<Error>),
    #[error("the ready socket could not be made")]
    ReadySocket(#[source] io::Error),
    #[error("the machine did not start")]
    Machine(#[source] MachineError),
    #[error("it could not be noted")]
    Database(#[source] DbError),
    #[error("the guest did not boot within {} s; the end of its console: {console}", BOOT_DEADLINE.as_secs())]
    Boot { console: String },
    #[error("the agent's report was wrong")]
    Report(#[source] AgentError),
    #[error("the guest could not be configured")]
    Configure(#[source] Box<Error>),
}

impl StartError {
    /// The captured machine cannot be restored on this host, whatever is tried; its disk can be booted.
    pub(crate) fn is_unfit_capture(&self) -> bool {
        matches!(self, StartError::Machine(error) if error.kind() == Some(ErrorKind::Snapshot))
    }

    /// The host's disk is full.
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            StartError::Machine(error) => error.kind() == Some(ErrorKind::NoSpace),
            StartError::Disk(DiskError::Copy { source, .. }) => source.is_no_space(),
            StartError::Files(error) => error.is_no_space(),
            StartError::Database(error) => error.is_no_space(),
            StartError::ReadySocket(source) => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// What a machine is made of, however it is started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) id: SandboxId,
    pub(crate) shape: Shape,
    /// The template's base layer.
    pub(crate) base: PathBuf,
    /// The layers above it, lowest first; the last is the machine's own.
    pub(crate) chain: Vec<LayerId>,
}

/// A captured machine that cannot go away while this lives.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) image: Image,
    pub(crate) _pin: Pin,
}

/// What a start made so far and its owner must take down; filled as it is made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) machine: Option<Arc<Machine>>,
}

impl Plan {
    /// Its disk: what the vmm is given.
    pub(crate) fn disk(&self, paths: &Paths) -> DiskSpec {
        layers::disk(paths, &self.base, &self.chain)
    }
}

/// Boots a machine and waits until its agent reports. `progress` is told how far it is. Returns the vCPUs it was granted.
pub(crate) async fn boot(
    shared: &Shared,
    tools: &Tools,
    plan: &Plan,
    progress: &(dyn Fn(Progress) + Send + Sync),
    made: &mut Made,
) -> Result<u8, StartError> {
    let paths = &shared.config.paths;
    make_dirs(paths, &plan.id)?;
    let ready = ReadySocket::listen(&paths.vsock_socket(&plan.id)).map_err(StartError::ReadySocket)?;
    let machine = spawn(shared, tools, &plan.id, made)?;
    let vcpus = vcpus_granted(shared, plan.shape);
    let spec = machine_spec(shared, tools, plan, vcpus);
    let started = machine.start(spec).await.map_err(StartError::Machine)?;
    tracing::info!(vcpus = started.vcpus, assist = started.assist, "machine started");
    progress(Progress::MachineStarted);
    let report = tokio::select! {
        report = timeout(BOOT_DEADLINE, ready.wait()) => report,
        reason = machine.ended() => return Err(StartError::Machine(MachineError::Exited(reason))),
    };
    let report = report.map_err(|_| StartError::Boot { console: last_words(&paths.console_log(&plan.id)) })?;
    let report = report.map_err(StartError::Report)?;
    tracing::info!(boot_us = report.boot_us, kernel = report.kernel, "agent ready");
    progress(Progress::AgentAnswered);
    Ok(started.vcpus)
}

/// Makes a machine from a captured one; it runs at once with `resume`, and else stands still. `own` is its own layer when
/// that has no file yet: it is made while the process starts. Returns its vCPUs.
pub(crate) async fn restore(
    shared: &Shared,
    tools: &Tools,
    plan: &Plan,
    own: Option<&Layer>,
    image: &Image,
    resume: bool,
    made: &mut Made,
) -> Result<u8, StartError> {
    let begun = Instant::now();
    let paths = &shared.config.paths;
    make_dirs(paths, &plan.id)?;
    let machine = spawn(shared, tools, &plan.id, made)?;
    let spawned_us = micros(begun);
    if let Some(own) = own {
        make_layer(shared, tools, own).await?;
    }
    let machine_spec = machine_spec(shared, tools, plan, image.vcpus);
    let spec = RestoreSpec { machine: machine_spec, snapshot: paths.image(&image.id), resume };
    let started = machine.restore(spec).await.map_err(StartError::Machine)?;
    tracing::info!(image = %image.id, spawned_us, restored_us = micros(begun), "machine restored");
    Ok(started.vcpus)
}

/// Makes the file of a new layer.
pub(crate) async fn make_layer(shared: &Shared, tools: &Tools, layer: &Layer) -> Result<(), StartError> {
    let created = layers::create(&tools.vmm, &shared.config.paths, &layer.id, layer.disk_bytes).await;
    created.map_err(StartError::Disk)
}

/// Tells a machine's agent who the machine is now. With `fresh` it gets a machine id of its own.
pub(crate) async fn configure(agent: &Agent, sandbox: &Sandbox, fresh: bool) -> Result<(), StartError> {
    let begun = Instant::now();
    let configured = agent.configure(configuration(sandbox, fresh)).await;
    tracing::info!(configured_us = micros(begun), "agent configured");
    configured.map_err(|error| StartError::Configure(Box::new(error)))
}

/// Microseconds since `begun`.
pub(crate) fn micros(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The vCPUs that a shape is granted on this host.
pub(crate) fn vcpus_granted(shared: &Shared, shape: Shape) -> u8 {
    u8::try_from(shape.cpu_count).unwrap_or(u8::MAX).min(shared.host.probe.vcpus_max)
}

fn make_dirs(paths: &Paths, id: &SandboxId) -> Result<(), StartError> {
    for dir in [paths.sandbox(id), paths.sockets(id)] {
        make_dir(&dir).map_err(|error| StartError::Files(Box::new(error)))?;
    }
    Ok(())
}

fn spawn(shared: &Shared, tools: &Tools, id: &SandboxId, made: &mut Made) -> Result<Arc<Machine>, StartError> {
    let files = machine_files(&shared.config.paths, id);
    let machine = Arc::new(Machine::spawn(tools, files).map_err(StartError::Machine)?);
    made.machine = Some(Arc::clone(&machine));
    Ok(machine)
}

/// Where a sandbox's machine has its files.
pub(crate) fn machine_files(paths: &Paths, id: &SandboxId) -> MachineFiles {
    MachineFiles { control: paths.control_socket(id), vmm_log: paths.vmm_log(id), console_log: paths.console_log(id) }
}

/// What stays of a sandbox when its machine is no more; sockets never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// The machine died or was paused, and what the user wrote is still there.
    DiskAndLogs,
    /// The start failed, and the logs say why.
    Logs,
    /// The sandbox is destroyed.
    Nothing,
}

/// Removes a sandbox's files. What is not there is fine. Its layers and images go when nothing refers to them.
pub(crate) fn remove_files(paths: &Paths, id: &SandboxId, leftover: Leftover) -> Result<(), Error> {
    remove_dir(&paths.sockets(id))?;
    match leftover {
        Leftover::DiskAndLogs | Leftover::Logs => Ok(()),
        Leftover::Nothing => remove_dir(&paths.sandbox(id)),
    }
}

pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn machine_spec(shared: &Shared, tools: &Tools, plan: &Plan, vcpus: u8) -> MachineSpec {
    let paths = &shared.config.paths;
    MachineSpec {
        id: plan.id.to_string(),
        vcpus,
        memory_mib: plan.shape.memory_mb,
        kernel: tools.kernel(&shared.host.probe, vcpus),
        kernel_args: tools.kernel_args(&shared.host.probe),
        disks: vec![plan.disk(paths)],
        vsock: VsockSpec { guest_cid: GUEST_CID, socket: paths.vsock_socket(&plan.id) },
        console: ConsoleSpec { log: paths.console_log(&plan.id), bytes_max: CONSOLE_BYTES_MAX },
    }
}

/// A host name has letters, digits and hyphens (RFC 952); an id has one underscore.
pub(crate) fn hostname(id: &SandboxId) -> String {
    id.as_str().replace('_', "-")
}

/// What the agent is told before the sandbox is called ready.
fn configuration(sandbox: &Sandbox, fresh: bool) -> Configure {
    Configure {
        hostname: hostname(&sandbox.id),
        env: spec::env_pairs(&sandbox.env),
        clock_us: clock::now_us(),
        entropy: random::bytes::<ENTROPY_BYTES>().to_vec().into(),
        machine_id: if fresh { random::machine_id() } else { String::new() },
        generation: sandbox.generation,
    }
}

/// Tells whoever watches a sandbox how far its start is.
pub(crate) fn progress(live: &watch::Sender<Live>, progress: Progress) {
    live.send_modify(|live| live.progress = progress);
}
