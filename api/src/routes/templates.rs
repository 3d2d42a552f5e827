//! What sandboxes can be made from (contract 8.15).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBytes, parse};
use crate::heartbeat;
use crate::types::{CreateBody, Data, TemplateList, TemplateRecord};

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

/// Makes a template warm for a shape and answers when it is: creates of that kind do not boot from then on. Of the body only
/// the shape counts; nothing is made again that is there. An addition to the contract.
#[utoipa::path(post, path = "/sandbox-templates/{id}/warm", tag = "templates", params(("id" = String, Path)),
    request_body = CreateBody, responses((status = 200, body = Data<TemplateRecord>)))]
pub async fn warm_template(
    State(api): State<Api>,
    Id(id): Id,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let template = api.engine.template(&id).await?;
    let mut body: CreateBody = parse(&body)?;
    body.template_id = Some(template.id.clone());
    let spec = body.into_spec()?;
    let work = async move {
        api.engine.prepare_template(spec).await?;
        Ok::<_, ApiError>(Data { data: TemplateRecord::from(template) })
    };
    Ok(heartbeat::answer(StatusCode::OK, work).await)
}
