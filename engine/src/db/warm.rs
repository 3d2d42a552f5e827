//! Rows of `warm`: the prepared machines of templates.

use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::layers::{self, optional_image_id};
use super::{Db, DbError, get, instant, microseconds, number, query, shape, unreadable};
use crate::sandbox::Shape;
use crate::storage::{Image, ImageId, Layer};

/// A machine captured after its boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WarmRow {
    /// Template version, shape and host software.
    pub(crate) key: String,
    pub(crate) host_key: String,
    pub(crate) template_id: String,
    pub(crate) template_version: String,
    pub(crate) shape: Shape,
    pub(crate) image: ImageId,
    pub(crate) prepared: bool,
    pub(crate) used_at: OffsetDateTime,
    /// Bytes of its image's memory; read only.
    pub(crate) bytes: u64,
}

impl Db {
    /// The machine for a key.
    pub(crate) async fn warm(&self, key: &str) -> Result<Option<WarmRow>, DbError> {
        let row =
            sqlx::query("SELECT warm.*, images.bytes FROM warm JOIN images ON images.id = warm.image_id WHERE key = ?")
                .bind(key)
                .fetch_optional(&self.pool)
                .await
                .map_err(query("read a prepared machine"))?;
        row.as_ref().map(from_row).transpose()
    }

    /// All of them, the least recently used first.
    pub(crate) async fn warm_rows(&self) -> Result<Vec<WarmRow>, DbError> {
        let rows = sqlx::query(
            "SELECT warm.*, images.bytes FROM warm JOIN images ON images.id = warm.image_id ORDER BY used_at",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(query("list prepared machines"))?;
        rows.iter().map(from_row).collect()
    }

    /// Adds a machine with its image and the layers that are new, in place of an earlier one.
    pub(crate) async fn put_warm(&self, row: &WarmRow, image: &Image, new_layers: &[&Layer]) -> Result<(), DbError> {
        let failed = || query("write a prepared machine");
        let mut transaction = self.begin().await?;
        for layer in new_layers {
            layers::insert(&mut transaction, layer).await?;
        }
        layers::freeze(&mut transaction, &image.layer).await?;
        layers::insert_image(&mut transaction, image).await?;
        sqlx::query(
            "INSERT INTO warm (key, host_key, template_id, template_version, cpu_count, memory_mb, disk_size_mb, image_id, \
             prepared, used_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET \
             image_id = excluded.image_id, prepared = excluded.prepared",
        )
        .bind(&row.key)
        .bind(&row.host_key)
        .bind(&row.template_id)
        .bind(&row.template_version)
        .bind(row.shape.cpu_count)
        .bind(row.shape.memory_mb)
        .bind(row.shape.disk_size_mb)
        .bind(row.image.as_str())
        .bind(row.prepared)
        .bind(microseconds(row.used_at))
        .execute(&mut *transaction)
        .await
        .map_err(failed())?;
        transaction.commit().await.map_err(failed())
    }

    /// Notes when machines were last used.
    pub(crate) async fn touch_warm(&self, used: &[(String, OffsetDateTime)]) -> Result<(), DbError> {
        let failed = || query("note the use of prepared machines");
        let mut transaction = self.begin().await?;
        for (key, at) in used {
            sqlx::query("UPDATE warm SET used_at = ? WHERE key = ?")
                .bind(microseconds(*at))
                .bind(key)
                .execute(&mut *transaction)
                .await
                .map_err(failed())?;
        }
        transaction.commit().await.map_err(failed())
    }

    /// Forgets one machine; its files go with the next sweep.
    pub(crate) async fn delete_warm(&self, key: &str) -> Result<(), DbError> {
        let statement = sqlx::query("DELETE FROM warm WHERE key = ?").bind(key);
        statement.execute(&self.pool).await.map_err(query("forget a prepared machine"))?;
        Ok(())
    }

    /// Forgets the machine that has this image.
    pub(crate) async fn delete_warm_image(&self, image: &ImageId) -> Result<(), DbError> {
        let statement = sqlx::query("DELETE FROM warm WHERE image_id = ?").bind(image.as_str());
        statement.execute(&self.pool).await.map_err(query("forget a prepared machine"))?;
        Ok(())
    }

    /// Forgets the machines that another kernel, vmm or host made, and those of templates that are not current.
    pub(crate) async fn delete_stale_warm(&self, host_key: &str) -> Result<(), DbError> {
        sqlx::query(
            "DELETE FROM warm WHERE host_key <> ? OR NOT EXISTS (SELECT 1 FROM templates WHERE \
             templates.id = warm.template_id AND templates.version = warm.template_version AND templates.current = 1)",
        )
        .bind(host_key)
        .execute(&self.pool)
        .await
        .map_err(query("forget stale prepared machines"))?;
        Ok(())
    }
}

fn from_row(row: &SqliteRow) -> Result<WarmRow, DbError> {
    Ok(WarmRow {
        key: get(row, "key")?,
        host_key: get(row, "host_key")?,
        template_id: get(row, "template_id")?,
        template_version: get(row, "template_version")?,
        shape: shape(row)?,
        image: optional_image_id(row, "image_id")?.ok_or_else(|| unreadable("image_id", ""))?,
        prepared: get(row, "prepared")?,
        used_at: instant(row, "used_at")?,
        bytes: number(row, "bytes")?,
    })
}
