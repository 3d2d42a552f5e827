//! The journal: rows of `operations`, written in one transaction with the sandbox's new state.

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;

use super::{Db, DbError, get, layers, microseconds, query, sandboxes, unreadable};
use crate::sandbox::{Sandbox, SandboxId};
use crate::storage::{Holding, Layer};

/// A row of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OperationId(i64);

/// What is done with a sandbox in more than one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperationKind {
    Create,
    Pause,
    Resume,
    Snapshot,
    Restore,
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

/// What an earlier server began and did not end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OpenOperation {
    pub(crate) sandbox: SandboxId,
    pub(crate) kind: OperationKind,
    /// What its steps noted.
    pub(crate) detail: Value,
}

impl OperationKind {
    const ALL: [OperationKind; 6] = [
        OperationKind::Create,
        OperationKind::Pause,
        OperationKind::Resume,
        OperationKind::Snapshot,
        OperationKind::Restore,
        OperationKind::Destroy,
    ];

    fn as_str(self) -> &'static str {
        match self {
            OperationKind::Create => "create",
            OperationKind::Pause => "pause",
            OperationKind::Resume => "resume",
            OperationKind::Snapshot => "snapshot",
            OperationKind::Restore => "restore",
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
    /// Writes a new sandbox with the layer that is its own, and that its making began. `None` when a live sandbox has its
    /// name.
    pub(crate) async fn begin_create(
        &self,
        sandbox: &Sandbox,
        template_version: &str,
        layer: &Layer,
        deadline: Duration,
    ) -> Result<Option<OperationId>, DbError> {
        let mut transaction = self.begin().await?;
        if !sandboxes::insert(&mut transaction, sandbox, template_version).await? {
            return Ok(None);
        }
        layers::insert(&mut transaction, layer).await?;
        let holding = Holding { layer: Some(layer.id.clone()), image: None };
        sandboxes::hold(&mut transaction, &sandbox.id, &holding).await?;
        let id = insert(&mut transaction, &sandbox.id, OperationKind::Create, deadline, &Value::Null).await?;
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
        let id = insert(&mut transaction, &sandbox.id, kind, deadline, &Value::Null).await?;
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

    /// The last thing written of a sandbox: it is gone, and so are its machine, its idempotency keys and what it held.
    pub(crate) async fn end_destroy(&self, sandbox: &Sandbox) -> Result<(), DbError> {
        let mut transaction = self.begin().await?;
        close_open(&mut transaction, &sandbox.id, Outcome::Done).await?;
        sandboxes::update(&mut transaction, sandbox).await?;
        sandboxes::hold(&mut transaction, &sandbox.id, &Holding::default()).await?;
        sandboxes::forget_machine(&mut transaction, &sandbox.id).await?;
        sqlx::query("DELETE FROM idempotency WHERE sandbox_id = ?")
            .bind(sandbox.id.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(query("forget what belonged to a sandbox"))?;
        super::previews::forget(&mut transaction, &sandbox.id).await?;
        transaction.commit().await.map_err(query("commit a destroy"))
    }

    /// What an earlier server began and did not end, oldest first.
    pub(crate) async fn open_operations(&self) -> Result<Vec<OpenOperation>, DbError> {
        let rows = sqlx::query("SELECT sandbox_id, kind, detail FROM operations WHERE outcome IS NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(query("read the journal"))?;
        rows.iter()
            .map(|row| {
                let (id, word): (String, String) = (get(row, "sandbox_id")?, get(row, "kind")?);
                let detail: Option<String> = get(row, "detail")?;
                let sandbox = SandboxId::parse(&id).ok_or_else(|| unreadable("sandbox_id", &id))?;
                let kind = OperationKind::ALL.into_iter().find(|kind| kind.as_str() == word);
                let kind = kind.ok_or_else(|| unreadable("kind", &word))?;
                let detail = detail.map(|text| serde_json::from_str(&text).map_err(|_| unreadable("detail", &text)));
                Ok(OpenOperation { sandbox, kind, detail: detail.transpose()?.unwrap_or_default() })
            })
            .collect()
    }
}

pub(super) async fn insert(
    connection: &mut sqlx::SqliteConnection,
    sandbox: &SandboxId,
    kind: OperationKind,
    deadline: Duration,
    detail: &Value,
) -> Result<OperationId, DbError> {
    let now = OffsetDateTime::now_utc();
    let row = sqlx::query(
        "INSERT INTO operations (sandbox_id, kind, begun_at, deadline_at, detail) VALUES (?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(sandbox.as_str())
    .bind(kind.as_str())
    .bind(microseconds(now))
    .bind(microseconds(now + deadline))
    .bind((!detail.is_null()).then(|| detail.to_string()))
    .fetch_one(connection)
    .await
    .map_err(query("write the journal"))?;
    Ok(OperationId(get(&row, "id")?))
}

pub(super) async fn close_open(
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
