//! The files of a snapshot: read in a viewer, a hidden fork of the snapshot that ends when nobody looked for a while.
//!
//! The file system of a snapshot is understood by its own guest, and by nothing on the host: a damaged or hostile one can
//! harm its viewer only. What ran in the snapshot runs in its viewer too, cut off from everything.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_protocol::guest;
use tokio::time::Instant;

use super::{ForkSource, ForkSpec, SnapshotId};
use crate::error::Error;
use crate::sandbox::{SandboxId, SandboxState, fork};
use crate::{Engine, FileStream};

/// Seconds after which a viewer ends when nobody looked.
const IDLE_SEC: u32 = 60;

/// Seconds after which it ends in any case.
const SESSION_SEC: u32 = 3600;

/// How long a viewer may take to come up.
const READY_DEADLINE: Duration = Duration::from_secs(240);

/// The viewers of one engine.
#[derive(Debug, Default)]
pub(crate) struct Viewers {
    /// One is made at a time.
    by_snapshot: tokio::sync::Mutex<HashMap<SnapshotId, SandboxId>>,
    hidden: Hidden,
}

/// The sandboxes that no list shows and of which no event tells; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hidden {
    ids: Arc<Mutex<HashSet<SandboxId>>>,
}

impl Hidden {
    pub(crate) fn contains(&self, id: &SandboxId) -> bool {
        self.ids().contains(id)
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, HashSet<SandboxId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Viewers {
    pub(crate) fn new(hidden: Hidden) -> Self {
        Self { by_snapshot: tokio::sync::Mutex::default(), hidden }
    }
}

impl Engine {
    /// The entries below a directory of a snapshot, depth first; `depth` 1 is its entries alone.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`], and as [`Engine::fork`] and [`Engine::list_dir`].
    pub async fn snapshot_list_dir(&self, id: &SnapshotId, path: &str, depth: u32) -> Result<Vec<guest::Entry>, Error> {
        self.list_dir(&self.viewer(id).await?, path, depth).await
    }

    /// What a file of a snapshot is, and its bytes.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`], and as [`Engine::fork`] and [`Engine::read_file`].
    pub async fn snapshot_read_file(&self, id: &SnapshotId, path: &str) -> Result<(guest::Entry, FileStream), Error> {
        self.read_file(&self.viewer(id).await?, path).await
    }

    /// A directory of a snapshot with all in it, as one tar archive.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`], and as [`Engine::fork`] and [`Engine::archive`].
    pub async fn snapshot_archive(&self, id: &SnapshotId, paths: &[String]) -> Result<FileStream, Error> {
        self.archive(&self.viewer(id).await?, paths).await
    }

    /// What is at a path of a snapshot; a symbolic link is not followed.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`], and as [`Engine::fork`] and [`Engine::stat`].
    pub async fn snapshot_stat(&self, id: &SnapshotId, path: &str) -> Result<guest::Entry, Error> {
        self.stat(&self.viewer(id).await?, path).await
    }

    /// A sandbox that shows the snapshot's files.
    pub(super) async fn viewer(&self, id: &SnapshotId) -> Result<SandboxId, Error> {
        self.snapshot_row(id.as_str()).await?;
        let viewers = &self.shared.viewers;
        let mut by_snapshot = viewers.by_snapshot.lock().await;
        // Those that ended are forgotten, of whatever snapshot.
        by_snapshot.retain(|_, viewer| {
            let lives = self.shared.find(viewer).is_some_and(|it| it.record.borrow().state == SandboxState::Running);
            if !lives && self.shared.find(viewer).is_none() {
                viewers.hidden.ids().remove(viewer);
            }
            lives
        });
        if let Some(viewer) = by_snapshot.get(id) {
            return Ok(viewer.clone());
        }
        let spec = ForkSpec {
            timeout_sec: Some(SESSION_SEC),
            idle_timeout_sec: Some(IDLE_SEC),
            persistent: Some(false),
            always_on: Some(false),
            ..ForkSpec::default()
        };
        let viewer = SandboxId::generate();
        viewers.hidden.ids().insert(viewer.clone());
        let made = fork::fork_as(self, viewer.clone(), &ForkSource::Snapshot(id.clone()), spec).await;
        if let Err(error) = made {
            viewers.hidden.ids().remove(&viewer);
            return Err(error);
        }
        let record = self.wait_settled(&viewer, Instant::now() + READY_DEADLINE).await?;
        if record.state != SandboxState::Running {
            let reason = record.last_error.clone().unwrap_or_default();
            if let Err(error) = self.destroy(&viewer).await {
                tracing::error!(error = &error as &dyn std::error::Error, "a viewer that failed was not removed");
            }
            viewers.hidden.ids().remove(&viewer);
            return Err(Error::SandboxFailed { id: viewer, reason });
        }
        by_snapshot.insert(id.clone(), viewer.clone());
        Ok(viewer)
    }
}
