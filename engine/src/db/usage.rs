//! Rows of `usage`.

use super::{Db, DbError, number, query};
use crate::metrics::CpuTotal;
use crate::sandbox::SandboxId;

impl Db {
    /// What a sandbox is known to have used.
    pub(crate) async fn cpu_total(&self, id: &SandboxId) -> Result<Option<CpuTotal>, DbError> {
        let row = sqlx::query("SELECT ended_cpu_us, pid, start_ticks, cpu_us FROM usage WHERE sandbox_id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read what a sandbox used"))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(CpuTotal {
            ended_us: number(&row, "ended_cpu_us")?,
            pid: number(&row, "pid")?,
            start_ticks: number(&row, "start_ticks")?,
            latest_us: number(&row, "cpu_us")?,
        }))
    }

    /// Notes it. Nothing when the sandbox's row is gone.
    pub(crate) async fn put_cpu_total(&self, id: &SandboxId, total: CpuTotal) -> Result<(), DbError> {
        let integer = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        sqlx::query(
            "INSERT INTO usage (sandbox_id, ended_cpu_us, pid, start_ticks, cpu_us) \
             SELECT id, ?, ?, ?, ? FROM sandboxes WHERE id = ? \
             ON CONFLICT (sandbox_id) DO UPDATE SET ended_cpu_us = excluded.ended_cpu_us, pid = excluded.pid, \
             start_ticks = excluded.start_ticks, cpu_us = excluded.cpu_us",
        )
        .bind(integer(total.ended_us))
        .bind(total.pid)
        .bind(integer(total.start_ticks))
        .bind(integer(total.latest_us))
        .bind(id.as_str())
        .execute(&self.pool)
        .await
        .map_err(query("note what a sandbox used"))?;
        Ok(())
    }
}
