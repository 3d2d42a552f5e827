//! What sandboxes can be made from (contract 8.15).

use axum::Json;
use axum::extract::State;

use crate::Api;
use crate::error::ApiError;
use crate::extract::Id;
use crate::types::{Data, TemplateList, TemplateRecord};

/// All templates, and which is the default.
#[utoipa::path(get, path = "/sandbox-templates", tag = "templates", responses((status = 200, body = TemplateList)))]
pub async fn list_templates(State(api): State<Api>) -> Result<Json<TemplateList>, ApiError> {
    Ok(Json(TemplateList::of(api.engine.templates().await?)))
}

/// One template, by id, slug or alias.
#[utoipa::path(get, path = "/sandbox-templates/{id}", tag = "templates", params(("id" = String, Path)),
    responses((status = 200, body = Data<TemplateRecord>)))]
pub async fn get_template(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<TemplateRecord>>, ApiError> {
    Ok(Json(Data { data: api.engine.template(&id).await?.into() }))
}
