//! What sandboxes use: figures over time, and processor time in all.
//!
//! One task looks at all machines that run, every 5 seconds, in the host's own books ([`process`]); no machine wakes up for
//! it. (The kernel has no event for "has used processor time", so this is a clock; while nothing runs it stands still.)
//! Totals are noted in the database once a minute and when a machine ended: of a session's last seconds up to
//! [`history::SAMPLE_EVERY_SEC`] may be missing in them, and a call that asks looks again.

mod history;

mod process;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until};

pub(crate) use history::CpuTotal;
pub use history::Sample;

use crate::Engine;
use crate::db::MachineRow;
use crate::error::Error;
use crate::sandbox::{Sandbox, SandboxId, SandboxState};
use crate::shared::Shared;
use crate::template::store::blocking;
use history::{History, SAMPLE_EVERY_SEC};
use process::ProcessFigures;

/// Looks between two notes in the database and two looks for the disk's top: a minute.
const LOOKS_PER_NOTE: u32 = 12;

/// A sample older than this is no present figure any more.
const PRESENT_MS: i64 = 3 * (SAMPLE_EVERY_SEC as i64) * 1000;

/// Bytes of one block in `st_blocks` (inode(7)).
const BLOCK_BYTES: u64 = 512;

/// Figures of a sandbox over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Its record.
    pub sandbox: Sandbox,
    /// The newest sample, while its machine runs.
    pub present: Option<Sample>,
    /// Oldest first.
    pub samples: Vec<Sample>,
    /// Seconds between two of them while the machine ran.
    pub every_sec: u64,
}

/// What a sandbox used in all its sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// Its record.
    pub sandbox: Sandbox,
    /// Milliseconds that it ran.
    pub runtime_ms: u64,
    /// Milliseconds of the host's processors; `None` when nobody ever looked.
    pub active_cpu_ms: Option<u64>,
}

/// What is remembered of all sandboxes.
#[derive(Debug, Default)]
pub(crate) struct Books {
    by_sandbox: Mutex<HashMap<SandboxId, Book>>,
}

#[derive(Debug, Default)]
struct Book {
    history: History,
    total: CpuTotal,
    /// What the database has.
    noted: CpuTotal,
    /// The file of the disk's top.
    top: Option<PathBuf>,
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Book>> {
        self.by_sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine that runs, and what is known of it so far.
struct Look {
    id: SandboxId,
    machine: MachineRow,
    top: Option<PathBuf>,
}

impl Engine {
    /// A sandbox's figures in the last `window`.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn metrics(&self, id: &SandboxId, window: Duration) -> Result<Metrics, Error> {
        let sandbox = self.get(id.as_str()).await?;
        let now_ms = now_ms();
        let since_ms = now_ms.saturating_sub(i64::try_from(window.as_millis()).unwrap_or(i64::MAX));
        let books = self.shared.metrics.lock();
        let nothing = History::default();
        let history = books.get(id).map_or(&nothing, |book| &book.history);
        let (samples, every_sec) = history.since(since_ms, now_ms);
        let runs = matches!(sandbox.state, SandboxState::Running | SandboxState::Snapshotting);
        let present = history.newest().filter(|sample| runs && now_ms - sample.at_ms <= PRESENT_MS);
        Ok(Metrics { sandbox, present, samples, every_sec })
    }

    /// What a sandbox used in all its sessions, up to now.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::Database`].
    pub async fn usage(&self, id: &SandboxId) -> Result<Usage, Error> {
        let sandbox = self.get(id.as_str()).await?;
        know(&self.shared, id).await?;
        let handle = self.shared.find(id);
        let machine = handle.and_then(|handle| Some(handle.live.borrow().machine.as_ref()?.identity()));
        let figures = match machine {
            Some(machine) => blocking(move || process::figures(&machine).map_err(Error::file("read", "/proc"))).await?,
            None => None,
        };
        let mut books = self.shared.metrics.lock();
        let total = books.get_mut(id).map(|book| {
            if let (Some(machine), Some(figures)) = (machine, figures) {
                book.total.see(&machine, figures.cpu_us);
            }
            book.total
        });
        let active_cpu_ms = total.filter(|total| *total != CpuTotal::default()).map(|total| total.us() / 1000);
        let runtime_ms = sandbox.runtime_ms(OffsetDateTime::now_utc());
        Ok(Usage { sandbox, runtime_ms, active_cpu_ms })
    }
}

/// Looks at all machines that run until the engine stops.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut events = shared.events.subscribe_inside();
    let mut looks = 0u32;
    loop {
        let running = running(&shared);
        if running.is_empty() {
            note(&shared).await;
            // Whatever begins to run is told; a lost event is one too.
            tokio::select! {
                _ = events.recv() => continue,
                () = shared.stopping.cancelled() => return,
            }
        }
        let notes = looks.is_multiple_of(LOOKS_PER_NOTE);
        looks = looks.wrapping_add(1);
        if let Err(error) = look(&shared, running, notes).await {
            tracing::error!(error = &error as &dyn std::error::Error, "machines were not looked at");
        }
        if notes {
            note(&shared).await;
        }
        tokio::select! {
            () = sleep_until(Instant::now() + Duration::from_secs(SAMPLE_EVERY_SEC)) => {}
            () = shared.stopping.cancelled() => {
                note(&shared).await;
                return;
            }
        }
        // Only the newest of them matters, and that only when nothing runs.
        events = events.resubscribe();
    }
}

fn running(shared: &Shared) -> Vec<(SandboxId, MachineRow)> {
    let of = |handle: &crate::sandbox::driver::Handle| {
        let machine = handle.live.borrow().machine.as_ref()?.identity();
        Some((handle.record.borrow().id.clone(), machine))
    };
    shared.all().iter().filter_map(of).filter(|(id, _)| !shared.hidden.contains(id)).collect()
}

/// Looks at each once.
async fn look(shared: &Shared, running: Vec<(SandboxId, MachineRow)>, refresh: bool) -> Result<(), Error> {
    let mut looks = Vec::new();
    for (id, machine) in running {
        know(shared, &id).await?;
        let known = shared.metrics.lock().get(&id).map(|book| (book.top.clone(), book.total.pid == machine.pid));
        let top = match known {
            Some((Some(top), true)) if !refresh => Some(top),
            _ => shared.db.holding(&id).await.ok().and_then(|it| it.layer).map(|top| shared.config.paths.layer(&top)),
        };
        looks.push(Look { id, machine, top });
    }
    let at_ms = now_ms();
    let seen = blocking(move || {
        let see = |look: Look| {
            let figures = process::figures(&look.machine).ok().flatten()?;
            let disk =
                look.top.as_ref().and_then(|top| fs::metadata(top).ok()).map(|found| found.blocks() * BLOCK_BYTES);
            Some((look, figures, disk))
        };
        Ok(looks.into_iter().filter_map(see).collect::<Vec<(Look, ProcessFigures, Option<u64>)>>())
    });
    let mut seen = seen.await?;
    let mut books = shared.metrics.lock();
    for (look, figures, disk) in seen.drain(..) {
        let book = books.entry(look.id).or_default();
        book.total.see(&look.machine, figures.cpu_us);
        book.history.add(at_ms, look.machine, figures, disk);
        book.top = look.top;
    }
    Ok(())
}

/// Opens a sandbox's book with what the database has.
async fn know(shared: &Shared, id: &SandboxId) -> Result<(), Error> {
    if shared.metrics.lock().contains_key(id) {
        return Ok(());
    }
    let total = shared.db.cpu_total(id).await?.unwrap_or_default();
    shared.metrics.lock().entry(id.clone()).or_insert_with(|| Book { total, noted: total, ..Book::default() });
    Ok(())
}

/// Notes what is not noted yet, and closes the books of sandboxes that are gone.
async fn note(shared: &Shared) {
    let news: Vec<(SandboxId, CpuTotal)> = {
        let books = shared.metrics.lock();
        books.iter().filter(|(_, book)| book.total != book.noted).map(|(id, book)| (id.clone(), book.total)).collect()
    };
    for (id, total) in news {
        match shared.db.put_cpu_total(&id, total).await {
            Ok(()) => {
                if let Some(book) = shared.metrics.lock().get_mut(&id) {
                    book.noted = total;
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "what a sandbox used was not noted")
            }
        }
    }
    shared.metrics.lock().retain(|id, book| book.total != book.noted || shared.find(id).is_some());
}

fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}
