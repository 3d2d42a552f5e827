//! The route table, in the order of a sandbox's life.
//!
//! Paths here have no prefix: see [`crate::mount`]. What an `{id}` is, and what no route matches, is decided here.

mod exec;
mod files;
mod readiness;
mod sandboxes;
mod system;
mod templates;
mod transfer;

use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode};
use cove_engine::{Error, SandboxId};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::ApiError;
use crate::openapi::Document;

/// Words that stand where a sandbox's id would, for routes this server does not have.
const RESERVED: [&str; 4] = ["run", "batch", "batches", "runtimes"];

/// Every route, and the document that describes them.
pub(crate) fn all() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(templates::list_templates))
        .routes(routes!(templates::get_template))
        .routes(routes!(sandboxes::create_sandbox, sandboxes::list_sandboxes))
        .routes(routes!(sandboxes::get_sandbox, sandboxes::destroy_sandbox))
        .routes(routes!(sandboxes::get_sandbox_by_name))
        .routes(routes!(readiness::get_readiness))
        .routes(routes!(readiness::stream_readiness))
        .routes(routes!(exec::exec_command))
        .routes(routes!(exec::exec_command_stream))
        .merge(files::routes())
        .merge(transfer::routes())
        .routes(routes!(system::get_logs))
        .routes(routes!(system::get_stats))
        .routes(routes!(system::get_system))
        .routes(routes!(system::get_health))
}

/// The sandbox that an `{id}` names. What is no id names no sandbox: 404, never 400 (contract section 4).
fn sandbox_id(id: &str) -> Result<SandboxId, ApiError> {
    SandboxId::parse(id).ok_or_else(|| Error::SandboxNotFound(id.to_owned()).into())
}

/// No route has this path.
pub(crate) async fn unknown_route(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    not_here(&method, uri.path())
}

/// A route has this path, but not this method.
pub(crate) async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    let path = uri.path();
    if path.rsplit('/').next().is_some_and(|word| RESERVED.contains(&word)) {
        return not_here(&method, path);
    }
    let message = format!("{path} does not know the method {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
}

fn not_here(method: &Method, path: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "NOT_FOUND", format!("This server has no {method} {path}"))
}
