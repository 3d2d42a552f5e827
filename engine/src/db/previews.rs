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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{database, layer, sandbox};
    use super::*;
    use crate::preview::{GrantSpec, Minted, Scope, Visibility, token_hash};
    use crate::sandbox::{Sandbox, SandboxSpec, SandboxState};

    const MINUTE: Duration = Duration::from_secs(60);

    async fn exposed(db: &Db, octet: u8) -> (Sandbox, Preview) {
        let owner = sandbox(SandboxSpec::default());
        assert!(db.begin_create(&owner, "v1", &layer(None), MINUTE).await.unwrap().is_some());
        let preview = Preview {
            id: PreviewId::generate(),
            sandbox_id: owner.id.clone(),
            port: 80,
            at: SocketAddrV4::new(Ipv4Addr::new(127, 9, 8, octet), 8080),
            name: Some("ü".into()),
            path: None,
            visibility: Visibility::Private,
            metadata: [("k".to_owned(), serde_json::json!([1]))].into_iter().collect(),
            expires_at: None,
            created_at: owner.created_at,
            updated_at: owner.created_at,
        };
        db.put_preview(&preview).await.unwrap();
        (owner, preview)
    }

    #[tokio::test]
    async fn a_preview_is_read_as_it_was_written_and_an_address_belongs_to_one_sandbox() {
        let (_folder, db) = database().await;
        let (owner, mut preview) = exposed(&db, 1).await;
        assert_eq!(db.previews(&owner.id).await.unwrap(), [preview.clone()]);
        preview.path = Some("/a?b".into());
        preview.expires_at = Some(owner.created_at);
        preview.at.set_port(8081);
        db.put_preview(&preview).await.unwrap();
        assert_eq!(db.previews(&owner.id).await.unwrap(), [preview.clone()]);
        let (other, second) = exposed(&db, 2).await;
        assert_eq!(db.all_previews().await.unwrap().len(), 2);
        assert_eq!(db.addresses().await.unwrap().len(), 2);
        let stolen = Preview { at: preview.at, id: PreviewId::generate(), port: 81, ..second };
        db.put_preview(&stolen).await.unwrap();
        assert_eq!(db.address(&other.id).await.unwrap(), Some(Ipv4Addr::new(127, 9, 8, 2)), "it keeps its own");
    }

    #[tokio::test]
    async fn tokens_are_found_by_their_hash_and_go_with_their_preview_and_sandbox() {
        let (_folder, db) = database().await;
        let (mut owner, preview) = exposed(&db, 1).await;
        let spec = GrantSpec { kind: GrantKind::PreviewShare, scope: Scope::Interact, ttl_sec: None };
        let of_one = Minted::new(owner.id.clone(), Some(preview.id.clone()), spec, owner.created_at);
        let of_all = Minted::new(owner.id.clone(), None, spec, owner.created_at);
        for minted in [&of_one, &of_all] {
            db.put_grant(&minted.grant, &token_hash(&minted.token)).await.unwrap();
            assert_eq!(db.grant(&token_hash(&minted.token)).await.unwrap().as_ref(), Some(&minted.grant));
        }
        assert_eq!(db.grant(&of_one.token).await.unwrap(), None, "the token itself is nowhere");
        db.delete_preview(&preview.id).await.unwrap();
        assert_eq!(db.grants(&owner.id).await.unwrap(), [of_all.grant]);
        owner.state = SandboxState::Destroyed;
        db.end_destroy(&owner).await.unwrap();
        assert!(db.grants(&owner.id).await.unwrap().is_empty());
        assert_eq!(db.address(&owner.id).await.unwrap(), None);
    }
}
