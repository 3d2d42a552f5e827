//! Named snapshots: a name keeps one snapshot until it is taken away (contract X87-X90; deploy is in `fork`).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cove_engine::{Engine, Error, Snapshot, SnapshotFilter, SnapshotSpec, SnapshotUpdate};
use futures_util::TryFutureExt;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody};
use crate::heartbeat::{self, Unmistakable};
use crate::idempotency::detached;
use crate::types::{Allowance, Data, NameBody, NameRemoved, NamedSnapshot, NamedSnapshots, NamedWithDependents};

/// The snapshot with exactly this name.
pub(super) async fn find_named(engine: &Engine, name: &str) -> Result<Snapshot, ApiError> {
    let snapshot = engine.find_snapshot(name).await?;
    // An id finds a snapshot too, but is no name.
    if snapshot.name.as_deref() == Some(name) {
        Ok(snapshot)
    } else {
        Err(Error::SnapshotNotFound(name.to_owned()).into())
    }
}

/// All names, newest snapshot first.
#[utoipa::path(get, path = "/named-snapshots", tag = "snapshots", responses((status = 200, body = NamedSnapshots)))]
pub async fn list_named_snapshots(State(api): State<Api>) -> Result<Json<NamedSnapshots>, ApiError> {
    let named = api.engine.snapshots(&SnapshotFilter { named: true, ..SnapshotFilter::default() }).await?;
    let allowance = Allowance { used: named.len(), limit: None, price_cents: 0 };
    Ok(Json(NamedSnapshots { data: named.into_iter().rev().map(NamedSnapshot::from).collect(), allowance }))
}

/// Gives a name to a snapshot, or to a new snapshot of a sandbox. A name in use is never taken over.
#[utoipa::path(post, path = "/named-snapshots", tag = "snapshots", request_body = NameBody,
    responses((status = 201, body = Data<NamedSnapshot>)))]
pub async fn create_named_snapshot(
    State(api): State<Api>,
    JsonBody(body): JsonBody<NameBody>,
) -> Result<Response, ApiError> {
    if body.computer_id.is_some() {
        return Err(ApiError::invalid("computer_id", "computer_id has no meaning on this server; give sandbox_id"));
    }
    if body.name.is_empty() {
        return Err(ApiError::invalid("name", "name is empty"));
    }
    let engine = api.engine;
    let (name, source) = match (body.snapshot_id, body.sandbox_id) {
        (Some(snapshot), None) => (body.name, Source::Snapshot(snapshot)),
        (None, Some(sandbox)) => (body.name, Source::Sandbox(sandbox_id(&sandbox)?)),
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("sandbox_id", "snapshot_id and sandbox_id cannot be given together"));
        }
        (None, None) => {
            return Err(ApiError::invalid("snapshot_id", "snapshot_id is missing; or give sandbox_id"));
        }
    };
    let work = detached(async move { Ok(Data { data: NamedSnapshot::from(named(&engine, name, source).await?) }) });
    Ok(heartbeat::answer(StatusCode::CREATED, work.map_err(Unmistakable)).await)
}

enum Source {
    Snapshot(String),
    Sandbox(cove_engine::SandboxId),
}

async fn named(engine: &Engine, name: String, source: Source) -> Result<Snapshot, ApiError> {
    match source {
        Source::Sandbox(id) => {
            Ok(engine.snapshot(&id, SnapshotSpec { name: Some(name), ..SnapshotSpec::default() }).await?)
        }
        Source::Snapshot(snapshot) => {
            let snapshot = engine.find_snapshot(&snapshot).await?;
            match &snapshot.name {
                Some(has) if *has != name => Err(already_named(&snapshot, has)),
                _ => Ok(engine.update_snapshot(&snapshot.id, named_update(Some(name))).await?),
            }
        }
    }
}

fn named_update(name: Option<String>) -> SnapshotUpdate {
    SnapshotUpdate { name: Some(name), ..SnapshotUpdate::default() }
}

fn already_named(snapshot: &Snapshot, name: &str) -> ApiError {
    let message = format!("Snapshot {} has the name '{name}' already; take that away first", snapshot.id);
    ApiError::new(StatusCode::CONFLICT, "SNAPSHOT_ALREADY_NAMED", message).with_detail("name", name)
}

/// A name, its snapshot, and the sandboxes that last came from it or took it.
#[utoipa::path(get, path = "/named-snapshots/{id}", tag = "snapshots",
    params(("id" = String, Path, description = "The name, percent-encoded")),
    responses((status = 200, body = NamedWithDependents)))]
pub async fn get_named_snapshot(State(api): State<Api>, Id(name): Id) -> Result<Json<NamedWithDependents>, ApiError> {
    let snapshot = find_named(&api.engine, &name).await?;
    let dependents = api.engine.dependents(&snapshot.id).await?;
    let dependents = dependents.into_iter().map(Into::into).collect();
    Ok(Json(NamedWithDependents { data: snapshot.into(), dependents }))
}

/// Takes a name away. Its snapshot stays, in the history.
#[utoipa::path(delete, path = "/named-snapshots/{id}", tag = "snapshots",
    params(("id" = String, Path, description = "The name, percent-encoded")),
    responses((status = 200, body = NameRemoved)))]
pub async fn delete_named_snapshot(State(api): State<Api>, Id(name): Id) -> Result<Json<NameRemoved>, ApiError> {
    let snapshot = find_named(&api.engine, &name).await?;
    let snapshot = api.engine.update_snapshot(&snapshot.id, named_update(None)).await?;
    Ok(Json(NameRemoved { data: snapshot.into(), outcome: "released" }))
}
