//! A sandbox's console: its newest lines, and its lines as they come (contract X07, X08).

use std::collections::VecDeque;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use cove_engine::{Console, ConsolePiece};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, Query, number};
use crate::lines::LineSplitter;
use crate::sse;
use crate::types::{Data, LineData, Logs};

/// Lines of a console when the caller does not say, and most.
const LOG_LINES_DEFAULT: usize = 200;
const LOG_LINES_MAX: usize = 10_000;

/// Most bytes of a console that are read.
const LOG_BYTES_MAX: u32 = 1 << 20;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(get_logs)).routes(routes!(stream_logs))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// The newest lines: 200 when absent, at most 10000.
    lines: Option<String>,
}

/// The end of the sandbox's console: what its kernel and its agent said.
#[utoipa::path(get, path = "/sandboxes/{id}/logs", tag = "logs", params(("id" = String, Path), LogsQuery),
    responses((status = 200, body = Data<Logs>)))]
pub async fn get_logs(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<LogsQuery>,
) -> Result<Json<Data<Logs>>, ApiError> {
    let wanted = query.lines.as_deref().map(|text| number("lines", text)).transpose()?;
    let bytes = api.engine.logs(&sandbox_id(&id)?, LOG_BYTES_MAX).await?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = last_lines(&text, wanted.unwrap_or(LOG_LINES_DEFAULT).min(LOG_LINES_MAX));
    Ok(Json(Data { data: Logs { lines } }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogStreamQuery {
    /// Begin with so many of the newest lines: 200 when absent, at most 10000.
    lines: Option<String>,
    /// In place of the token: see `POST /sse/ticket`.
    #[allow(dead_code, reason = "read where requests are let in; listed here for the document")]
    ticket: Option<String>,
}

/// The newest lines of the sandbox's console, and then each line as it comes, through pauses. Ends when the sandbox is
/// destroyed. A frame `gap` says that lines are missing.
#[utoipa::path(get, path = "/sandboxes/{id}/logs/stream", tag = "logs", params(("id" = String, Path), LogStreamQuery),
    responses((status = 200, description = "Frames `stdout` and `gap`", body = LineData, content_type = "text/event-stream")))]
pub async fn stream_logs(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<LogStreamQuery>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let wanted = query.lines.as_deref().map(|text| number("lines", text)).transpose()?.unwrap_or(LOG_LINES_DEFAULT);
    let mut console = api.engine.follow_logs(&id, LOG_BYTES_MAX.into()).await?;
    let mut lines = LineSplitter::default();
    let before = lines.push(&console.available()?);
    let newest = before.len().saturating_sub(wanted.min(LOG_LINES_MAX));
    let ready = before.into_iter().skip(newest).map(|line| line_frame(line.text, line.partial)).collect();
    let following = Following { console, lines, ready, ended: false };
    let frames = stream::unfold(following, |mut following| async {
        let frame = following.next().await?;
        Some((frame, following))
    });
    Ok(sse::response(frames, api.config.stopping.clone()))
}

struct Following {
    console: Console,
    lines: LineSplitter,
    ready: VecDeque<Bytes>,
    ended: bool,
}

impl Following {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if self.ended {
                return None;
            }
            match self.console.next().await {
                Some(Ok(ConsolePiece::Bytes(bytes))) => {
                    let lines = self.lines.push(&bytes);
                    self.ready.extend(lines.into_iter().map(|line| line_frame(line.text, line.partial)));
                }
                Some(Ok(ConsolePiece::Gap)) => return Some(sse::frame("gap", &json!({ "type": "gap" }))),
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(sse::error_frame(error.into()));
                }
                None => {
                    self.ended = true;
                    self.ready.extend(self.lines.finish().map(|line| line_frame(line.text, false)));
                }
            }
        }
    }
}

fn line_frame(mut line: String, partial: bool) -> Bytes {
    if line.ends_with('\r') {
        line.pop();
    }
    sse::frame("stdout", &LineData { line, partial })
}

fn last_lines(text: &str, count: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept() {
        assert_eq!(last_lines("a\r\nb\nc", 2), ["b", "c"]);
        assert_eq!(last_lines("a", 5), ["a"]);
        assert!(last_lines("", 5).is_empty());
    }
}
