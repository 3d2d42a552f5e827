//! Server-sent events: frames, escaping, pings and the end of a stream, for every stream of the API.
//!
//! The rules are those of the contract, section 5: one `data:` line of JSON per frame, a blank line after every frame (a
//! last frame without it is dropped by clients), no compression, a `: ping` comment at least every 15 s, and no raw line
//! break of any kind inside the JSON. A stream is only polled while its client reads, so a slow client slows its source.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::trace::Carried;

/// The longest silence on a stream: a quarter of the SDK's read timeout.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);

/// One frame: `event` is its name, `data` becomes one line of JSON.
pub fn frame(event: &str, data: &impl Serialize) -> Bytes {
    // Our types have string keys and no failing parts, so they always become JSON.
    let json = serde_json::to_string(data).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    Bytes::from(format!("event: {event}\ndata: {}\n\n", escape_line_breaks(json)))
}

/// One frame with an id, from which a client may go on later.
pub fn frame_with_id(id: &str, event: &str, data: &impl Serialize) -> Bytes {
    let mut bytes = format!("id: {id}\n").into_bytes();
    bytes.extend_from_slice(&frame(event, data));
    bytes.into()
}

/// The frame that ends a stream which cannot go on. `event` and `type` stand in its data too, since clients of some
/// streams look nowhere else (contract, X14 and X78).
pub fn error_frame(error: ApiError) -> Bytes {
    frame("error", &json!({ "event": "error", "type": "error", "error": error.into_body().error }))
}

/// Clients split lines at U+0085, U+2028 and U+2029 too, which JSON may carry as they are (contract 5.2). They stand only
/// inside JSON strings, where the escape means the same.
fn escape_line_breaks(json: String) -> String {
    if !json.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
        return json;
    }
    json.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// The answer that sends `frames` with pings between them. When the server stops, the last frame says so.
pub fn response(frames: impl Stream<Item = Bytes> + Send + 'static, stopping: CancellationToken) -> Response {
    let body = Body::from_stream(with_pings(frames, stopping).map(Ok::<_, Infallible>));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, body).into_response()
}

struct Pinged {
    /// `None` once the stream has ended.
    frames: Option<Pin<Box<dyn Stream<Item = Bytes> + Send>>>,
    ping: Interval,
    stopping: CancellationToken,
    request: Carried,
}

fn with_pings(
    frames: impl Stream<Item = Bytes> + Send + 'static,
    stopping: CancellationToken,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let mut ping = interval_at(tokio::time::Instant::now() + PING_INTERVAL, PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = Pinged { frames: Some(Box::pin(frames)), ping, stopping, request: Carried::here() };
    stream::unfold(state, |mut state| async move {
        let chunk = state.request.clone().run(state.next()).await?;
        Some((chunk, state))
    })
}

impl Pinged {
    async fn next(&mut self) -> Option<Bytes> {
        let frames = self.frames.as_mut()?;
        tokio::select! {
            biased;
            // First, so that a command which writes without end cannot keep the server.
            () = self.stopping.cancelled() => {
                self.frames = None;
                Some(error_frame(ApiError::stopping()))
            }
            frame = frames.next() => {
                self.ping.reset();
                frame
            }
            _ = self.ping.tick() => Some(Bytes::from_static(b": ping\n\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_two_lines_and_a_blank_one() {
        assert_eq!(frame("exit", &json!({"exit_code": 0})), "event: exit\ndata: {\"exit_code\":0}\n\n");
    }

    #[test]
    fn every_unicode_line_break_is_escaped_and_comes_back() {
        let line = "a\u{2028}b\u{2029}c\u{85}d\r\n\u{b}\u{c}\u{1c}e\\u2028";
        let frame = frame("stdout", &json!({ "line": line }));
        let text = std::str::from_utf8(&frame).unwrap();
        let data = text.strip_prefix("event: stdout\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains(|c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}'), "{data:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(data).unwrap()["line"], line);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_is_pinged_every_15_seconds_and_ends_when_its_source_ends() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        let source = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
        let mut out = Box::pin(with_pings(source, CancellationToken::new()));
        let began = tokio::time::Instant::now();
        assert_eq!(out.next().await.unwrap(), ": ping\n\n");
        assert_eq!(out.next().await.unwrap(), ": ping\n\n");
        assert_eq!(began.elapsed(), 2 * PING_INTERVAL);
        sender.send(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(out.next().await.unwrap(), "x");
        drop(sender);
        assert_eq!(out.next().await, None);
    }

    #[tokio::test]
    async fn a_stopping_server_ends_its_streams_with_a_reason() {
        let stopping = CancellationToken::new();
        let endless = stream::repeat_with(|| Bytes::from_static(b"x"));
        let mut out = Box::pin(with_pings(endless, stopping.clone()));
        assert_eq!(out.next().await.unwrap(), "x");
        stopping.cancel();
        let last = out.next().await.unwrap();
        assert!(std::str::from_utf8(&last).unwrap().contains("SERVER_STOPPING"));
        assert_eq!(out.next().await, None);
    }
}
