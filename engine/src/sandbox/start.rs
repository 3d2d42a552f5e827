//! The steps of a start: disk, machine, agent ready. Run by the driver, which may drop them at any moment.
//!
//! ```text
//!  files ─► disk layer ─► listen for the agent ─► vmm process ─► Start ─► agent reports ─► Configure ─► command-ready
//! ```
//!
//! Whatever was made before a failure or a drop is found by its name: [`remove_files`] and the machine in [`Made`].

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cove_protocol::guest::Configure;
use cove_protocol::vmm::{ConsoleSpec, MachineSpec, VsockSpec};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::timeout;

use super::driver::{Live, Progress};
use super::{Sandbox, SandboxId, spec};
use crate::agent::{Agent, AgentError, ReadySocket};
use crate::config::Paths;
use crate::data_dir::make_dir;
use crate::db::{DbError, TemplateVersion};
use crate::disk::{self, DiskError};
use crate::error::Error;
use crate::host::Tools;
use crate::machine::log::last_words;
use crate::machine::{Machine, MachineError, MachineFiles};
use crate::random;
use crate::shared::Shared;

/// How long a machine may take from `Start` to the agent's report. Hosts that emulate the guest's kernel take ten
/// seconds alone, and many times that when many start at once.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);

/// How long a start may wait for its turn to boot.
const TURN_DEADLINE: Duration = Duration::from_secs(600);

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
    #[error("the machine could not be noted")]
    Database(#[source] DbError),
    #[error("the guest did not boot within {} s; the end of its console: {console}", BOOT_DEADLINE.as_secs())]
    Boot { console: String },
    #[error("the agent's report was wrong")]
    Report(#[source] AgentError),
    #[error("the guest could not be configured")]
    Configure(#[source] Box<Error>),
}

/// A started sandbox.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) vcpus: u8,
}

/// What a start made so far and its owner must take down; filled as it is made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) machine: Option<Arc<Machine>>,
}

/// Boots a sandbox from a template's image. `live` is told how far it is.
pub(crate) async fn cold_boot(
    shared: &Shared,
    tools: &Tools,
    sandbox: &Sandbox,
    template: &TemplateVersion,
    live: &watch::Sender<Live>,
    record: watch::Receiver<Sandbox>,
    made: &mut Made,
) -> Result<Booted, StartError> {
    let paths = &shared.config.paths;
    let id = &sandbox.id;
    // Boots are work for the host's CPUs: one after the other is ready sooner than all at once.
    let _turn = timeout(TURN_DEADLINE, shared.boots.acquire()).await.map_err(|_| StartError::Turn)?;
    for dir in [paths.sandbox(id), paths.sockets(id)] {
        make_dir(&dir).map_err(|error| StartError::Files(Box::new(error)))?;
    }
    let (base, top) = (&template.template.root, paths.disk(id));
    let bytes = u64::from(sandbox.shape.disk_size_mb) << 20;
    disk::create_top(&tools.vmm, &top, base, bytes).await.map_err(StartError::Disk)?;
    progress(live, Progress::DiskMade);

    let ready = ReadySocket::listen(&paths.vsock_socket(id)).map_err(StartError::ReadySocket)?;
    let (machine, listening) = Machine::spawn(tools, machine_files(paths, id)).map_err(StartError::Machine)?;
    let machine = Arc::new(machine);
    made.machine = Some(Arc::clone(&machine));
    shared.db.put_machine(id, machine.identity()).await.map_err(StartError::Database)?;
    let spec = machine_spec(shared, tools, sandbox, base, &top);
    let started = machine.start(listening, spec).await.map_err(StartError::Machine)?;
    tracing::info!(vcpus = started.vcpus, assist = started.assist, "machine started");
    live.send_modify(|live| {
        live.progress = Progress::MachineStarted;
        live.machine = Some(Arc::clone(&machine));
    });

    let report = tokio::select! {
        report = timeout(BOOT_DEADLINE, ready.wait()) => report,
        reason = machine.ended() => return Err(StartError::Machine(MachineError::Exited(reason))),
    };
    let report = report.map_err(|_| StartError::Boot { console: last_words(&paths.console_log(id)) })?;
    let report = report.map_err(StartError::Report)?;
    tracing::info!(boot_us = report.boot_us, kernel = report.kernel, "agent ready");
    progress(live, Progress::AgentAnswered);

    let agent = Agent::new(paths.vsock_socket(id), record);
    agent.configure(configuration(sandbox)).await.map_err(|error| StartError::Configure(Box::new(error)))?;
    live.send_modify(|live| {
        live.progress = Progress::Configured;
        live.agent = Some(agent);
    });
    Ok(Booted { vcpus: started.vcpus })
}

/// Where a sandbox's machine has its files.
pub(crate) fn machine_files(paths: &Paths, id: &SandboxId) -> MachineFiles {
    MachineFiles { control: paths.control_socket(id), vmm_log: paths.vmm_log(id), console_log: paths.console_log(id) }
}

/// What stays of a sandbox's files when its machine is no more; sockets never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// The machine died, and what the user wrote is still there.
    DiskAndLogs,
    /// The start failed, and the logs say why.
    Logs,
    /// The sandbox is destroyed.
    Nothing,
}

/// Removes a sandbox's files. What is not there is fine.
pub(crate) fn remove_files(paths: &Paths, id: &SandboxId, leftover: Leftover) -> Result<(), Error> {
    remove_dir(&paths.sockets(id))?;
    match leftover {
        Leftover::DiskAndLogs => Ok(()),
        Leftover::Logs => match fs::remove_file(paths.disk(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", paths.disk(id))(error)),
            _ => Ok(()),
        },
        Leftover::Nothing => remove_dir(&paths.sandbox(id)),
    }
}

pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn progress(live: &watch::Sender<Live>, progress: Progress) {
    live.send_modify(|live| live.progress = progress);
}

fn machine_spec(shared: &Shared, tools: &Tools, sandbox: &Sandbox, base: &Path, top: &Path) -> MachineSpec {
    let paths = &shared.config.paths;
    let asked = u8::try_from(sandbox.shape.cpu_count).unwrap_or(u8::MAX);
    let vcpus = asked.min(shared.host.probe.vcpus_max);
    MachineSpec {
        id: sandbox.id.to_string(),
        vcpus,
        memory_mib: sandbox.shape.memory_mb,
        kernel: tools.kernel(&shared.host.probe, vcpus),
        kernel_args: tools.kernel_args(&shared.host.probe),
        disks: vec![disk::chain(base, top)],
        vsock: VsockSpec { guest_cid: GUEST_CID, socket: paths.vsock_socket(&sandbox.id) },
        console: ConsoleSpec { log: paths.console_log(&sandbox.id), bytes_max: CONSOLE_BYTES_MAX },
    }
}

/// A host name has letters, digits and hyphens (RFC 952); an id has one underscore.
pub(crate) fn hostname(id: &SandboxId) -> String {
    id.as_str().replace('_', "-")
}

/// What the agent is told before the sandbox is called ready.
pub(crate) fn configuration(sandbox: &Sandbox) -> Configure {
    let clock_us = u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(0);
    Configure {
        hostname: hostname(&sandbox.id),
        env: spec::env_pairs(&sandbox.env),
        clock_us,
        entropy: random::bytes::<ENTROPY_BYTES>().to_vec().into(),
        machine_id: random::machine_id(),
        generation: 0,
    }
}
