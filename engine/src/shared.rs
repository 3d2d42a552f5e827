//! What every part of one engine sees: the open database, the host, the list of drivers, and the gate for new sandboxes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{RwLock, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::Batches;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::db::{Db, TemplateVersion};
use crate::error::Error;
use crate::events::Events;
use crate::host::{Host, Tools};
use crate::idempotency::Keys;
use crate::metrics::Books;
use crate::preview::doors::Previews;
use crate::sandbox::admission::{Room, Wish};
use crate::sandbox::code::Codes;
use crate::sandbox::driver::{self, Handle};
use crate::sandbox::start::Memory;
use crate::sandbox::{Sandbox, SandboxId, SandboxState, start};
use crate::snapshot::files::{Hidden, Viewers};
use crate::storage::flatten::Flattener;
use crate::storage::{ImageId, Layer, Pins};
use crate::template::warm::Warm;

/// How often old records are forgotten and logs are cut.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(60);

/// Longest vmm log; a longer one is cut to nothing.
const VMM_LOG_BYTES_MAX: u64 = 4 << 20;

/// What every part of one engine sees.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) db: Db,
    pub(crate) host: Host,
    pub(crate) events: Events,
    pub(crate) metrics: Books,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
    pub(crate) keys: Keys,
    pub(crate) data_dir: DataDir,
    pub(crate) pins: Pins,
    handles: Mutex<HashMap<SandboxId, Handle>>,
    /// Boots at one time: as many as the host has CPUs.
    pub(crate) boots: Semaphore,
    /// Restores at one time: as many as the host has CPUs.
    pub(crate) restores: Semaphore,
    pub(crate) warm: Warm,
    pub(crate) flattener: Flattener,
    /// Read while a new layer is put on a frozen one; written while a frozen one is replaced.
    pub(crate) chains: Arc<RwLock<()>>,
    pub(crate) viewers: Viewers,
    pub(crate) previews: Previews,
    /// Sandboxes that only serve to look into snapshots.
    pub(crate) hidden: Hidden,
    /// Held from the look at the host to the row that takes its share.
    admission: tokio::sync::Mutex<()>,
    pub(crate) codes: Codes,
    pub(crate) batches: Batches,
    exec_ids: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: Config, data_dir: DataDir, db: Db, host: Host) -> Arc<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let warm = Warm::new(&config, &host);
        let hidden = Hidden::default();
        Arc::new(Self {
            config,
            db,
            host,
            events: Events::new(hidden.clone()),
            metrics: Books::default(),
            viewers: Viewers::new(hidden.clone()),
            previews: Previews::default(),
            hidden,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            boots: Semaphore::new(cpus),
            restores: Semaphore::new(cpus),
            warm,
            flattener: Flattener::default(),
            chains: Arc::default(),
            keys: Keys::default(),
            data_dir,
            pins: Pins::default(),
            handles: Mutex::default(),
            admission: tokio::sync::Mutex::default(),
            codes: Codes::default(),
            batches: Batches::default(),
            exec_ids: AtomicU64::default(),
        })
    }

    pub(crate) fn add(&self, id: SandboxId, handle: Handle) {
        self.handles().insert(id, handle);
    }

    pub(crate) fn forget(&self, id: &SandboxId) {
        self.handles().remove(id);
    }

    pub(crate) fn next_exec_id(&self) -> String {
        format!("exec_{}", self.exec_ids.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn find(&self, id: &SandboxId) -> Option<Handle> {
        self.handles().get(id).cloned()
    }

    /// Every driver's handle.
    pub(crate) fn all(&self) -> Vec<Handle> {
        self.handles().values().cloned().collect()
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What machines are made with, if this host can run any and the server does not stop.
    pub(crate) fn tools(&self) -> Result<Tools, Error> {
        if self.stopping.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        self.host.ready.clone().map_err(|problem| Error::HostNotReady { problem })
    }

    /// A captured machine, kept from now on; `None` when it is gone.
    pub(crate) async fn memory(&self, id: &ImageId) -> Result<Option<Memory>, Error> {
        let _settled = self.pins.settle.lock().await;
        let pin = self.pins.pin(id);
        Ok(self.db.image(id).await?.map(|image| Memory { image, _pin: pin }))
    }

    /// Looks whether there is room, and if so writes the row that takes it, with its own layer.
    pub(crate) async fn admit(
        &self,
        sandbox: &Sandbox,
        template: &TemplateVersion,
        layer: &Layer,
        wish: Wish,
    ) -> Result<driver::Channels, Error> {
        let _one_at_a_time = self.admission.lock().await;
        let data = &self.config.paths.data;
        let room = Room::look(data, self.db.count_live().await?, self.starting())?;
        room.admit(&self.config.limits, data, sandbox.shape.memory_mb, wish)?;
        // In the list before its row is committed, so that whoever sees the row finds the driver.
        let (handle, channels) = driver::channels(sandbox.clone());
        self.add(sandbox.id.clone(), handle);
        let written = self.db.begin_create(sandbox, &template.template.version, layer, start::START_DEADLINE).await;
        match written {
            Ok(Some(_)) => Ok(channels),
            Ok(None) => {
                self.forget(&sandbox.id);
                let name = sandbox.name.clone().unwrap_or_default();
                let holder = self.db.sandbox_by_name(&name).await?;
                // Destroyed just now: the caller may simply try again.
                let holder = holder.map_or_else(|| sandbox.id.clone(), |holder| holder.id);
                Err(Error::NameTaken { name, holder })
            }
            Err(error) => {
                self.forget(&sandbox.id);
                Err(error.into())
            }
        }
    }
}

impl Shared {
    /// Looks whether there is room for a sandbox that is to go on.
    pub(crate) async fn admit_resume(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let _one_at_a_time = self.admission.lock().await;
        let data = &self.config.paths.data;
        // It is among those that live already.
        let room = Room::look(data, 0, self.starting())?;
        Ok(room.admit(&self.config.limits, data, sandbox.shape.memory_mb, Wish::Resume)?)
    }

    fn starting(&self) -> u64 {
        use SandboxState::{Creating, Resuming};
        let starting = |handle: &&Handle| matches!(handle.record.borrow().state, Creating | Resuming);
        self.handles().values().filter(starting).count() as u64
    }
}

/// Forgets what is old and cuts logs that grew too long, until the engine stops.
pub(crate) async fn keep_house(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(Instant::now() + HOUSEKEEPING_EVERY) => {}
            () = shared.stopping.cancelled() => return,
        }
        if let Err(error) = shared.db.forget_old(OffsetDateTime::now_utc()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "old records were not forgotten");
        }
        if let Err(error) = crate::snapshot::delete_expired(&shared).await {
            tracing::error!(error = &error as &dyn std::error::Error, "expired snapshots were not deleted");
        }
        if let Err(error) = crate::preview::forget_expired(&shared).await {
            tracing::error!(error = &error as &dyn std::error::Error, "expired previews were not deleted");
        }
        if let Err(error) = shared.db.forget_batches(OffsetDateTime::now_utc()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "old batches were not forgotten");
        }
        shared.codes.retain(|id| shared.find(id).is_some());
        shared.warm.note_uses(&shared.db).await;
        let ids: Vec<SandboxId> = shared.handles().keys().cloned().collect();
        for path in ids.iter().map(|id| shared.config.paths.vmm_log(id)) {
            // The vmm appends, so it goes on at the new end.
            if fs::metadata(&path).is_ok_and(|found| found.len() > VMM_LOG_BYTES_MAX)
                && let Err(error) = File::options().write(true).open(&path).and_then(|log| log.set_len(0))
            {
                tracing::warn!(path = %path.display(), %error, "a log was not cut");
            }
        }
    }
}
