//! Health, limits, and what a machine says about itself.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, Query, number};
use crate::types::{Data, DiskUse, Health, HostInfo, Logs, MachineFigures, SystemInfo};

/// The server's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Lines of a console when the caller does not say, and most.
const LOG_LINES_DEFAULT: usize = 200;
const LOG_LINES_MAX: usize = 10_000;

/// Most bytes of a console that are read.
const LOG_BYTES_MAX: u32 = 1 << 20;

/// The server answers. Needs no token.
#[utoipa::path(get, path = "/healthz", tag = "system", security(()), responses((status = 200, body = Health)))]
pub async fn get_health() -> Json<Health> {
    Json(Health { status: "ok", version: VERSION })
}

/// What may be asked for, and what the host can do.
#[utoipa::path(get, path = "/system", tag = "system", responses((status = 200, body = Data<SystemInfo>)))]
pub async fn get_system(State(api): State<Api>) -> Json<Data<SystemInfo>> {
    let (limits, host) = (api.engine.limits().into(), HostInfo::of(&api.engine));
    Json(Data { data: SystemInfo { version: VERSION, limits, host } })
}

/// What sandboxes, snapshots and prepared machines take on the disk, by share: what each holds alone, and what several
/// need.
#[utoipa::path(get, path = "/system/disk", tag = "system", responses((status = 200, body = Data<DiskUse>)))]
pub async fn get_disk_use(State(api): State<Api>) -> Result<Json<Data<DiskUse>>, ApiError> {
    let shares = api.engine.shares().await?;
    let exclusive_bytes = shares.values().map(|share| share.exclusive_bytes).sum();
    let owners = shares.into_iter().map(|(owner, share)| (owner, share.into())).collect();
    Ok(Json(Data { data: DiskUse { owners, exclusive_bytes } }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// The newest lines: 200 when absent, at most 10000.
    lines: Option<String>,
}

/// The end of the sandbox's console: what its kernel and its agent said.
#[utoipa::path(get, path = "/sandboxes/{id}/logs", tag = "sandboxes", params(("id" = String, Path), LogsQuery),
    responses((status = 200, body = Data<Logs>)))]
pub async fn get_logs(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<LogsQuery>,
) -> Result<Json<Data<Logs>>, ApiError> {
    let wanted = query.lines.as_deref().map(|text| number("lines", text)).transpose()?;
    let bytes = api.engine.logs(&sandbox_id(&id)?, LOG_BYTES_MAX).await?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = last_lines(&text, wanted.unwrap_or(LOG_LINES_DEFAULT).min(LOG_LINES_MAX));
    Ok(Json(Data { data: Logs { lines } }))
}

fn last_lines(text: &str, count: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Figures of the sandbox's machine since it started.
#[utoipa::path(get, path = "/sandboxes/{id}/stats", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Data<MachineFigures>)))]
pub async fn get_stats(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<MachineFigures>>, ApiError> {
    Ok(Json(Data { data: api.engine.stats(&sandbox_id(&id)?).await?.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept() {
        assert_eq!(last_lines("a\r\nb\nc", 2), ["b", "c"]);
        assert_eq!(last_lines("a", 5), ["a"]);
        assert!(last_lines("", 5).is_empty());
    }
}
