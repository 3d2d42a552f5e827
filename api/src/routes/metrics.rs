//! What a sandbox uses: in all, over time, and what it could use (contract X03-X06).

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use cove_engine::{Error, Sandbox, SandboxState};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Query};
use crate::types::{
    Data, MetricsRecord, ResizeBody, ResizeCapabilities, Resized, Resources, ResourcesRecord, UsageRecord,
};

/// The time that figures are wanted of when the caller does not say, and the longest.
const WINDOW_DEFAULT: &str = "1h";
const WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why no shape changes.
const SHAPE_IS_FIXED: &str = "A machine keeps the shape that it was made with: fork the sandbox, or make another one";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(get_usage))
        .routes(routes!(get_metrics))
        .routes(routes!(get_resources, resize))
}

/// What the sandbox used in all its sessions, up to now.
#[utoipa::path(get, path = "/sandboxes/{id}/usage", tag = "metrics", params(("id" = String, Path)),
    responses((status = 200, body = Data<UsageRecord>)))]
pub async fn get_usage(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<UsageRecord>>, ApiError> {
    Ok(Json(Data { data: api.engine.usage(&sandbox_id(&id)?).await?.into() }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MetricsQuery {
    /// How far back: a number of seconds, or with `s`, `m` or `h` behind it; `1h` when absent, at most `24h`.
    window: Option<String>,
}

/// Processor, memory and disk of the sandbox over time. Asking does not wake it up.
#[utoipa::path(get, path = "/sandboxes/{id}/metrics", tag = "metrics", params(("id" = String, Path), MetricsQuery),
    responses((status = 200, body = Data<MetricsRecord>)))]
pub async fn get_metrics(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<MetricsQuery>,
) -> Result<Json<Data<MetricsRecord>>, ApiError> {
    let text = query.window.unwrap_or_else(|| WINDOW_DEFAULT.into());
    let window = window(&text)?;
    Ok(Json(Data { data: MetricsRecord::of(api.engine.metrics(&sandbox_id(&id)?, window).await?, text) }))
}

fn window(text: &str) -> Result<Duration, ApiError> {
    let (number, unit_sec) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        Some(b'd') => (&text[..text.len() - 1], 86_400),
        _ => (text, 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_sec));
    match seconds.map(Duration::from_secs) {
        Some(window) if !window.is_zero() && window <= WINDOW_MAX => Ok(window),
        _ => {
            let message = format!("window is '{}'; it must be between 1s and 24h, such as 30m", text.escape_debug());
            Err(ApiError::invalid("window", message))
        }
    }
}

/// What the sandbox has, and what of it can change while it runs.
#[utoipa::path(get, path = "/sandboxes/{id}/resources", tag = "metrics", params(("id" = String, Path)),
    responses((status = 200, body = Data<ResourcesRecord>)))]
pub async fn get_resources(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<ResourcesRecord>>, ApiError> {
    let sandbox = api.engine.get(sandbox_id(&id)?.as_str()).await?;
    let data =
        ResourcesRecord { id: sandbox.id.to_string(), resources: resources(&sandbox), capabilities: capabilities() };
    Ok(Json(Data { data }))
}

/// Changes the shape where the machine can. This server's machines cannot: 409 `RESIZE_UNSUPPORTED`, unless the sandbox has
/// that shape already.
#[utoipa::path(patch, path = "/sandboxes/{id}/resources", tag = "metrics", params(("id" = String, Path)),
    request_body = ResizeBody, responses((status = 200, description = "It has that shape", body = Data<Resized>)))]
pub async fn resize(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ResizeBody>,
) -> Result<Json<Data<Resized>>, ApiError> {
    let id = sandbox_id(&id)?;
    let sandbox = api.engine.get(id.as_str()).await?;
    if matches!(sandbox.state, SandboxState::Destroying | SandboxState::Destroyed) {
        return Err(Error::SandboxDestroyed(id).into());
    }
    if body.cpu_count.is_none() && body.memory_mb.is_none() {
        return Err(ApiError::invalid("cpu_count", "cpu_count is missing; or give memory_mb"));
    }
    let limits = api.engine.limits();
    for (field, wanted, range) in
        [("cpu_count", body.cpu_count, limits.cpu_count), ("memory_mb", body.memory_mb, limits.memory_mb)]
    {
        if let Some(wanted) = wanted.filter(|wanted| !range.contains(wanted)) {
            let message = format!("{field} is {wanted}; it must be between {} and {}", range.start(), range.end());
            return Err(ApiError::invalid(field, message));
        }
    }
    let same = body.cpu_count.is_none_or(|cpus| cpus == sandbox.shape.cpu_count)
        && body.memory_mb.is_none_or(|memory| memory == sandbox.shape.memory_mb);
    if !same {
        return Err(ApiError::new(StatusCode::CONFLICT, "RESIZE_UNSUPPORTED", SHAPE_IS_FIXED));
    }
    let data = Resized {
        applied_live: true,
        requires_restart: false,
        changes: serde_json::Map::new(),
        resources: resources(&sandbox),
        capabilities: capabilities(),
        billing: None,
    };
    Ok(Json(Data { data }))
}

fn resources(sandbox: &Sandbox) -> Resources {
    let shape = sandbox.shape;
    let cpu_granted = sandbox.cpu_granted;
    Resources { cpu: shape.cpu_count, cpu_granted, memory_mb: shape.memory_mb, disk_size_mb: shape.disk_size_mb }
}

fn capabilities() -> ResizeCapabilities {
    ResizeCapabilities { live_cpu: false, live_memory: false, live_disk: false, reason: SHAPE_IS_FIXED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_time_of_at_most_a_day() {
        for (text, seconds) in [("1h", 3600), ("24h", 86_400), ("1d", 86_400), ("90", 90), ("90s", 90), ("5m", 300)] {
            assert_eq!(window(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in ["", "h", "0", "25h", "-1h", "1 h", "1w", "99999999999999999999h", "ü", "1ü"] {
            assert!(window(text).unwrap_err().message().starts_with("window"), "{text}");
        }
    }
}
