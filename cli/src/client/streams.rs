//! The event streams: a running command's output, and the wait for a sandbox to be ready.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::{Client, ClientError, Sandbox};
use crate::sse::{Decoder, Frame};

/// A command for the API.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExecRequest {
    /// A list of words, or one shell line.
    pub command: Value,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Login name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Standard input, base64; closed when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin_base64: Option<String>,
    /// Asks for output as it is, in pieces, instead of lines of text.
    pub output: &'static str,
}

/// What a running command's stream tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes it wrote to standard output.
    Stdout(Vec<u8>),
    /// Bytes it wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended; always last.
    Exit(i32),
}

/// A running command. Dropping it ends the command.
pub struct ExecStream {
    frames: Frames,
}

impl ExecStream {
    /// The next event. After [`ExecEvent::Exit`] there is none.
    pub async fn next(&mut self) -> Result<ExecEvent, ClientError> {
        loop {
            let frame = self.frames.next().await?.ok_or(ClientError::NoExit)?;
            if let Some(event) = exec_event(&frame)? {
                return Ok(event);
            }
        }
    }
}

/// Frames of one response, as they come.
pub(super) struct Frames {
    response: Response,
    decoder: Decoder,
    ready: VecDeque<Frame>,
}

impl Frames {
    pub(super) fn new(response: Response) -> Self {
        Self { response, decoder: Decoder::default(), ready: VecDeque::new() }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Some(frame));
            }
            let interrupted = |source| ClientError::Interrupted { what: "events", source };
            match self.response.chunk().await.map_err(interrupted)? {
                Some(bytes) => self.ready.extend(self.decoder.feed(&bytes)?),
                None => return Ok(None),
            }
        }
    }
}

impl Client {
    /// Starts a command and gives its output as it appears.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecStream, ClientError> {
        let post = self.request(Method::POST, &["sandboxes", id, "exec", "stream"]);
        let response = self.send(post.header("accept", "text/event-stream").json(request)).await?;
        Ok(ExecStream { frames: Frames::new(response) })
    }

    /// Runs a command to its end and gives the result as it came: `stdout`, `stderr`, `exit_code`, `duration_ms`.
    pub async fn exec_value(&self, id: &str, body: &Value) -> Result<Value, ClientError> {
        self.data("a command", self.request(Method::POST, &["sandboxes", id, "exec"]).json(body)).await
    }

    /// Waits until the sandbox has left the state `creating`, at most for `patience`, and gives its record.
    pub async fn settled(&self, id: &str, patience: Duration) -> Result<Sandbox, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            let sandbox = self.get(id).await?;
            if sandbox.state != "creating" || Instant::now() >= deadline {
                return Ok(sandbox);
            }
            let get = self.request(Method::GET, &["sandboxes", id, "readiness", "stream"]);
            let mut frames = Frames::new(self.send(get.header("accept", "text/event-stream")).await?);
            // The server answers `ready` or `timeout`; either way the record says what is true now.
            let wait = async {
                while frames.next().await?.is_some_and(|frame| !is_verdict(&frame)) {}
                Ok(())
            };
            tokio::time::timeout_at(deadline, wait).await.unwrap_or(Ok::<(), ClientError>(()))?;
        }
    }
}

fn is_verdict(frame: &Frame) -> bool {
    matches!(frame.event.as_str(), "ready" | "timeout")
}

/// A frame of the exec stream as an event; frames of kinds that this program does not know are skipped.
fn exec_event(frame: &Frame) -> Result<Option<ExecEvent>, ClientError> {
    #[derive(Deserialize)]
    struct Output {
        line: Option<String>,
        chunk_base64: Option<String>,
    }
    #[derive(Deserialize)]
    struct Exit {
        exit_code: i32,
    }
    if frame.event == "error" {
        return Err(ClientError::from_body(StatusCode::OK, &frame.data));
    }
    let malformed = |source| ClientError::Malformed { what: "a command", source };
    let output = || -> Result<Vec<u8>, ClientError> {
        let output: Output = serde_json::from_str(&frame.data).map_err(malformed)?;
        let decoded = output.chunk_base64.and_then(|chunk| STANDARD.decode(chunk).ok());
        Ok(decoded.unwrap_or_else(|| output.line.map_or_else(Vec::new, |line| (line + "\n").into_bytes())))
    };
    Ok(match frame.event.as_str() {
        "stdout" => Some(ExecEvent::Stdout(output()?)),
        "stderr" => Some(ExecEvent::Stderr(output()?)),
        "exit" => Some(ExecEvent::Exit(serde_json::from_str::<Exit>(&frame.data).map_err(malformed)?.exit_code)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> Option<ExecEvent> {
        exec_event(&Frame { event: name.to_owned(), data: data.to_owned() }).unwrap()
    }

    #[test]
    fn output_comes_as_lines_or_as_bytes() {
        assert_eq!(event("stdout", r#"{"line":"a"}"#), Some(ExecEvent::Stdout(b"a\n".to_vec())));
        assert_eq!(event("stderr", r#"{"chunk_base64":"/wA="}"#), Some(ExecEvent::Stderr(vec![255, 0])));
        assert_eq!(event("exit", r#"{"exit_code":3,"duration_ms":1}"#), Some(ExecEvent::Exit(3)));
        assert_eq!(event("started", "{}"), None);
    }
}
