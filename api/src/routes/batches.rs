//! Many sandboxes by one call (contract C45-C49), and the same as operations (X121-X123).

use std::collections::VecDeque;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use cove_engine::{BATCH_COUNT_MAX, Batch, BatchChanges, BatchSpec, Engine};
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::ApiError;
use crate::extract::{JsonBody, Part, Query, number};
use crate::sse;
use crate::types::{BatchBody, BatchItemRecord, BatchItems, BatchRecord, CheckedBatch, Data, OperationRecord, failure};

/// Items of one page when nobody says.
const ITEMS_DEFAULT: u32 = 100;

/// Most items of one page.
const ITEMS_MAX: u32 = 500;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(create_batch))
        .routes(routes!(get_batch))
        .routes(routes!(list_batch_items))
        .routes(routes!(cancel_batch))
        .routes(routes!(stream_batch_events))
        .routes(routes!(get_operation))
        .routes(routes!(stream_operation_events))
        .routes(routes!(cancel_operation))
}

/// Begins to make many sandboxes, a few at a time, and answers at once.
#[utoipa::path(post, path = "/sandboxes/batch", tag = "batches", request_body = BatchBody,
    responses((status = 202, body = Data<BatchRecord>)))]
pub async fn create_batch(
    State(api): State<Api>,
    JsonBody(body): JsonBody<BatchBody>,
) -> Result<(StatusCode, Json<Data<BatchRecord>>), ApiError> {
    let CheckedBatch { concurrency, request, items } = body.check(BATCH_COUNT_MAX)?;
    let template = items.iter().flatten().find_map(|spec| spec.template.clone());
    if let Some(template) = template {
        // What no sandbox could be made from is no batch.
        api.engine.template(&template).await?;
    }
    let explain = |error| failure(&ApiError::from(error));
    let batch = api.engine.create_batch(BatchSpec { items, concurrency, request, explain }).await?;
    Ok((StatusCode::ACCEPTED, Json(Data { data: record(&api.engine, batch).await? })))
}

async fn record(engine: &Engine, batch: Batch) -> Result<BatchRecord, ApiError> {
    let runtime = engine.batch_runtime_counts(&batch.id).await?;
    Ok(BatchRecord::new(batch, runtime))
}

/// A batch as it is now; a settled one for seven days.
#[utoipa::path(get, path = "/sandboxes/batches/{part}", tag = "batches", params(("part" = String, Path)),
    responses((status = 200, body = Data<BatchRecord>)))]
pub async fn get_batch(State(api): State<Api>, Part(id): Part) -> Result<Json<Data<BatchRecord>>, ApiError> {
    let batch = api.engine.batch(&id).await?;
    Ok(Json(Data { data: record(&api.engine, batch).await? }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ItemsQuery {
    /// Most items of the page, up to 500; 100 when absent.
    limit: Option<String>,
    /// Where the page begins: `next_cursor` of the one before.
    cursor: Option<String>,
}

/// A batch's items in their order.
#[utoipa::path(get, path = "/sandboxes/batches/{part}/items", tag = "batches",
    params(("part" = String, Path), ItemsQuery), responses((status = 200, body = BatchItems)))]
pub async fn list_batch_items(
    State(api): State<Api>,
    Part(id): Part,
    Query(query): Query<ItemsQuery>,
) -> Result<Json<BatchItems>, ApiError> {
    let limit = query.limit.as_deref().map_or(Ok(ITEMS_DEFAULT), |text| number("limit", text))?.clamp(1, ITEMS_MAX);
    let from: u32 = query.cursor.as_deref().map_or(Ok(0), |text| number("cursor", text))?;
    let mut items = api.engine.batch_items(&id, from, limit + 1).await?;
    let next_cursor = items.get(limit as usize).map(|item| item.position.to_string());
    items.truncate(limit as usize);
    Ok(Json(BatchItems { data: items.into_iter().map(BatchItemRecord::from).collect(), next_cursor }))
}

/// Begins no further sandbox; those that are being made are finished, and those that are made stay.
#[utoipa::path(post, path = "/sandboxes/batches/{part}/cancel", tag = "batches", params(("part" = String, Path)),
    responses((status = 200, body = Data<BatchRecord>)))]
pub async fn cancel_batch(State(api): State<Api>, Part(id): Part) -> Result<Json<Data<BatchRecord>>, ApiError> {
    let batch = api.engine.cancel_batch(&id).await?;
    Ok(Json(Data { data: record(&api.engine, batch).await? }))
}

/// The batch now and after each change: `batch_progress`, and at last `batch_settled`.
#[utoipa::path(get, path = "/sandboxes/batches/{part}/events", tag = "batches", params(("part" = String, Path)),
    responses((status = 200, description = "Server-sent events of BatchRecord", content_type = "text/event-stream", body = BatchRecord)))]
pub async fn stream_batch_events(State(api): State<Api>, Part(id): Part) -> Result<Response, ApiError> {
    let changes = api.engine.follow_batch(&id).await?;
    let engine = api.engine.clone();
    let frames = frames(changes, move |batch| {
        let engine = engine.clone();
        async move {
            let event = if batch.status.is_settled() { "batch_settled" } else { "batch_progress" };
            match record(&engine, batch).await {
                Ok(record) => sse::frame(event, &record),
                Err(error) => sse::error_frame(error),
            }
        }
    });
    Ok(sse::response(frames, api.config.stopping.clone()))
}

/// A frame for the batch now, and for each change to the last.
fn frames<F>(changes: BatchChanges, frame: impl Fn(Batch) -> F + Send + 'static) -> impl Stream<Item = Bytes> + Send
where
    F: Future<Output = Bytes> + Send,
{
    struct State<M> {
        waiting: VecDeque<Batch>,
        later: Option<Receiver<Batch>>,
        frame: M,
    }
    let state = State { waiting: [changes.now].into(), later: changes.later, frame };
    stream::unfold(state, |mut state| async move {
        let batch = match state.waiting.pop_front() {
            Some(batch) => batch,
            None => next(state.later.as_mut()?).await?,
        };
        if batch.status.is_settled() {
            state.later = None;
        }
        Some(((state.frame)(batch).await, state))
    })
}

async fn next(later: &mut Receiver<Batch>) -> Option<Batch> {
    loop {
        match later.recv().await {
            Ok(batch) => return Some(batch),
            // Each change has the whole batch: the next one makes up for those that were missed.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

/// A batch as an operation. There are no others: all other calls answer when they are done.
#[utoipa::path(get, path = "/operations/{part}", tag = "batches", params(("part" = String, Path)),
    responses((status = 200, body = Data<OperationRecord>)))]
pub async fn get_operation(State(api): State<Api>, Part(id): Part) -> Result<Json<Data<OperationRecord>>, ApiError> {
    Ok(Json(Data { data: api.engine.batch(&id).await?.into() }))
}

/// The operation now and after each change: `operation.progress`, and at last `operation.finished`.
#[utoipa::path(get, path = "/operations/{part}/events", tag = "batches", params(("part" = String, Path)),
    responses((status = 200, description = "Server-sent events of OperationRecord", content_type = "text/event-stream", body = OperationRecord)))]
pub async fn stream_operation_events(State(api): State<Api>, Part(id): Part) -> Result<Response, ApiError> {
    let changes = api.engine.follow_batch(&id).await?;
    let frames = frames(changes, |batch| async move {
        let event = if batch.status.is_settled() { "operation.finished" } else { "operation.progress" };
        sse::frame(event, &OperationRecord::from(batch))
    });
    Ok(sse::response(frames, api.config.stopping.clone()))
}

/// Cancels it. One that has ended is 409 `OPERATION_NOT_CANCELLABLE`.
#[utoipa::path(post, path = "/operations/{part}/cancel", tag = "batches", params(("part" = String, Path)),
    responses((status = 200, body = Data<OperationRecord>)))]
pub async fn cancel_operation(State(api): State<Api>, Part(id): Part) -> Result<Json<Data<OperationRecord>>, ApiError> {
    let batch = api.engine.batch(&id).await?;
    if batch.status.is_settled() {
        let message = format!("The operation {id} has ended: {}", batch.status.as_str());
        return Err(ApiError::new(StatusCode::CONFLICT, "OPERATION_NOT_CANCELLABLE", message));
    }
    Ok(Json(Data { data: api.engine.cancel_batch(&id).await?.into() }))
}
