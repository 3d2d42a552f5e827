//! Rows of `batches` and `batch_items`.

use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::{Db, DbError, get, instant, json, json_text, microseconds, number, optional_instant, query, unreadable};
use crate::batch::{Batch, BatchId, BatchItem, BatchStatus, ItemFailure, ItemId, ItemStatus};
use crate::sandbox::SandboxId;

/// How long a settled batch is remembered.
const RETENTION: time::Duration = time::Duration::days(7);

impl Db {
    /// Writes a new batch with its items.
    pub(crate) async fn insert_batch(&self, batch: &Batch, items: &[BatchItem]) -> Result<(), DbError> {
        let failed = || query("write a batch");
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO batches (id, status, requested, concurrency, request, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(batch.id.as_str())
        .bind(batch.status.as_str())
        .bind(batch.requested)
        .bind(batch.concurrency)
        .bind(json_text(&batch.request))
        .bind(microseconds(batch.created_at))
        .execute(&mut *transaction)
        .await
        .map_err(failed())?;
        for item in items {
            sqlx::query("INSERT INTO batch_items (id, batch_id, position, name, status) VALUES (?, ?, ?, ?, ?)")
                .bind(item.id.as_str())
                .bind(batch.id.as_str())
                .bind(item.position)
                .bind(&item.name)
                .bind(item.status.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(failed())?;
        }
        transaction.commit().await.map_err(failed())
    }

    /// Writes what changes of an item.
    pub(crate) async fn put_batch_item(&self, item: &BatchItem) -> Result<(), DbError> {
        sqlx::query(
            "UPDATE batch_items SET sandbox_id = ?, status = ?, error_code = ?, error_message = ?, started_at = ?, \
             ended_at = ? WHERE id = ?",
        )
        .bind(item.sandbox_id.as_ref().map(SandboxId::as_str))
        .bind(item.status.as_str())
        .bind(item.error.as_ref().map(|error| &error.code))
        .bind(item.error.as_ref().map(|error| &error.message))
        .bind(item.started_at.map(microseconds))
        .bind(item.ended_at.map(microseconds))
        .bind(item.id.as_str())
        .execute(&self.pool)
        .await
        .map_err(query("write an item of a batch"))?;
        Ok(())
    }

    /// Writes where a batch is.
    pub(crate) async fn put_batch_status(&self, batch: &Batch) -> Result<(), DbError> {
        sqlx::query("UPDATE batches SET status = ?, settled_at = ? WHERE id = ?")
            .bind(batch.status.as_str())
            .bind(batch.settled_at.map(microseconds))
            .bind(batch.id.as_str())
            .execute(&self.pool)
            .await
            .map_err(query("write a batch's status"))?;
        Ok(())
    }

    /// A batch with its counts.
    pub(crate) async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, DbError> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read a batch"))?;
        let Some(row) = row else { return Ok(None) };
        let mut batch = read_batch(&row)?;
        let counts =
            sqlx::query("SELECT status, COUNT(*) AS count FROM batch_items WHERE batch_id = ? GROUP BY status")
                .bind(id.as_str())
                .fetch_all(&self.pool)
                .await
                .map_err(query("count the items of a batch"))?;
        for row in &counts {
            batch.counts[item_status(row)? as usize] = number(row, "count")?;
        }
        Ok(Some(batch))
    }

    /// Those that no server works on any more and that are not settled.
    pub(crate) async fn open_batches(&self) -> Result<Vec<BatchId>, DbError> {
        let rows = sqlx::query("SELECT id FROM batches WHERE settled_at IS NULL ORDER BY created_at")
            .fetch_all(&self.pool)
            .await
            .map_err(query("list open batches"))?;
        rows.iter().map(|row| parsed(row, "id", BatchId::parse)).collect()
    }

    /// Items from a place on.
    pub(crate) async fn batch_items(&self, id: &BatchId, from: u32, limit: u32) -> Result<Vec<BatchItem>, DbError> {
        let rows =
            sqlx::query("SELECT * FROM batch_items WHERE batch_id = ? AND position >= ? ORDER BY position LIMIT ?")
                .bind(id.as_str())
                .bind(from)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(query("list the items of a batch"))?;
        rows.iter().map(read_item).collect()
    }

    /// The states of a batch's sandboxes, and how many are in each.
    pub(crate) async fn batch_runtime_counts(&self, id: &BatchId) -> Result<Vec<(String, u32)>, DbError> {
        let rows = sqlx::query(
            "SELECT sandboxes.state, COUNT(*) AS count FROM batch_items JOIN sandboxes ON sandboxes.id = batch_items.sandbox_id \
             WHERE batch_items.batch_id = ? GROUP BY sandboxes.state ORDER BY sandboxes.state",
        )
        .bind(id.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(query("count the sandboxes of a batch"))?;
        rows.iter().map(|row| Ok((get(row, "state")?, number(row, "count")?))).collect()
    }

    /// Deletes batches that were settled long ago.
    pub(crate) async fn forget_batches(&self, now: OffsetDateTime) -> Result<(), DbError> {
        sqlx::query("DELETE FROM batches WHERE settled_at < ?")
            .bind(microseconds(now - RETENTION))
            .execute(&self.pool)
            .await
            .map_err(query("forget old batches"))?;
        Ok(())
    }
}

fn read_batch(row: &SqliteRow) -> Result<Batch, DbError> {
    Ok(Batch {
        id: parsed(row, "id", BatchId::parse)?,
        status: parsed(row, "status", BatchStatus::parse)?,
        requested: number(row, "requested")?,
        counts: [0; 5],
        concurrency: number(row, "concurrency")?,
        request: json(row, "request")?,
        created_at: instant(row, "created_at")?,
        settled_at: optional_instant(row, "settled_at")?,
    })
}

fn read_item(row: &SqliteRow) -> Result<BatchItem, DbError> {
    let (code, message): (Option<String>, Option<String>) = (get(row, "error_code")?, get(row, "error_message")?);
    let sandbox: Option<String> = get(row, "sandbox_id")?;
    Ok(BatchItem {
        id: parsed(row, "id", ItemId::parse)?,
        position: number(row, "position")?,
        name: get(row, "name")?,
        sandbox_id: sandbox.and_then(|id| SandboxId::parse(&id)),
        status: item_status(row)?,
        error: code.map(|code| ItemFailure { code, message: message.unwrap_or_default() }),
        started_at: optional_instant(row, "started_at")?,
        ended_at: optional_instant(row, "ended_at")?,
    })
}

fn item_status(row: &SqliteRow) -> Result<ItemStatus, DbError> {
    parsed(row, "status", ItemStatus::parse)
}

fn parsed<T>(row: &SqliteRow, column: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, DbError> {
    let text: String = get(row, column)?;
    parse(&text).ok_or_else(|| unreadable(column, &text))
}

#[cfg(test)]
mod tests {
    use super::super::tests::database;
    use super::*;

    #[tokio::test]
    async fn a_batch_is_read_as_it_was_written_and_counted() {
        let (_folder, db) = database().await;
        let batch = Batch {
            id: BatchId::generate(),
            status: BatchStatus::Running,
            requested: 3,
            counts: [3, 0, 0, 0, 0],
            concurrency: 2,
            request: serde_json::Map::new(),
            created_at: OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap(),
            settled_at: None,
        };
        let item = |position| BatchItem {
            id: ItemId::generate(),
            position,
            name: Some(format!("a-{position}")),
            sandbox_id: None,
            status: ItemStatus::Queued,
            error: None,
            started_at: None,
            ended_at: None,
        };
        let mut items: Vec<BatchItem> = (0..3).map(item).collect();
        db.insert_batch(&batch, &items).await.unwrap();
        assert_eq!(db.batch(&batch.id).await.unwrap(), Some(batch.clone()));
        items[1].status = ItemStatus::Failed;
        items[1].error = Some(ItemFailure { code: "NAME_TAKEN".into(), message: "no".into() });
        db.put_batch_item(&items[1]).await.unwrap();
        assert_eq!(db.batch_items(&batch.id, 1, 1).await.unwrap(), items[1..2]);
        assert_eq!(db.batch(&batch.id).await.unwrap().unwrap().counts, [2, 0, 0, 1, 0]);
        assert_eq!(db.open_batches().await.unwrap(), std::slice::from_ref(&batch.id));
        let settled = Batch { status: BatchStatus::Failed, settled_at: Some(batch.created_at), ..batch.clone() };
        db.put_batch_status(&settled).await.unwrap();
        assert!(db.open_batches().await.unwrap().is_empty());
        db.forget_batches(OffsetDateTime::now_utc()).await.unwrap();
        assert_eq!(db.batch(&batch.id).await.unwrap(), None);
    }
}
