//! Request ids, the access log line, and the net under a panic: the outermost layer of every request.
//!
//! The id is ours alone (none is taken from outside), is in every log line of the request, in the header `x-request-id`
//! and in error bodies. Work that goes on after the response head (streams, heartbeats) takes it along with [`carry`] or [`Carried`].

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::{Instrument, Span};

use crate::error::ApiError;

/// The header with the request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT: String;
}

/// The id of the request that is being answered.
pub fn request_id() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// What belongs to the request that is being answered: its id and its log span.
#[derive(Clone, Debug)]
pub struct Carried {
    id: String,
    span: Span,
}

impl Carried {
    /// Of the request that is being answered here.
    pub fn here() -> Self {
        Self { id: request_id().unwrap_or_default(), span: Span::current() }
    }

    /// `work` as a part of that request, wherever it is polled.
    pub fn run<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.id.clone(), work.instrument(self.span.clone()))
    }
}

/// `work` as a part of this request, also when it is polled after the handler returned.
pub fn carry<F: Future>(work: F) -> impl Future<Output = F::Output> {
    Carried::here().run(work)
}

/// A new id: unique within the life of this data directory, and short enough to be read out.
fn new_request_id() -> String {
    static START_MICROS: LazyLock<u128> =
        LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros()));
    static COUNT: AtomicU64 = AtomicU64::new(1);
    format!("req_{:x}_{:x}", *START_MICROS, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Middleware: gives the request an id and a span, turns a panic into a 500, and writes one log line.
pub async fn trace(request: Request, next: Next) -> Response {
    let id = new_request_id();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let sandbox_id = sandbox_id_in(&path).unwrap_or_default().to_owned();
    let span = tracing::info_span!("request", request_id = %id, sandbox_id);
    let began = Instant::now();

    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().map(|outcome| {
        outcome.unwrap_or_else(|_| ApiError::internal("The server met a bug; the log has the details.").into_response())
    });
    let work = async move {
        let response = answer.await;
        let status = response.status().as_u16();
        let head_ms = began.elapsed().as_millis() as u64;
        tracing::info!(%method, path, status, head_ms, "answered");
        response
    };
    let mut response = CURRENT.scope(id.clone(), work.instrument(span)).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The sandbox id in a path, for the log span.
fn sandbox_id_in(path: &str) -> Option<&str> {
    let after = path.split_once("/sandboxes/")?.1;
    let id = after.split('/').next().unwrap_or(after);
    (id.starts_with("sbx_") && id.len() <= 64).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_id_is_found_under_every_prefix() {
        assert_eq!(sandbox_id_in("/api/v1/sandboxes/sbx_1/exec"), Some("sbx_1"));
        assert_eq!(sandbox_id_in("/sandboxes/sbx_1"), Some("sbx_1"));
        assert_eq!(sandbox_id_in("/sandboxes/by-name/x"), None);
        assert_eq!(sandbox_id_in("/healthz"), None);
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(new_request_id(), new_request_id());
    }
}
