//! Health, limits, and what a machine says about itself.

use axum::Json;
use axum::extract::State;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::Id;
use crate::types::{Data, Diagnosis, DiskUse, Health, HostInfo, MachineFigures, SystemInfo};

/// The server's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

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

/// What this computer has and lacks for machines, checked one by one, and what to do; as `cove doctor` prints it.
#[utoipa::path(get, path = "/system/checks", tag = "system", responses((status = 200, body = Data<Diagnosis>)))]
pub async fn get_checks(State(api): State<Api>) -> Json<Data<Diagnosis>> {
    Json(Data { data: api.engine.doctor().await.into() })
}

/// What sandboxes, snapshots and prepared machines take on the disk, by share: what each holds alone, and what several
/// need; and what the disk has.
#[utoipa::path(get, path = "/system/disk", tag = "system", responses((status = 200, body = Data<DiskUse>)))]
pub async fn get_disk_use(State(api): State<Api>) -> Result<Json<Data<DiskUse>>, ApiError> {
    Ok(Json(Data { data: api.engine.disk_use().await?.into() }))
}

/// Figures of the sandbox's machine since it started.
#[utoipa::path(get, path = "/sandboxes/{id}/stats", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Data<MachineFigures>)))]
pub async fn get_stats(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<MachineFigures>>, ApiError> {
    Ok(Json(Data { data: api.engine.stats(&sandbox_id(&id)?).await?.into() }))
}
