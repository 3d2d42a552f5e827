//! Rows of `layers` and `images`.

use std::collections::HashSet;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use time::OffsetDateTime;

use super::{Db, DbError, get, instant, json, microseconds, number, query, unreadable};
use crate::storage::{Image, ImageId, Layer, LayerId};

/// Every reference to a layer or an image, for the sizes of all at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct References {
    /// Each layer and what it lies on.
    pub(crate) layers: Vec<(LayerId, Option<LayerId>)>,
    /// Each image, its layer, and its bytes.
    pub(crate) images: Vec<(ImageId, LayerId, u64)>,
    /// Who holds what: the owner's id as text.
    pub(crate) owners: Vec<(String, Option<LayerId>, Option<ImageId>)>,
}

impl Db {
    /// A layer and all below it, lowest first.
    pub(crate) async fn chain(&self, top: &LayerId) -> Result<Vec<Layer>, DbError> {
        let rows = sqlx::query(
            "WITH RECURSIVE chain (id, parent_id, depth) AS (SELECT id, parent_id, 0 FROM layers WHERE id = ? UNION ALL \
             SELECT layers.id, layers.parent_id, depth + 1 FROM layers JOIN chain ON layers.id = chain.parent_id) \
             SELECT layers.* FROM chain JOIN layers ON layers.id = chain.id ORDER BY depth DESC",
        )
        .bind(top.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(query("read a chain of layers"))?;
        rows.iter().map(layer_from_row).collect()
    }

    /// A memory image.
    pub(crate) async fn image(&self, id: &ImageId) -> Result<Option<Image>, DbError> {
        let row = sqlx::query("SELECT * FROM images WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read a memory image"))?;
        row.as_ref().map(image_from_row).transpose()
    }

    /// Deletes the rows to which nothing refers, and returns whose files are to go.
    pub(crate) async fn delete_unreferenced(
        &self,
        pinned: &[ImageId],
    ) -> Result<(Vec<ImageId>, Vec<LayerId>), DbError> {
        let failed = || query("delete what nothing refers to");
        let mut transaction = self.begin().await?;
        let mut statement = QueryBuilder::<Sqlite>::new(
            "DELETE FROM images WHERE NOT EXISTS (SELECT 1 FROM sandboxes WHERE image_id = images.id) \
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE image_id = images.id) \
             AND NOT EXISTS (SELECT 1 FROM warm WHERE image_id = images.id)",
        );
        for id in pinned {
            statement.push(" AND id <> ").push_bind(id.as_str());
        }
        let rows = statement.push(" RETURNING id").build().fetch_all(&mut *transaction).await.map_err(failed())?;
        let images = rows.iter().map(|row| image_id(row, "id")).collect::<Result<Vec<_>, _>>()?;
        // A running machine needs the files that it opened, also where its chain is a shorter one by now.
        let open: HashSet<LayerId> = open_chains(&mut transaction).await?.into_iter().flatten().collect();
        let mut layers = Vec::new();
        loop {
            let mut statement = QueryBuilder::<Sqlite>::new(
                "DELETE FROM layers WHERE NOT EXISTS (SELECT 1 FROM sandboxes WHERE layer_id = layers.id) \
                 AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer_id = layers.id) \
                 AND NOT EXISTS (SELECT 1 FROM images WHERE layer_id = layers.id) \
                 AND NOT EXISTS (SELECT 1 FROM layers AS child WHERE child.parent_id = layers.id)",
            );
            for id in &open {
                statement.push(" AND id <> ").push_bind(id.as_str());
            }
            let statement = statement.push(" RETURNING id");
            let rows = statement.build().fetch_all(&mut *transaction).await.map_err(failed())?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                layers.push(layer_id(row, "id")?);
            }
        }
        transaction.commit().await.map_err(failed())?;
        Ok((images, layers))
    }

    /// The layers to which running machines write, whatever their rows say.
    pub(crate) async fn written_layers(&self) -> Result<HashSet<LayerId>, DbError> {
        let chains = open_chains(&mut *self.pool.acquire().await.map_err(query("list open layers"))?).await?;
        Ok(chains.into_iter().filter_map(|chain| chain.into_iter().next_back()).collect())
    }

    /// Puts a new layer into the place of a frozen one that holds the same: whatever lay on the old one lies on it then.
    pub(crate) async fn replace_layer(&self, old: &LayerId, new: &Layer) -> Result<(), DbError> {
        let failed = || query("replace a layer");
        let mut transaction = self.begin().await?;
        insert(&mut transaction, new).await?;
        for statement in [
            "UPDATE layers SET parent_id = ? WHERE parent_id = ?",
            "UPDATE images SET layer_id = ? WHERE layer_id = ?",
            "UPDATE snapshots SET layer_id = ? WHERE layer_id = ?",
            "UPDATE sandboxes SET layer_id = ? WHERE layer_id = ?",
        ] {
            sqlx::query(statement)
                .bind(new.id.as_str())
                .bind(old.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(failed())?;
        }
        transaction.commit().await.map_err(failed())
    }

    /// Every image and layer that has a row.
    pub(crate) async fn storage_ids(&self) -> Result<(HashSet<ImageId>, HashSet<LayerId>), DbError> {
        let failed = || query("list layers and images");
        let rows = sqlx::query("SELECT id FROM images").fetch_all(&self.pool).await.map_err(failed())?;
        let images = rows.iter().map(|row| image_id(row, "id")).collect::<Result<_, _>>()?;
        let rows = sqlx::query("SELECT id FROM layers").fetch_all(&self.pool).await.map_err(failed())?;
        Ok((images, rows.iter().map(|row| layer_id(row, "id")).collect::<Result<_, _>>()?))
    }

    /// Who refers to what.
    pub(crate) async fn references(&self) -> Result<References, DbError> {
        let failed = || query("list references to layers and images");
        let rows = sqlx::query("SELECT id, parent_id FROM layers").fetch_all(&self.pool).await.map_err(failed())?;
        let layers = rows.iter().map(|row| Ok((layer_id(row, "id")?, optional_layer_id(row, "parent_id")?)));
        let layers = layers.collect::<Result<_, DbError>>()?;
        let rows = sqlx::query("SELECT id, layer_id, bytes FROM images").fetch_all(&self.pool).await;
        let rows = rows.map_err(failed())?;
        let images =
            rows.iter().map(|row| Ok((image_id(row, "id")?, layer_id(row, "layer_id")?, number(row, "bytes")?)));
        let images = images.collect::<Result<_, DbError>>()?;
        let rows = sqlx::query(
            "SELECT id AS owner, layer_id, image_id FROM sandboxes WHERE layer_id IS NOT NULL UNION ALL \
             SELECT id, layer_id, image_id FROM snapshots UNION ALL SELECT key, NULL, image_id FROM warm",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed())?;
        let owner =
            |row| Ok((get(row, "owner")?, optional_layer_id(row, "layer_id")?, optional_image_id(row, "image_id")?));
        let owners = rows.iter().map(owner).collect::<Result<_, DbError>>()?;
        Ok(References { layers, images, owners })
    }
}

/// The chains that running machines have open.
async fn open_chains(connection: &mut SqliteConnection) -> Result<Vec<Vec<LayerId>>, DbError> {
    let rows = sqlx::query("SELECT chain FROM machines").fetch_all(connection).await;
    rows.map_err(query("list open layers"))?.iter().map(|row| json(row, "chain")).collect()
}

pub(super) async fn insert(connection: &mut SqliteConnection, layer: &Layer) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO layers (id, parent_id, template_id, template_version, disk_bytes, frozen, created_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(layer.id.as_str())
    .bind(layer.parent.as_ref().map(LayerId::as_str))
    .bind(&layer.template_id)
    .bind(&layer.template_version)
    .bind(i64::try_from(layer.disk_bytes).unwrap_or(i64::MAX))
    .bind(layer.frozen)
    .bind(microseconds(OffsetDateTime::now_utc()))
    .execute(connection)
    .await
    .map_err(query("write a layer"))?;
    Ok(())
}

pub(super) async fn freeze(connection: &mut SqliteConnection, layer: &LayerId) -> Result<(), DbError> {
    sqlx::query("UPDATE layers SET frozen = 1 WHERE id = ?")
        .bind(layer.as_str())
        .execute(connection)
        .await
        .map_err(query("freeze a layer"))?;
    Ok(())
}

/// Its machine goes on writing to it after all.
pub(super) async fn thaw(connection: &mut SqliteConnection, layer: &LayerId) -> Result<(), DbError> {
    sqlx::query("UPDATE layers SET frozen = 0 WHERE id = ?")
        .bind(layer.as_str())
        .execute(connection)
        .await
        .map_err(query("thaw a layer"))?;
    Ok(())
}

pub(super) async fn insert_image(connection: &mut SqliteConnection, image: &Image) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO images (id, layer_id, fingerprint, vcpus, memory_mb, bytes, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(image.id.as_str())
    .bind(image.layer.as_str())
    .bind(&image.fingerprint)
    .bind(image.vcpus)
    .bind(image.memory_mb)
    .bind(i64::try_from(image.bytes).unwrap_or(i64::MAX))
    .bind(microseconds(image.created_at))
    .execute(connection)
    .await
    .map_err(query("write a memory image"))?;
    Ok(())
}

fn layer_from_row(row: &SqliteRow) -> Result<Layer, DbError> {
    Ok(Layer {
        id: layer_id(row, "id")?,
        parent: optional_layer_id(row, "parent_id")?,
        template_id: get(row, "template_id")?,
        template_version: get(row, "template_version")?,
        disk_bytes: number(row, "disk_bytes")?,
        frozen: get(row, "frozen")?,
    })
}

fn image_from_row(row: &SqliteRow) -> Result<Image, DbError> {
    Ok(Image {
        id: image_id(row, "id")?,
        layer: layer_id(row, "layer_id")?,
        fingerprint: get(row, "fingerprint")?,
        vcpus: number(row, "vcpus")?,
        memory_mb: number(row, "memory_mb")?,
        bytes: number(row, "bytes")?,
        created_at: instant(row, "created_at")?,
    })
}

fn image_id(row: &SqliteRow, column: &'static str) -> Result<ImageId, DbError> {
    let text: String = get(row, column)?;
    ImageId::parse(&text).ok_or_else(|| unreadable(column, &text))
}

fn layer_id(row: &SqliteRow, column: &'static str) -> Result<LayerId, DbError> {
    let text: String = get(row, column)?;
    LayerId::parse(&text).ok_or_else(|| unreadable(column, &text))
}

pub(super) fn optional_image_id(row: &SqliteRow, column: &'static str) -> Result<Option<ImageId>, DbError> {
    let text: Option<String> = get(row, column)?;
    text.map(|text| ImageId::parse(&text).ok_or_else(|| unreadable(column, &text))).transpose()
}

pub(super) fn optional_layer_id(row: &SqliteRow, column: &'static str) -> Result<Option<LayerId>, DbError> {
    let text: Option<String> = get(row, column)?;
    text.map(|text| LayerId::parse(&text).ok_or_else(|| unreadable(column, &text))).transpose()
}
