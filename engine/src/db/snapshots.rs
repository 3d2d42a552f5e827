//! Rows of `snapshots`.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use time::OffsetDateTime;

use super::layers::{optional_image_id, optional_layer_id};
use super::{
    Db, DbError, get, instant, json, json_text, microseconds, number, optional_instant, optional_number, query, shape,
    unreadable,
};
use crate::sandbox::{SandboxId, Size};
use crate::snapshot::{Snapshot, SnapshotFilter, SnapshotId};
use crate::storage::{Holding, ImageId, LayerId, Share};

/// A snapshot with what only the engine needs to know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SnapshotRow {
    /// Its `share` is not in the row.
    pub(crate) snapshot: Snapshot,
    pub(crate) template_version: String,
    pub(crate) holding: Holding,
}

impl Db {
    /// The snapshot with this id or name.
    pub(crate) async fn snapshot(&self, id_or_name: &str) -> Result<Option<SnapshotRow>, DbError> {
        let row = sqlx::query("SELECT * FROM snapshots WHERE id = ? OR name = ? ORDER BY id = ? DESC LIMIT 1")
            .bind(id_or_name)
            .bind(id_or_name)
            .bind(id_or_name)
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read a snapshot"))?;
        row.as_ref().map(from_row).transpose()
    }

    /// The snapshots that match, oldest first.
    pub(crate) async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotRow>, DbError> {
        let mut statement = QueryBuilder::<Sqlite>::new("SELECT * FROM snapshots WHERE 1 = 1");
        if let Some(id) = &filter.sandbox_id {
            statement.push(" AND sandbox_id = ").push_bind(id.as_str());
        }
        if filter.named {
            statement.push(" AND name IS NOT NULL");
        }
        statement.push(" ORDER BY created_at, id");
        let rows = statement.build().fetch_all(&self.pool).await.map_err(query("list snapshots"))?;
        let mut found = rows.iter().map(from_row).collect::<Result<Vec<_>, _>>()?;
        if let Some(text) = filter.text.as_ref().map(|text| text.to_lowercase()) {
            let holds = |field: Option<&str>| field.is_some_and(|field| field.to_lowercase().contains(&text));
            found.retain(|SnapshotRow { snapshot, .. }| {
                holds(Some(snapshot.id.as_str()))
                    || holds(snapshot.name.as_deref())
                    || holds(snapshot.comment.as_deref())
                    || holds(snapshot.sandbox_name.as_deref())
            });
        }
        Ok(found)
    }

    /// The snapshots whose time is over.
    pub(crate) async fn expired_snapshots(&self, now: OffsetDateTime) -> Result<Vec<SnapshotRow>, DbError> {
        let rows = sqlx::query("SELECT * FROM snapshots WHERE expires_at <= ? AND name IS NULL")
            .bind(microseconds(now))
            .fetch_all(&self.pool)
            .await
            .map_err(query("list expired snapshots"))?;
        rows.iter().map(from_row).collect()
    }

    /// Writes name, comment and metadata. `false` when another snapshot has the name.
    pub(crate) async fn update_snapshot(&self, snapshot: &Snapshot) -> Result<bool, DbError> {
        let result =
            sqlx::query("UPDATE snapshots SET name = ?, comment = ?, metadata = ?, updated_at = ? WHERE id = ?")
                .bind(&snapshot.name)
                .bind(&snapshot.comment)
                .bind(json_text(&snapshot.metadata))
                .bind(microseconds(snapshot.updated_at))
                .bind(snapshot.id.as_str())
                .execute(&self.pool)
                .await;
        match result {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
            Err(error) => Err(query("write a snapshot")(error)),
        }
    }

    /// Deletes a row; what came after it in the tree comes after its parent then. `false` when it has a name or is gone.
    pub(crate) async fn delete_snapshot(&self, id: &SnapshotId) -> Result<bool, DbError> {
        let failed = || query("delete a snapshot");
        let mut transaction = self.begin().await?;
        for statement in [
            "UPDATE snapshots SET parent_id = (SELECT parent_id FROM snapshots WHERE id = ? AND name IS NULL) WHERE parent_id = ?",
            "UPDATE sandboxes SET snapshot_id = (SELECT parent_id FROM snapshots WHERE id = ? AND name IS NULL) WHERE snapshot_id = ?",
        ] {
            sqlx::query(statement)
                .bind(id.as_str())
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(failed())?;
        }
        let result = sqlx::query("DELETE FROM snapshots WHERE id = ? AND name IS NULL")
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(failed())?;
        if result.rows_affected() == 0 {
            return Ok(false);
        }
        transaction.commit().await.map_err(failed())?;
        Ok(true)
    }

    /// The live sandboxes that came from a snapshot.
    pub(crate) async fn dependents(&self, id: &SnapshotId) -> Result<Vec<SandboxId>, DbError> {
        let rows =
            sqlx::query("SELECT id FROM sandboxes WHERE snapshot_id = ? AND state <> 'destroyed' ORDER BY created_at")
                .bind(id.as_str())
                .fetch_all(&self.pool)
                .await
                .map_err(query("list what came from a snapshot"))?;
        rows.iter()
            .map(|row| {
                let id: String = get(row, "id")?;
                SandboxId::parse(&id).ok_or_else(|| unreadable("id", &id))
            })
            .collect()
    }
}

pub(super) async fn insert(connection: &mut SqliteConnection, row: &SnapshotRow) -> Result<(), DbError> {
    let snapshot = &row.snapshot;
    sqlx::query(
        "INSERT INTO snapshots (id, sandbox_id, sandbox_name, parent_id, name, comment, metadata, template_id, \
         template_version, size, cpu_count, memory_mb, disk_size_mb, env, layer_id, image_id, generation, paused_us, \
         created_at, updated_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(snapshot.id.as_str())
    .bind(snapshot.sandbox_id.as_str())
    .bind(&snapshot.sandbox_name)
    .bind(snapshot.parent_id.as_ref().map(SnapshotId::as_str))
    .bind(&snapshot.name)
    .bind(&snapshot.comment)
    .bind(json_text(&snapshot.metadata))
    .bind(&snapshot.template_id)
    .bind(&row.template_version)
    .bind(snapshot.size.map(Size::as_str))
    .bind(snapshot.shape.cpu_count)
    .bind(snapshot.shape.memory_mb)
    .bind(snapshot.shape.disk_size_mb)
    .bind(json_text(&snapshot.env))
    .bind(row.holding.layer.as_ref().map(LayerId::as_str))
    .bind(row.holding.image.as_ref().map(ImageId::as_str))
    .bind(i64::try_from(snapshot.generation).unwrap_or(i64::MAX))
    .bind(snapshot.paused_us.map(|us| i64::try_from(us).unwrap_or(i64::MAX)))
    .bind(microseconds(snapshot.created_at))
    .bind(microseconds(snapshot.updated_at))
    .bind(snapshot.expires_at.map(microseconds))
    .execute(connection)
    .await
    .map_err(query("write a snapshot"))?;
    Ok(())
}

fn from_row(row: &SqliteRow) -> Result<SnapshotRow, DbError> {
    let (id, sandbox_id): (String, String) = (get(row, "id")?, get(row, "sandbox_id")?);
    let parent: Option<String> = get(row, "parent_id")?;
    let size: Option<String> = get(row, "size")?;
    let holding = Holding { layer: optional_layer_id(row, "layer_id")?, image: optional_image_id(row, "image_id")? };
    let snapshot = Snapshot {
        id: SnapshotId::parse(&id).ok_or_else(|| unreadable("id", &id))?,
        sandbox_id: SandboxId::parse(&sandbox_id).ok_or_else(|| unreadable("sandbox_id", &sandbox_id))?,
        sandbox_name: get(row, "sandbox_name")?,
        parent_id: parent.map(|id| SnapshotId::parse(&id).ok_or_else(|| unreadable("parent_id", &id))).transpose()?,
        name: get(row, "name")?,
        comment: get(row, "comment")?,
        metadata: json(row, "metadata")?,
        template_id: get(row, "template_id")?,
        size: size.map(|size| size.parse::<Size>().map_err(|_| unreadable("size", &size))).transpose()?,
        shape: shape(row)?,
        env: json(row, "env")?,
        has_memory: holding.image.is_some(),
        share: Share::default(),
        generation: number(row, "generation")?,
        paused_us: optional_number(row, "paused_us")?,
        created_at: instant(row, "created_at")?,
        updated_at: instant(row, "updated_at")?,
        expires_at: optional_instant(row, "expires_at")?,
    };
    Ok(SnapshotRow { snapshot, template_version: get(row, "template_version")?, holding })
}
