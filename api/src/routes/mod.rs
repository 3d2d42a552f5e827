//! The route table, in the order of a sandbox's life.
//!
//! Paths here have no prefix: see [`crate::mount`]. What an `{id}` is, and what no route matches, is decided here.

mod artifacts;
mod batches;
mod bulk;
mod code;
mod commands;
mod elsewhere;
mod env;
mod events;
mod exec;
mod exports;
mod files;
mod fork;
mod history;
mod life;
mod local;
mod logs;
mod metrics;
mod named;
mod previews;
mod processes;
mod readiness;
mod run;
mod sandboxes;
mod shares;
mod snapshots;
mod start;
mod system;
mod templates;
mod terminal;
mod transfer;
mod tree;
mod tunnel;

use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::ApiError;
use crate::openapi::Document;
use crate::types::sandbox_id;

/// Words that stand where a sandbox's id would, for routes this server does not have.
const RESERVED: [&str; 4] = ["run", "batch", "batches", "runtimes"];

/// Every route, and the document that describes them.
pub(crate) fn all() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(templates::list_templates))
        .routes(routes!(templates::get_template))
        .routes(routes!(templates::warm_template))
        .routes(routes!(sandboxes::create_sandbox, sandboxes::list_sandboxes))
        .routes(routes!(run::run_sandbox))
        .routes(routes!(sandboxes::get_sandbox, life::update_sandbox, sandboxes::destroy_sandbox))
        .routes(routes!(sandboxes::get_sandbox_by_name))
        .routes(routes!(life::set_tags))
        .routes(routes!(life::pause_sandbox))
        .routes(routes!(life::resume_sandbox))
        .routes(routes!(life::stop_sandbox))
        .routes(routes!(life::extend_sandbox))
        .routes(routes!(bulk::pause_sandboxes))
        .routes(routes!(bulk::resume_sandboxes))
        .routes(routes!(bulk::destroy_sandboxes))
        .merge(batches::routes())
        .merge(local::routes())
        .routes(routes!(start::start_template))
        .routes(routes!(readiness::get_readiness))
        .routes(routes!(readiness::stream_readiness))
        .merge(env::routes())
        .merge(events::routes())
        .routes(routes!(exec::exec_command))
        .routes(routes!(exec::exec_command_stream))
        .merge(processes::routes())
        .merge(commands::routes())
        .merge(code::routes())
        .merge(terminal::routes())
        .merge(files::routes())
        .merge(tree::routes())
        .merge(exports::routes())
        .merge(artifacts::routes())
        .merge(transfer::routes())
        .merge(previews::routes())
        .merge(shares::routes())
        .routes(routes!(tunnel::open_tunnel))
        .routes(routes!(snapshots::create_snapshot, snapshots::list_snapshots))
        .routes(routes!(snapshots::create_snapshot_legacy))
        .routes(routes!(snapshots::delete_snapshot))
        .routes(routes!(snapshots::restore_snapshot))
        .routes(routes!(fork::fork_sandbox))
        .merge(history::routes())
        .routes(routes!(fork::fork_snapshot))
        .routes(routes!(named::list_named_snapshots, named::create_named_snapshot))
        .routes(routes!(named::get_named_snapshot, named::delete_named_snapshot))
        .routes(routes!(fork::deploy_named_snapshot))
        .merge(logs::routes())
        .merge(metrics::routes())
        .routes(routes!(system::get_stats))
        .routes(routes!(system::get_system))
        .routes(routes!(system::get_disk_use))
        .routes(routes!(system::get_checks))
        .routes(routes!(system::get_health))
}

/// No route has this path.
pub(crate) async fn unknown_route(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    let path = uri.path();
    elsewhere::answer(path).unwrap_or_else(|| not_here(&method, path))
}

/// A route has this path, but not this method.
pub(crate) async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    let path = uri.path();
    if path.rsplit('/').next().is_some_and(|word| RESERVED.contains(&word)) {
        return not_here(&method, path);
    }
    if let Some(error) = elsewhere::answer(path) {
        return error;
    }
    let message = format!("{path} does not know the method {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
}

fn not_here(method: &Method, path: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "NOT_FOUND", format!("This server has no {method} {path}"))
}
