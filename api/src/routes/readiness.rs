//! Is a sandbox command-ready, now and as soon as it is (contract 8.7).

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use cove_engine::{Sandbox, SandboxState};
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::Id;
use crate::sse;
use crate::types::{Data, Readiness, WaitOver};

/// How long the stream waits before it gives up with `timeout`.
const READY_WAIT: Duration = Duration::from_secs(60);

/// How far a sandbox is.
#[utoipa::path(get, path = "/sandboxes/{id}/readiness", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Data<Readiness>)))]
pub async fn get_readiness(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Readiness>>, ApiError> {
    Ok(Json(Data { data: api.engine.readiness(&sandbox_id(&id)?).await?.into() }))
}

/// One event: `ready` as soon as the sandbox is command-ready, or `timeout` when it will not be or after 60 s.
#[utoipa::path(get, path = "/sandboxes/{id}/readiness/stream", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = WaitOver, content_type = "text/event-stream")))]
pub async fn stream_readiness(State(api): State<Api>, Id(id): Id) -> Result<Response, ApiError> {
    let changes = api.engine.watch(&sandbox_id(&id)?).await?;
    let last = stream::once(verdict(changes, Instant::now() + READY_WAIT));
    Ok(sse::response(last, api.config.stopping.clone()))
}

async fn verdict(mut changes: watch::Receiver<Sandbox>, deadline: Instant) -> Bytes {
    loop {
        let sandbox = changes.borrow_and_update().clone();
        if let Some(frame) = early_verdict(&sandbox) {
            return frame;
        }
        let reason = match timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => "The sandbox is gone",
            Err(_) => "The sandbox is not ready yet",
        };
        return sse::frame("timeout", &WaitOver { state: sandbox.state, ready_at: None, reason: Some(reason.into()) });
    }
}

/// What can be said without waiting.
fn early_verdict(sandbox: &Sandbox) -> Option<Bytes> {
    use SandboxState::*;
    let never = |reason: String| WaitOver { state: sandbox.state, ready_at: None, reason: Some(reason) };
    match sandbox.state {
        Running => {
            let ready_at = sandbox.ready_at.map(crate::types::timestamp);
            Some(sse::frame("ready", &WaitOver { state: sandbox.state, ready_at, reason: None }))
        }
        Error => {
            let reason = sandbox.last_error.clone().unwrap_or_else(|| "The sandbox failed".into());
            Some(sse::frame("timeout", &never(reason)))
        }
        Destroying | Destroyed => Some(sse::frame("timeout", &never("The sandbox is destroyed".into()))),
        Creating | Pausing | Paused | Resuming | Snapshotting => None,
    }
}
