//! Warm templates: a machine captured after its boot, from which every further sandbox of its kind goes on.
//!
//! ```text
//!  first create of a kind:  boot ─► agent says Hello ─► captured as it is ─► configured ─► ready
//!  afterwards, when nothing starts:  a scratch machine goes on from there ─► agent prepares ─► captured anew, replaces the first
//! ```
//!
//! A kind is a template version, a shape, and all of the host's software that a capture depends on. What is kept is bounded
//! by `EngineLimits::warm_disk_mib`; what was not used for longest goes first.

mod build;

pub(crate) mod pool;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use tokio::sync::watch;

use self::build::Pace;
use self::pool::Pool;
use crate::config::Config;
use crate::db::{Db, Step, TemplateVersion, WarmRow};
use crate::error::Error;
use crate::host::{Host, Tools};
use crate::machine::Machine;
use crate::sandbox::Shape;
use crate::sandbox::start::{Memory, Plan, StartError, vcpus_granted};
use crate::shared::Shared;
use crate::storage::capture::{Capture, CaptureError, capture};
use crate::storage::{self, ImageId, Layer, LayerId, layers};

/// The warm templates of one engine.
#[derive(Debug)]
pub(crate) struct Warm {
    /// Names the host's software: kernels, vmm, host.
    host_key: String,
    /// The kinds of which someone makes the machine; closed when that ends.
    making: Mutex<HashMap<String, watch::Receiver<()>>>,
    /// Uses that are not in the database yet.
    used: Mutex<HashMap<String, OffsetDateTime>>,
    /// Scratch machines are made one after the other.
    one: tokio::sync::Mutex<()>,
    /// How many sandboxes are starting.
    starts: watch::Sender<usize>,
    pub(crate) pool: Pool,
}

/// A sandbox is starting as long as this lives: scratch machines stand still.
#[derive(Debug)]
pub(crate) struct Starting {
    starts: watch::Sender<usize>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.starts.send_modify(|count| *count -= 1);
    }
}

/// The right to make the machine of a kind; nobody else makes it while this lives.
#[derive(Debug)]
pub(crate) struct Ticket {
    kind: Kind,
    captured: bool,
    making: Arc<Shared>,
    _made: watch::Sender<()>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.making.warm.making().remove(&self.kind.key);
    }
}

/// What kind of machine.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    key: String,
    template: TemplateVersion,
    shape: Shape,
}

impl Warm {
    pub(crate) fn new(config: &Config, host: &Host) -> Self {
        Self {
            host_key: host_key(config, host),
            making: Mutex::default(),
            used: Mutex::default(),
            one: tokio::sync::Mutex::default(),
            starts: watch::Sender::new(0),
            pool: Pool::default(),
        }
    }

    /// Says that a sandbox is starting.
    pub(crate) fn starting(&self) -> Starting {
        self.starts.send_modify(|count| *count += 1);
        Starting { starts: self.starts.clone() }
    }

    /// Writes down what was used since the last time.
    pub(crate) async fn note_uses(&self, db: &Db) {
        let used: Vec<(String, OffsetDateTime)> =
            self.used.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
        if !used.is_empty()
            && let Err(error) = db.touch_warm(&used).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "uses of warm templates were not noted");
        }
    }

    fn making(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Receiver<()>>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    /// The kind of a sandbox.
    pub(crate) fn of(shared: &Shared, template: &TemplateVersion, shape: Shape) -> Self {
        let vcpus = vcpus_granted(shared, shape);
        let key = format!(
            "{}@{} {vcpus}x{}x{} {}",
            template.template.id, template.template.version, shape.memory_mb, shape.disk_size_mb, shared.warm.host_key
        );
        Self { key, template: template.clone(), shape }
    }

    /// A new layer for its disk.
    pub(crate) fn new_layer(&self, parent: Option<LayerId>) -> Layer {
        Layer {
            id: LayerId::generate(),
            parent,
            template_id: self.template.template.id.clone(),
            template_version: self.template.template.version.clone(),
            disk_bytes: u64::from(self.shape.disk_size_mb) << 20,
            frozen: false,
        }
    }
}

/// The machine of a kind, if there is one, and its layers, lowest first.
pub(crate) async fn find(shared: &Shared, kind: &Kind) -> Result<Option<(Memory, Vec<LayerId>)>, Error> {
    let Some(row) = shared.db.warm(&kind.key).await? else { return Ok(None) };
    let Some(memory) = shared.memory(&row.image).await? else { return Ok(None) };
    let chain = layers::ids(&shared.db.chain(&memory.image.layer).await?);
    let mut used = shared.warm.used.lock().unwrap_or_else(PoisonError::into_inner);
    used.insert(kind.key.clone(), OffsetDateTime::now_utc());
    Ok(Some((memory, chain)))
}

/// The right to make the machine of a kind, unless someone has it.
pub(crate) fn ticket(shared: &Arc<Shared>, kind: Kind) -> Option<Ticket> {
    let (made, making) = watch::channel(());
    let mut all = shared.warm.making();
    if all.contains_key(&kind.key) {
        return None;
    }
    all.insert(kind.key.clone(), making);
    drop(all);
    Some(Ticket { kind, captured: false, making: Arc::clone(shared), _made: made })
}

/// An image that this host cannot restore is of no use to anyone.
pub(crate) async fn forget(shared: &Shared, image: &ImageId) {
    if let Err(error) = shared.db.delete_warm_image(image).await {
        tracing::error!(error = &error as &dyn std::error::Error, "a useless warm template was not forgotten");
    }
}

/// Forgets what another host, kernel or vmm made, and what is too much. Called at start.
pub(crate) async fn settle(shared: &Shared) -> Result<(), Error> {
    shared.db.delete_stale_warm(&shared.warm.host_key).await?;
    evict(shared).await
}

/// Forgets what is too much.
async fn evict(shared: &Shared) -> Result<(), Error> {
    shared.warm.note_uses(&shared.db).await;
    let rows: Vec<(String, u64)> = shared.db.warm_rows().await?.into_iter().map(|row| (row.key, row.bytes)).collect();
    for key in evicted(&rows, shared.config.limits.warm_disk_mib << 20) {
        tracing::info!(key, "a warm template goes: all of them are too large together");
        shared.db.delete_warm(key).await?;
    }
    storage::sweep(shared).await
}

/// Which go, so that the rest fits into `budget` bytes; `rows` has the least recently used first, and the last one stays.
fn evicted(rows: &[(String, u64)], budget: u64) -> Vec<&str> {
    let mut total: u64 = rows.iter().map(|(_, bytes)| bytes).sum();
    let Some((_, older)) = rows.split_last() else { return Vec::new() };
    let too_much = older.iter().take_while(|(_, bytes)| {
        let over = total > budget;
        total -= if over { *bytes } else { 0 };
        over
    });
    too_much.map(|(key, _)| key.as_str()).collect()
}

impl Ticket {
    /// Captures a machine that just booted and was told nothing yet; it goes on with a new top, which `plan` then has. A
    /// capture that fails only means that the next one boots too.
    pub(crate) async fn capture(
        &mut self,
        shared: &Shared,
        tools: &Tools,
        machine: &Machine,
        plan: &mut Plan,
        vcpus: u8,
    ) -> Result<(), StartError> {
        let Some(old) = plan.chain.last().cloned() else { return Ok(()) };
        let top = self.kind.new_layer(Some(old.clone()));
        layers::create(&tools.vmm, &shared.config.paths, &top.id, top.disk_bytes).await.map_err(StartError::Disk)?;
        let mut next = plan.clone();
        next.chain.push(top.id.clone());
        let of = Capture {
            image: ImageId::generate(),
            layer: old.clone(),
            vcpus,
            memory_mb: self.kind.shape.memory_mb,
            disk: Some(next.disk(&shared.config.paths)),
            resume: true,
            durable: true,
        };
        match capture(shared, machine, of).await {
            Ok((image, _)) => {
                let row = self.row(shared, image.id.clone(), false);
                shared.db.put_warm(&row, &image, &[&top]).await.map_err(StartError::Database)?;
                self.captured = true;
                *plan = next;
            }
            Err(CaptureError::Keep(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a booted machine was not kept");
                let step = Step { layers: vec![&top], freeze: Some(&old), ..Step::default() };
                shared.db.step(step).await.map_err(StartError::Database)?;
                *plan = next;
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a booted machine was not captured");
                let _ = layers::remove(&shared.config.paths, &top.id);
            }
        }
        Ok(())
    }

    /// Prepares the machine once nothing else starts, if one was captured.
    pub(crate) fn prepare_later(self, shared: &Arc<Shared>) {
        if self.captured {
            let shared = Arc::clone(shared);
            shared.tasks.clone().spawn(async move {
                if let Err(error) = build::prepare(&shared, &self, Pace::Yielding).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a warm template was not prepared");
                }
            });
        }
    }

    fn row(&self, shared: &Shared, image: ImageId, prepared: bool) -> WarmRow {
        WarmRow {
            key: self.kind.key.clone(),
            host_key: shared.warm.host_key.clone(),
            template_id: self.kind.template.template.id.clone(),
            template_version: self.kind.template.template.version.clone(),
            shape: self.kind.shape,
            image,
            prepared,
            used_at: OffsetDateTime::now_utc(),
            bytes: 0,
        }
    }
}

/// Makes the machine of a kind, prepared, and waits for it; returns at once when it is there.
pub(crate) async fn ensure(shared: &Arc<Shared>, kind: Kind) -> Result<(), Error> {
    loop {
        if shared.db.warm(&kind.key).await?.is_some_and(|row| row.prepared) {
            return Ok(());
        }
        if let Some(ticket) = ticket(shared, kind.clone()) {
            return build::prepare(shared, &ticket, Pace::Awaited).await;
        }
        let making = shared.warm.making().get(&kind.key).cloned();
        if let Some(mut making) = making {
            tokio::select! {
                // Nothing is ever sent: the sender's end is the news.
                _ = making.changed() => {}
                () = shared.stopping.cancelled() => return Err(Error::ShuttingDown),
            }
        }
    }
}

/// Names what a capture depends on besides template and shape: the host as the vmm names it, the protocol, the binaries.
fn host_key(config: &Config, host: &Host) -> String {
    let Ok(Tools { vmm, guest, .. }) = &host.ready else { return String::new() };
    let files = [Some(vmm), Some(&guest.kernel), guest.kernel_up.as_ref()];
    let facts: Vec<String> = files.into_iter().flatten().map(|path| facts(path)).collect();
    let memory = config.limits.machine_memory_mib;
    let text = format!("{} {} {} {memory}", host.probe.fingerprint, cove_protocol::VERSION, facts.join(" "));
    format!("{:016x}", crate::config::text_hash(text.as_bytes()))
}

/// What tells one build of a file from another.
fn facts(path: &Path) -> String {
    fs::metadata(path)
        .map_or_else(|_| "-".to_owned(), |found| format!("{}:{}.{}", found.len(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(bytes: &[u64]) -> Vec<(String, u64)> {
        bytes.iter().enumerate().map(|(at, bytes)| (at.to_string(), *bytes)).collect()
    }

    #[test]
    fn the_least_recently_used_go_until_the_rest_fits() {
        assert_eq!(evicted(&rows(&[5, 5, 5]), 15), [""; 0]);
        assert_eq!(evicted(&rows(&[5, 5, 5]), 14), ["0"]);
        assert_eq!(evicted(&rows(&[5, 5, 5]), 5), ["0", "1"]);
        // The one that was just made stays, however large it is.
        assert_eq!(evicted(&rows(&[5, 50]), 1), ["0"]);
        assert_eq!(evicted(&rows(&[]), 1), [""; 0]);
    }

    proptest! {
        #[test]
        fn no_more_goes_than_has_to(bytes in proptest::collection::vec(0..100u64, 0..20), budget in 0..500u64) {
            let rows = rows(&bytes);
            let gone = evicted(&rows, budget).len();
            let left: u64 = bytes[gone..].iter().sum();
            prop_assert!(left <= budget || gone + 1 >= bytes.len());
            if gone > 0 {
                prop_assert!(left + bytes[gone - 1] > budget);
            }
        }
    }
}
