//! Rows of `addresses`, `previews` and `grants`.

use std::net::{Ipv4Addr, SocketAddrV4};

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::{Db, DbError, get, instant, json, json_text, microseconds, number, optional_instant, query, unreadable};
use crate::preview::{Grant, GrantId, GrantKind, Preview, PreviewId, address_number};
use crate::sandbox::SandboxId;

/// The columns of a preview, its address among them.
const PREVIEW: &str = "SELECT previews.*, addresses.address FROM previews \
                       JOIN addresses ON addresses.sandbox_id = previews.sandbox_id ";

impl Db {
    /// The address of a sandbox, if it has one.
    pub(crate) async fn address(&self, sandbox: &SandboxId) -> Result<Option<Ipv4Addr>, DbError> {
        let row = sqlx::query("SELECT address FROM addresses WHERE sandbox_id = ?")
            .bind(sandbox.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read an address"))?;
        row.as_ref().map(address).transpose()
    }

    /// Every address that a sandbox has.
    pub(crate) async fn addresses(&self) -> Result<Vec<Ipv4Addr>, DbError> {
        let rows = sqlx::query("SELECT address FROM addresses").fetch_all(&self.pool).await;
        rows.map_err(query("list addresses"))?.iter().map(address).collect()
    }

    /// Writes a preview, new or changed, and its sandbox's address.
    pub(crate) async fn put_preview(&self, preview: &Preview) -> Result<(), DbError> {
        let failed = || query("write a preview");
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO addresses (sandbox_id, address) VALUES (?, ?) ON CONFLICT (sandbox_id) DO NOTHING")
            .bind(preview.sandbox_id.as_str())
            .bind(address_number(*preview.at.ip()))
            .execute(&mut *transaction)
            .await
            .map_err(failed())?;
        sqlx::query(
            "INSERT INTO previews (id, sandbox_id, port, host_port, name, path, visibility, metadata, expires_at, created_at, \
             updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET \
             host_port = excluded.host_port, name = excluded.name, path = excluded.path, visibility = excluded.visibility, \
             metadata = excluded.metadata, expires_at = excluded.expires_at, updated_at = excluded.updated_at",
        )
        .bind(preview.id.as_str())
        .bind(preview.sandbox_id.as_str())
        .bind(preview.port)
        .bind(preview.at.port())
        .bind(&preview.name)
        .bind(&preview.path)
        .bind(preview.visibility.as_str())
        .bind(json_text(&preview.metadata))
        .bind(preview.expires_at.map(microseconds))
        .bind(microseconds(preview.created_at))
        .bind(microseconds(preview.updated_at))
        .execute(&mut *transaction)
        .await
        .map_err(failed())?;
        transaction.commit().await.map_err(failed())
    }

    /// A sandbox's previews, oldest first.
    pub(crate) async fn previews(&self, sandbox: &SandboxId) -> Result<Vec<Preview>, DbError> {
        let text = format!("{PREVIEW} WHERE previews.sandbox_id = ? ORDER BY previews.created_at, previews.id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(sandbox.as_str()).fetch_all(&self.pool).await;
        rows.map_err(query("list previews"))?.iter().map(preview).collect()
    }

    /// Every preview of every sandbox.
    pub(crate) async fn all_previews(&self) -> Result<Vec<Preview>, DbError> {
        let rows = sqlx::query(PREVIEW).fetch_all(&self.pool).await;
        rows.map_err(query("list all previews"))?.iter().map(preview).collect()
    }

    /// Deletes a preview and its grants.
    pub(crate) async fn delete_preview(&self, id: &PreviewId) -> Result<(), DbError> {
        let done = sqlx::query("DELETE FROM previews WHERE id = ?").bind(id.as_str()).execute(&self.pool).await;
        done.map(drop).map_err(query("delete a preview"))
    }

    /// Writes a grant with the hash of its token.
    pub(crate) async fn put_grant(&self, grant: &Grant, hash: &str) -> Result<(), DbError> {
        let done = sqlx::query(
            "INSERT INTO grants (id, sandbox_id, preview_id, kind, scope, hash, prefix, expires_at, created_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(grant.id.as_str())
        .bind(grant.sandbox_id.as_str())
        .bind(grant.preview_id.as_ref().map(PreviewId::as_str))
        .bind(grant.kind.as_str())
        .bind(grant.scope.as_str())
        .bind(hash)
        .bind(&grant.prefix)
        .bind(grant.expires_at.map(microseconds))
        .bind(microseconds(grant.created_at))
        .execute(&self.pool)
        .await;
        done.map(drop).map_err(query("write a grant"))
    }

    /// The grant whose token has this hash.
    pub(crate) async fn grant(&self, hash: &str) -> Result<Option<Grant>, DbError> {
        let row = sqlx::query("SELECT * FROM grants WHERE hash = ?").bind(hash).fetch_optional(&self.pool).await;
        row.map_err(query("read a grant"))?.as_ref().map(grant).transpose()
    }

    /// A sandbox's grants, oldest first.
    pub(crate) async fn grants(&self, sandbox: &SandboxId) -> Result<Vec<Grant>, DbError> {
        let rows = sqlx::query("SELECT * FROM grants WHERE sandbox_id = ? ORDER BY created_at, id")
            .bind(sandbox.as_str())
            .fetch_all(&self.pool)
            .await;
        rows.map_err(query("list grants"))?.iter().map(grant).collect()
    }

    /// Deletes a grant.
    pub(crate) async fn delete_grant(&self, id: &GrantId) -> Result<(), DbError> {
        let done = sqlx::query("DELETE FROM grants WHERE id = ?").bind(id.as_str()).execute(&self.pool).await;
        done.map(drop).map_err(query("delete a grant"))
    }

    /// Deletes the grants that expired before `before`.
    pub(crate) async fn forget_grants(&self, before: OffsetDateTime) -> Result<(), DbError> {
        let done =
            sqlx::query("DELETE FROM grants WHERE expires_at < ?").bind(microseconds(before)).execute(&self.pool).await;
        done.map(drop).map_err(query("forget grants"))
    }
}

/// Deletes all that a sandbox exposed.
pub(super) async fn forget(connection: &mut SqliteConnection, sandbox: &SandboxId) -> Result<(), DbError> {
    for statement in [
        "DELETE FROM grants WHERE sandbox_id = ?",
        "DELETE FROM previews WHERE sandbox_id = ?",
        "DELETE FROM addresses WHERE sandbox_id = ?",
    ] {
        sqlx::query(statement)
            .bind(sandbox.as_str())
            .execute(&mut *connection)
            .await
            .map_err(query("forget the previews of a sandbox"))?;
    }
    Ok(())
}

fn address(row: &SqliteRow) -> Result<Ipv4Addr, DbError> {
    Ok(Ipv4Addr::from(number::<u32>(row, "address")?))
}

fn sandbox_id(row: &SqliteRow) -> Result<SandboxId, DbError> {
    let id: String = get(row, "sandbox_id")?;
    SandboxId::parse(&id).ok_or_else(|| unreadable("sandbox_id", &id))
}

fn preview(row: &SqliteRow) -> Result<Preview, DbError> {
    let (id, visibility): (String, String) = (get(row, "id")?, get(row, "visibility")?);
    Ok(Preview {
        id: PreviewId::parse(&id).ok_or_else(|| unreadable("id", &id))?,
        sandbox_id: sandbox_id(row)?,
        port: number(row, "port")?,
        at: SocketAddrV4::new(address(row)?, number(row, "host_port")?),
        name: get(row, "name")?,
        path: get(row, "path")?,
        visibility: visibility.parse().map_err(|_| unreadable("visibility", &visibility))?,
        metadata: json(row, "metadata")?,
        expires_at: optional_instant(row, "expires_at")?,
        created_at: instant(row, "created_at")?,
        updated_at: instant(row, "updated_at")?,
    })
}

fn grant(row: &SqliteRow) -> Result<Grant, DbError> {
    let (id, kind, scope): (String, String, String) = (get(row, "id")?, get(row, "kind")?, get(row, "scope")?);
    let preview: Option<String> = get(row, "preview_id")?;
    let preview = preview.map(|id| PreviewId::parse(&id).ok_or_else(|| unreadable("preview_id", &id)));
    let known = GrantKind::ALL.into_iter().find(|known| known.as_str() == kind);
    Ok(Grant {
        id: GrantId::parse(&id).ok_or_else(|| unreadable("id", &id))?,
        sandbox_id: sandbox_id(row)?,
        preview_id: preview.transpose()?,
        kind: known.ok_or_else(|| unreadable("kind", &kind))?,
        scope: scope.parse().map_err(|_| unreadable("scope", &scope))?,
        prefix: get(row, "prefix")?,
        expires_at: optional_instant(row, "expires_at")?,
        created_at: instant(row, "created_at")?,
    })
}
