//! Pause, resume and destroy many sandboxes in one call (contract X57-X59). Each succeeds or fails by itself.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cove_engine::{Engine, Error};
use futures_util::{StreamExt, TryFutureExt, stream};

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::JsonBody;
use crate::heartbeat::{self, Unmistakable};
use crate::idempotency::detached;
use crate::types::{BulkBody, BulkFailure, BulkOutcome, Data, Many};

/// How many sandboxes are worked on at a time: each is a machine that moves its memory.
const AT_ONCE: usize = 4;

#[derive(Clone, Copy)]
enum Act {
    Pause,
    Resume,
    Destroy,
}

impl Act {
    async fn on(self, engine: &Engine, id: &str) -> Result<(), ApiError> {
        let id = sandbox_id(id)?;
        let done: Result<_, Error> = match self {
            Act::Pause => engine.pause(&id).await,
            Act::Resume => engine.resume(&id, BTreeMap::new()).await,
            Act::Destroy => engine.destroy(&id).await,
        };
        Ok(done.map(drop)?)
    }
}

async fn answer(engine: Engine, body: BulkBody, act: Act) -> Result<Response, ApiError> {
    let many = body.into_many()?;
    let work = detached(async move {
        let ids = match many {
            Many::Ids(ids) => ids,
            Many::Filter(filter) => engine.list(&filter).await?.iter().map(|sandbox| sandbox.id.to_string()).collect(),
        };
        let done = stream::iter(ids).map(|id| {
            let engine = engine.clone();
            async move {
                let outcome = act.on(&engine, &id).await;
                (id, outcome)
            }
        });
        let mut outcome = BulkOutcome::default();
        let mut done = std::pin::pin!(done.buffered(AT_ONCE));
        while let Some((id, one)) = done.next().await {
            match one {
                Ok(()) => outcome.succeeded.push(id),
                Err(error) => outcome.failed.push(BulkFailure::of(id, &error)),
            }
        }
        Ok(Data { data: outcome })
    });
    Ok(heartbeat::answer(StatusCode::OK, work.map_err(Unmistakable)).await)
}

/// Pauses sandboxes.
#[utoipa::path(post, path = "/bulk/sandboxes/pause", tag = "sandboxes", request_body = BulkBody,
    responses((status = 200, body = Data<BulkOutcome>)))]
pub async fn pause_sandboxes(State(api): State<Api>, JsonBody(body): JsonBody<BulkBody>) -> Result<Response, ApiError> {
    answer(api.engine, body, Act::Pause).await
}

/// Resumes sandboxes.
#[utoipa::path(post, path = "/bulk/sandboxes/resume", tag = "sandboxes", request_body = BulkBody,
    responses((status = 200, body = Data<BulkOutcome>)))]
pub async fn resume_sandboxes(
    State(api): State<Api>,
    JsonBody(body): JsonBody<BulkBody>,
) -> Result<Response, ApiError> {
    answer(api.engine, body, Act::Resume).await
}

/// Destroys sandboxes, with all that is in them.
#[utoipa::path(post, path = "/bulk/sandboxes/destroy", tag = "sandboxes", request_body = BulkBody,
    responses((status = 200, body = Data<BulkOutcome>)))]
pub async fn destroy_sandboxes(
    State(api): State<Api>,
    JsonBody(body): JsonBody<BulkBody>,
) -> Result<Response, ApiError> {
    answer(api.engine, body, Act::Destroy).await
}
