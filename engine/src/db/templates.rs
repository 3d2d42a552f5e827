//! Rows of `templates`.

use std::path::PathBuf;

use sqlx::sqlite::SqliteRow;

use super::{Db, DbError, get, instant, json, json_text, microseconds, number, query, shape, unreadable};
use crate::template::Template;

/// A template's version with what only the store needs to know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TemplateVersion {
    pub(crate) template: Template,
    /// The base layer's time of last change, in microseconds since 1970, when it was imported.
    pub(crate) root_modified_us: i64,
}

impl Db {
    /// Adds a version and makes it the one that new sandboxes get.
    pub(crate) async fn insert_template(&self, version: &TemplateVersion) -> Result<(), DbError> {
        let template = &version.template;
        let mut transaction = self.begin().await?;
        let failed = || query("write a template");
        sqlx::query("UPDATE templates SET current = 0 WHERE id = ?")
            .bind(&template.id)
            .execute(&mut *transaction)
            .await
            .map_err(failed())?;
        sqlx::query(
            "INSERT INTO templates (id, version, current, name, description, aliases, tags, built_in, is_default, cpu_count, \
             memory_mb, disk_size_mb, workdir, root, root_bytes, root_modified_us, created_at) \
             VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&template.id)
        .bind(&template.version)
        .bind(&template.name)
        .bind(&template.description)
        .bind(json_text(&template.aliases))
        .bind(json_text(&template.tags))
        .bind(template.built_in)
        .bind(template.default)
        .bind(template.shape.cpu_count)
        .bind(template.shape.memory_mb)
        .bind(template.shape.disk_size_mb)
        .bind(&template.workdir)
        .bind(template.root.to_str().ok_or_else(|| unreadable("root", &template.root.to_string_lossy()))?)
        .bind(i64::try_from(template.root_bytes).unwrap_or(i64::MAX))
        .bind(version.root_modified_us)
        .bind(microseconds(template.created_at))
        .execute(&mut *transaction)
        .await
        .map_err(failed())?;
        transaction.commit().await.map_err(failed())
    }

    /// Makes a version that exists the one that new sandboxes get; false when it does not exist.
    pub(crate) async fn make_template_current(&self, id: &str, version: &str) -> Result<bool, DbError> {
        let mut transaction = self.begin().await?;
        let failed = || query("choose a template version");
        for (current, condition) in [
            (0, "UPDATE templates SET current = ? WHERE id = ? AND version <> ?"),
            (1, "UPDATE templates SET current = ? WHERE id = ? AND version = ?"),
        ] {
            let result = sqlx::query(condition)
                .bind(current)
                .bind(id)
                .bind(version)
                .execute(&mut *transaction)
                .await
                .map_err(failed())?;
            if current == 1 && result.rows_affected() == 0 {
                return Ok(false);
            }
        }
        transaction.commit().await.map_err(failed())?;
        Ok(true)
    }

    /// The current version of every template, the default one first.
    pub(crate) async fn templates(&self) -> Result<Vec<TemplateVersion>, DbError> {
        let rows = sqlx::query("SELECT * FROM templates WHERE current = 1 ORDER BY is_default DESC, id")
            .fetch_all(&self.pool)
            .await
            .map_err(query("list templates"))?;
        rows.iter().map(from_row).collect()
    }

    /// One version, current or not.
    pub(crate) async fn template_version(&self, id: &str, version: &str) -> Result<Option<TemplateVersion>, DbError> {
        let row = sqlx::query("SELECT * FROM templates WHERE id = ? AND version = ?")
            .bind(id)
            .bind(version)
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read a template version"))?;
        row.as_ref().map(from_row).transpose()
    }

    /// Forgets versions that are neither current nor used by any sandbox that still has a disk; returns what they were.
    pub(crate) async fn delete_unused_template_versions(&self) -> Result<Vec<(String, String)>, DbError> {
        let rows = sqlx::query(
            "DELETE FROM templates WHERE current = 0 AND NOT EXISTS (SELECT 1 FROM sandboxes \
             WHERE template_id = templates.id AND template_version = templates.version) AND NOT EXISTS \
             (SELECT 1 FROM layers WHERE template_id = templates.id AND template_version = templates.version) \
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE template_id = templates.id AND template_version = templates.version) \
             AND NOT EXISTS (SELECT 1 FROM warm WHERE template_id = templates.id AND template_version = templates.version) \
             RETURNING id, version",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(query("delete unused template versions"))?;
        rows.iter().map(|row| Ok((get(row, "id")?, get(row, "version")?))).collect()
    }

    /// Every version that is known.
    pub(crate) async fn template_versions(&self) -> Result<Vec<(String, String)>, DbError> {
        let rows = sqlx::query("SELECT id, version FROM templates")
            .fetch_all(&self.pool)
            .await
            .map_err(query("list template versions"))?;
        rows.iter().map(|row| Ok((get(row, "id")?, get(row, "version")?))).collect()
    }
}

fn from_row(row: &SqliteRow) -> Result<TemplateVersion, DbError> {
    let template = Template {
        id: get(row, "id")?,
        version: get(row, "version")?,
        name: get(row, "name")?,
        description: get(row, "description")?,
        aliases: json(row, "aliases")?,
        built_in: get(row, "built_in")?,
        default: get(row, "is_default")?,
        shape: shape(row)?,
        workdir: get(row, "workdir")?,
        tags: json(row, "tags")?,
        root: PathBuf::from(get::<String>(row, "root")?),
        root_bytes: number(row, "root_bytes")?,
        created_at: instant(row, "created_at")?,
    };
    Ok(TemplateVersion { template, root_modified_us: get(row, "root_modified_us")? })
}
