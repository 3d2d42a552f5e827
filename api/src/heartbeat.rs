//! Answers that may take long: white space keeps the client's read timeout away (contract 2.2).
//!
//! A call that ends within [`HEARTBEAT_INTERVAL`] gets an ordinary answer with its proper status. After that the status
//! line is sent (`status`, chunked), one space follows every interval, and the JSON document comes last. JSON allows
//! white space before a document, so clients parse it as usual. **A call that fails after its first heartbeat has
//! already been answered with success: its document is the error envelope**, which a route may extend; where clients do
//! not look at the document, the answer breaks off instead ([`Failure`]).
//!
//! The work lives inside the answer: when the client goes away, the work is dropped.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cove_engine::BoxError;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;

use crate::error::ApiError;
use crate::trace::carry;

/// From the request to the first space, and between spaces. A sixth of the SDK's read timeout.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// How a call failed, told before or after its first heartbeat.
pub trait Failure: Send + 'static {
    /// Before: an answer with its own status.
    fn early(self) -> Response;

    /// After: the document that ends an answer which began with success, or an error to break the answer off.
    fn late(self) -> Result<Bytes, BoxError>;
}

impl Failure for ApiError {
    fn early(self) -> Response {
        self.into_response()
    }

    fn late(self) -> Result<Bytes, BoxError> {
        Ok(json_bytes(&self.into_body()))
    }
}

/// A failure of a call whose document clients ignore (the SDK's file writes, destroy): told late, it would be taken for
/// success, so the connection is closed in the middle of the answer.
pub struct Unmistakable(pub ApiError);

impl<E: Into<ApiError>> From<E> for Unmistakable {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl Failure for Unmistakable {
    fn early(self) -> Response {
        self.0.into_response()
    }

    fn late(self) -> Result<Bytes, BoxError> {
        Err(self.0.into_body().error.message.into())
    }
}

/// The answer to a call that runs `work`: `status` and its document, or the error.
pub async fn answer<T, F, W>(status: StatusCode, work: W) -> Response
where
    T: Serialize + Send + 'static,
    F: Failure,
    W: Future<Output = Result<T, F>> + Send + 'static,
{
    answer_as(status, work.map(move |outcome| outcome.map(|document| (status, document)))).await
}

/// The same for work that also says its status, which counts unless the answer had to begin before, with `late_status`.
pub async fn answer_as<T, F, W>(late_status: StatusCode, work: W) -> Response
where
    T: Serialize + Send + 'static,
    F: Failure,
    W: Future<Output = Result<(StatusCode, T), F>> + Send + 'static,
{
    let work = work.map(|outcome| outcome.map(|(status, document)| (status, json_bytes(&document))));
    let mut work = Box::pin(carry(work));
    match timeout(HEARTBEAT_INTERVAL, &mut work).await {
        Ok(Ok((status, document))) => (status, json_type(), document).into_response(),
        Ok(Err(failure)) => failure.early(),
        Err(_) => {
            let document = work.map(|outcome| outcome.map_or_else(Failure::late, |(_, document)| Ok(document)));
            let chunks = stream::once(async { Ok(Bytes::from_static(b" ")) }).chain(spaces_until(carry(document)));
            (late_status, json_type(), Body::from_stream(chunks)).into_response()
        }
    }
}

/// A space at every interval, then what `document` yields.
fn spaces_until<D>(document: D) -> impl Stream<Item = Result<Bytes, BoxError>> + Send
where
    D: Future<Output = Result<Bytes, BoxError>> + Send + 'static,
{
    stream::unfold(Some(Box::pin(document)), |pending| async move {
        let mut document = pending?;
        match timeout(HEARTBEAT_INTERVAL, &mut document).await {
            Ok(end) => Some((end, None)),
            Err(_) => Some((Ok(Bytes::from_static(b" ")), Some(document))),
        }
    })
}

fn json_type() -> [(header::HeaderName, HeaderValue); 1] {
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]
}

/// `document` as JSON.
pub fn json_bytes(document: &impl Serialize) -> Bytes {
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
    async fn a_late_failure_that_nobody_would_read_breaks_the_answer_off() {
        let work = after(12, Err(ApiError::internal("broken"))).map(|outcome| outcome.map_err(Unmistakable));
        let response = answer(StatusCode::OK, work).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(axum::body::to_bytes(response.into_body(), 1 << 20).await.is_err());
        let work = after(2, Err(ApiError::internal("broken"))).map(|outcome| outcome.map_err(Unmistakable));
        assert_eq!(answer(StatusCode::OK, work).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_error_is_the_document() {
        let response = answer(StatusCode::OK, after(12, Err(ApiError::internal("broken")))).await;
        assert_eq!(response.status(), StatusCode::OK);
        let document: Value = serde_json::from_str(&body(response).await).unwrap();
        assert_eq!(document["error"]["code"], "INTERNAL_ERROR");
    }

    #[tokio::test(start_paused = true)]
    async fn work_says_its_status_when_it_is_in_time() {
        let replayed = async |seconds| {
            let document = after(seconds, Ok(json!({}))).await?;
            Ok::<_, ApiError>((StatusCode::OK, document))
        };
        assert_eq!(answer_as(StatusCode::CREATED, replayed(1)).await.status(), StatusCode::OK);
        let late = answer_as(StatusCode::CREATED, replayed(11)).await;
        assert_eq!(late.status(), StatusCode::CREATED);
        assert_eq!(body(late).await, " {}");
    }
}
