//! Sandboxes and their life. `Engine` is the handle that everything else holds.
//!
//! ```text
//!  create ─► checked, admitted, row written ─► Creating ── disk, machine, agent ──► Running ── exec, files ──┐
//!                                                 │                      pause, timeout │ ▲ resume, any use    │
//!                                                 └──────── something broke ──► Error   Paused ◄───────────────┘
//!  destroy ─────────────────────────────────────────► Destroying ─► Destroyed (the record stays for 24 hours)
//! ```
//!
//! One driver task owns one sandbox (`sandbox::driver`); the table of `sandbox::state` says what may happen. Machines are
//! processes of their own (`machine`), asked through their control sockets; commands and files go to the agent inside
//! (`agent`). A new server finds running machines again (`sandbox::recovery`). No HTTP here, and no unsafe code.
#![forbid(unsafe_code)]

pub mod sandbox;

pub mod batch;

pub mod snapshot;

pub mod preview;

pub mod template;

pub mod storage;

pub mod agent;

pub mod machine;

pub mod disk;

pub mod console;

pub mod events;

pub mod metrics;

pub mod idempotency;

pub mod db;

pub mod config;

pub mod doctor;

pub mod local;

mod data_dir;

mod host;

mod clock;

mod framed;

mod random;

mod id;

mod fault;

mod shared;

pub mod error;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::{Instant, timeout_at};

pub use cove_protocol as protocol;
use cove_protocol::vmm::{HostProbe, Stats};

pub use agent::{
    CodeFailure, CodeOutput, ExecEvent, ExecInput, ExecOutput, Execution, FileChanges, FileStream, GuestStream,
    JobEvent, JobOutput, Language, Terminal, TerminalEvent, TerminalInput, TerminalOutput,
};
pub use batch::{
    BATCH_CONCURRENCY_DEFAULT, BATCH_CONCURRENCY_MAX, BATCH_COUNT_MAX, Batch, BatchChanges, BatchId, BatchItem,
    BatchSpec, BatchStatus, ItemFailure, ItemStatus,
};
pub use config::{EngineConfig, EngineLimits, Places};
pub use console::{Console, ConsolePiece};
pub use error::{BoxError, Error};
pub use events::{Event, EventKind, Resumed};
pub use idempotency::{Answer, Claim, ClaimGuard, InFlight, Replay};
pub use metrics::{Metrics, Sample, Usage};
pub use preview::{
    Door, Grant, GrantKind, GrantSpec, Minted, OpenPreview, Preview, PreviewError, PreviewId, PreviewSpec, Scope,
    Visibility,
};
pub use sandbox::{
    Active, Activity, BootPath, CODE_BYTES_MAX, CODE_TIMEOUT_DEFAULT, CODE_TIMEOUT_MAX, CONTEXT_NAME_CHARS_MAX,
    CodeResult, CodeSpec, DEFAULT_CONTEXT, External, Sandbox, SandboxFilter, SandboxId, SandboxSpec, SandboxState,
    SandboxUpdate, Shape, Size,
};
pub use snapshot::compare::{Comparison, Difference, Side};
pub use snapshot::{ForkSource, ForkSpec, Snapshot, SnapshotFilter, SnapshotId, SnapshotSpec, SnapshotUpdate};
pub use storage::Share;
pub use storage::disk_use::{DiskOwner, DiskUse, OwnerKind};
pub use template::Template;

use config::Config;
use data_dir::DataDir;
use db::Db;
use host::Host;
use sandbox::admission::Wish;
use sandbox::driver::{self, Beginning, Create, Handle, Progress, Request};
use sandbox::{recovery, spec};
use shared::{Shared, keep_house};
use template::{store, warm};

/// Most bytes of a console that can be asked for (`protocol::vmm::Request::ConsoleTail`).
const CONSOLE_TAIL_BYTES_MAX: u32 = 256 << 10;

/// How long shutdown waits for drivers that are ending sandboxes.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(60);

/// The engine: a cheap handle, clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What may be asked for, and what this host grants.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// vCPUs.
    pub cpu_count: RangeInclusive<u32>,
    /// Memory in MiB.
    pub memory_mb: RangeInclusive<u32>,
    /// Disk in MiB.
    pub disk_size_mb: RangeInclusive<u32>,
    /// The shape when nothing is asked for.
    pub default_shape: Shape,
    /// Seconds of a session.
    pub timeout_sec: RangeInclusive<u32>,
    /// Its default.
    pub timeout_sec_default: u32,
    /// Seconds of inactivity, 0 = off.
    pub idle_timeout_sec: RangeInclusive<u32>,
    /// Most sandboxes that are not destroyed.
    pub sandboxes_max: u64,
    /// Most vCPUs that a machine is really granted here.
    pub cpu_granted_max: u32,
}

/// Is a sandbox command-ready, and how far is each part of it?
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    /// Commands can run.
    pub ready: bool,
    /// Where it is in its life.
    pub state: SandboxState,
    /// The contract's components (8.7) in its order, and whether each is ready.
    pub components: Vec<(&'static str, bool)>,
    /// Why it is in state `error`.
    pub last_error: Option<String>,
}

impl Engine {
    /// Opens the data directory, brings database and machines into agreement, and imports the built-in template. A host
    /// that cannot run machines is no error: every create says what is missing.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::DataDirLocked`], [`Error::Database`], [`Error::File`].
    pub async fn start(config: EngineConfig) -> Result<Engine, Error> {
        let mut config = Config::find(config)?;
        let data_dir = DataDir::hold(&config.paths)?;
        data_dir.settle_runtime_dir(&mut config.paths)?;
        let db = Db::open(&config.paths.database()).await?;
        db.forget_old(OffsetDateTime::now_utc()).await?;
        let mut host = Host::probe(&config).await;
        if let Ok(guest) = &config.guest {
            match store::import_built_in(&db, &config.paths, guest).await {
                Err(Error::HostNotReady { problem }) => host.ready = Err(problem),
                other => other?,
            }
        }
        let shared = Shared::new(config, data_dir, db, host);
        recovery::recover(&shared).await?;
        batch::settle(&shared).await?;
        warm::settle(&shared).await?;
        storage::sweep(&shared).await?;
        storage::remove_orphans(&shared).await?;
        store::remove_unused(&shared.db, &shared.config.paths).await?;
        preview::reopen(&shared).await?;
        shared.tasks.spawn(keep_house(Arc::clone(&shared)));
        shared.tasks.spawn(metrics::keep(Arc::clone(&shared)));
        shared.tasks.spawn(clock::follow(Arc::clone(&shared)));
        shared.tasks.spawn(storage::flatten::keep(Arc::clone(&shared)));
        if shared.config.warm_pool > 0 && shared.host.ready.is_ok() {
            shared.tasks.spawn(warm::pool::keep(Arc::clone(&shared)));
        }
        tracing::info!(data_dir = %shared.config.paths.data.display(), "engine started");
        Ok(Engine { shared })
    }

    /// Takes no new work and ends the engine. Machines of persistent sandboxes stay alive and are found again at the next
    /// start; other sandboxes are destroyed, and what is being created is taken back.
    pub async fn shutdown(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        if timeout_at(Instant::now() + SHUTDOWN_DEADLINE, self.shared.tasks.wait()).await.is_err() {
            tracing::error!(
                "some sandboxes were not ended in {} s; the next start ends them",
                SHUTDOWN_DEADLINE.as_secs()
            );
        }
        self.shared.db.close().await;
        // Only an empty one goes: machines that live on listen in theirs.
        let _ = fs::remove_dir(&self.shared.config.paths.runtime);
        tracing::info!("engine stopped");
    }

    /// Says in the data directory's lock file on which port the server listens.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn announce_port(&self, port: u16) -> Result<(), Error> {
        self.shared.data_dir.announce_port(&self.shared.config.paths, port)
    }

    /// What this computer has and lacks, as `cove doctor` says it.
    pub async fn doctor(&self) -> doctor::Report {
        doctor::report(self.shared.config.clone().into(), None).await
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.shared.config.paths.data
    }

    /// What may be asked for.
    pub fn limits(&self) -> Limits {
        Limits {
            cpu_count: spec::CPU_COUNT,
            memory_mb: spec::MEMORY_MB,
            disk_size_mb: spec::DISK_SIZE_MB,
            default_shape: Size::Small.shape(),
            timeout_sec: spec::TIMEOUT_SEC,
            timeout_sec_default: spec::TIMEOUT_SEC_DEFAULT,
            idle_timeout_sec: spec::IDLE_TIMEOUT_SEC,
            sandboxes_max: self.shared.config.limits.sandboxes_max,
            cpu_granted_max: u32::from(self.shared.host.probe.vcpus_max),
        }
    }

    /// What this host can do, as `vmm probe` said at start.
    pub fn host(&self) -> &HostProbe {
        &self.shared.host.probe
    }

    /// Why no sandbox can be made on this host, and what to do; `None` when one can.
    pub fn host_problem(&self) -> Option<&str> {
        self.shared.host.ready.as_ref().err().map(String::as_str)
    }

    /// Makes a sandbox: checked, admitted, its record written; it boots in the background.
    ///
    /// # Errors
    /// [`Error::HostNotReady`], [`Error::TemplateNotFound`], [`Error::Invalid`], [`Error::NameTaken`],
    /// [`Error::Admission`].
    pub async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, Error> {
        let begun = Instant::now();
        let shared = &self.shared;
        let tools = shared.tools()?;
        let name = spec.template.as_deref().unwrap_or(store::BUILT_IN);
        let template = store::find(&shared.db, name).await?.ok_or_else(|| Error::TemplateNotFound(name.to_owned()))?;
        let mut sandbox = spec.check(&template.template, OffsetDateTime::now_utc())?;
        store::check_unchanged(&template)?;
        let kind = warm::Kind::of(shared, &template, sandbox.shape);
        let mut create = Create::cold(template, tools, begun);
        let top = match shared.warm.pool.claim(&kind) {
            Some(waiting) => {
                sandbox.id = waiting.id.clone();
                create.below = waiting.below.clone();
                create.path = BootPath::Warm;
                let top = waiting.top.clone();
                create.waiting = Some(waiting);
                top
            }
            None => {
                match warm::find(shared, &kind).await? {
                    Some((memory, below)) => {
                        (create.memory, create.below, create.path) = (Some(memory), below, BootPath::Warm);
                    }
                    None => create.ticket = warm::ticket(shared, kind.clone()),
                }
                kind.new_layer(create.below.last().cloned())
            }
        };
        let warm = create.path == BootPath::Warm;
        let wish = if warm { Wish::Restore } else { Wish::Boot };
        let channels = match shared.admit(&sandbox, &create.template, &top, wish).await {
            Ok(channels) => channels,
            Err(error) => {
                create.give_up(shared).await;
                return Err(error);
            }
        };
        tracing::info!(sandbox = %sandbox.id, template = sandbox.template_id, shape = ?sandbox.shape, warm, "creating");
        create.top = Some(top);
        driver::spawn(Arc::clone(shared), channels, Beginning::Create(Box::new(create)));
        Ok(sandbox)
    }

    /// Makes a template's prepared machine for a shape and waits for it, so that creates of that kind do not boot. Returns
    /// at once when it is there. Of `spec` only template and shape matter. Stands back while sandboxes are starting.
    ///
    /// # Errors
    /// As [`Engine::create`], and [`Error::WarmFailed`].
    pub async fn prepare_template(&self, spec: SandboxSpec) -> Result<(), Error> {
        let shared = &self.shared;
        shared.tools()?;
        let name = spec.template.as_deref().unwrap_or(store::BUILT_IN);
        let template = store::find(&shared.db, name).await?.ok_or_else(|| Error::TemplateNotFound(name.to_owned()))?;
        let sandbox = spec.check(&template.template, OffsetDateTime::now_utc())?;
        store::check_unchanged(&template)?;
        warm::ensure(shared, warm::Kind::of(shared, &template, sandbox.shape)).await
    }

    /// The first record that is not in a transitional state, or the current one at the deadline.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn wait_settled(&self, id: &SandboxId, deadline: Instant) -> Result<Sandbox, Error> {
        let mut record = self.watch(id).await?;
        // The record that is then there is the answer in either case.
        let _ = timeout_at(deadline, record.wait_for(|sandbox| !sandbox.state.is_transitional())).await;
        let sandbox = record.borrow().clone();
        Ok(sandbox)
    }

    /// The record of the sandbox with this id; destroyed ones are kept for 24 hours.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn get(&self, id: &str) -> Result<Sandbox, Error> {
        let not_found = || Error::SandboxNotFound(id.to_owned());
        let id = SandboxId::parse(id).ok_or_else(not_found)?;
        if let Some(handle) = self.shared.find(&id) {
            return Ok(handle.record.borrow().clone());
        }
        self.shared.db.sandbox(&id).await?.ok_or_else(not_found)
    }

    /// The live sandbox with this name.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn by_name(&self, name: &str) -> Result<Sandbox, Error> {
        self.shared.db.sandbox_by_name(name).await?.ok_or_else(|| Error::SandboxNotFound(name.to_owned()))
    }

    /// The sandboxes that match, oldest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn list(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>, Error> {
        let mut filter = filter.clone();
        if let Some(name) = &filter.template_id
            && let Some(template) = store::find(&self.shared.db, name).await?
        {
            filter.template_id = Some(template.template.id);
        }
        let mut found = self.shared.db.sandboxes(&filter).await?;
        found.retain(|sandbox| !self.shared.hidden.contains(&sandbox.id));
        Ok(found)
    }

    /// Removes a sandbox and all that is its. Idempotent; returns when it is gone.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], or why something of it could not be removed; it is then in state `error`, and may be
    /// destroyed again.
    pub async fn destroy(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        if let Some(handle) = self.shared.find(id) {
            let (reply, answer) = oneshot::channel();
            if handle.requests.send(Request::Destroy(reply)).await.is_ok()
                && let Ok(result) = answer.await
            {
                return result;
            }
        }
        // It has no driver, or lost it while we asked: then it is gone, or the server stops.
        let record = self.get(id.as_str()).await?;
        match record.state {
            SandboxState::Destroyed => Ok(record),
            _ => Err(Error::ShuttingDown),
        }
    }

    /// How far a sandbox is.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn readiness(&self, id: &SandboxId) -> Result<Readiness, Error> {
        let record = self.get(id.as_str()).await?;
        let progress = self.shared.find(id).map(|handle| handle.live.borrow().progress).unwrap_or_default();
        let ready = matches!(record.state, SandboxState::Running | SandboxState::Snapshotting);
        let components = [
            ("command_agent", Progress::AgentAnswered),
            ("process_control", Progress::Configured),
            ("resource_contract", Progress::MachineStarted),
            ("clock", Progress::Configured),
            ("identity", Progress::Configured),
            ("durability", Progress::DiskMade),
            ("filesystem", Progress::AgentAnswered),
            ("internal_probe", Progress::Configured),
        ];
        let components = components.map(|(name, needs)| (name, ready || progress >= needs)).to_vec();
        Ok(Readiness { ready, state: record.state, components, last_error: record.last_error })
    }

    /// The record now and at each change. Of a destroyed sandbox: its last record, and the channel is closed.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn watch(&self, id: &SandboxId) -> Result<watch::Receiver<Sandbox>, Error> {
        match self.shared.find(id) {
            Some(handle) => Ok(handle.record),
            None => Ok(watch::channel(self.get(id.as_str()).await?).1),
        }
    }

    /// Every event from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// The remembered events after the one with this id, and every event from then on.
    pub fn events_since(&self, event_id: &str) -> Resumed {
        self.shared.events.since(event_id)
    }

    /// The newest bytes of a sandbox's console, at most 256 KiB; of one that failed, what is left of it.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::Machine`].
    pub async fn logs(&self, id: &SandboxId, bytes_max: u32) -> Result<Bytes, Error> {
        let bytes_max = bytes_max.min(CONSOLE_TAIL_BYTES_MAX);
        let handle = self.handle(id).await?;
        let machine = handle.live.borrow().machine.clone();
        if let Some(machine) = machine {
            match machine.console_tail(bytes_max).await {
                Ok(bytes) => return Ok(bytes.into()),
                Err(machine::MachineError::Exited(_)) => {}
                Err(source) => return Err(Error::Machine { id: id.clone(), source }),
            }
        }
        let path = self.shared.config.paths.console_log(id);
        store::blocking(move || file_tail(&path, u64::from(bytes_max))).await
    }

    /// A sandbox's console from its newest `bytes` on, as it is written; through pauses and new machines.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::SandboxDestroyed`], [`Error::File`].
    pub async fn follow_logs(&self, id: &SandboxId, bytes: u64) -> Result<Console, Error> {
        self.handle(id).await?;
        Console::follow(&self.shared.config.paths.console_log(id), bytes)
    }

    /// Figures of a sandbox's machine.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::WrongState`] when no machine runs, [`Error::Machine`].
    pub async fn stats(&self, id: &SandboxId) -> Result<Stats, Error> {
        let handle = self.handle(id).await?;
        let (machine, state) = (handle.live.borrow().machine.clone(), handle.record.borrow().state);
        let machine =
            machine.ok_or_else(|| Error::WrongState { id: id.clone(), state, operation: "reading figures" })?;
        machine.stats().await.map_err(|source| Error::Machine { id: id.clone(), source })
    }

    /// All templates, the default one first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn templates(&self) -> Result<Vec<Template>, Error> {
        Ok(self.shared.db.templates().await?.into_iter().map(|version| version.template).collect())
    }

    /// The template with this id, slug or alias.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`].
    pub async fn template(&self, name: &str) -> Result<Template, Error> {
        let found = store::find(&self.shared.db, name).await?;
        found.map(|version| version.template).ok_or_else(|| Error::TemplateNotFound(name.to_owned()))
    }

    /// What an idempotency key means for a request. `scope` is method, path and key; `body_hash` any digest of the body.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn claim(&self, scope: &str, body_hash: &str) -> Result<Claim, Error> {
        self.shared.keys.claim(&self.shared.db, scope, body_hash).await
    }

    /// The handle of a sandbox that is not gone.
    async fn handle(&self, id: &SandboxId) -> Result<Handle, Error> {
        match self.shared.find(id) {
            Some(handle) => Ok(handle),
            None => {
                let record = self.get(id.as_str()).await?;
                let gone = record.state == SandboxState::Destroyed;
                Err(if gone { Error::SandboxDestroyed(id.clone()) } else { Error::ShuttingDown })
            }
        }
    }
}

/// The newest bytes of a file; nothing when it does not exist.
fn file_tail(path: &Path, bytes_max: u64) -> Result<Bytes, Error> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Bytes::new()),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    let failed = || Error::file("read", path);
    let length = file.metadata().map_err(failed())?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max))).map_err(failed())?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(failed())?;
    Ok(bytes.into())
}
