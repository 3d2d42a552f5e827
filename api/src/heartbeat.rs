//! Answers that may take long: white space keeps the client's read timeout away (contract 2.2).
//!
//! A call that ends within [`HEARTBEAT_INTERVAL`] gets an ordinary answer with its proper status. After that the status
//! line is sent (`status`, chunked), one space follows every interval, and the JSON document comes last. JSON allows
//! white space before a document, so clients parse it as usual. **A call that fails after its first heartbeat has
//! already been answered with success: its document is the error envelope**, which a route may extend ([`Failure`]).
//!
//! The work lives inside the answer: when the client goes away, the work is dropped.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;

use crate::error::ApiError;
use crate::trace::carry;

/// From the request to the first space, and between spaces. A sixth of the SDK's read timeout.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// How a call failed, told before or after its first heartbeat.
pub trait Failure: Send + 'static {
    /// Before: an answer with its own status.
    fn early(self) -> ApiError;

    /// After: the document that ends an answer which began with success.
    fn late(self) -> impl Serialize;
}

impl Failure for ApiError {
    fn early(self) -> ApiError {
        self
    }

    fn late(self) -> impl Serialize {
        self.into_body()
    }
}

/// The answer to a call that runs `work`: `status` and its document, or the error.
pub async fn answer<T, F, W>(status: StatusCode, work: W) -> Response
where
    T: Serialize + Send + 'static,
    F: Failure,
    W: Future<Output = Result<T, F>> + Send + 'static,
{
    let mut work = Box::pin(carry(work.map(|outcome| outcome.map(|document| json_bytes(&document)))));
    match timeout(HEARTBEAT_INTERVAL, &mut work).await {
        Ok(Ok(document)) => (status, json_type(), document).into_response(),
        Ok(Err(failure)) => failure.early().into_response(),
        Err(_) => {
            let document = carry(work.map(|outcome| outcome.unwrap_or_else(|failure| json_bytes(&failure.late()))));
            let chunks = stream::once(async { Bytes::from_static(b" ") }).chain(spaces_until(document));
            (status, json_type(), Body::from_stream(chunks.map(Ok::<_, Infallible>))).into_response()
        }
    }
}

/// A space at every interval, then what `document` yields.
fn spaces_until(document: impl Future<Output = Bytes> + Send + 'static) -> impl stream::Stream<Item = Bytes> + Send {
    stream::unfold(Some(Box::pin(document)), |pending| async move {
        let mut document = pending?;
        match timeout(HEARTBEAT_INTERVAL, &mut document).await {
            Ok(bytes) => Some((bytes, None)),
            Err(_) => Some((Bytes::from_static(b" "), Some(document))),
        }
    })
}

fn json_type() -> [(header::HeaderName, HeaderValue); 1] {
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]
}

fn json_bytes(document: &impl Serialize) -> Bytes {
    serde_json::to_vec(document).map(Bytes::from).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be written as JSON");
        Bytes::from_static(
            b"{\"error\":{\"code\":\"INTERNAL_ERROR\",\"message\":\"The answer cannot be written as JSON\"}}",
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::time::{Instant, sleep_until};

    use super::*;

    async fn after(seconds: u64, outcome: Result<Value, ApiError>) -> Result<Value, ApiError> {
        sleep_until(Instant::now() + Duration::from_secs(seconds)).await;
        outcome
    }

    async fn body(response: Response) -> String {
        String::from_utf8(axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_call_has_its_status_and_a_length() {
        let response = answer(StatusCode::CREATED, after(1, Ok(json!({"data": 1})))).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(10));
        assert_eq!(body(response).await, "{\"data\":1}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_error_has_its_status() {
        let response = answer(StatusCode::OK, after(9, Err(ApiError::invalid("command", "no")))).await;
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_call_beats_every_ten_seconds_and_then_answers() {
        let began = Instant::now();
        let response = answer(StatusCode::OK, after(35, Ok(json!({"data": 1})))).await;
        assert_eq!(began.elapsed(), HEARTBEAT_INTERVAL);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(body(response).await, "   {\"data\":1}");
        assert_eq!(began.elapsed(), Duration::from_secs(35));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_error_is_the_document() {
        let response = answer(StatusCode::OK, after(12, Err(ApiError::internal("broken")))).await;
        assert_eq!(response.status(), StatusCode::OK);
        let document: Value = serde_json::from_str(&body(response).await).unwrap();
        assert_eq!(document["error"]["code"], "INTERNAL_ERROR");
    }
}
