//! What may be asked about snapshots: take, list, change, delete, restore, fork.

use std::collections::HashMap;

use time::OffsetDateTime;

use super::retention::Retention;
use super::{ForkSource, ForkSpec, Snapshot, SnapshotFilter, SnapshotId, SnapshotSpec, SnapshotUpdate};
use crate::Engine;
use crate::db::{Db, SnapshotRow};
use crate::error::Error;
use crate::sandbox::driver::Request;
use crate::sandbox::{Sandbox, SandboxId, SandboxState, spec};
use crate::shared::Shared;
use crate::storage::{self, Share};

impl Engine {
    /// Takes a snapshot of a running or paused sandbox. A running one stands still for the capture and goes on, its
    /// connections too. Returns when the snapshot is whole.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::SnapshotNameTaken`], [`Error::WrongState`], [`Error::NoSpace`], [`Error::Machine`].
    pub async fn snapshot(&self, id: &SandboxId, spec: SnapshotSpec) -> Result<Snapshot, Error> {
        spec::check_snapshot(spec.name.as_deref(), spec.comment.as_deref(), &spec.metadata)?;
        if let Some(name) = &spec.name {
            check_name_free(&self.shared.db, name, None).await?;
        }
        self.settled_handle(id).await?;
        let snapshot = self.ask(id, |reply| Request::Snapshot { spec: Box::new(spec), reply }).await?;
        self.evict(id, &snapshot).await;
        self.with_share(snapshot).await
    }

    /// The snapshots that match, oldest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<Snapshot>, Error> {
        let mut found: Vec<Snapshot> =
            self.shared.db.snapshots(filter).await?.into_iter().map(|row| row.snapshot).collect();
        let shares = shares(&self.shared).await?;
        for snapshot in &mut found {
            snapshot.share = shares.get(snapshot.id.as_str()).copied().unwrap_or_default();
        }
        Ok(found)
    }

    /// The snapshot with this id or name.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`].
    pub async fn find_snapshot(&self, id_or_name: &str) -> Result<Snapshot, Error> {
        let row = self.snapshot_row(id_or_name).await?;
        self.with_share(row.snapshot).await
    }

    /// Changes name, comment and metadata.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`], [`Error::Invalid`], [`Error::SnapshotNameTaken`].
    pub async fn update_snapshot(&self, id: &SnapshotId, update: SnapshotUpdate) -> Result<Snapshot, Error> {
        let mut snapshot = self.snapshot_row(id.as_str()).await?.snapshot;
        snapshot.name = update.name.unwrap_or(snapshot.name);
        snapshot.comment = update.comment.unwrap_or(snapshot.comment);
        snapshot.metadata = update.metadata.unwrap_or(snapshot.metadata);
        spec::check_snapshot(snapshot.name.as_deref(), snapshot.comment.as_deref(), &snapshot.metadata)?;
        if let Some(name) = &snapshot.name {
            check_name_free(&self.shared.db, name, Some(&snapshot.id)).await?;
        }
        snapshot.updated_at = OffsetDateTime::now_utc();
        if !self.shared.db.update_snapshot(&snapshot).await? {
            // Taken between the look and the write.
            let (name, holder) = (snapshot.name.unwrap_or_default(), snapshot.id);
            return Err(Error::SnapshotNameTaken { name, holder });
        }
        self.with_share(snapshot).await
    }

    /// Deletes a snapshot; what came from it lives on. Its exclusive bytes are free when this returns.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`]; [`Error::SnapshotInUse`] while it has a name.
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<Snapshot, Error> {
        let snapshot = self.find_snapshot(id.as_str()).await?;
        if !self.shared.db.delete_snapshot(&snapshot.id).await? {
            let name = self.snapshot_row(id.as_str()).await?.snapshot.name.unwrap_or_default();
            let reason = format!("it has the name '{name}'; take the name away first");
            return Err(Error::SnapshotInUse { id: snapshot.id, reason });
        }
        storage::sweep(&self.shared).await?;
        tracing::info!(snapshot = %snapshot.id, "snapshot deleted");
        Ok(snapshot)
    }

    /// The live sandboxes that last came from a snapshot, or took it.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`].
    pub async fn dependents(&self, id: &SnapshotId) -> Result<Vec<Sandbox>, Error> {
        self.snapshot_row(id.as_str()).await?;
        let mut found = Vec::new();
        let ids = self.shared.db.dependents(id).await?;
        for id in ids.into_iter().filter(|id| !self.shared.hidden.contains(id)) {
            found.push(self.get(id.as_str()).await?);
        }
        Ok(found)
    }

    /// Puts a sandbox back to where a snapshot of it, or of another of the same shape, was: disk and memory. What is
    /// running in it ends. Returns when it is command-ready.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`], [`Error::Invalid`] when the shapes differ, [`Error::WrongState`], [`Error::NoSpace`],
    /// [`Error::HostNotReady`], [`Error::Machine`]: it is paused then, at the snapshot.
    pub async fn restore(&self, id: &SandboxId, snapshot: &SnapshotId) -> Result<Sandbox, Error> {
        let row = self.snapshot_row(snapshot.as_str()).await?;
        let sandbox = self.settled_handle(id).await?;
        if row.snapshot.shape != sandbox.shape || row.snapshot.template_id != sandbox.template_id {
            let message = format!(
                "snapshot {snapshot} is of another shape or template than sandbox {id}: fork it into a sandbox of its own"
            );
            return Err(Error::invalid("snapshot_id", message));
        }
        self.ask(id, |reply| Request::Restore { row: Box::new(row), reply }).await
    }

    /// A new sandbox that goes on from a snapshot, or from a sandbox as it is now, which lives on with its connections.
    /// Returns its record in state `creating`; [`Engine::wait_settled`] waits until it runs.
    ///
    /// # Errors
    /// As [`Engine::create`] and [`Engine::snapshot`].
    pub async fn fork(&self, source: &ForkSource, fork: ForkSpec) -> Result<Sandbox, Error> {
        crate::sandbox::fork::fork(self, source, fork).await
    }

    /// What a sandbox takes on the disk.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn share(&self, id: &SandboxId) -> Result<Share, Error> {
        self.get(id.as_str()).await?;
        Ok(shares(&self.shared).await?.get(id.as_str()).copied().unwrap_or_default())
    }

    /// What every live sandbox and every snapshot takes on the disk, by id.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::File`].
    pub async fn shares(&self) -> Result<HashMap<String, Share>, Error> {
        shares(&self.shared).await
    }

    pub(crate) async fn snapshot_row(&self, id_or_name: &str) -> Result<SnapshotRow, Error> {
        let row = self.shared.db.snapshot(id_or_name).await?;
        row.ok_or_else(|| Error::SnapshotNotFound(id_or_name.to_owned()))
    }

    /// The record of a sandbox once it is not being made any more.
    async fn settled_handle(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        let sandbox = self.wait_made(id).await?;
        match sandbox.state {
            SandboxState::Destroying | SandboxState::Destroyed => Err(Error::SandboxDestroyed(id.clone())),
            _ => Ok(sandbox),
        }
    }

    async fn with_share(&self, mut snapshot: Snapshot) -> Result<Snapshot, Error> {
        snapshot.share = shares(&self.shared).await?.get(snapshot.id.as_str()).copied().unwrap_or_default();
        Ok(snapshot)
    }

    /// Deletes the snapshots that are too many now. What cannot be deleted stays for the next time.
    async fn evict(&self, id: &SandboxId, newest: &Snapshot) {
        let work = async {
            let sandbox = self.get(id.as_str()).await?;
            let filter = SnapshotFilter { sandbox_id: Some(id.clone()), ..SnapshotFilter::default() };
            let all: Vec<Snapshot> =
                self.shared.db.snapshots(&filter).await?.into_iter().map(|row| row.snapshot).collect();
            for evicted in Retention::of(&sandbox.metadata).evicted(&all) {
                if evicted != newest.id {
                    tracing::info!(snapshot = %evicted, sandbox = %id, "too many snapshots: the oldest goes");
                    self.delete_snapshot(&evicted).await?;
                }
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = work.await {
            tracing::error!(error = &error as &dyn std::error::Error, "old snapshots were not deleted");
        }
    }
}

/// Deletes the snapshots whose time is over. Called by housekeeping.
pub(crate) async fn delete_expired(shared: &Shared) -> Result<(), Error> {
    for row in shared.db.expired_snapshots(OffsetDateTime::now_utc()).await? {
        tracing::info!(snapshot = %row.snapshot.id, "a snapshot's time is over");
        shared.db.delete_snapshot(&row.snapshot.id).await?;
    }
    storage::sweep(shared).await
}

async fn check_name_free(db: &Db, name: &str, except: Option<&SnapshotId>) -> Result<(), Error> {
    match db.snapshot(name).await?.map(|row| row.snapshot) {
        Some(holder) if Some(&holder.id) != except => {
            Err(Error::SnapshotNameTaken { name: name.to_owned(), holder: holder.id })
        }
        _ => Ok(()),
    }
}

/// What everyone takes on the disk, by id.
async fn shares(shared: &Shared) -> Result<HashMap<String, Share>, Error> {
    let references = shared.db.references().await?;
    Ok(storage::sizes(&shared.config.paths, references).await?.0)
}
