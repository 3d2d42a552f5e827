//! Batches: many sandboxes made by one call (contract C45-C49).
//!
//! ```text
//!  Running ──all items ended──► Succeeded | PartiallyFailed | Failed
//!     └── cancel ──► Cancelling ──what was begun ended──► Cancelled
//!  item:  Queued ─► Creating ─► Succeeded | Failed          Queued ─► Cancelled
//! ```
//!
//! A batch is ordinary creates, a few at a time; its sandboxes belong to nobody but the caller. Each change is written
//! before it is told. When the server ends, its batches end with it: the next start settles them (`runner::settle`).

mod runner;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::error::Error;
use crate::id::text_id;
use crate::sandbox::{SandboxId, SandboxSpec};

pub(crate) use runner::settle;

/// Most sandboxes of one batch.
pub const BATCH_COUNT_MAX: usize = 500;

/// Most that one batch makes at one time.
pub const BATCH_CONCURRENCY_MAX: u32 = 16;

/// How many it makes at one time when it does not say.
pub const BATCH_CONCURRENCY_DEFAULT: u32 = 4;

/// Batches that run at one time.
pub const BATCHES_RUNNING_MAX: usize = 16;

/// Changes that a listener may lag behind.
const CHANGES_KEPT_MAX: usize = 1024;

text_id!(
    /// A batch's id: `bat_` and lower-case letters and digits.
    pub BatchId, "bat_"
);

text_id!(
    /// The id of an item of a batch.
    pub ItemId, "itm_"
);

/// A word for a column and for the wire.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// Its name.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            pub(crate) fn parse(text: &str) -> Option<Self> {
                match text { $($word => Some($name::$variant),)+ _ => None }
            }
        }
    };
}

words!(
    /// Where a batch is.
    BatchStatus {
        /// Items wait or are being made.
        Running = "running",
        /// It was cancelled, and waits for what was begun.
        Cancelling = "cancelling",
        /// Every sandbox was made.
        Succeeded = "succeeded",
        /// Some were.
        PartiallyFailed = "partially_failed",
        /// None was.
        Failed = "failed",
        /// It was cancelled before every item was begun.
        Cancelled = "cancelled",
    }
);

words!(
    /// Where an item is.
    ItemStatus {
        /// Not begun.
        Queued = "queued",
        /// Its sandbox is being made.
        Creating = "creating",
        /// Its sandbox was command-ready.
        Succeeded = "succeeded",
        /// See its error.
        Failed = "failed",
        /// Cancelled before it was begun.
        Cancelled = "cancelled",
    }
);

impl BatchStatus {
    /// Nothing changes any more.
    pub fn is_settled(self) -> bool {
        !matches!(self, BatchStatus::Running | BatchStatus::Cancelling)
    }
}

/// A batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its id.
    pub id: BatchId,
    /// Where it is.
    pub status: BatchStatus,
    /// Items in all.
    pub requested: u32,
    /// Items by status, in the order of [`ItemStatus`]'s variants.
    pub counts: [u32; 5],
    /// How many are made at one time.
    pub concurrency: u32,
    /// What is the same for all items, as it was asked for.
    pub request: serde_json::Map<String, serde_json::Value>,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// When its last item ended.
    pub settled_at: Option<OffsetDateTime>,
}

impl Batch {
    /// Items in this status.
    pub fn count(&self, status: ItemStatus) -> u32 {
        self.counts[status as usize]
    }

    /// The status once no item waits or is being made.
    fn end(&self, cancelled: bool) -> BatchStatus {
        let (succeeded, failed) = (self.count(ItemStatus::Succeeded), self.count(ItemStatus::Failed));
        match () {
            () if cancelled && self.count(ItemStatus::Cancelled) > 0 => BatchStatus::Cancelled,
            () if failed == 0 => BatchStatus::Succeeded,
            () if succeeded > 0 => BatchStatus::PartiallyFailed,
            () => BatchStatus::Failed,
        }
    }
}

/// Why an item failed, in the API's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemFailure {
    /// A stable code.
    pub code: String,
    /// A sentence.
    pub message: String,
}

/// One sandbox of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchItem {
    /// Its id.
    pub id: ItemId,
    /// Its place, from 0.
    pub position: u32,
    /// The sandbox's name, if it was to have one.
    pub name: Option<String>,
    /// The sandbox, once there is one.
    pub sandbox_id: Option<SandboxId>,
    /// Where it is.
    pub status: ItemStatus,
    /// Why it failed.
    pub error: Option<ItemFailure>,
    /// When it was begun.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
}

/// What is asked for. An item that is wrong by itself fails alone.
pub struct BatchSpec {
    /// The sandboxes; at least one.
    pub items: Vec<Result<SandboxSpec, ItemFailure>>,
    /// How many at one time; [`BATCH_CONCURRENCY_DEFAULT`] when absent.
    pub concurrency: Option<u32>,
    /// What is the same for all items, to be shown.
    pub request: serde_json::Map<String, serde_json::Value>,
    /// Puts an error into the API's words.
    pub explain: fn(Error) -> ItemFailure,
}

/// The batches that run.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    live: Mutex<HashMap<BatchId, Arc<Live>>>,
}

#[derive(Debug)]
struct Live {
    record: Mutex<Batch>,
    changes: broadcast::Sender<Batch>,
    cancel: CancellationToken,
}

impl Batches {
    fn find(&self, id: &BatchId) -> Option<Arc<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn add(&self, batch: &Batch) -> Result<Arc<Live>, Error> {
        let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= BATCHES_RUNNING_MAX {
            let message = format!("{BATCHES_RUNNING_MAX} batches run, which is the most at one time");
            return Err(Error::Guest { kind: cove_protocol::guest::ErrorKind::Busy, message });
        }
        let (changes, _) = broadcast::channel(CHANGES_KEPT_MAX);
        let live = Live { record: Mutex::new(batch.clone()), changes, cancel: CancellationToken::new() };
        let live = Arc::new(live);
        all.insert(batch.id.clone(), Arc::clone(&live));
        Ok(live)
    }

    fn forget(&self, id: &BatchId) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Live {
    fn record(&self) -> Batch {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A batch as it changes.
#[derive(Debug)]
pub struct BatchChanges {
    /// As it is now.
    pub now: Batch,
    /// Every later change; `None` when there will be none.
    pub later: Option<broadcast::Receiver<Batch>>,
}

impl Engine {
    /// Begins a batch and returns at once.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::HostNotReady`], [`Error::TemplateNotFound`] of the first item that names one.
    pub async fn create_batch(&self, spec: BatchSpec) -> Result<Batch, Error> {
        self.shared.tools()?;
        let count = spec.items.len();
        if count == 0 || count > BATCH_COUNT_MAX {
            return Err(Error::invalid("count", format!("count is {count}, and must be 1 to {BATCH_COUNT_MAX}")));
        }
        let concurrency = spec.concurrency.unwrap_or(BATCH_CONCURRENCY_DEFAULT);
        if !(1..=BATCH_CONCURRENCY_MAX).contains(&concurrency) {
            let message = format!("concurrency is {concurrency}, and must be 1 to {BATCH_CONCURRENCY_MAX}");
            return Err(Error::invalid("concurrency", message));
        }
        runner::begin(&self.shared, self.clone(), spec, concurrency).await
    }

    /// A batch as it is now.
    ///
    /// # Errors
    /// [`Error::BatchNotFound`].
    pub async fn batch(&self, id: &str) -> Result<Batch, Error> {
        let not_found = || Error::BatchNotFound(id.to_owned());
        let id = BatchId::parse(id).ok_or_else(not_found)?;
        if let Some(live) = self.shared.batches.find(&id) {
            return Ok(live.record());
        }
        self.shared.db.batch(&id).await?.ok_or_else(not_found)
    }

    /// How many of a batch's sandboxes are in which state now, by its name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn batch_runtime_counts(&self, id: &BatchId) -> Result<Vec<(String, u32)>, Error> {
        Ok(self.shared.db.batch_runtime_counts(id).await?)
    }

    /// A batch's items from a place on, in their order; at most `limit`.
    ///
    /// # Errors
    /// [`Error::BatchNotFound`].
    pub async fn batch_items(&self, id: &str, from: u32, limit: u32) -> Result<Vec<BatchItem>, Error> {
        let batch = self.batch(id).await?;
        Ok(self.shared.db.batch_items(&batch.id, from, limit).await?)
    }

    /// Begins no further item; what was begun goes on. A settled batch stays as it is.
    ///
    /// # Errors
    /// [`Error::BatchNotFound`].
    pub async fn cancel_batch(&self, id: &str) -> Result<Batch, Error> {
        let batch = self.batch(id).await?;
        let Some(live) = self.shared.batches.find(&batch.id) else { return self.batch(id).await };
        // The runner says that it heard it.
        let mut changes = live.changes.subscribe();
        live.cancel.cancel();
        loop {
            let batch = live.record();
            let heard = batch.status != BatchStatus::Running && batch.count(ItemStatus::Queued) == 0;
            if heard || batch.status.is_settled() {
                break;
            }
            tokio::select! {
                _ = changes.recv() => {}
                () = self.shared.stopping.cancelled() => return Err(Error::ShuttingDown),
            }
        }
        self.batch(id).await
    }

    /// A batch and its changes.
    ///
    /// # Errors
    /// [`Error::BatchNotFound`].
    pub async fn follow_batch(&self, id: &str) -> Result<BatchChanges, Error> {
        let live = BatchId::parse(id).and_then(|id| self.shared.batches.find(&id));
        match live {
            Some(live) => {
                let later = live.changes.subscribe();
                Ok(BatchChanges { now: live.record(), later: Some(later) })
            }
            None => Ok(BatchChanges { now: self.batch(id).await?, later: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(counts: [u32; 5]) -> Batch {
        Batch {
            id: BatchId::generate(),
            status: BatchStatus::Running,
            requested: counts.iter().sum(),
            counts,
            concurrency: 1,
            request: serde_json::Map::new(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            settled_at: None,
        }
    }

    #[test]
    fn a_batch_ends_as_its_items_did() {
        for (counts, cancelled, end) in [
            ([0, 0, 3, 0, 0], false, BatchStatus::Succeeded),
            ([0, 0, 2, 1, 0], false, BatchStatus::PartiallyFailed),
            ([0, 0, 0, 3, 0], false, BatchStatus::Failed),
            ([0, 0, 1, 0, 2], true, BatchStatus::Cancelled),
            // The cancel came when nothing waited any more.
            ([0, 0, 3, 0, 0], true, BatchStatus::Succeeded),
        ] {
            assert_eq!(batch(counts).end(cancelled), end, "{counts:?}");
        }
    }

    #[test]
    fn every_word_is_read_as_it_is_written() {
        use ItemStatus::{Cancelled, Creating, Failed, Queued, Succeeded};
        for status in [Queued, Creating, Succeeded, Failed, Cancelled] {
            assert_eq!(ItemStatus::parse(status.as_str()), Some(status));
        }
        assert_eq!(BatchStatus::parse("partially_failed"), Some(BatchStatus::PartiallyFailed));
        assert_eq!(BatchStatus::parse("x"), None);
    }
}
