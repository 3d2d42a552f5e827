//! Rows of `idempotency`.

use time::OffsetDateTime;

use super::{Db, DbError, RETENTION, get, microseconds, number, query, unreadable};
use crate::idempotency::{Answer, Replay};
use crate::sandbox::SandboxId;

impl Db {
    /// What was answered under a key in the last 24 hours: the digest of the request's body, and the answer.
    pub(crate) async fn answer(&self, scope: &str, now: OffsetDateTime) -> Result<Option<(String, Replay)>, DbError> {
        let row = sqlx::query(
            "SELECT body_hash, status, sandbox_id, body FROM idempotency WHERE scope = ? AND created_at >= ?",
        )
        .bind(scope)
        .bind(microseconds(now - RETENTION))
        .fetch_optional(&self.pool)
        .await
        .map_err(query("read an idempotency key"))?;
        let Some(row) = row else { return Ok(None) };
        let sandbox: Option<String> = get(&row, "sandbox_id")?;
        let answer = match sandbox {
            Some(id) => Answer::Sandbox(SandboxId::parse(&id).ok_or_else(|| unreadable("sandbox_id", &id))?),
            None => Answer::Body(get::<Option<String>>(&row, "body")?.unwrap_or_default()),
        };
        Ok(Some((get(&row, "body_hash")?, Replay { status: number(&row, "status")?, answer })))
    }

    /// Keeps an answer, in place of an older one under the same key.
    pub(crate) async fn put_answer(&self, scope: &str, body_hash: &str, replay: &Replay) -> Result<(), DbError> {
        let (sandbox, body) = match &replay.answer {
            Answer::Sandbox(id) => (Some(id.as_str()), None),
            Answer::Body(body) => (None, Some(body.as_str())),
        };
        sqlx::query(
            "INSERT INTO idempotency (scope, body_hash, status, sandbox_id, body, created_at) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT (scope) DO UPDATE SET body_hash = excluded.body_hash, status = excluded.status, \
             sandbox_id = excluded.sandbox_id, body = excluded.body, created_at = excluded.created_at",
        )
        .bind(scope)
        .bind(body_hash)
        .bind(replay.status)
        .bind(sandbox)
        .bind(body)
        .bind(microseconds(OffsetDateTime::now_utc()))
        .execute(&self.pool)
        .await
        .map_err(query("write an idempotency key"))?;
        Ok(())
    }
}
