//! Pause, resume, stop, extend, change (contract 8.6; X01, X02).
//!
//! Each answers with the final record, never with a transitional one. The work goes on when the client goes away. A
//! failure after the first heartbeat breaks the answer off: the SDK lays what it gets over its old record, whatever it is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cove_engine::{Error, Sandbox, SandboxUpdate};
use futures_util::TryFutureExt;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody};
use crate::heartbeat::{self, Unmistakable};
use crate::idempotency::detached;
use crate::types::{Data, EmptyBody, ExtendBody, ResumeBody, SandboxRecord, Tags, UpdateBody};

/// The record that `work` ends with.
async fn record<W>(api: Api, work: W) -> Response
where
    W: Future<Output = Result<Sandbox, Error>> + Send + 'static,
{
    let work = detached(async move { Ok(Data { data: api.record(work.await?) }) });
    heartbeat::answer(StatusCode::OK, work.map_err(Unmistakable)).await
}

/// Saves memory and disk and stops the machine. A paused sandbox stays as it is: 200.
#[utoipa::path(post, path = "/sandboxes/{id}/pause", tag = "sandboxes", params(("id" = String, Path)),
    request_body = EmptyBody, responses((status = 200, description = "Paused", body = Data<SandboxRecord>)))]
pub async fn pause_sandbox(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(_): JsonBody<EmptyBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    Ok(record(api.clone(), async move { api.engine.pause(&id).await }).await)
}

/// Lets a paused sandbox go on where it was; a running one stays so: 200. Also brings back one in state `error` whose
/// disk is whole. A repetition under an `Idempotency-Key` needs no memory: it finds the sandbox running.
#[utoipa::path(post, path = "/sandboxes/{id}/resume", tag = "sandboxes", params(("id" = String, Path)),
    request_body = ResumeBody, responses((status = 200, description = "Running", body = Data<SandboxRecord>)))]
pub async fn resume_sandbox(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ResumeBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    body.selectors.check()?;
    Ok(record(api.clone(), async move { api.engine.resume(&id, body.env.unwrap_or_default()).await }).await)
}

/// Ends the session: a persistent sandbox is paused, another one destroyed.
#[utoipa::path(post, path = "/sandboxes/{id}/stop", tag = "sandboxes", params(("id" = String, Path)),
    request_body = EmptyBody,
    responses((status = 200, description = "`paused` or `destroyed`", body = Data<SandboxRecord>)))]
pub async fn stop_sandbox(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(_): JsonBody<EmptyBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    Ok(record(api.clone(), async move { api.engine.stop(&id).await }).await)
}

/// Starts the session's clock anew, with another length if one is given.
#[utoipa::path(post, path = "/sandboxes/{id}/extend", tag = "sandboxes", params(("id" = String, Path)),
    request_body = ExtendBody, responses((status = 200, body = Data<SandboxRecord>)))]
pub async fn extend_sandbox(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ExtendBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    Ok(record(api.clone(), async move { api.engine.extend(&id, body.timeout_sec).await }).await)
}

/// Changes what a caller may change; answers the whole record.
#[utoipa::path(patch, path = "/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)),
    request_body = UpdateBody, responses((status = 200, body = Data<SandboxRecord>)))]
pub async fn update_sandbox(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<UpdateBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    Ok(record(api.clone(), async move { api.engine.update(&id, body.into()).await }).await)
}

/// Replaces the tags.
#[utoipa::path(patch, path = "/sandboxes/{id}/tags", tag = "sandboxes", params(("id" = String, Path)),
    request_body = Tags, responses((status = 200, body = Data<Tags>)))]
pub async fn set_tags(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<Tags>,
) -> Result<Json<Data<Tags>>, ApiError> {
    let update = SandboxUpdate { tags: Some(body.tags), ..SandboxUpdate::default() };
    let sandbox = api.engine.update(&sandbox_id(&id)?, update).await?;
    Ok(Json(Data { data: Tags { tags: sandbox.tags } }))
}
