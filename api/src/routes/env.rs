//! A sandbox's environment (contract C35, X41, X42): what every process that is started from then on gets.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use cove_engine::{Sandbox, SandboxUpdate};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{EnvKey, Id, JsonBody};
use crate::types::{Data, EnvBody, EnvRemoved, EnvVariable};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(list_env, set_env)).routes(routes!(delete_env))
}

/// The variables, names in byte order.
#[utoipa::path(get, path = "/sandboxes/{id}/env", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<EnvVariable>>)))]
pub async fn list_env(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<EnvVariable>>>, ApiError> {
    let id = sandbox_id(&id)?;
    Ok(Json(Data { data: listed(api.engine.get(id.as_str()).await?) }))
}

/// Sets variables; others stay. Processes that are started from then on see them, also in a running sandbox.
#[utoipa::path(put, path = "/sandboxes/{id}/env", tag = "sandboxes", params(("id" = String, Path)),
    request_body = EnvBody, responses((status = 200, body = Data<Vec<EnvVariable>>)))]
pub async fn set_env(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<EnvBody>,
) -> Result<Json<Data<Vec<EnvVariable>>>, ApiError> {
    let id = sandbox_id(&id)?;
    let update = SandboxUpdate { env: changes(body)?, ..SandboxUpdate::default() };
    Ok(Json(Data { data: listed(api.engine.update(&id, update).await?) }))
}

/// Takes a variable away.
#[utoipa::path(delete, path = "/sandboxes/{id}/env/{key}", tag = "sandboxes",
    params(("id" = String, Path), ("key" = String, Path)), responses((status = 200, body = Data<EnvRemoved>)))]
pub async fn delete_env(
    State(api): State<Api>,
    Id(id): Id,
    EnvKey(name): EnvKey,
) -> Result<Json<Data<EnvRemoved>>, ApiError> {
    let id = sandbox_id(&id)?;
    if !api.engine.get(id.as_str()).await?.env.contains_key(&name) {
        let message = format!("Sandbox {id} has no variable '{}'", name.escape_debug());
        return Err(ApiError::new(StatusCode::NOT_FOUND, "NOT_FOUND", message));
    }
    let env = BTreeMap::from([(name.clone(), None)]);
    api.engine.update(&id, SandboxUpdate { env, ..SandboxUpdate::default() }).await?;
    Ok(Json(Data { data: EnvRemoved { deleted: true, name } }))
}

fn listed(sandbox: Sandbox) -> Vec<EnvVariable> {
    sandbox.env.into_iter().map(|(key, value)| EnvVariable { key, value, encrypted: false }).collect()
}

fn changes(body: EnvBody) -> Result<BTreeMap<String, Option<String>>, ApiError> {
    let mut changes = BTreeMap::new();
    for (at, variable) in body.vars.into_iter().enumerate() {
        if variable.encrypted == Some(true) {
            let field = format!("vars[{at}].encrypted");
            let message = format!("{field} is true, but this server shows every variable to whoever has its token");
            return Err(ApiError::invalid(&field, message));
        }
        changes.insert(variable.key, Some(variable.value));
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_of_two_values_counts_and_secrets_are_refused() {
        let of = |vars| changes(serde_json::from_value(json!({ "vars": vars })).unwrap());
        let twice = json!([{"key": "A", "value": "1"}, {"key": "A", "value": "2", "encrypted": false}]);
        assert_eq!(of(twice).unwrap(), BTreeMap::from([("A".into(), Some("2".into()))]));
        let secret = json!([{"key": "A", "value": "1"}, {"key": "B", "value": "1", "encrypted": true}]);
        let error = of(secret).unwrap_err();
        assert!(error.message().starts_with("vars[1].encrypted"), "{}", error.message());
    }
}
