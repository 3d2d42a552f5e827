//! What a sandbox made, at a glance: the files of its workspace with their links, and its newest preview (contract X09).

use axum::Json;
use axum::extract::State;
use cove_engine::protocol::guest::{Entry, EntryKind};
use time::OffsetDateTime;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exports::{download_root, encoded};
use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::Id;
use crate::types::{ArtifactPreview, Artifacts, ArtifactsRecord, Data, ExportFile, FileEntry};

/// Where commands run and leave what they make.
const WORKSPACE: &str = "/workspace";

/// Levels below it that are looked at.
const DEPTH: u32 = 3;

/// Files that are listed.
const FILES_MAX: usize = 1000;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(get_artifacts))
}

/// The files of `/workspace`, three levels deep, without what begins with a dot, and the newest preview. Wakes a paused
/// sandbox.
#[utoipa::path(get, path = "/sandboxes/{id}/artifacts", tag = "files", params(("id" = String, Path)),
    responses((status = 200, body = Data<ArtifactsRecord>)))]
pub async fn get_artifacts(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<ArtifactsRecord>>, ApiError> {
    let id = sandbox_id(&id)?;
    let entries = api.engine.list_dir(&id, WORKSPACE, DEPTH).await?;
    let root = download_root(&api, &id);
    let mut made = entries.into_iter().filter(is_artifact);
    let file = |entry: Entry| {
        let entry = FileEntry::from(entry);
        ExportFile {
            download_url: format!("{root}path={}", encoded(&entry.path)),
            path: entry.path,
            filename: entry.name,
            kind: entry.kind,
            size: Some(entry.size),
        }
    };
    let files: Vec<ExportFile> = made.by_ref().take(FILES_MAX).map(file).collect();
    let artifacts = Artifacts {
        path: WORKSPACE,
        files,
        truncated: made.next().is_some(),
        archive_download_url: format!("{root}path={}", encoded(WORKSPACE)),
    };
    let now = OffsetDateTime::now_utc();
    let previews = api.engine.previews(&id).await?;
    let preview = previews.into_iter().rfind(|preview| !preview.is_expired(now));
    let preview = preview.map_or_else(ArtifactPreview::default, |preview| ArtifactPreview {
        url: Some(preview.url()),
        port: Some(preview.port),
        preview_id: Some(preview.id.to_string()),
    });
    Ok(Json(Data { data: ArtifactsRecord { artifacts, preview } }))
}

/// A regular file, neither hidden nor below something hidden.
fn is_artifact(entry: &Entry) -> bool {
    let below = entry.path.strip_prefix(WORKSPACE).unwrap_or(&entry.path);
    entry.kind == EntryKind::File && !below.split('/').any(|part| part.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_no_artifact() {
        let entry = |path: &str, kind| Entry { path: path.into(), kind, size: 1, mode: 0o644, modified_us: 0 };
        assert!(is_artifact(&entry("/workspace/a/b.txt", EntryKind::File)));
        for (path, kind) in [
            ("/workspace/a", EntryKind::Directory),
            ("/workspace/.env", EntryKind::File),
            ("/workspace/.git/config", EntryKind::File),
            ("/workspace/pipe", EntryKind::Other),
        ] {
            assert!(!is_artifact(&entry(path, kind)), "{path}");
        }
    }
}
