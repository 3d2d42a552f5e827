//! Run code in contexts that keep their variables (contract X29-X32). An error in the code is an answer with `ok: false`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::TryFutureExt;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Part, Query};
use crate::heartbeat::{self, Unmistakable};
use crate::types::{CodeBody, CodeContexts, CodeRecord, Data, language};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(run_code))
        .routes(routes!(list_code_contexts))
        .routes(routes!(reset_code_context))
        .routes(routes!(reset_code))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LanguageQuery {
    /// `python` (the default) or `javascript`.
    language: Option<String>,
}

/// Runs code and answers at its end. Runs in one context wait for each other; when the caller goes away the code is
/// interrupted, as by Ctrl-C. A paused sandbox is resumed and has its contexts still.
#[utoipa::path(post, path = "/sandboxes/{id}/code/run", tag = "code", params(("id" = String, Path)),
    request_body = CodeBody, responses((status = 200, body = Data<CodeRecord>)))]
pub async fn run_code(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<CodeBody>,
) -> Result<Response, ApiError> {
    let (id, spec) = (sandbox_id(&id)?, body.into_spec()?);
    let work = async move { Ok(Data { data: CodeRecord::from(api.engine.run_code(&id, spec).await?) }) };
    Ok(heartbeat::answer(StatusCode::OK, work.map_err(|error: ApiError| Unmistakable(error))).await)
}

/// The contexts that there are.
#[utoipa::path(get, path = "/sandboxes/{id}/code/contexts", tag = "code", params(("id" = String, Path), LanguageQuery),
    responses((status = 200, body = Data<CodeContexts>)))]
pub async fn list_code_contexts(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<LanguageQuery>,
) -> Result<Json<Data<CodeContexts>>, ApiError> {
    let (id, language) = (sandbox_id(&id)?, language(query.language.as_deref())?);
    Ok(Json(Data { data: CodeContexts { contexts: api.engine.code_contexts(&id, language).await? } }))
}

/// Forgets a context with all its variables; what runs in it is killed.
#[utoipa::path(delete, path = "/sandboxes/{id}/code/contexts/{part}", tag = "code",
    params(("id" = String, Path), ("part" = String, Path, description = "The context's name"), LanguageQuery),
    responses((status = 204)))]
pub async fn reset_code_context(
    State(api): State<Api>,
    Id(id): Id,
    Part(context): Part,
    Query(query): Query<LanguageQuery>,
) -> Result<StatusCode, ApiError> {
    let (id, language) = (sandbox_id(&id)?, language(query.language.as_deref())?);
    api.engine.reset_code(&id, language, Some(&context)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets all contexts of a language.
#[utoipa::path(delete, path = "/sandboxes/{id}/code", tag = "code", params(("id" = String, Path), LanguageQuery),
    responses((status = 204)))]
pub async fn reset_code(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<LanguageQuery>,
) -> Result<StatusCode, ApiError> {
    let (id, language) = (sandbox_id(&id)?, language(query.language.as_deref())?);
    api.engine.reset_code(&id, language, None).await?;
    Ok(StatusCode::NO_CONTENT)
}
