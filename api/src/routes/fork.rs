//! Forks: a new sandbox that goes on from another one, or from a snapshot (contract 8.12 C34; X86, X91).
//!
//! The answer comes when the child is command-ready; the source runs on. Under an `Idempotency-Key` the same request
//! names the same child, as with create. A failure after the first heartbeat breaks the answer off.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cove_engine::{BoxError, Engine, ForkSource, Sandbox, SandboxId};
use tokio::time::Instant;

use super::named::find_named;
use super::sandbox_id;
use super::sandboxes::{CREATE_WAIT_DEFAULT, admission};
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBytes, parse};
use crate::heartbeat::{self, Failure, Unmistakable};
use crate::idempotency::{Once, key, once};
use crate::types::{Data, ForkBody, SandboxRecord};

/// What the caller named.
enum Source {
    Sandbox(SandboxId),
    Snapshot(String),
    Named(String),
}

impl Source {
    /// The engine's form, and the template that the child will have.
    async fn find(self, engine: &Engine) -> Result<(ForkSource, String), ApiError> {
        let snapshot = match self {
            Source::Sandbox(id) => {
                let template = engine.get(id.as_str()).await?.template_id;
                return Ok((ForkSource::Sandbox(id), template));
            }
            Source::Snapshot(text) => engine.find_snapshot(&text).await?,
            Source::Named(name) => find_named(engine, &name).await?,
        };
        Ok((ForkSource::Snapshot(snapshot.id), snapshot.template_id))
    }
}

/// Makes a new sandbox that goes on from this one as it is now, or from the snapshot that `snapshot_id` names.
#[utoipa::path(post, path = "/sandboxes/{id}/fork", tag = "snapshots", params(("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key within 24 h names the same fork")),
    request_body = ForkBody,
    responses((status = 201, body = Data<SandboxRecord>), (status = 200, description = "Replayed", body = Data<SandboxRecord>)))]
pub async fn fork_sandbox(
    State(api): State<Api>,
    Id(id): Id,
    headers: HeaderMap,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let request: ForkBody = parse(&body)?;
    let call = format!("POST /sandboxes/{id}/fork");
    let source = match &request.snapshot_id {
        Some(snapshot) => Source::Snapshot(snapshot.clone()),
        None => Source::Sandbox(id),
    };
    answer(api.engine, call, &headers, body, source, request).await
}

/// Makes a new sandbox that goes on from a snapshot.
#[utoipa::path(post, path = "/snapshots/{id}/fork", tag = "snapshots", params(("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key within 24 h names the same fork")),
    request_body = ForkBody,
    responses((status = 201, body = Data<SandboxRecord>), (status = 200, description = "Replayed", body = Data<SandboxRecord>)))]
pub async fn fork_snapshot(
    State(api): State<Api>,
    Id(id): Id,
    headers: HeaderMap,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let request: ForkBody = parse(&body)?;
    let call = format!("POST /snapshots/{id}/fork");
    answer(api.engine, call, &headers, body, Source::Snapshot(id), request).await
}

/// Makes a new sandbox that goes on from a named snapshot, whether or not the sandbox of which it was taken lives.
#[utoipa::path(post, path = "/named-snapshots/{id}/deploy", tag = "snapshots",
    params(("id" = String, Path, description = "The name, percent-encoded"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key within 24 h names the same fork")),
    request_body = ForkBody,
    responses((status = 201, body = Data<SandboxRecord>), (status = 200, description = "Replayed", body = Data<SandboxRecord>)))]
pub async fn deploy_named_snapshot(
    State(api): State<Api>,
    Id(name): Id,
    headers: HeaderMap,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let request: ForkBody = parse(&body)?;
    let call = format!("POST /named-snapshots/{name}/deploy");
    answer(api.engine, call, &headers, body, Source::Named(name), request).await
}

async fn answer(
    engine: Engine,
    call: String,
    headers: &HeaderMap,
    body: Bytes,
    source: Source,
    request: ForkBody,
) -> Result<Response, ApiError> {
    let key = key(headers)?.map(str::to_owned);
    let fail_fast = request.fail_fast == Some(true);
    let template = request.template_id.clone();
    let spec = request.into_spec()?;
    let work = async move {
        let of = engine.clone();
        let fork = async move {
            let (source, its_template) = source.find(&of).await?;
            check_template(&of, template.as_deref(), &its_template).await?;
            of.fork(&source, spec).await.map_err(|error| admission(error, fail_fast))
        };
        let (status, child) = match once(&engine, &call, key.as_deref(), &body, fork).await? {
            Once::New(child) => (StatusCode::CREATED, *child),
            Once::Replayed(child) => (StatusCode::OK, *child),
            Once::Refused(response) => return Err(Refused::Before(response)),
        };
        Ok((status, settled(&engine, child).await?))
    };
    Ok(heartbeat::answer_as(StatusCode::CREATED, work).await)
}

/// A fork goes on in the file system and memory of its source, so a wish for another template cannot be met.
async fn check_template(engine: &Engine, wanted: Option<&str>, source: &str) -> Result<(), ApiError> {
    let Some(wanted) = wanted else { return Ok(()) };
    if engine.template(wanted).await?.id == source {
        return Ok(());
    }
    let message =
        format!("template_id is '{wanted}', but the source's template is '{source}', and a fork has the same");
    Err(ApiError::invalid("template_id", message))
}

async fn settled(engine: &Engine, child: Sandbox) -> Result<Data<SandboxRecord>, ApiError> {
    let child = match child.state.is_transitional() {
        true => engine.wait_settled(&child.id, Instant::now() + CREATE_WAIT_DEFAULT).await?,
        false => child,
    };
    Ok(Data { data: SandboxRecord::now(child) })
}

/// Why there is no child.
enum Refused {
    /// It was refused before under the same key, with this answer.
    Before(Response),
    Now(ApiError),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Now(error)
    }
}

impl Failure for Refused {
    fn early(self) -> Response {
        match self {
            Refused::Before(response) => response,
            Refused::Now(error) => error.into_response(),
        }
    }

    fn late(self) -> Result<Bytes, BoxError> {
        match self {
            Refused::Before(_) => Err("It was refused before, under the same key".into()),
            Refused::Now(error) => Unmistakable(error).late(),
        }
    }
}
