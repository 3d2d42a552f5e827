//! Create, list, get, destroy (contract 8.1, 8.2, 8.4, 8.5).

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use cove_engine::{Engine, Error, External, Sandbox, SandboxFilter, SandboxSpec};
use futures_util::TryFutureExt;
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBytes, Query, number, parse};
use crate::heartbeat::{self, Unmistakable};
use crate::idempotency::{Once, detached, key, once};
use crate::types::{CreateBody, Data, DestroyedRecord, SandboxRecord, state_word};

/// How long create waits for command-ready unless the caller says. Longer than the SDK's read timeout: heartbeats keep
/// the call alive, and a sandbox that is answered as `creating` is of no use to the SDK.
pub(super) const CREATE_WAIT_DEFAULT: Duration = Duration::from_secs(120);

/// Longest wait a caller may ask for, in seconds.
const CREATE_WAIT_SECONDS_MAX: u64 = 3600;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CreateQuery {
    /// Seconds to wait for command-ready; `true` for the default of 120 s; `false` or `0` to answer at once.
    wait: Option<String>,
}

/// Makes a sandbox, and answers when it is command-ready, has failed (state `error`), or the wait is over.
#[utoipa::path(
    post, path = "/sandboxes", tag = "sandboxes", params(CreateQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "The same key within 24 h names the same sandbox")),
    request_body = CreateBody,
    responses((status = 201, body = Data<SandboxRecord>), (status = 200, description = "Replayed", body = Data<SandboxRecord>))
)]
pub async fn create_sandbox(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<CreateQuery>,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let wait = wait(query.wait.as_deref())?;
    let key = key(&headers)?;
    let request: CreateBody = parse(&body)?;
    let fail_fast = request.fail_fast == Some(true);
    let work = create(api.engine.clone(), request.into_spec()?, fail_fast);
    let (status, sandbox) = match once(&api.engine, "POST /sandboxes", key, &body, work).await? {
        Once::New(sandbox) => (StatusCode::CREATED, *sandbox),
        Once::Replayed(sandbox) => (StatusCode::OK, *sandbox),
        Once::Refused(response) => return Ok(response),
    };
    let location = HeaderValue::try_from(format!("/api/v1/sandboxes/{}", sandbox.id));
    let mut response = heartbeat::answer(status, settled(api.engine, sandbox, wait)).await;
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

pub(super) async fn create(engine: Engine, spec: SandboxSpec, fail_fast: bool) -> Result<Sandbox, ApiError> {
    engine.create(spec).await.map_err(|error| admission(error, fail_fast))
}

/// What a caller is told who does not want to wait for room.
pub(super) fn admission(error: Error, fail_fast: bool) -> ApiError {
    match error {
        Error::Admission(_) if fail_fast => ApiError::no_ready_machine(error),
        error => error.into(),
    }
}

async fn settled(engine: Engine, sandbox: Sandbox, wait: Duration) -> Result<Data<SandboxRecord>, ApiError> {
    if wait.is_zero() || !sandbox.state.is_transitional() {
        return Ok(Data { data: SandboxRecord::now(sandbox) });
    }
    let sandbox = engine.wait_settled(&sandbox.id, Instant::now() + wait).await?;
    Ok(Data { data: SandboxRecord::now(sandbox) })
}

fn wait(text: Option<&str>) -> Result<Duration, ApiError> {
    match text {
        None | Some("true" | "") => Ok(CREATE_WAIT_DEFAULT),
        Some("false") => Ok(Duration::ZERO),
        Some(text) => {
            let seconds: u64 = number("wait", text)?;
            Ok(Duration::from_secs(seconds.min(CREATE_WAIT_SECONDS_MAX)))
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// In this state; without it all but the destroyed.
    state: Option<String>,
    /// Has all of these tags, separated by commas.
    tags: Option<String>,
    /// Made from this template.
    template_id: Option<String>,
    /// Has this name.
    name: Option<String>,
    external_workspace_id: Option<String>,
    external_user_id: Option<String>,
    external_project_id: Option<String>,
}

impl ListQuery {
    fn into_filter(self) -> Result<SandboxFilter, ApiError> {
        let tags = self.tags.unwrap_or_default();
        Ok(SandboxFilter {
            state: self.state.as_deref().filter(|state| !state.is_empty()).map(state_word).transpose()?,
            tags: tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
            template_id: self.template_id,
            name: self.name,
            external: External {
                workspace_id: self.external_workspace_id,
                user_id: self.external_user_id,
                project_id: self.external_project_id,
            },
        })
    }
}

/// All sandboxes that match, oldest first, on one page.
#[utoipa::path(get, path = "/sandboxes", tag = "sandboxes", params(ListQuery),
    responses((status = 200, body = Data<Vec<SandboxRecord>>)))]
pub async fn list_sandboxes(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Data<Vec<SandboxRecord>>>, ApiError> {
    // A state of the contract that no sandbox of this server is ever in.
    if query.state.as_deref() == Some("stopped") {
        return Ok(Json(Data { data: Vec::new() }));
    }
    let sandboxes = api.engine.list(&query.into_filter()?).await?;
    Ok(Json(Data { data: sandboxes.into_iter().map(|sandbox| api.record(sandbox)).collect() }))
}

/// A sandbox's record; a destroyed one's for 24 h.
#[utoipa::path(get, path = "/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Data<SandboxRecord>)))]
pub async fn get_sandbox(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<SandboxRecord>>, ApiError> {
    Ok(Json(Data { data: api.record(api.engine.get(&id).await?) }))
}

/// The live sandbox with this name, which may hold encoded slashes.
#[utoipa::path(get, path = "/sandboxes/by-name/{id}", tag = "sandboxes",
    params(("id" = String, Path, description = "The name, percent-encoded")),
    responses((status = 200, body = Data<SandboxRecord>)))]
pub async fn get_sandbox_by_name(State(api): State<Api>, Id(name): Id) -> Result<Json<Data<SandboxRecord>>, ApiError> {
    Ok(Json(Data { data: api.record(api.engine.by_name(&name).await?) }))
}

/// Removes a sandbox and all that is its. A destroyed one is destroyed again: 200.
#[utoipa::path(delete, path = "/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Data<DestroyedRecord>)))]
pub async fn destroy_sandbox(State(api): State<Api>, Id(id): Id) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let engine = api.engine;
    let work = detached(async move { Ok(Data { data: DestroyedRecord::from(engine.destroy(&id).await?) }) });
    Ok(heartbeat::answer(StatusCode::OK, work.map_err(Unmistakable)).await)
}

#[cfg(test)]
mod tests {
    use cove_engine::SandboxState;

    use super::*;

    #[test]
    fn wait_is_seconds_or_a_word() {
        for (text, seconds) in [
            (None, 120),
            (Some("true"), 120),
            (Some("false"), 0),
            (Some("0"), 0),
            (Some("30"), 30),
            (Some("99999"), 3600),
        ] {
            assert_eq!(wait(text).unwrap(), Duration::from_secs(seconds), "{text:?}");
        }
        for text in ["soon", "-1", "1.5"] {
            assert!(wait(Some(text)).unwrap_err().message().starts_with("wait is"), "{text}");
        }
    }

    #[test]
    fn tags_are_split_and_an_unknown_state_is_named() {
        let query = |state: Option<&str>| ListQuery {
            state: state.map(str::to_owned),
            tags: Some("a, b,,".into()),
            template_id: None,
            name: None,
            external_workspace_id: None,
            external_user_id: None,
            external_project_id: None,
        };
        let filter = query(Some("provisioning")).into_filter().unwrap();
        assert_eq!((filter.tags, filter.state), (vec!["a".into(), "b".into()], Some(SandboxState::Creating)));
        assert!(query(Some("asleep")).into_filter().unwrap_err().message().contains("'asleep'"));
    }
}
