//! Exposed ports of a sandbox, and who listens in it (contract 8.11 C24-C28, X43, X44).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use cove_engine::{GrantKind, GrantSpec, Preview, SandboxId, Scope};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Part};
use crate::types::{
    Data, ExposeBody, ListenerRecord, PreviewBody, PreviewRecord, SharePreviewBody, SharedPreview, UrlInfo,
};

/// How long a share token lives when nobody says.
const SHARE_TTL_SECONDS: u32 = 3600;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(expose_port))
        .routes(routes!(create_preview, list_previews))
        .routes(routes!(get_preview, delete_preview))
        .routes(routes!(share_preview, revoke_preview_shares))
        .routes(routes!(list_ports))
}

/// Exposes a port and says where it is. A paused persistent sandbox is resumed. The same port again changes nothing but
/// what is given.
#[utoipa::path(post, path = "/sandboxes/{id}/expose", tag = "previews", params(("id" = String, Path)),
    request_body = ExposeBody, responses((status = 200, body = Data<UrlInfo>)))]
pub async fn expose_port(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ExposeBody>,
) -> Result<Json<Data<UrlInfo>>, ApiError> {
    let id = sandbox_id(&id)?;
    let spec = body.into_spec()?;
    api.engine.wake(&id).await?;
    let (preview, _) = api.engine.expose(&id, spec).await?;
    let sandbox = api.engine.get(id.as_str()).await?;
    Ok(Json(Data { data: UrlInfo::new(&preview, &sandbox, api.config.alias_port) }))
}

/// Makes a preview, or changes that of the same port. The sandbox may be in any state.
#[utoipa::path(post, path = "/sandboxes/{id}/previews", tag = "previews", params(("id" = String, Path)),
    request_body = PreviewBody, responses((status = 201, body = Data<PreviewRecord>),
        (status = 200, description = "The port had one", body = Data<PreviewRecord>)))]
pub async fn create_preview(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<PreviewBody>,
) -> Result<(StatusCode, Json<Data<PreviewRecord>>), ApiError> {
    let id = sandbox_id(&id)?;
    if body.port.is_none() {
        return Err(ApiError::invalid("port", "port is missing"));
    }
    let (preview, new) = api.engine.expose(&id, body.into_spec()?).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Data { data: record(&api, &id, preview).await? })))
}

/// A sandbox's previews, oldest first.
#[utoipa::path(get, path = "/sandboxes/{id}/previews", tag = "previews", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<PreviewRecord>>)))]
pub async fn list_previews(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<PreviewRecord>>>, ApiError> {
    let id = sandbox_id(&id)?;
    let sandbox = api.engine.get(id.as_str()).await?;
    let (previews, grants) = (api.engine.previews(&id).await?, api.engine.grants(&id).await?);
    let alias = api.config.alias_port;
    let data = previews.into_iter().map(|preview| PreviewRecord::new(preview, &sandbox, &grants, alias)).collect();
    Ok(Json(Data { data }))
}

/// One preview.
#[utoipa::path(get, path = "/sandboxes/{id}/previews/{part}", tag = "previews",
    params(("id" = String, Path), ("part" = String, Path, description = "The preview's id")),
    responses((status = 200, body = Data<PreviewRecord>)))]
pub async fn get_preview(
    State(api): State<Api>,
    Id(id): Id,
    Part(preview): Part,
) -> Result<Json<Data<PreviewRecord>>, ApiError> {
    let id = sandbox_id(&id)?;
    let preview = api.engine.preview(&id, &preview).await?;
    Ok(Json(Data { data: record(&api, &id, preview).await? }))
}

/// Takes a preview away: its listener closes, its tokens are worth nothing.
#[utoipa::path(delete, path = "/sandboxes/{id}/previews/{part}", tag = "previews",
    params(("id" = String, Path), ("part" = String, Path, description = "The preview's id")),
    responses((status = 204, description = "It is gone")))]
pub async fn delete_preview(State(api): State<Api>, Id(id): Id, Part(preview): Part) -> Result<StatusCode, ApiError> {
    api.engine.unexpose(&sandbox_id(&id)?, &preview).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a token for a preview, with which a private one can be used. The token is told once.
#[utoipa::path(post, path = "/sandboxes/{id}/previews/{part}/share", tag = "previews",
    params(("id" = String, Path), ("part" = String, Path, description = "The preview's id")),
    request_body = SharePreviewBody, responses((status = 200, body = SharedPreview)))]
pub async fn share_preview(
    State(api): State<Api>,
    Id(id): Id,
    Part(preview): Part,
    JsonBody(body): JsonBody<SharePreviewBody>,
) -> Result<Json<SharedPreview>, ApiError> {
    let id = sandbox_id(&id)?;
    let scope = scope(body.scope.as_deref(), Scope::Interact)?;
    let preview = api.engine.preview(&id, &preview).await?;
    let ttl_sec = Some(body.ttl_seconds.unwrap_or(SHARE_TTL_SECONDS));
    let spec = GrantSpec { kind: GrantKind::PreviewShare, scope, ttl_sec };
    let minted = api.engine.grant(&id, Some(&preview.id), spec).await?;
    Ok(Json(SharedPreview::new(&preview, minted)))
}

/// Takes back every share token of a preview.
#[utoipa::path(delete, path = "/sandboxes/{id}/previews/{part}/share", tag = "previews",
    params(("id" = String, Path), ("part" = String, Path, description = "The preview's id")),
    responses((status = 204, description = "They are worth nothing")))]
pub async fn revoke_preview_shares(
    State(api): State<Api>,
    Id(id): Id,
    Part(preview): Part,
) -> Result<StatusCode, ApiError> {
    api.engine.revoke_preview_shares(&sandbox_id(&id)?, &preview).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who listens on TCP ports in the guest now; nobody while the sandbox does not run. It is not woken.
#[utoipa::path(get, path = "/sandboxes/{id}/ports", tag = "previews", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<ListenerRecord>>)))]
pub async fn list_ports(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<ListenerRecord>>>, ApiError> {
    let id = sandbox_id(&id)?;
    let (listeners, previews) = (api.engine.listeners(&id).await?, api.engine.previews(&id).await?);
    let data = listeners.into_iter().map(|listener| ListenerRecord::new(listener, &previews)).collect();
    Ok(Json(Data { data }))
}

async fn record(api: &Api, id: &SandboxId, preview: Preview) -> Result<PreviewRecord, ApiError> {
    let (sandbox, grants) = (api.engine.get(id.as_str()).await?, api.engine.grants(id).await?);
    Ok(PreviewRecord::new(preview, &sandbox, &grants, api.config.alias_port))
}

/// The scope by its name.
pub(super) fn scope(word: Option<&str>, otherwise: Scope) -> Result<Scope, ApiError> {
    match word {
        None => Ok(otherwise),
        Some(word) => word.parse().map_err(|error| ApiError::invalid("scope", format!("scope: {error}"))),
    }
}
