//! The journal: rows of `operations`, written in one transaction with the sandbox's new state.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Db, DbError, get, microseconds, query, sandboxes, unreadable};
use crate::sandbox::{Sandbox, SandboxId};

/// A row of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OperationId(i64);

/// What is done with a sandbox in more than one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperationKind {
    Create,
    Destroy,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    /// Taken back, because the server ended or the sandbox was destroyed first.
    Undone,
}

impl OperationKind {
    fn as_str(self) -> &'static str {
        match self {
            OperationKind::Create => "create",
            OperationKind::Destroy => "destroy",
        }
    }
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Undone => "undone",
        }
    }
}

impl Db {
    /// Writes a new sandbox and that its making began. `None` when a live sandbox has its name.
    pub(crate) async fn begin_create(
        &self,
        sandbox: &Sandbox,
        template_version: &str,
        deadline: Duration,
    ) -> Result<Option<OperationId>, DbError> {
        let mut transaction = self.begin().await?;
        if !sandboxes::insert(&mut transaction, sandbox, template_version).await? {
            return Ok(None);
        }
        let id = insert(&mut transaction, &sandbox.id, OperationKind::Create, deadline).await?;
        transaction.commit().await.map_err(query("commit a new sandbox"))?;
        Ok(Some(id))
    }

    /// Writes a sandbox's transitional state and that an operation on it began. Whatever was open on it is undone by it.
    pub(crate) async fn begin_operation(
        &self,
        sandbox: &Sandbox,
        kind: OperationKind,
        deadline: Duration,
    ) -> Result<OperationId, DbError> {
        let mut transaction = self.begin().await?;
        close_open(&mut transaction, &sandbox.id, Outcome::Undone).await?;
        sandboxes::update(&mut transaction, sandbox).await?;
        let id = insert(&mut transaction, &sandbox.id, kind, deadline).await?;
        transaction.commit().await.map_err(query("commit the begin of an operation"))?;
        Ok(id)
    }

    /// Writes a sandbox's state after whatever was open on it.
    pub(crate) async fn end_operations(&self, sandbox: &Sandbox, outcome: Outcome) -> Result<(), DbError> {
        let mut transaction = self.begin().await?;
        close_open(&mut transaction, &sandbox.id, outcome).await?;
        sandboxes::update(&mut transaction, sandbox).await?;
        transaction.commit().await.map_err(query("commit the end of an operation"))
    }

    /// The last thing written of a sandbox: it is gone, and so are its machine and its idempotency keys.
    pub(crate) async fn end_destroy(&self, sandbox: &Sandbox) -> Result<(), DbError> {
        let mut transaction = self.begin().await?;
        close_open(&mut transaction, &sandbox.id, Outcome::Done).await?;
        sandboxes::update(&mut transaction, sandbox).await?;
        for statement in ["DELETE FROM machines WHERE sandbox_id = ?", "DELETE FROM idempotency WHERE sandbox_id = ?"] {
            sqlx::query(statement)
                .bind(sandbox.id.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(query("forget what belonged to a sandbox"))?;
        }
        transaction.commit().await.map_err(query("commit a destroy"))
    }

    /// What an earlier server began and did not end, oldest first.
    pub(crate) async fn open_operations(&self) -> Result<Vec<(SandboxId, OperationKind)>, DbError> {
        let rows = sqlx::query("SELECT sandbox_id, kind FROM operations WHERE outcome IS NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(query("read the journal"))?;
        rows.iter()
            .map(|row| {
                let (id, kind): (String, String) = (get(row, "sandbox_id")?, get(row, "kind")?);
                let id = SandboxId::parse(&id).ok_or_else(|| unreadable("sandbox_id", &id))?;
                let known = [OperationKind::Create, OperationKind::Destroy];
                let kind =
                    known.into_iter().find(|known| known.as_str() == kind).ok_or_else(|| unreadable("kind", &kind))?;
                Ok((id, kind))
            })
            .collect()
    }
}

async fn insert(
    connection: &mut sqlx::SqliteConnection,
    sandbox: &SandboxId,
    kind: OperationKind,
    deadline: Duration,
) -> Result<OperationId, DbError> {
    let now = OffsetDateTime::now_utc();
    let row = sqlx::query(
        "INSERT INTO operations (sandbox_id, kind, begun_at, deadline_at) VALUES (?, ?, ?, ?) RETURNING id",
    )
    .bind(sandbox.as_str())
    .bind(kind.as_str())
    .bind(microseconds(now))
    .bind(microseconds(now + deadline))
    .fetch_one(connection)
    .await
    .map_err(query("write the journal"))?;
    Ok(OperationId(get(&row, "id")?))
}

async fn close_open(
    connection: &mut sqlx::SqliteConnection,
    sandbox: &SandboxId,
    outcome: Outcome,
) -> Result<(), DbError> {
    sqlx::query("UPDATE operations SET ended_at = ?, outcome = ? WHERE sandbox_id = ? AND outcome IS NULL")
        .bind(microseconds(OffsetDateTime::now_utc()))
        .bind(outcome.as_str())
        .bind(sandbox.as_str())
        .execute(connection)
        .await
        .map_err(query("write the journal"))?;
    Ok(())
}
