//! Snapshots of all sandboxes: list, groups, look into, compare, change, delete (contract X79-X85).
//!
//! The history is what no name keeps. A snapshot's files are read by a hidden fork of it, which the first look starts.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cove_engine::protocol::guest::EntryKind;
use cove_engine::{Engine, SandboxId, Side, Snapshot, SnapshotFilter};
use futures_util::TryFutureExt;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exports;
use super::files::checked_path;
use super::transfer::{self, ReadQuery};
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Query, number};
use crate::heartbeat::{self, Unmistakable};
use crate::idempotency::detached;
use crate::types::{
    BulkFailure, Data, DeleteManyBody, DeletedMany, DeletedSnapshot, FileComparison, FileEntry, Listing, Resource,
    SnapshotGroup, SnapshotGroups, SnapshotPage, SnapshotRecord, SnapshotUpdateBody, SnapshotWithDependents, timestamp,
};

/// Entries of a page when the caller does not say, and most.
const PAGE_DEFAULT: usize = 50;
const PAGE_MAX: usize = 200;

/// The directory that is compared when the caller does not say.
const PATH_COMPARED: &str = "/workspace";

/// Most snapshots that one call may name.
const IDS_MAX: usize = 1000;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(list_history))
        .routes(routes!(list_history_groups))
        .routes(routes!(delete_snapshots))
        .routes(routes!(get_snapshot, update_snapshot, delete_snapshot_by_id))
        .routes(routes!(list_snapshot_files))
        .routes(routes!(compare_snapshot_files))
        .routes(routes!(download_snapshot_file))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Snapshots of this sandbox only.
    resource_id: Option<String>,
    /// Part of an id, a name, a comment or the sandbox's name.
    q: Option<String>,
    /// `true`: also snapshots that a name keeps.
    include_named: Option<String>,
    /// Entries of the page: 50 when absent, at most 200.
    limit: Option<String>,
    /// Entries to skip.
    offset: Option<String>,
}

impl HistoryQuery {
    /// What matches, oldest first.
    async fn find(&self, engine: &Engine) -> Result<Vec<Snapshot>, ApiError> {
        let sandbox_id = match self.resource_id.as_deref() {
            Some(text) => match SandboxId::parse(text) {
                Some(id) => Some(id),
                // No sandbox has such an id, so none has snapshots.
                None => return Ok(Vec::new()),
            },
            None => None,
        };
        let text = self.q.clone().filter(|text| !text.is_empty());
        let mut found = engine.snapshots(&SnapshotFilter { sandbox_id, named: false, text }).await?;
        match self.include_named.as_deref() {
            None | Some("" | "false") => found.retain(|snapshot| snapshot.name.is_none()),
            Some("true") => {}
            Some(other) => {
                let message = format!("include_named is '{other}', and must be true or false");
                return Err(ApiError::invalid("include_named", message));
            }
        }
        Ok(found)
    }

    /// The part of `all` that was asked for.
    fn page<T>(&self, all: Vec<T>) -> Result<Vec<T>, ApiError> {
        let limit = self.limit.as_deref().map_or(Ok(PAGE_DEFAULT), |text| number("limit", text))?.min(PAGE_MAX);
        let offset: usize = self.offset.as_deref().map_or(Ok(0), |text| number("offset", text))?;
        Ok(all.into_iter().skip(offset).take(limit).collect())
    }
}

/// Snapshots of all sandboxes, newest first; those that a name keeps only on request.
#[utoipa::path(get, path = "/snapshots", tag = "snapshots", params(HistoryQuery),
    responses((status = 200, body = SnapshotPage)))]
pub async fn list_history(
    State(api): State<Api>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<SnapshotPage>, ApiError> {
    let found = query.find(&api.engine).await?;
    let total = found.len();
    let newest_first: Vec<SnapshotRecord> = found.into_iter().rev().map(SnapshotRecord::from).collect();
    Ok(Json(SnapshotPage { data: query.page(newest_first)?, total }))
}

/// The same by sandbox, newest activity first.
#[utoipa::path(get, path = "/snapshots/groups", tag = "snapshots", params(HistoryQuery),
    responses((status = 200, body = SnapshotGroups)))]
pub async fn list_history_groups(
    State(api): State<Api>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<SnapshotGroups>, ApiError> {
    let groups = grouped(query.find(&api.engine).await?);
    Ok(Json(SnapshotGroups { total: groups.len(), data: query.page(groups)? }))
}

/// Groups of `oldest_first`, newest activity first.
fn grouped(oldest_first: Vec<Snapshot>) -> Vec<SnapshotGroup> {
    let mut groups: Vec<SnapshotGroup> = Vec::new();
    let mut places: HashMap<SandboxId, usize> = HashMap::new();
    for snapshot in oldest_first.into_iter().rev() {
        let at = timestamp(snapshot.created_at);
        let place = *places.entry(snapshot.sandbox_id.clone()).or_insert(groups.len());
        if place == groups.len() {
            groups.push(SnapshotGroup {
                resource: Resource::sandbox(&snapshot.sandbox_id, snapshot.sandbox_name),
                snapshot_count: 0,
                exclusive_bytes: 0,
                latest_snapshot_id: snapshot.id.to_string(),
                latest_at: at.clone(),
                oldest_at: at.clone(),
            });
        }
        let group = &mut groups[place];
        group.snapshot_count += 1;
        group.exclusive_bytes += snapshot.share.exclusive_bytes;
        group.oldest_at = at;
    }
    groups
}

/// A snapshot, by id or name, and the sandboxes that last came from it or took it.
#[utoipa::path(get, path = "/snapshots/{id}", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = SnapshotWithDependents)))]
pub async fn get_snapshot(State(api): State<Api>, Id(id): Id) -> Result<Json<SnapshotWithDependents>, ApiError> {
    let snapshot = api.engine.find_snapshot(&id).await?;
    let dependents = api.engine.dependents(&snapshot.id).await?;
    let dependents = dependents.into_iter().map(Into::into).collect();
    Ok(Json(SnapshotWithDependents { data: snapshot.into(), dependents }))
}

/// Changes name, comment and metadata.
#[utoipa::path(patch, path = "/snapshots/{id}", tag = "snapshots", params(("id" = String, Path)),
    request_body = SnapshotUpdateBody, responses((status = 200, body = Data<SnapshotRecord>)))]
pub async fn update_snapshot(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<SnapshotUpdateBody>,
) -> Result<Json<Data<SnapshotRecord>>, ApiError> {
    let snapshot = api.engine.find_snapshot(&id).await?;
    Ok(Json(Data { data: api.engine.update_snapshot(&snapshot.id, body.into()).await?.into() }))
}

/// Deletes a snapshot. What came from it lives on; one with a name is kept: 409.
#[utoipa::path(delete, path = "/snapshots/{id}", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = Data<DeletedSnapshot>)))]
pub async fn delete_snapshot_by_id(
    State(api): State<Api>,
    Id(id): Id,
) -> Result<Json<Data<DeletedSnapshot>>, ApiError> {
    let engine = api.engine;
    let deleted = detached(async move {
        let snapshot = engine.find_snapshot(&id).await?;
        Ok(engine.delete_snapshot(&snapshot.id).await?)
    });
    Ok(Json(Data { data: deleted.await?.into() }))
}

/// Deletes several snapshots, or all of a sandbox that have no name. Each is judged by itself.
#[utoipa::path(post, path = "/snapshots/delete", tag = "snapshots", request_body = DeleteManyBody,
    responses((status = 200, body = Data<DeletedMany>)))]
pub async fn delete_snapshots(
    State(api): State<Api>,
    JsonBody(body): JsonBody<DeleteManyBody>,
) -> Result<Response, ApiError> {
    let chosen = chosen(body)?;
    let engine = api.engine;
    let work = detached(async move {
        let ids = match chosen {
            Chosen::Ids(ids) => ids,
            Chosen::HistoryOf(id) => {
                let filter = SnapshotFilter { sandbox_id: Some(id), ..SnapshotFilter::default() };
                let all = engine.snapshots(&filter).await?;
                all.into_iter().filter(|snapshot| snapshot.name.is_none()).map(|it| it.id.to_string()).collect()
            }
        };
        let mut outcome = DeletedMany::default();
        for id in ids {
            let deleted = match engine.find_snapshot(&id).await {
                Ok(snapshot) => engine.delete_snapshot(&snapshot.id).await,
                Err(error) => Err(error),
            };
            match deleted {
                Ok(_) => outcome.deleted.push(id),
                Err(error) => outcome.failed.push(BulkFailure::of(id, &error.into())),
            }
        }
        Ok(Data { data: outcome })
    });
    Ok(heartbeat::answer(StatusCode::OK, work.map_err(Unmistakable)).await)
}

/// What [`DeleteManyBody`] means.
#[derive(Debug, PartialEq, Eq)]
enum Chosen {
    Ids(Vec<String>),
    HistoryOf(SandboxId),
}

fn chosen(body: DeleteManyBody) -> Result<Chosen, ApiError> {
    match (body.ids, body.resource_id) {
        (Some(_), Some(_)) => Err(ApiError::invalid("resource_id", "ids and resource_id cannot be given together")),
        (None, None) => Err(ApiError::invalid("ids", "ids is missing; or give resource_id, all and confirm")),
        (Some(ids), None) if ids.len() > IDS_MAX => {
            Err(ApiError::invalid("ids", format!("ids has {} entries; {IDS_MAX} is the most", ids.len())))
        }
        (Some(ids), None) => Ok(Chosen::Ids(ids)),
        (None, Some(_)) if body.all != Some(true) => {
            Err(ApiError::invalid("all", "all must be true to delete the whole history of a sandbox"))
        }
        (None, Some(id)) if body.confirm.as_ref() != Some(&id) => {
            Err(ApiError::invalid("confirm", format!("confirm must be '{id}', as resource_id is")))
        }
        (None, Some(id)) => Ok(Chosen::HistoryOf(super::sandbox_id(&id)?)),
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TreeQuery {
    /// The directory; `/` when absent.
    path: Option<String>,
}

/// What is in a directory of a snapshot. The first look takes as long as a fork; the next ones do not.
#[utoipa::path(get, path = "/snapshots/{id}/tree", tag = "snapshots", params(("id" = String, Path), TreeQuery),
    responses((status = 200, body = Data<Listing>)))]
pub async fn list_snapshot_files(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<TreeQuery>,
) -> Result<Response, ApiError> {
    let path = query.path.unwrap_or_else(|| "/".into());
    checked_path(&path)?;
    let engine = api.engine;
    let work = detached(async move {
        let snapshot = engine.find_snapshot(&id).await?;
        let entries = engine.snapshot_list_dir(&snapshot.id, &path, 1).await?;
        Ok(Data { data: Listing { path, entries: entries.into_iter().map(FileEntry::from).collect() } })
    });
    Ok(heartbeat::answer(StatusCode::OK, work).await)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CompareQuery {
    /// The other side: a snapshot, by id or name, or a sandbox's id: its files as they are now.
    with: Option<String>,
    /// The directory; `/workspace` when absent. Of `/` all but `/dev`, `/proc`, `/run` and `/sys`.
    path: Option<String>,
}

/// What differs below a directory, from a snapshot to another one or to a sandbox as it is now, which is resumed if it is
/// paused. Two files of the same length whose time differs are read; a file that was written anew with the same bytes is no
/// difference. The first look takes as long as a fork of each snapshot. An addition to the contract.
#[utoipa::path(get, path = "/snapshots/{id}/compare", tag = "snapshots", params(("id" = String, Path), CompareQuery),
    responses((status = 200, body = Data<FileComparison>)))]
pub async fn compare_snapshot_files(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<CompareQuery>,
) -> Result<Response, ApiError> {
    let path = query.path.unwrap_or_else(|| PATH_COMPARED.into());
    checked_path(&path)?;
    let with = query.with.ok_or_else(|| ApiError::invalid("with", "with is missing: a snapshot or a sandbox"))?;
    let engine = api.engine;
    let work = detached(async move {
        let before = Side::Snapshot(engine.find_snapshot(&id).await?.id);
        let after = match SandboxId::parse(&with) {
            Some(sandbox) => Side::Sandbox(sandbox),
            None => Side::Snapshot(engine.find_snapshot(&with).await?.id),
        };
        let found = engine.compare_files(&before, &after, &path).await?;
        Ok(Data { data: FileComparison::of(path, found) })
    });
    Ok(heartbeat::answer(StatusCode::OK, work).await)
}

/// The bytes of a file in a snapshot; a directory as a `.tar` that is made while it is sent.
#[utoipa::path(get, path = "/snapshots/{id}/files", tag = "snapshots", params(("id" = String, Path), ReadQuery),
    responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
pub async fn download_snapshot_file(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<ReadQuery>,
) -> Result<Response, ApiError> {
    let path = query.path()?;
    checked_path(&path)?;
    let snapshot = api.engine.find_snapshot(&id).await?;
    if api.engine.snapshot_stat(&snapshot.id, &path).await?.kind == EntryKind::Directory {
        let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("root");
        let name = format!("{name}.tar");
        return Ok(exports::plain_archive(api.engine.snapshot_archive(&snapshot.id, &[path]).await?, &name));
    }
    let (entry, chunks) = api.engine.snapshot_read_file(&snapshot.id, &path).await?;
    transfer::file(entry, chunks).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_history_is_deleted_only_when_it_is_confirmed() {
        let body = |ids: Option<Vec<String>>, resource_id: Option<&str>, all, confirm: Option<&str>| DeleteManyBody {
            ids,
            resource_id: resource_id.map(Into::into),
            all,
            confirm: confirm.map(Into::into),
        };
        let field = |body| {
            let error = chosen(body).unwrap_err();
            error.message().split(' ').next().unwrap_or_default().to_owned()
        };
        assert_eq!(field(body(None, None, None, None)), "ids");
        assert_eq!(field(body(None, Some("sbx_1"), None, Some("sbx_1"))), "all");
        assert_eq!(field(body(None, Some("sbx_1"), Some(true), Some("sbx_2"))), "confirm");
        let id = SandboxId::parse("sbx_1").unwrap();
        assert_eq!(chosen(body(None, Some("sbx_1"), Some(true), Some("sbx_1"))).unwrap(), Chosen::HistoryOf(id));
        assert!(chosen(body(Some(vec!["x".into(); IDS_MAX + 1]), None, None, None)).is_err());
    }
}
