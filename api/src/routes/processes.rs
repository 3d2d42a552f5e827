//! Background processes (contract X15-X22): they go on when whoever started them is gone, and through pauses and restarts
//! of the server. The sandbox's agent keeps the newest MiB of output of each, and the last ones that ended.

use ::base64::Engine as _;
use ::base64::prelude::BASE64_STANDARD;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use cove_engine::protocol::guest::{FollowJob, JobInfo, Stream};
use cove_engine::{Engine, JobEvent, JobOutput, SandboxId};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Pid, Query, number};
use crate::heartbeat;
use crate::lines::{Line, LineSplitter};
use crate::sse;
use crate::types::{Data, ProcessBody, ProcessLogs, ProcessRecord, SignalBody, StdinBody, StdinWritten, exit_code};

/// Lines of output when the caller does not say, and most.
const TAIL_LINES_DEFAULT: usize = 200;
const TAIL_LINES_MAX: usize = 100_000;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(start_process, list_processes))
        .routes(routes!(get_process, stop_process))
        .routes(routes!(get_process_logs))
        .routes(routes!(stream_process))
        .routes(routes!(signal_process))
        .routes(routes!(write_process_stdin))
}

/// Starts a process and answers at once. Its standard input stays open.
#[utoipa::path(post, path = "/sandboxes/{id}/processes", tag = "processes", params(("id" = String, Path)),
    request_body = ProcessBody, responses((status = 201, body = Data<ProcessRecord>)))]
pub async fn start_process(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ProcessBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let start = body.into_job()?;
    let work = async move { Ok::<_, ApiError>(record(api.engine.start_job(&id, start).await?)) };
    Ok(heartbeat::answer(StatusCode::CREATED, work).await)
}

/// The processes that were started here and run, and the last ones that ended; oldest first.
#[utoipa::path(get, path = "/sandboxes/{id}/processes", tag = "processes", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<ProcessRecord>>)))]
pub async fn list_processes(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<ProcessRecord>>>, ApiError> {
    let jobs = api.engine.jobs(&sandbox_id(&id)?).await?;
    Ok(Json(Data { data: jobs.into_iter().map(ProcessRecord::from).collect() }))
}

/// One process.
#[utoipa::path(get, path = "/sandboxes/{id}/processes/{pid}", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path)), responses((status = 200, body = Data<ProcessRecord>)))]
pub async fn get_process(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
) -> Result<Json<Data<ProcessRecord>>, ApiError> {
    let (id, pid) = (sandbox_id(&id)?, process_id(&pid)?);
    Ok(Json(record(api.engine.job(&id, pid).await?)))
}

/// Ends a process with its process group: SIGTERM, and SIGKILL after five seconds. Answers when it is over; one that has
/// ended is fine.
#[utoipa::path(delete, path = "/sandboxes/{id}/processes/{pid}", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path)), responses((status = 204)))]
pub async fn stop_process(State(api): State<Api>, Id(id): Id, Pid(pid): Pid) -> Result<StatusCode, ApiError> {
    let (id, pid) = (sandbox_id(&id)?, process_id(&pid)?);
    api.engine.stop_job(&id, pid).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ProcessLogsQuery {
    /// The newest lines: 200 when neither this nor `cursor` is given, at most 100000.
    tail: Option<String>,
    /// All that is kept from this cursor on: what an earlier answer gave.
    cursor: Option<String>,
}

/// What a process wrote last.
#[utoipa::path(get, path = "/sandboxes/{id}/processes/{pid}/logs", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path), ProcessLogsQuery), responses((status = 200, body = ProcessLogs)))]
pub async fn get_process_logs(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
    Query(query): Query<ProcessLogsQuery>,
) -> Result<Json<ProcessLogs>, ApiError> {
    let (id, pid) = (sandbox_id(&id)?, process_id(&pid)?);
    Ok(Json(logs(&api.engine, &id, pid, &query).await?))
}

/// Reads what is kept of a process's output.
async fn logs(engine: &Engine, id: &SandboxId, pid: i32, query: &ProcessLogsQuery) -> Result<ProcessLogs, ApiError> {
    let from = query.cursor.as_deref().map(|text| number("cursor", text)).transpose()?;
    let tail = query.tail.as_deref().map(|text| number("tail", text)).transpose()?;
    let Kept { text, cursor, gap } = kept(engine, id, pid, from).await?;
    let lines = tail.or_else(|| from.is_none().then_some(TAIL_LINES_DEFAULT)).map(|lines| lines.min(TAIL_LINES_MAX));
    let kept = lines.map_or(&text[..], |lines| last_lines(&text, lines));
    Ok(ProcessLogs { data: String::from_utf8_lossy(kept).into_owned(), cursor, gap })
}

/// What the agent keeps of a process's output: at most a MiB.
pub(super) struct Kept {
    pub(super) text: Vec<u8>,
    /// The cursor behind it.
    cursor: u64,
    /// Something between the cursor that was asked for and the first byte is not kept any more.
    gap: bool,
}

/// All that is kept from a cursor on, or from the first byte that is.
pub(super) async fn kept(engine: &Engine, id: &SandboxId, pid: i32, from: Option<u64>) -> Result<Kept, ApiError> {
    let mut output = engine.follow_job(id, FollowJob { pid, from: from.unwrap_or(0), follow: false }).await?;
    let (mut text, mut cursor, mut gap) = (Vec::new(), from.unwrap_or(0), false);
    while let Some(event) = output.next().await {
        match event? {
            JobEvent::Position(at) => {
                gap |= from.is_some() && at > cursor;
                cursor = at;
            }
            JobEvent::Output { data, .. } => {
                cursor += data.len() as u64;
                text.extend_from_slice(&data);
            }
            JobEvent::End(_) => break,
        }
    }
    Ok(Kept { text, cursor, gap })
}

/// The last `count` lines; a newline at the end begins no line.
fn last_lines(text: &[u8], count: usize) -> &[u8] {
    let Some(nth) = count.checked_sub(1) else { return &[] };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut newlines = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    newlines.nth(nth).map_or(text, |(at, _)| &text[at + 1..])
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ProcessStreamQuery {
    /// Begin at this cursor; at the first byte that is kept when absent. The header `Last-Event-ID` says the same.
    cursor: Option<String>,
    /// In place of the token: see `POST /sse/ticket`.
    #[allow(dead_code, reason = "read where requests are let in; listed here for the document")]
    ticket: Option<String>,
}

/// The output of a process as it comes: frames `stdout` and `stderr` with one line each, `gap` where output was
/// overwritten before it was read, and `exit` at the end. Each frame's id is a cursor from which one can go on. The process
/// does not wait for its readers.
#[utoipa::path(get, path = "/sandboxes/{id}/processes/{pid}/stream", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path), ProcessStreamQuery),
    responses((status = 200, description = "Frames such as `{\"stream\": \"stdout\", \"line\": \"ready\"}`, \
        `{\"event\": \"gap\", \"from\": 10, \"to\": 4096}`, `{\"event\": \"exit\", \"exit_code\": 0, \"duration_ms\": 12}`",
        body = String, content_type = "text/event-stream")))]
pub async fn stream_process(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
    Query(query): Query<ProcessStreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (id, pid) = (sandbox_id(&id)?, process_id(&pid)?);
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let from = query.cursor.as_deref().or(last).map(|text| number("cursor", text)).transpose()?;
    let output = api.engine.follow_job(&id, FollowJob { pid, from: from.unwrap_or(0), follow: true }).await?;
    let followed = Followed::new(output, from);
    let frames = stream::unfold(followed, |mut followed| async move { Some((followed.next().await?, followed)) });
    Ok(sse::response(frames, api.config.stopping.clone()))
}

/// A process's output on its way into frames.
struct Followed {
    output: JobOutput,
    /// The cursor behind the last byte that was read; `None` before the first.
    at: Option<u64>,
    streams: [Followee; 2],
    ended: bool,
}

struct Followee {
    name: &'static str,
    lines: LineSplitter,
    /// The cursor of the first byte of a line that is not complete yet.
    pending: Option<u64>,
}

impl Followed {
    fn new(output: JobOutput, from: Option<u64>) -> Self {
        let streams = ["stdout", "stderr"].map(|name| Followee { name, lines: LineSplitter::default(), pending: None });
        Self { output, at: from, streams, ended: false }
    }

    /// The next frames, at least one; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let frames = match self.output.next().await {
                Some(Ok(JobEvent::Position(to))) => self.jump(to),
                Some(Ok(JobEvent::Output { stream, data })) => self.push(stream, &data),
                Some(Ok(JobEvent::End(job))) => self.end(Ok(job)),
                Some(Err(error)) => self.end(Err(error.into())),
                None => self.end(Err(ApiError::internal("The process's output ended without its end"))),
            };
            if !frames.is_empty() {
                return Some(frames);
            }
        }
        None
    }

    fn jump(&mut self, to: u64) -> Bytes {
        let from = self.at.replace(to);
        match from {
            Some(from) if to > from => {
                let mut frames = self.finish_lines();
                let data = json!({ "event": "gap", "type": "gap", "from": from, "to": to });
                frames.extend_from_slice(&sse::frame_with_id(&to.to_string(), "gap", &data));
                frames.into()
            }
            _ => Bytes::new(),
        }
    }

    fn push(&mut self, stream: Stream, data: &[u8]) -> Bytes {
        let start = self.at.unwrap_or(0);
        let end = start + data.len() as u64;
        self.at = Some(end);
        let followee = &mut self.streams[usize::from(stream == Stream::Stderr)];
        let lines = followee.lines.push(data);
        let last_line_at = data.iter().rposition(|byte| *byte == b'\n').map(|at| start + at as u64 + 1);
        followee.pending = match last_line_at {
            Some(at) => (at < end).then_some(at),
            None => followee.pending.or((!data.is_empty()).then_some(start)),
        };
        let name = followee.name;
        let id = self.resume_at().to_string();
        lines.into_iter().map(|line| line_frame(&id, name, line)).collect::<Vec<_>>().concat().into()
    }

    /// The cursor from which nothing is missed.
    fn resume_at(&self) -> u64 {
        let pending = self.streams.iter().filter_map(|followee| followee.pending).min();
        pending.unwrap_or(self.at.unwrap_or(0))
    }

    fn finish_lines(&mut self) -> Vec<u8> {
        let id = self.at.unwrap_or(0).to_string();
        let mut frames = Vec::new();
        for followee in &mut self.streams {
            followee.pending = None;
            frames.extend(followee.lines.finish().map(|line| line_frame(&id, followee.name, line)));
        }
        frames.concat()
    }

    fn end(&mut self, ended: Result<JobInfo, ApiError>) -> Bytes {
        self.ended = true;
        let mut frames = self.finish_lines();
        let last = match ended {
            Ok(JobInfo { exit: Some(exit), .. }) => {
                let (code, duration_ms) = (exit_code(exit), exit.duration_us / 1000);
                let data = json!({ "event": "exit", "type": "exit", "exit_code": code, "duration_ms": duration_ms });
                sse::frame("exit", &data)
            }
            Ok(_) => Bytes::new(),
            Err(error) => sse::error_frame(error),
        };
        frames.extend_from_slice(&last);
        frames.into()
    }
}

fn line_frame(id: &str, name: &'static str, line: Line) -> Bytes {
    let mut data = json!({ "stream": name, "line": line.text });
    if line.partial {
        data["partial"] = true.into();
    }
    sse::frame_with_id(id, name, &data)
}

/// Sends a signal to a process's group. One that has ended is left alone.
#[utoipa::path(post, path = "/sandboxes/{id}/processes/{pid}/signal", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path)), request_body = SignalBody,
    responses((status = 200, body = Data<ProcessRecord>)))]
pub async fn signal_process(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
    JsonBody(body): JsonBody<SignalBody>,
) -> Result<Json<Data<ProcessRecord>>, ApiError> {
    let (id, pid) = (sandbox_id(&id)?, process_id(&pid)?);
    Ok(Json(record(api.engine.signal_job(&id, pid, body.number()?).await?)))
}

/// Writes to a process's standard input.
#[utoipa::path(post, path = "/sandboxes/{id}/processes/{pid}/stdin", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path)), request_body = StdinBody,
    responses((status = 200, body = Data<StdinWritten>)))]
pub async fn write_process_stdin(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
    JsonBody(body): JsonBody<StdinBody>,
) -> Result<Json<Data<StdinWritten>>, ApiError> {
    let (id, pid) = (sandbox_id(&id)?, process_id(&pid)?);
    let data: Bytes = match (body.data_base64, body.data) {
        (Some(text), _) => {
            let decoded = BASE64_STANDARD.decode(text);
            decoded
                .map_err(|error| ApiError::invalid("data_base64", format!("data_base64 is not base64: {error}")))?
                .into()
        }
        (None, Some(text)) => text.into(),
        (None, None) if body.end => Bytes::new(),
        (None, None) => return Err(ApiError::invalid("data", "data is missing")),
    };
    let written = data.len();
    let job = api.engine.write_job(&id, pid, data, body.end).await?;
    Ok(Json(Data { data: StdinWritten { pid, written, stdin_open: job.stdin_open } }))
}

pub(super) fn record(job: JobInfo) -> Data<ProcessRecord> {
    Data { data: job.into() }
}

/// A process id in a path. What is none is answered like any unknown one.
pub(super) fn process_id(text: &str) -> Result<i32, ApiError> {
    let pid = text.parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| ApiError::not_found(format!("There is no background process '{}'", text.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole() {
        for (text, count, last) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\n", 5, "a\n"),
            ("", 3, ""),
            ("a\n\n", 1, "\n"),
            ("a\nb", 0, ""),
        ] {
            assert_eq!(last_lines(text.as_bytes(), count), last.as_bytes(), "{text:?} {count}");
        }
    }

    #[test]
    fn a_process_id_is_a_positive_number() {
        assert_eq!(process_id("12").unwrap(), 12);
        for wrong in ["", "0", "-1", "x", "99999999999", "1/2"] {
            assert_eq!(process_id(wrong).unwrap_err().status().as_u16(), 404, "{wrong}");
        }
    }
}
