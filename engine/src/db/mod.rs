//! SQLite: rows to types and back. The only module with SQL.
//!
//! One file beside the disks, in WAL mode with full synchronisation: what was committed survives the loss of power.
//! Statements are checked when they run, by the tests of this module, so that a build needs no database. The SQL is kept
//! portable: no SQLite functions, times as integers, JSON as text.

mod batches;

mod idempotency;

mod layers;

mod operations;

mod previews;

mod sandboxes;

mod snapshots;

mod step;

mod templates;

mod usage;

mod warm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Connection, Row, SqlitePool};
use time::OffsetDateTime;

use crate::sandbox::Shape;

pub(crate) use layers::References;
pub(crate) use operations::{OperationKind, Outcome};
pub(crate) use sandboxes::MachineRow;
pub(crate) use snapshots::SnapshotRow;
pub(crate) use step::{MachineStep, Step};
pub(crate) use templates::TemplateVersion;
pub(crate) use warm::WarmRow;

/// Connections: SQLite has one writer at a time, the others read.
const CONNECTIONS_MAX: u32 = 4;

/// How long a statement waits for another's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long destroyed sandboxes and idempotency keys are remembered.
pub(crate) const RETENTION: time::Duration = time::Duration::hours(24);

/// SQLite failed, or holds something that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The file cannot be opened or brought to this version's form.
    #[error("Cannot open the database {path}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("The database failed to {action}")]
    Query {
        /// What was tried, as words.
        action: &'static str,
        /// What SQLite says.
        #[source]
        source: sqlx::Error,
    },
    /// A row holds a value that this version cannot read.
    #[error("The database holds '{value}' as {column}, which this version cannot read")]
    Value {
        /// The column.
        column: &'static str,
        /// The value, shortened.
        value: String,
    },
}

impl DbError {
    /// SQLite found no room for its files (SQLITE_FULL, SQLITE_IOERR_WRITE and its kin).
    pub(crate) fn is_no_space(&self) -> bool {
        let (DbError::Open { source, .. } | DbError::Query { source, .. }) = self else { return false };
        let sqlx::Error::Database(error) = source else { return false };
        // https://www.sqlite.org/rescode.html: FULL, IOERR_WRITE, IOERR_FSYNC, IOERR_TRUNCATE, IOERR_SHMSIZE.
        matches!(error.code().as_deref(), Some("13" | "778" | "1034" | "1546" | "4874"))
    }
}

/// The database; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Db {
    pool: SqlitePool,
}

impl Db {
    /// Opens the file, makes it if need be, and brings it to this version's form.
    pub(crate) async fn open(path: &Path) -> Result<Self, DbError> {
        let failed = |source| DbError::Open { path: path.into(), source };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        // SQLite takes a transaction back by itself when its disk is full. The connection does not notice, and would refuse
        // every later one: it is closed, and another one opened.
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX).before_acquire(|connection, _| {
            let usable = !connection.is_in_transaction();
            Box::pin(async move { Ok(usable) })
        });
        let pool = pool.connect_with(options).await.map_err(failed)?;
        sqlx::migrate!().run(&pool).await.map_err(|error| failed(error.into()))?;
        Ok(Self { pool })
    }

    /// Waits for what runs and closes the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction that takes the write lock at once, so that it never fails half-way for want of it.
    async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, DbError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(query("begin a transaction"))
    }
}

/// For `map_err` on statements; `action` completes "The database failed to".
fn query(action: &'static str) -> impl FnOnce(sqlx::Error) -> DbError {
    move |source| DbError::Query { action, source }
}

/// One column of a row.
fn get<'r, T>(row: &'r SqliteRow, column: &'static str) -> Result<T, DbError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column).map_err(query("read a column"))
}

/// An integer column as an unsigned or smaller type.
fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<T, DbError> {
    let value: i64 = get(row, column)?;
    T::try_from(value).map_err(|_| unreadable(column, &value.to_string()))
}

/// The three columns of a shape, which sandboxes and templates have alike.
fn shape(row: &SqliteRow) -> Result<Shape, DbError> {
    Ok(Shape {
        cpu_count: number(row, "cpu_count")?,
        memory_mb: number(row, "memory_mb")?,
        disk_size_mb: number(row, "disk_size_mb")?,
    })
}

fn optional_number<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<Option<T>, DbError> {
    let value: Option<i64> = get(row, column)?;
    value.map(|value| T::try_from(value).map_err(|_| unreadable(column, &value.to_string()))).transpose()
}

/// A column that holds JSON.
fn json<T: DeserializeOwned>(row: &SqliteRow, column: &'static str) -> Result<T, DbError> {
    let text: String = get(row, column)?;
    serde_json::from_str(&text).map_err(|_| unreadable(column, &text))
}

/// `value` as the text of a JSON column. Serialising maps with text keys and plain values cannot fail.
fn json_text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn instant(row: &SqliteRow, column: &'static str) -> Result<OffsetDateTime, DbError> {
    let value: i64 = get(row, column)?;
    from_microseconds(value).ok_or_else(|| unreadable(column, &value.to_string()))
}

fn optional_instant(row: &SqliteRow, column: &'static str) -> Result<Option<OffsetDateTime>, DbError> {
    let value: Option<i64> = get(row, column)?;
    value.map(|value| from_microseconds(value).ok_or_else(|| unreadable(column, &value.to_string()))).transpose()
}

fn from_microseconds(value: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(value) * 1000).ok()
}

/// Microseconds since 1970.
fn microseconds(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn unreadable(column: &'static str, value: &str) -> DbError {
    DbError::Value { column, value: value.chars().take(80).collect() }
}

#[cfg(test)]
pub(crate) mod tests;
