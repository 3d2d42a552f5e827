//! Tokens for all previews of a sandbox (contract X45-X48).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use cove_engine::{Engine, GrantKind, GrantSpec, Preview, PreviewSpec, SandboxId, Scope};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::previews::scope;
use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Part};
use crate::types::{Data, PreviewTokenBody, PreviewTokenRecord, ShareBody, ShareRecord};

/// Longest life of a preview token, in seconds, and how long it lives when nobody says.
const TOKEN_SECONDS_MAX: u32 = 86_400;
const TOKEN_SECONDS: u32 = 3600;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create_preview_token))
        .routes(routes!(create_share, list_shares))
        .routes(routes!(revoke_share))
}

/// Makes a token for all previews that the sandbox has and will have. The URL leads to its first preview; where it has none,
/// port 3000 is exposed.
#[utoipa::path(post, path = "/sandboxes/{id}/preview-token", tag = "previews", params(("id" = String, Path)),
    request_body = PreviewTokenBody, responses((status = 200, body = Data<PreviewTokenRecord>)))]
pub async fn create_preview_token(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<PreviewTokenBody>,
) -> Result<Json<Data<PreviewTokenRecord>>, ApiError> {
    let id = sandbox_id(&id)?;
    let seconds = body.expires_in.unwrap_or(TOKEN_SECONDS);
    if !(1..=TOKEN_SECONDS_MAX).contains(&seconds) {
        let message = format!("expires_in is {seconds}, and must be 1 to {TOKEN_SECONDS_MAX} seconds");
        return Err(ApiError::invalid("expires_in", message));
    }
    let scope = scope(body.scope.as_deref(), Scope::Read)?;
    let preview = target(&api.engine, &id, body.port).await?;
    let spec = GrantSpec { kind: GrantKind::PreviewToken, scope, ttl_sec: Some(seconds) };
    let minted = api.engine.grant(&id, None, spec).await?;
    Ok(Json(Data { data: PreviewTokenRecord::new(&preview, minted) }))
}

/// Makes a share of all previews that the sandbox has and will have; it is listed and can be taken back.
#[utoipa::path(post, path = "/sandboxes/{id}/shares", tag = "previews", params(("id" = String, Path)),
    request_body = ShareBody, responses((status = 201, body = Data<ShareRecord>)))]
pub async fn create_share(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ShareBody>,
) -> Result<(StatusCode, Json<Data<ShareRecord>>), ApiError> {
    let id = sandbox_id(&id)?;
    let scope = scope(body.scope.as_deref(), Scope::Read)?;
    let preview = target(&api.engine, &id, body.port).await?;
    let spec = GrantSpec { kind: GrantKind::Share, scope, ttl_sec: body.expires_in };
    let minted = api.engine.grant(&id, None, spec).await?;
    Ok((StatusCode::CREATED, Json(Data { data: ShareRecord::fresh(&preview, minted) })))
}

/// A sandbox's shares, oldest first, without their tokens.
#[utoipa::path(get, path = "/sandboxes/{id}/shares", tag = "previews", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<ShareRecord>>)))]
pub async fn list_shares(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<ShareRecord>>>, ApiError> {
    let grants = api.engine.grants(&sandbox_id(&id)?).await?;
    let shares = grants.into_iter().filter(|grant| grant.kind == GrantKind::Share);
    Ok(Json(Data { data: shares.map(ShareRecord::from).collect() }))
}

/// Takes a share back.
#[utoipa::path(delete, path = "/sandboxes/{id}/shares/{part}", tag = "previews",
    params(("id" = String, Path), ("part" = String, Path, description = "The share's id")),
    responses((status = 204, description = "It is worth nothing")))]
pub async fn revoke_share(State(api): State<Api>, Id(id): Id, Part(share): Part) -> Result<StatusCode, ApiError> {
    api.engine.revoke_share(&sandbox_id(&id)?, &share).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The preview that a token's URL leads to: of the port, or the sandbox's first; made where there is none.
async fn target(engine: &Engine, id: &SandboxId, port: Option<u16>) -> Result<Preview, ApiError> {
    let previews = engine.previews(id).await?;
    let found = previews.into_iter().find(|preview| port.is_none_or(|port| preview.port == port));
    match found {
        Some(preview) => Ok(preview),
        None => Ok(engine.expose(id, PreviewSpec { port, ..PreviewSpec::default() }).await?.0),
    }
}
