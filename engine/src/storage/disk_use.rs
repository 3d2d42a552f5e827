//! What everything takes on the disk, and what the disk has: what an overview of it needs.

use std::collections::HashMap;

use time::OffsetDateTime;

use super::{Share, allocated, sizes};
use crate::Engine;
use crate::error::Error;
use crate::sandbox::{SandboxId, Shape};
use crate::snapshot::SnapshotId;
use crate::template::store::blocking;

/// All that is Cove's on the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskUse {
    /// Who holds what.
    pub owners: Vec<DiskOwner>,
    /// What all owners take, each file counted once.
    pub owned_bytes: u64,
    /// What the templates' own disks take, by template.
    pub templates: Vec<(String, u64)>,
    /// Prepared machines go, the least recently used first, when they take more.
    pub prepared_bytes_max: u64,
    /// Of the file system on which the data directory lies.
    pub total_bytes: u64,
    /// Of it, free for us.
    pub free_bytes: u64,
    /// New sandboxes are refused when less than this is free.
    pub reserve_bytes: u64,
}

/// Who takes something.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskOwner {
    /// The id of a sandbox or snapshot, the key of a prepared machine.
    pub id: String,
    /// What it is.
    pub kind: OwnerKind,
    /// What it takes.
    pub share: Share,
}

/// What kinds of things take something.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnerKind {
    /// A sandbox that is not destroyed.
    Sandbox,
    /// A snapshot.
    Snapshot,
    /// The hidden sandbox through which a snapshot's files are read; it ends by itself.
    Viewer,
    /// A template's prepared machine.
    Prepared {
        /// Of which template.
        template_id: String,
        /// For sandboxes of this shape.
        shape: Shape,
        /// When a sandbox was last made from it.
        used_at: OffsetDateTime,
    },
}

impl Engine {
    /// What everything takes on the disk.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::File`].
    pub async fn disk_use(&self) -> Result<DiskUse, Error> {
        let shared = &self.shared;
        shared.warm.note_uses(&shared.db).await;
        let prepared = shared.db.warm_rows().await?;
        let mut prepared: HashMap<String, OwnerKind> = prepared
            .into_iter()
            .map(|row| {
                let kind = OwnerKind::Prepared { template_id: row.template_id, shape: row.shape, used_at: row.used_at };
                (row.key, kind)
            })
            .collect();
        let (shares, owned_bytes) = sizes(&shared.config.paths, shared.db.references().await?).await?;
        let kind = |id: &str, prepared: &mut HashMap<String, OwnerKind>| match prepared.remove(id) {
            Some(kind) => kind,
            None if SnapshotId::parse(id).is_some() => OwnerKind::Snapshot,
            None if SandboxId::parse(id).is_some_and(|id| shared.hidden.contains(&id)) => OwnerKind::Viewer,
            None => OwnerKind::Sandbox,
        };
        let mut owners: Vec<DiskOwner> =
            shares.into_iter().map(|(id, share)| DiskOwner { kind: kind(&id, &mut prepared), id, share }).collect();
        owners.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let roots: Vec<_> = self.templates().await?.into_iter().map(|template| (template.id, template.root)).collect();
        let data = shared.config.paths.data.clone();
        let (templates, total_bytes, free_bytes) = blocking(move || {
            let disk = rustix::fs::statvfs(&data).map_err(|errno| Error::file("look at", data)(errno.into()))?;
            let templates = roots.into_iter().map(|(id, root)| (id, allocated(&root))).collect();
            let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
            Ok((templates, bytes(disk.f_blocks), bytes(disk.f_bavail)))
        })
        .await?;
        let limits = &shared.config.limits;
        Ok(DiskUse {
            owners,
            owned_bytes,
            templates,
            prepared_bytes_max: limits.warm_disk_mib << 20,
            total_bytes,
            free_bytes,
            reserve_bytes: limits.disk_reserve_mib << 20,
        })
    }
}
