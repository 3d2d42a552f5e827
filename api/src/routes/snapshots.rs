//! The snapshots of one sandbox: take, list, delete, restore in place (contract 8.12 C29-C33).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cove_engine::{Engine, Error, SandboxId, Snapshot, SnapshotFilter, SnapshotSpec};
use futures_util::TryFutureExt;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, SnapshotRef};
use crate::heartbeat::{self, Unmistakable};
use crate::idempotency::detached;
use crate::types::{Data, EmptyBody, SandboxRecord, SnapshotBody, SnapshotRecord};

async fn take(engine: Engine, id: SandboxId, spec: SnapshotSpec) -> Response {
    let work = detached(async move { Ok(Data { data: SnapshotRecord::from(engine.snapshot(&id, spec).await?) }) });
    heartbeat::answer(StatusCode::CREATED, work.map_err(Unmistakable)).await
}

/// Takes a snapshot of a running or paused sandbox. A running one stands still for a moment and goes on, with its
/// connections. Answers when the snapshot is whole.
#[utoipa::path(post, path = "/sandboxes/{id}/snapshots", tag = "snapshots", params(("id" = String, Path)),
    request_body = SnapshotBody, responses((status = 201, body = Data<SnapshotRecord>)))]
pub async fn create_snapshot(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<SnapshotBody>,
) -> Result<Response, ApiError> {
    Ok(take(api.engine, sandbox_id(&id)?, body.into()).await)
}

/// The same as `POST /sandboxes/{id}/snapshots`.
#[utoipa::path(post, path = "/sandboxes/{id}/snapshot", tag = "snapshots", params(("id" = String, Path)),
    request_body = SnapshotBody, responses((status = 201, body = Data<SnapshotRecord>)))]
pub async fn create_snapshot_legacy(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<SnapshotBody>,
) -> Result<Response, ApiError> {
    Ok(take(api.engine, sandbox_id(&id)?, body.into()).await)
}

/// A sandbox's snapshots, newest first, those with a name too.
#[utoipa::path(get, path = "/sandboxes/{id}/snapshots", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<SnapshotRecord>>)))]
pub async fn list_snapshots(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<SnapshotRecord>>>, ApiError> {
    let id = sandbox_id(&id)?;
    api.engine.get(id.as_str()).await?;
    let filter = SnapshotFilter { sandbox_id: Some(id), ..SnapshotFilter::default() };
    let snapshots = api.engine.snapshots(&filter).await?;
    Ok(Json(Data { data: snapshots.into_iter().rev().map(SnapshotRecord::from).collect() }))
}

/// Deletes a snapshot of this sandbox. What came from it lives on; one with a name is kept: 409.
#[utoipa::path(delete, path = "/sandboxes/{id}/snapshots/{sid}", tag = "snapshots",
    params(("id" = String, Path), ("sid" = String, Path, description = "The snapshot's id or name")),
    responses((status = 204, description = "It is gone")))]
pub async fn delete_snapshot(
    State(api): State<Api>,
    Id(id): Id,
    SnapshotRef(sid): SnapshotRef,
) -> Result<StatusCode, ApiError> {
    let snapshot = of_sandbox(&api.engine, &sandbox_id(&id)?, &sid).await?;
    let engine = api.engine;
    detached(async move { Ok(engine.delete_snapshot(&snapshot.id).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn of_sandbox(engine: &Engine, id: &SandboxId, snapshot: &str) -> Result<Snapshot, ApiError> {
    let found = engine.find_snapshot(snapshot).await?;
    if found.sandbox_id == *id { Ok(found) } else { Err(Error::SnapshotNotFound(snapshot.to_owned()).into()) }
}

/// Puts a sandbox back to where a snapshot was, disk and memory, under its own id. What is running in it ends. The
/// snapshot may be of another sandbox with the same template and shape.
#[utoipa::path(post, path = "/sandboxes/{id}/restore/{sid}", tag = "snapshots",
    params(("id" = String, Path), ("sid" = String, Path, description = "The snapshot's id or name")),
    request_body = EmptyBody, responses((status = 200, description = "Running", body = Data<SandboxRecord>)))]
pub async fn restore_snapshot(
    State(api): State<Api>,
    Id(id): Id,
    SnapshotRef(sid): SnapshotRef,
    JsonBody(_): JsonBody<EmptyBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let engine = api.engine;
    let work = detached(async move {
        engine.get(id.as_str()).await?;
        let snapshot = engine.find_snapshot(&sid).await?;
        Ok(Data { data: SandboxRecord::now(engine.restore(&id, &snapshot.id).await?) })
    });
    Ok(heartbeat::answer(StatusCode::OK, work.map_err(Unmistakable)).await)
}
