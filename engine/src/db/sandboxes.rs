//! Rows of `sandboxes` and `machines`.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use time::OffsetDateTime;

use super::layers::{optional_image_id, optional_layer_id};
use super::{
    Db, DbError, RETENTION, get, instant, json, json_text, microseconds, number, optional_instant, optional_number,
    query, shape, unreadable,
};
use crate::sandbox::{BootPath, External, Sandbox, SandboxFilter, SandboxId, SandboxState, Size};
use crate::snapshot::SnapshotId;
use crate::storage::{Holding, ImageId, LayerId};

/// The process of a sandbox's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MachineRow {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
}

impl Db {
    /// The sandbox with this id, destroyed or not.
    pub(crate) async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, DbError> {
        let row = sqlx::query("SELECT * FROM sandboxes WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read a sandbox"))?;
        row.as_ref().map(from_row).transpose()
    }

    /// The live sandbox with this name.
    pub(crate) async fn sandbox_by_name(&self, name: &str) -> Result<Option<Sandbox>, DbError> {
        let row = sqlx::query("SELECT * FROM sandboxes WHERE name = ? AND state <> 'destroyed'")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read a sandbox by its name"))?;
        row.as_ref().map(from_row).transpose()
    }

    /// The sandboxes that match, oldest first.
    pub(crate) async fn sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>, DbError> {
        let mut statement = QueryBuilder::<Sqlite>::new("SELECT * FROM sandboxes WHERE ");
        match filter.state {
            Some(state) => statement.push("state = ").push_bind(state.as_str()),
            None => statement.push("state <> 'destroyed'"),
        };
        for (column, wanted) in [
            ("template_id", &filter.template_id),
            ("name", &filter.name),
            ("external_workspace_id", &filter.external.workspace_id),
            ("external_user_id", &filter.external.user_id),
            ("external_project_id", &filter.external.project_id),
        ] {
            if let Some(wanted) = wanted {
                statement.push(" AND ").push(column).push(" = ").push_bind(wanted);
            }
        }
        statement.push(" ORDER BY created_at, id");
        let rows = statement.build().fetch_all(&self.pool).await.map_err(query("list sandboxes"))?;
        let mut sandboxes = rows.iter().map(from_row).collect::<Result<Vec<_>, _>>()?;
        sandboxes.retain(|sandbox| filter.tags.iter().all(|tag| sandbox.tags.contains(tag)));
        Ok(sandboxes)
    }

    /// How many sandboxes are not destroyed.
    pub(crate) async fn count_live(&self) -> Result<u64, DbError> {
        let row = sqlx::query("SELECT COUNT(*) AS live FROM sandboxes WHERE state <> 'destroyed'")
            .fetch_one(&self.pool)
            .await
            .map_err(query("count sandboxes"))?;
        number(&row, "live")
    }

    /// Forgets sandboxes that were destroyed a day ago, and old idempotency keys.
    pub(crate) async fn forget_old(&self, now: OffsetDateTime) -> Result<u64, DbError> {
        let before = microseconds(now - RETENTION);
        let forgotten = sqlx::query("DELETE FROM sandboxes WHERE state = 'destroyed' AND destroyed_at < ?")
            .bind(before)
            .execute(&self.pool)
            .await
            .map_err(query("forget old sandboxes"))?;
        sqlx::query("DELETE FROM idempotency WHERE created_at < ?")
            .bind(before)
            .execute(&self.pool)
            .await
            .map_err(query("forget old idempotency keys"))?;
        Ok(forgotten.rows_affected())
    }

    /// The process of a sandbox's machine, if it has one, and the layers that it has open.
    pub(crate) async fn machine(&self, id: &SandboxId) -> Result<Option<(MachineRow, Vec<LayerId>)>, DbError> {
        let row = sqlx::query("SELECT pid, start_ticks, chain FROM machines WHERE sandbox_id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read a machine"))?;
        let read = |row| {
            let machine = MachineRow { pid: number(&row, "pid")?, start_ticks: number(&row, "start_ticks")? };
            Ok((machine, json(&row, "chain")?))
        };
        row.map(read).transpose()
    }

    /// What a sandbox holds of layers and images.
    pub(crate) async fn holding(&self, id: &SandboxId) -> Result<Holding, DbError> {
        let row = sqlx::query("SELECT layer_id, image_id FROM sandboxes WHERE id = ?")
            .bind(id.as_str())
            .fetch_one(&self.pool)
            .await
            .map_err(query("read what a sandbox holds"))?;
        Ok(Holding { layer: optional_layer_id(&row, "layer_id")?, image: optional_image_id(&row, "image_id")? })
    }

    /// The template version on which a sandbox stands.
    pub(crate) async fn template_of(&self, id: &SandboxId) -> Result<(String, String), DbError> {
        let row = sqlx::query("SELECT template_id, template_version FROM sandboxes WHERE id = ?")
            .bind(id.as_str())
            .fetch_one(&self.pool)
            .await
            .map_err(query("read a sandbox's template"))?;
        Ok((get(&row, "template_id")?, get(&row, "template_version")?))
    }

    /// Writes what a caller may change; false when a live sandbox has the new name.
    pub(crate) async fn update_sandbox(&self, sandbox: &Sandbox) -> Result<bool, DbError> {
        let result = sqlx::query(
            "UPDATE sandboxes SET name = ?, slug = ?, tags = ?, metadata = ?, env = ?, timeout_sec = ?, \
             idle_timeout_sec = ?, always_on = ?, persistent = ?, extended_at = ? WHERE id = ?",
        )
        .bind(&sandbox.name)
        .bind(&sandbox.slug)
        .bind(json_text(&sandbox.tags))
        .bind(json_text(&sandbox.metadata))
        .bind(json_text(&sandbox.env))
        .bind(sandbox.timeout_sec)
        .bind(sandbox.idle_timeout_sec)
        .bind(sandbox.always_on)
        .bind(sandbox.persistent)
        .bind(sandbox.extended_at.map(microseconds))
        .bind(sandbox.id.as_str())
        .execute(&self.pool)
        .await;
        match result {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
            Err(error) => Err(query("write a sandbox")(error)),
        }
    }
}

/// Notes the process of a sandbox's machine, and the layers that it has open.
pub(super) async fn put_machine(
    connection: &mut SqliteConnection,
    id: &SandboxId,
    machine: MachineRow,
    chain: &[LayerId],
) -> Result<(), DbError> {
    let start_ticks = i64::try_from(machine.start_ticks).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO machines (sandbox_id, pid, start_ticks, chain) VALUES (?, ?, ?, ?) ON CONFLICT (sandbox_id) \
         DO UPDATE SET pid = excluded.pid, start_ticks = excluded.start_ticks, chain = excluded.chain",
    )
    .bind(id.as_str())
    .bind(machine.pid)
    .bind(start_ticks)
    .bind(json_text(&chain))
    .execute(connection)
    .await
    .map_err(query("write a machine"))?;
    Ok(())
}

/// Notes that a machine goes on with other layers.
pub(super) async fn set_chain(
    connection: &mut SqliteConnection,
    id: &SandboxId,
    chain: &[LayerId],
) -> Result<(), DbError> {
    sqlx::query("UPDATE machines SET chain = ? WHERE sandbox_id = ?")
        .bind(json_text(&chain))
        .bind(id.as_str())
        .execute(connection)
        .await
        .map_err(query("write a machine's layers"))?;
    Ok(())
}

/// The machine is no more.
pub(super) async fn forget_machine(connection: &mut SqliteConnection, id: &SandboxId) -> Result<(), DbError> {
    sqlx::query("DELETE FROM machines WHERE sandbox_id = ?")
        .bind(id.as_str())
        .execute(connection)
        .await
        .map_err(query("delete a machine"))?;
    Ok(())
}

/// Writes what a sandbox holds.
pub(super) async fn hold(connection: &mut SqliteConnection, id: &SandboxId, holding: &Holding) -> Result<(), DbError> {
    sqlx::query("UPDATE sandboxes SET layer_id = ?, image_id = ? WHERE id = ?")
        .bind(holding.layer.as_ref().map(LayerId::as_str))
        .bind(holding.image.as_ref().map(ImageId::as_str))
        .bind(id.as_str())
        .execute(connection)
        .await
        .map_err(query("write what a sandbox holds"))?;
    Ok(())
}

/// Adds a row; false when a live sandbox has its name.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    sandbox: &Sandbox,
    template_version: &str,
) -> Result<bool, DbError> {
    let result = sqlx::query(
        "INSERT INTO sandboxes (id, state, template_id, template_version, size, cpu_count, memory_mb, disk_size_mb, \
         timeout_sec, idle_timeout_sec, always_on, persistent, env, metadata, name, slug, tags, external_workspace_id, \
         external_user_id, external_project_id, generation, forked_from, snapshot_id, created_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(sandbox.id.as_str())
    .bind(sandbox.state.as_str())
    .bind(&sandbox.template_id)
    .bind(template_version)
    .bind(sandbox.size.map(Size::as_str))
    .bind(sandbox.shape.cpu_count)
    .bind(sandbox.shape.memory_mb)
    .bind(sandbox.shape.disk_size_mb)
    .bind(sandbox.timeout_sec)
    .bind(sandbox.idle_timeout_sec)
    .bind(sandbox.always_on)
    .bind(sandbox.persistent)
    .bind(json_text(&sandbox.env))
    .bind(json_text(&sandbox.metadata))
    .bind(&sandbox.name)
    .bind(&sandbox.slug)
    .bind(json_text(&sandbox.tags))
    .bind(&sandbox.external.workspace_id)
    .bind(&sandbox.external.user_id)
    .bind(&sandbox.external.project_id)
    .bind(i64::try_from(sandbox.generation).unwrap_or(i64::MAX))
    .bind(sandbox.forked_from.as_ref().map(SandboxId::as_str))
    .bind(sandbox.snapshot_id.as_ref().map(SnapshotId::as_str))
    .bind(microseconds(sandbox.created_at))
    .execute(connection)
    .await;
    match result {
        Ok(_) => Ok(true),
        // Ids are random; the one unique column that can collide is the name.
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
        Err(error) => Err(query("write a sandbox")(error)),
    }
}

/// Writes the columns that change in a life.
pub(super) async fn update(connection: &mut SqliteConnection, sandbox: &Sandbox) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE sandboxes SET state = ?, last_error = ?, cpu_granted = ?, boot_ms = ?, boot_path = ?, started_at = ?, \
         ready_at = ?, destroyed_at = ?, extended_at = ?, paused_at = ?, ran_ms = ?, generation = ?, snapshot_id = ? \
         WHERE id = ?",
    )
    .bind(sandbox.state.as_str())
    .bind(&sandbox.last_error)
    .bind(sandbox.cpu_granted)
    .bind(sandbox.boot_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)))
    .bind(sandbox.boot_path.map(BootPath::as_str))
    .bind(sandbox.started_at.map(microseconds))
    .bind(sandbox.ready_at.map(microseconds))
    .bind(sandbox.destroyed_at.map(microseconds))
    .bind(sandbox.extended_at.map(microseconds))
    .bind(sandbox.paused_at.map(microseconds))
    .bind(i64::try_from(sandbox.ran_ms).unwrap_or(i64::MAX))
    .bind(i64::try_from(sandbox.generation).unwrap_or(i64::MAX))
    .bind(sandbox.snapshot_id.as_ref().map(SnapshotId::as_str))
    .bind(sandbox.id.as_str())
    .execute(connection)
    .await
    .map_err(query("write a sandbox's state"))?;
    Ok(())
}

fn from_row(row: &SqliteRow) -> Result<Sandbox, DbError> {
    let id: String = get(row, "id")?;
    let state: String = get(row, "state")?;
    let size: Option<String> = get(row, "size")?;
    let boot_path: Option<String> = get(row, "boot_path")?;
    let (forked_from, snapshot_id): (Option<String>, Option<String>) =
        (get(row, "forked_from")?, get(row, "snapshot_id")?);
    Ok(Sandbox {
        id: SandboxId::parse(&id).ok_or_else(|| unreadable("id", &id))?,
        state: state.parse::<SandboxState>().map_err(|_| unreadable("state", &state))?,
        last_error: get(row, "last_error")?,
        template_id: get(row, "template_id")?,
        size: size.map(|size| size.parse::<Size>().map_err(|_| unreadable("size", &size))).transpose()?,
        shape: shape(row)?,
        cpu_granted: optional_number(row, "cpu_granted")?,
        timeout_sec: number(row, "timeout_sec")?,
        idle_timeout_sec: number(row, "idle_timeout_sec")?,
        always_on: get(row, "always_on")?,
        persistent: get(row, "persistent")?,
        env: json(row, "env")?,
        metadata: json(row, "metadata")?,
        name: get(row, "name")?,
        slug: get(row, "slug")?,
        tags: json(row, "tags")?,
        external: External {
            workspace_id: get(row, "external_workspace_id")?,
            user_id: get(row, "external_user_id")?,
            project_id: get(row, "external_project_id")?,
        },
        boot_ms: optional_number(row, "boot_ms")?,
        boot_path: boot_path
            .map(|path| BootPath::parse(&path).ok_or_else(|| unreadable("boot_path", &path)))
            .transpose()?,
        created_at: instant(row, "created_at")?,
        started_at: optional_instant(row, "started_at")?,
        ready_at: optional_instant(row, "ready_at")?,
        destroyed_at: optional_instant(row, "destroyed_at")?,
        extended_at: optional_instant(row, "extended_at")?,
        paused_at: optional_instant(row, "paused_at")?,
        ran_ms: number(row, "ran_ms")?,
        generation: number(row, "generation")?,
        forked_from: forked_from
            .map(|id| SandboxId::parse(&id).ok_or_else(|| unreadable("forked_from", &id)))
            .transpose()?,
        snapshot_id: snapshot_id
            .map(|id| SnapshotId::parse(&id).ok_or_else(|| unreadable("snapshot_id", &id)))
            .transpose()?,
    })
}
