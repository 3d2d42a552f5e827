//! The task that makes a batch's sandboxes, and what becomes of batches whose server ended.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Batch, BatchId, BatchItem, BatchSpec, BatchStatus, ItemFailure, ItemId, ItemStatus, Live};
use crate::Engine;
use crate::error::Error;
use crate::sandbox::{Sandbox, SandboxSpec, SandboxState};
use crate::shared::Shared;

/// How long one sandbox may take to be command-ready.
const READY_WAIT: Duration = Duration::from_secs(900);

/// The code of items that a server did not get to.
const INTERRUPTED: &str = "SERVER_STOPPED";

type Wanted = (BatchItem, Result<SandboxSpec, ItemFailure>);

/// Writes a batch and starts its task.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    engine: Engine,
    spec: BatchSpec,
    concurrency: u32,
) -> Result<Batch, Error> {
    let item = |(position, spec): (usize, &Result<SandboxSpec, ItemFailure>)| BatchItem {
        id: ItemId::generate(),
        position: position as u32,
        name: spec.as_ref().ok().and_then(|spec| spec.name.clone()),
        sandbox_id: None,
        status: ItemStatus::Queued,
        error: None,
        started_at: None,
        ended_at: None,
    };
    let items: Vec<BatchItem> = spec.items.iter().enumerate().map(item).collect();
    let requested = items.len() as u32;
    let batch = Batch {
        id: BatchId::generate(),
        status: BatchStatus::Running,
        requested,
        counts: [requested, 0, 0, 0, 0],
        concurrency,
        request: spec.request,
        created_at: OffsetDateTime::now_utc(),
        settled_at: None,
    };
    let live = shared.batches.add(&batch)?;
    if let Err(error) = shared.db.insert_batch(&batch, &items).await {
        shared.batches.forget(&batch.id);
        return Err(error.into());
    }
    tracing::info!(batch = %batch.id, requested, concurrency, "batch begun");
    let wanted: Vec<Wanted> = items.into_iter().zip(spec.items).collect();
    let runner = Runner { shared: Arc::clone(shared), engine, live, explain: spec.explain };
    shared.tasks.spawn(runner.run(wanted));
    Ok(batch)
}

struct Runner {
    shared: Arc<Shared>,
    engine: Engine,
    live: Arc<Live>,
    explain: fn(Error) -> ItemFailure,
}

impl Runner {
    async fn run(self, wanted: Vec<Wanted>) {
        let id = self.live.record().id;
        if let Err(error) = self.work(wanted).await {
            tracing::error!(error = &error as &dyn std::error::Error, batch = %id, "a batch was left as it is");
        }
        self.shared.batches.forget(&id);
    }

    async fn work(&self, wanted: Vec<Wanted>) -> Result<(), Error> {
        let concurrency = self.live.record().concurrency as usize;
        let mut waiting = wanted.into_iter();
        let mut going = FuturesUnordered::new();
        let mut cancelled = false;
        loop {
            if self.live.cancel.is_cancelled() && !cancelled {
                cancelled = true;
                self.change(|batch| batch.status = BatchStatus::Cancelling).await?;
                for (item, _) in waiting.by_ref() {
                    self.end(item, ItemStatus::Cancelled, None).await?;
                }
            }
            while going.len() < concurrency && !self.shared.stopping.is_cancelled() {
                let Some((item, spec)) = waiting.next() else { break };
                let item = self.begin_item(item).await?;
                going.push(async move { (self.make(spec).await, item) });
            }
            tokio::select! {
                () = self.shared.stopping.cancelled() => return Ok(()),
                () = self.live.cancel.cancelled(), if !cancelled => {}
                made = going.next() => match made {
                    Some((Ok(sandbox), mut item)) => {
                        item.sandbox_id = Some(sandbox.id);
                        self.end(item, ItemStatus::Succeeded, None).await?;
                    }
                    Some((Err((failure, sandbox)), mut item)) => {
                        item.sandbox_id = sandbox.map(|sandbox| sandbox.id);
                        self.end(item, ItemStatus::Failed, Some(failure)).await?;
                    }
                    None => break,
                },
            }
        }
        let end = |batch: &mut Batch| {
            batch.status = batch.end(cancelled);
            batch.settled_at = Some(OffsetDateTime::now_utc());
        };
        let batch = self.change(end).await?;
        tracing::info!(batch = %batch.id, status = batch.status.as_str(), counts = ?batch.counts, "batch settled");
        Ok(())
    }

    /// One create, to its end.
    async fn make(&self, spec: Result<SandboxSpec, ItemFailure>) -> Result<Sandbox, (ItemFailure, Option<Sandbox>)> {
        let sandbox = match spec {
            Ok(spec) => self.engine.create(spec).await.map_err(|error| ((self.explain)(error), None))?,
            Err(failure) => return Err((failure, None)),
        };
        let waited = self.engine.wait_settled(&sandbox.id, Instant::now() + READY_WAIT).await;
        let id = sandbox.id.clone();
        let error = match waited {
            Ok(ready) if matches!(ready.state, SandboxState::Running | SandboxState::Paused) => return Ok(ready),
            Ok(failed) if failed.state == SandboxState::Error => {
                Error::SandboxFailed { id, reason: failed.last_error.unwrap_or_default() }
            }
            Ok(other) if matches!(other.state, SandboxState::Destroying | SandboxState::Destroyed) => {
                Error::SandboxDestroyed(id)
            }
            Ok(late) => Error::NotReady { id, state: late.state, waited_ms: READY_WAIT.as_millis() as u64 },
            Err(error) => error,
        };
        Err(((self.explain)(error), Some(sandbox)))
    }

    async fn begin_item(&self, mut item: BatchItem) -> Result<BatchItem, Error> {
        (item.status, item.started_at) = (ItemStatus::Creating, Some(OffsetDateTime::now_utc()));
        self.shared.db.put_batch_item(&item).await?;
        self.move_count(ItemStatus::Queued, ItemStatus::Creating).await?;
        Ok(item)
    }

    async fn end(&self, mut item: BatchItem, status: ItemStatus, error: Option<ItemFailure>) -> Result<(), Error> {
        let before = item.status;
        (item.status, item.error, item.ended_at) = (status, error, Some(OffsetDateTime::now_utc()));
        self.shared.db.put_batch_item(&item).await?;
        self.move_count(before, status).await
    }

    async fn move_count(&self, from: ItemStatus, to: ItemStatus) -> Result<(), Error> {
        self.change(|batch| {
            batch.counts[from as usize] -= 1;
            batch.counts[to as usize] += 1;
        })
        .await
        .map(drop)
    }

    /// Changes the record: in the database first, then for whoever looks, then for whoever listens.
    async fn change(&self, change: impl FnOnce(&mut Batch)) -> Result<Batch, Error> {
        let mut batch = self.live.record();
        let before = batch.status;
        change(&mut batch);
        if batch.status != before {
            self.shared.db.put_batch_status(&batch).await?;
        }
        *self.live.record.lock().unwrap_or_else(PoisonError::into_inner) = batch.clone();
        // Nobody need listen.
        let _ = self.live.changes.send(batch.clone());
        Ok(batch)
    }
}

/// Ends what an earlier server's batches had begun: an item whose sandbox is there succeeded, all others failed.
pub(crate) async fn settle(shared: &Arc<Shared>) -> Result<(), Error> {
    for id in shared.db.open_batches().await? {
        let mut items = shared.db.batch_items(&id, 0, u32::MAX).await?;
        for item in &mut items {
            if !matches!(item.status, ItemStatus::Queued | ItemStatus::Creating) {
                continue;
            }
            // Its sandbox may have been made without this row having heard of it.
            let sandbox = match (&item.sandbox_id, &item.name) {
                (Some(id), _) => shared.db.sandbox(id).await?,
                (None, Some(name)) if item.status == ItemStatus::Creating => shared.db.sandbox_by_name(name).await?,
                _ => None,
            };
            let lives = |sandbox: &&Sandbox| matches!(sandbox.state, SandboxState::Running | SandboxState::Paused);
            match sandbox.as_ref().filter(lives) {
                Some(sandbox) => (item.status, item.sandbox_id) = (ItemStatus::Succeeded, Some(sandbox.id.clone())),
                None => {
                    let message = "The server ended before this sandbox was made".to_owned();
                    item.status = ItemStatus::Failed;
                    item.error = Some(ItemFailure { code: INTERRUPTED.to_owned(), message });
                }
            }
            item.ended_at = Some(OffsetDateTime::now_utc());
            shared.db.put_batch_item(item).await?;
        }
        if let Some(mut batch) = shared.db.batch(&id).await? {
            batch.status = batch.end(batch.status == BatchStatus::Cancelling);
            batch.settled_at = Some(OffsetDateTime::now_utc());
            shared.db.put_batch_status(&batch).await?;
            tracing::info!(batch = %id, status = batch.status.as_str(), "a batch of an earlier server settled");
        }
    }
    Ok(())
}
