//! Run a command: one answer at its end, or its output as it comes (contract 8.8, 8.9).
//!
//! When the client goes away the answer is dropped, the command with it, and the agent kills its process group.

use ::base64::Engine as _;
use ::base64::prelude::BASE64_STANDARD;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cove_engine::protocol::guest::{self, Exit, ExitStatus, Stream};
use cove_engine::{BoxError, Engine, ExecEvent, ExecInput, Execution, SandboxId};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody};
use crate::heartbeat::{self, Failure, HEARTBEAT_INTERVAL, json_bytes};
use crate::lines::{Line, LineSplitter};
use crate::sse;
use crate::types::{ChunkData, Data, ExecBody, ExecData, ExecResult, ExitData, LineData, OutputAs};

/// Most bytes of each output stream that a blocking call keeps; the rest is read and dropped, and the result says so.
const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// The exit code of a command whose time ran out, as `timeout(1)` has it.
const EXIT_TIMED_OUT: i32 = 124;

/// The exit code of a command whose true end is not known.
const EXIT_UNKNOWN: i32 = 255;

/// Runs a command and answers at its end. A command that fails is a 200 with its exit code.
#[utoipa::path(post, path = "/sandboxes/{id}/exec", tag = "exec", params(("id" = String, Path)), request_body = ExecBody,
    responses((status = 200, body = ExecData)))]
pub async fn exec_command(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ExecBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let (exec, stdin) = body.into_exec()?;
    Ok(heartbeat::answer(StatusCode::OK, run(api.engine, id, exec, stdin)).await)
}

/// Runs a command and sends its output as it comes: events `stdout` and `stderr` with one line each, then one `exit`.
/// When the sandbox fails before the command's end the last event is `error`. With `output: "base64"` the events carry
/// `chunk_base64` instead of `line`.
#[utoipa::path(post, path = "/sandboxes/{id}/exec/stream", tag = "exec", params(("id" = String, Path)),
    request_body = ExecBody, responses((status = 200, body = LineData, content_type = "text/event-stream")))]
pub async fn exec_command_stream(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ExecBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let mut starting = Box::pin(start(api.engine, id, body)?);
    // A start may wait for the sandbox; then pings must flow, and an error can only be an event.
    let frames = match timeout(HEARTBEAT_INTERVAL, &mut starting).await {
        Ok(started) => started?.into_frames().boxed(),
        Err(_) => stream::once(starting).flat_map(frames_of).boxed(),
    };
    Ok(sse::response(frames, api.config.stopping.clone()))
}

/// Starts the command of `body`; a wrong body is told at once.
fn start(
    engine: Engine,
    id: SandboxId,
    body: ExecBody,
) -> Result<impl Future<Output = Result<Streamed, ApiError>> + Send + 'static, ApiError> {
    let output_as = body.output.unwrap_or_default();
    let (exec, stdin) = body.into_exec()?;
    let timeout_ms = exec.timeout_ms;
    Ok(async move {
        let execution = engine.exec(&id, exec).await?;
        let _feeder = feed(execution.input.clone(), stdin);
        let (stdout, stderr) = (Stdio::new("stdout", output_as), Stdio::new("stderr", output_as));
        Ok(Streamed { execution, timeout_ms, stdout, stderr, ended: false, _feeder })
    })
}

fn frames_of(started: Result<Streamed, ApiError>) -> BoxStream<'static, Bytes> {
    match started {
        Ok(streamed) => streamed.into_frames().boxed(),
        Err(error) => stream::once(async { sse::error_frame(error) }).boxed(),
    }
}

/// A command whose end is not known, and what it wrote until then.
pub(super) struct Broken {
    pub(super) error: ApiError,
    so_far: ExecResult,
}

impl Broken {
    /// What clients are to take for the result: they read that, and take a missing exit code for success.
    pub(super) fn result(&self) -> ExecResult {
        let mut result = self.so_far.clone();
        result.exit_code = EXIT_UNKNOWN;
        result.stderr.push_str(&note(self.error.message()));
        result
    }
}

impl From<ApiError> for Broken {
    fn from(error: ApiError) -> Self {
        Self { error, so_far: ExecResult::default() }
    }
}

impl From<cove_engine::Error> for Broken {
    fn from(error: cove_engine::Error) -> Self {
        Self { error: error.into(), so_far: ExecResult::default() }
    }
}

impl Failure for Broken {
    fn early(self) -> Response {
        self.error.into_response()
    }

    fn late(self) -> Result<Bytes, BoxError> {
        Ok(json_bytes(&ExecData { data: self.result(), error: Some(self.error.into_body().error) }))
    }
}

/// Runs a command to its end.
pub(super) async fn run(
    engine: Engine,
    id: SandboxId,
    exec: guest::Exec,
    stdin: Option<Bytes>,
) -> Result<Data<ExecResult>, Broken> {
    let timeout_ms = exec.timeout_ms;
    let Execution { mut output, input, .. } = engine.exec(&id, exec).await?;
    let _feeder = feed(input, stdin);
    let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
    let ended = loop {
        match output.next().await {
            Some(Ok(ExecEvent::Output { stream: Stream::Stdout, data })) => stdout.add(&data),
            Some(Ok(ExecEvent::Output { stream: Stream::Stderr, data })) => stderr.add(&data),
            Some(Ok(ExecEvent::Exited(exit))) => break Ok(exit),
            Some(Err(error)) => break Err(error.into()),
            None => break Err(no_end()),
        }
    };
    let mut result = ExecResult {
        stdout_truncated: stdout.truncated,
        stderr_truncated: stderr.truncated,
        stdout: stdout.into_text(),
        stderr: stderr.into_text(),
        ..ExecResult::default()
    };
    match ended {
        Ok(exit) => {
            (result.exit_code, result.duration_ms) = code_and_duration(exit);
            if let Some(note) = timeout_note(exit, timeout_ms) {
                result.stderr.push_str(&note);
            }
            Ok(Data { data: result })
        }
        Err(error) => Err(Broken { error, so_far: result }),
    }
}

/// The first [`OUTPUT_BYTES_MAX`] bytes of a stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn add(&mut self, data: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.bytes.len();
        self.truncated |= data.len() > room;
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
    }

    /// The bytes as text; no copy when they are UTF-8.
    fn into_text(self) -> String {
        String::from_utf8(self.bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// Writes `stdin` beside the reading of output, so that neither waits for the other.
fn feed(input: ExecInput, stdin: Option<Bytes>) -> Option<AbortOnDropHandle<()>> {
    let bytes = stdin?;
    let task = tokio::spawn(async move {
        // A command may end without reading all of it.
        let _ = input.data(bytes).await && input.end().await;
    });
    Some(AbortOnDropHandle::new(task))
}

/// Exit code and milliseconds; 128 + n for a signal, as shells have it.
fn code_and_duration(exit: Exit) -> (i32, u64) {
    let code = match exit.status {
        ExitStatus::Code(code) => i32::from(code),
        ExitStatus::Signal(signal) => signal.saturating_add(128),
        ExitStatus::TimedOut => EXIT_TIMED_OUT,
    };
    (code, exit.duration_us / 1000)
}

fn timeout_note(exit: Exit, timeout_ms: Option<u64>) -> Option<String> {
    let seconds = timeout_ms.unwrap_or_default() as f64 / 1000.0;
    (exit.status == ExitStatus::TimedOut)
        .then(|| note(&format!("The command was killed: its time of {seconds} s is over")))
}

/// A line of the server's own in a command's standard error.
fn note(text: &str) -> String {
    format!("\n[cove] {text}\n")
}

fn no_end() -> ApiError {
    ApiError::internal("The command's output ended without its end")
}

/// The stream of a command, until its `exit` frame or an `error` frame went out.
struct Streamed {
    execution: Execution,
    timeout_ms: Option<u64>,
    stdout: Stdio,
    stderr: Stdio,
    ended: bool,
    _feeder: Option<AbortOnDropHandle<()>>,
}

impl Streamed {
    fn into_frames(self) -> impl stream::Stream<Item = Bytes> + Send + 'static {
        stream::unfold(self, |mut streamed| async move { Some((streamed.next().await?, streamed)) })
    }

    /// The next frames, at least one; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let frames = match self.execution.output.next().await {
                Some(Ok(ExecEvent::Output { stream: Stream::Stdout, data })) => self.stdout.push(&data),
                Some(Ok(ExecEvent::Output { stream: Stream::Stderr, data })) => self.stderr.push(&data),
                Some(Ok(ExecEvent::Exited(exit))) => self.end(Ok(exit)),
                Some(Err(error)) => self.end(Err(error.into())),
                None => self.end(Err(no_end())),
            };
            if !frames.is_empty() {
                return Some(frames);
            }
        }
        None
    }

    /// What is left of both streams, then the last frame.
    fn end(&mut self, ended: Result<Exit, ApiError>) -> Bytes {
        self.ended = true;
        let mut frames = vec![self.stdout.finish(), self.stderr.finish()];
        let last = match ended {
            Ok(exit) => {
                let note = timeout_note(exit, self.timeout_ms);
                frames.extend(note.map(|note| self.stderr.push(note.trim_start().as_bytes())));
                let (exit_code, duration_ms) = code_and_duration(exit);
                sse::frame("exit", &ExitData { exit_code, duration_ms })
            }
            Err(error) => sse::error_frame(error),
        };
        frames.push(last);
        frames.concat().into()
    }
}

/// One output stream on its way into frames.
struct Stdio {
    event: &'static str,
    output_as: OutputAs,
    lines: LineSplitter,
}

impl Stdio {
    fn new(event: &'static str, output_as: OutputAs) -> Self {
        Self { event, output_as, lines: LineSplitter::default() }
    }

    fn push(&mut self, data: &[u8]) -> Bytes {
        match self.output_as {
            OutputAs::Lines => {
                let lines = self.lines.push(data);
                self.frames(lines)
            }
            OutputAs::Base64 => sse::frame(self.event, &ChunkData { chunk_base64: BASE64_STANDARD.encode(data) }),
        }
    }

    fn finish(&mut self) -> Bytes {
        let line = self.lines.finish();
        self.frames(line)
    }

    fn frames(&self, lines: impl IntoIterator<Item = Line>) -> Bytes {
        let frame = |Line { text, partial }| sse::frame(self.event, &LineData { line: text, partial });
        lines.into_iter().map(frame).collect::<Vec<_>>().concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_become_the_codes_of_shells() {
        let code = |status| code_and_duration(Exit { status, duration_us: 1_999 });
        assert_eq!(code(ExitStatus::Code(3)), (3, 1));
        assert_eq!(code(ExitStatus::Signal(9)), (137, 1));
        assert_eq!(code(ExitStatus::TimedOut), (124, 1));
        assert_eq!(code(ExitStatus::Signal(i32::MAX)).0, i32::MAX);
    }

    #[test]
    fn only_a_timeout_has_a_note() {
        let note = |status| timeout_note(Exit { status, duration_us: 0 }, Some(1500));
        assert_eq!(note(ExitStatus::Code(0)), None);
        assert!(note(ExitStatus::TimedOut).unwrap().contains("1.5 s"));
    }

    #[test]
    fn output_goes_out_as_lines_or_as_bytes() {
        let mut lines = Stdio::new("stdout", OutputAs::Lines);
        assert_eq!(lines.push(b"a\nb"), "event: stdout\ndata: {\"line\":\"a\"}\n\n");
        assert_eq!(lines.finish(), "event: stdout\ndata: {\"line\":\"b\"}\n\n");
        assert_eq!(lines.finish(), "");
        let mut bytes = Stdio::new("stderr", OutputAs::Base64);
        assert_eq!(bytes.push(&[255, 0]), "event: stderr\ndata: {\"chunk_base64\":\"/wA=\"}\n\n");
        assert_eq!(bytes.finish(), "");
    }

    #[test]
    fn output_is_bounded_and_says_so() {
        let mut kept = Kept::default();
        kept.add(&vec![b'x'; OUTPUT_BYTES_MAX]);
        assert!(!kept.truncated);
        kept.add(b"y");
        assert!(kept.truncated);
        assert_eq!(kept.into_text().len(), OUTPUT_BYTES_MAX);
    }

    #[test]
    fn output_that_is_not_utf8_becomes_text() {
        let mut kept = Kept::default();
        kept.add(b"a\xffb\xe2\x82\xac");
        assert_eq!(kept.into_text(), "a\u{fffd}b€");
    }

    #[test]
    fn a_late_failure_is_never_taken_for_success() {
        let so_far = ExecResult { stdout: "half".into(), ..Default::default() };
        let document = Broken { error: ApiError::internal("gone"), so_far }.late().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["data"]["exit_code"], 255);
        assert_eq!(document["data"]["stdout"], "half");
        assert!(document["data"]["stderr"].as_str().unwrap().contains("gone"));
        assert_eq!(document["error"]["code"], "INTERNAL_ERROR");
    }
}
