//! The one place that knows both worlds: an engine error becomes status, stable code (contract section 4) and message.
//!
//! Clients switch on the code, never on the text. The chain of causes goes into the log under the request's id, once,
//! when the answer is made. There is no wildcard arm below: a new engine error must choose its status here.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cove_engine::agent::AgentError;
use cove_engine::{Error, PreviewError};
use cove_protocol::guest::ErrorKind;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::trace::request_id;

/// How long a client should wait before it asks again for something that is on its way, in milliseconds.
const RETRY_AFTER_MS: u64 = 1000;

/// An answer that says no.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Map<String, Value>,
    retry_after_ms: Option<u64>,
    /// What happened inside, for the log alone.
    chain: Option<String>,
}

/// The body of every error answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorEnvelope {
    /// What went wrong.
    pub error: ErrorBody,
}

/// See [`ErrorEnvelope`].
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// Stable, for programs, such as `SANDBOX_NOT_FOUND`.
    #[schema(value_type = String)]
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// The id under which the server's log has more; also in the header `x-request-id`.
    pub request_id: Option<String>,
    /// More facts, such as `field`: the name of the field that is wrong.
    #[schema(value_type = Object)]
    pub details: Map<String, Value>,
    /// The same request may work later.
    pub retryable: bool,
    /// When to try again, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ApiError {
    /// An error that arises in the API itself.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: Map::new(), retry_after_ms: None, chain: None }
    }

    /// A field of the request is wrong. `field` is its path, such as `env.PATH`.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "VALIDATION_ERROR", message).with_detail("field", field)
    }

    /// A path inside a sandbox that cannot be one.
    pub fn invalid_path(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_PATH", message).with_detail("field", "path")
    }

    /// A bug, or something only the log can explain.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", message)
    }

    /// The server stops, and this call cannot end.
    pub fn stopping() -> Self {
        Self::from(Error::ShuttingDown)
    }

    /// The host has no room and the caller did not want to wait (contract 8.1, `fail_fast`).
    pub fn no_ready_machine(error: Error) -> Self {
        Self { code: "NO_READY_MACHINE", retry_after_ms: None, ..Self::from(error) }
    }

    /// No such thing below a sandbox.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    }

    /// A time limit that no command may have (contract, X24).
    pub fn timeout_too_long(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "TIMEOUT_TOO_LONG", message);
        error.with_detail("field", "timeout_seconds")
    }

    /// The same, in the words of the routes that call a sandbox which is not ready `SANDBOX_STARTING` (contract, X24).
    pub fn starting(mut self) -> Self {
        if self.code == "SANDBOX_NOT_COMMAND_READY" {
            self.code = "SANDBOX_STARTING";
        }
        self
    }

    /// More requests than the limit allows; the next is welcome in so many milliseconds.
    pub fn too_many_requests(retry_after_ms: u64) -> Self {
        let message = format!("Too many requests; the next is welcome in {retry_after_ms} ms");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        Self { retry_after_ms: Some(retry_after_ms), ..error }
    }

    /// Adds a fact to `details`.
    pub fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The body, with the id of the current request.
    pub fn body(&self) -> ErrorEnvelope {
        ErrorEnvelope {
            error: ErrorBody {
                code: self.code,
                message: self.message.clone(),
                request_id: request_id(),
                details: self.details.clone(),
                retryable: self.retry_after_ms.is_some(),
                retry_after_ms: self.retry_after_ms,
            },
        }
    }

    /// The body of the answer. Writes the log line with the chain of causes: called once for each error that is told.
    pub fn into_body(self) -> ErrorEnvelope {
        let (status, code, message, chain) = (self.status.as_u16(), self.code, &self.message, self.chain.as_deref());
        if self.status.is_server_error() {
            tracing::error!(status, code, message, chain, "refused");
        } else {
            tracing::debug!(status, code, message, chain, "refused");
        }
        self.body()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry_after_ms) = (self.status, self.retry_after_ms);
        let mut response = (status, Json(self.into_body())).into_response();
        if let Some(milliseconds) = retry_after_ms {
            // The SDK reads seconds, and only from this header.
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1000)));
        }
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let (status, code) = status_and_code(&error);
        let mut answer = Self::new(status, code, error.to_string());
        answer.chain = chain(&error);
        match &error {
            Error::Invalid { field, .. } => answer = answer.with_detail("field", *field),
            Error::NotReady { state, .. } => {
                answer = answer.with_detail("state", state.as_str());
                answer.retry_after_ms = Some(RETRY_AFTER_MS);
            }
            Error::WrongState { state, .. } => answer = answer.with_detail("state", state.as_str()),
            Error::NameTaken { holder, .. } => answer = answer.with_detail("sandbox_id", json!(holder)),
            Error::SnapshotNameTaken { holder, .. } => answer = answer.with_detail("snapshot_id", json!(holder)),
            Error::SnapshotInUse { id, .. } => answer = answer.with_detail("snapshot_id", json!(id)),
            Error::NoSpace { id, .. }
            | Error::Interrupted { id, .. }
            | Error::ResumeFailed { id, .. }
            | Error::SandboxFailed { id, .. } => answer = answer.with_detail("sandbox_id", json!(id)),
            // The agent is well; what it was asked is too much.
            Error::Agent { source: source @ AgentError::TooManyEntries { .. }, .. } => {
                answer.message = source.to_string();
            }
            Error::Agent { source: source @ AgentError::Busy { .. }, .. } => {
                answer.message = source.to_string();
                answer.retry_after_ms = Some(RETRY_AFTER_MS);
            }
            Error::Admission(_) | Error::ShuttingDown => answer.retry_after_ms = Some(RETRY_AFTER_MS),
            _ => {}
        }
        answer
    }
}

pub(crate) fn status_and_code(error: &Error) -> (StatusCode, &'static str) {
    match error {
        Error::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "VALIDATION_ERROR"),
        Error::SandboxNotFound(_) => (StatusCode::NOT_FOUND, "SANDBOX_NOT_FOUND"),
        Error::SandboxDestroyed(_) => (StatusCode::NOT_FOUND, "SANDBOX_DESTROYED"),
        Error::BatchNotFound(_) => (StatusCode::NOT_FOUND, "BATCH_NOT_FOUND"),
        Error::TemplateNotFound(_) => (StatusCode::NOT_FOUND, "TEMPLATE_NOT_FOUND"),
        Error::NameTaken { .. } => (StatusCode::CONFLICT, "NAME_TAKEN"),
        Error::NotReady { .. } => (StatusCode::CONFLICT, "SANDBOX_NOT_COMMAND_READY"),
        Error::WrongState { .. } => (StatusCode::CONFLICT, "RESOURCE_STATE"),
        Error::SandboxFailed { .. } => (StatusCode::CONFLICT, "SANDBOX_FAILED"),
        // 501 and not 503: the SDK repeats 503 for seconds, and waiting does not bring KVM.
        Error::HostNotReady { .. } => (StatusCode::NOT_IMPLEMENTED, "HOST_NOT_READY"),
        Error::Admission(_) => (StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY"),
        Error::Guest { kind, .. } => guest_status_and_code(*kind),
        Error::Agent { source: AgentError::TooManyEntries { .. }, .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "TOO_MANY_ENTRIES")
        }
        Error::Agent { source: AgentError::Busy { .. }, .. } => (StatusCode::SERVICE_UNAVAILABLE, "SANDBOX_BUSY"),
        Error::Agent { .. } => (StatusCode::BAD_GATEWAY, "AGENT_UNREACHABLE"),
        Error::Machine { .. } => (StatusCode::BAD_GATEWAY, "MACHINE_FAILED"),
        Error::Preview(error) => match error {
            PreviewError::NotFound { .. } => (StatusCode::NOT_FOUND, "PREVIEW_NOT_FOUND"),
            PreviewError::ShareNotFound { .. } => (StatusCode::NOT_FOUND, "SHARE_NOT_FOUND"),
            PreviewError::TooMany { .. } => (StatusCode::CONFLICT, "TOO_MANY"),
            PreviewError::Bind { .. } => (StatusCode::BAD_GATEWAY, "PORT_NOT_EXPOSED"),
        },
        Error::SnapshotNotFound(_) => (StatusCode::NOT_FOUND, "SNAPSHOT_NOT_FOUND"),
        Error::SnapshotNameTaken { .. } => (StatusCode::CONFLICT, "NAME_TAKEN"),
        Error::SnapshotInUse { .. } => (StatusCode::CONFLICT, "SNAPSHOT_IN_USE"),
        Error::NoSpace { .. } => (StatusCode::INSUFFICIENT_STORAGE, "DISK_FULL"),
        Error::Interrupted { .. } => (StatusCode::CONFLICT, "SANDBOX_INTERRUPTED"),
        // 500 and 502 are repeated by the SDK for calls with a key; each of these may work the next time.
        Error::ResumeFailed { .. } => (StatusCode::BAD_GATEWAY, "RESUME_FAILED"),
        Error::Disk { .. } | Error::WarmFailed { .. } | Error::Flatten { .. } => {
            (StatusCode::BAD_GATEWAY, "MACHINE_FAILED")
        }
        Error::Upload { .. } => (StatusCode::BAD_REQUEST, "UPLOAD_INCOMPLETE"),
        Error::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "SERVER_STOPPING"),
        Error::DataDirLocked { .. } | Error::Config(_) | Error::Database(_) | Error::File { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR")
        }
    }
}

fn guest_status_and_code(kind: ErrorKind) -> (StatusCode, &'static str) {
    match kind {
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
        ErrorKind::InvalidPath => (StatusCode::BAD_REQUEST, "INVALID_PATH"),
        ErrorKind::InvalidRequest => (StatusCode::UNPROCESSABLE_ENTITY, "VALIDATION_ERROR"),
        ErrorKind::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "DISK_FULL"),
        ErrorKind::Permission => (StatusCode::FORBIDDEN, "PERMISSION_DENIED"),
        ErrorKind::Io => (StatusCode::INTERNAL_SERVER_ERROR, "GUEST_IO_ERROR"),
        // 409 and not 429: the SDK repeats 429, and nothing ends by itself meanwhile.
        ErrorKind::Busy => (StatusCode::CONFLICT, "LIMIT_REACHED"),
        ErrorKind::Refused => (StatusCode::BAD_GATEWAY, "PORT_NOT_LISTENING"),
    }
}

/// The causes below the error itself, outermost first; `None` when there are none.
fn chain(error: &Error) -> Option<String> {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use cove_engine::SandboxId;

    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let error = ApiError::from(Error::Invalid { field: "memory_mb", message: "memory_mb is 3".into() });
        assert_eq!((error.status().as_u16(), error.code()), (422, "VALIDATION_ERROR"));
        let body = serde_json::to_value(error.into_body()).unwrap();
        assert_eq!(body["error"]["details"]["field"], "memory_mb");
        assert_eq!(body["error"]["retryable"], false);
    }

    #[test]
    fn an_unknown_sandbox_is_404_whatever_its_id_looks_like() {
        let error = ApiError::from(Error::SandboxNotFound("no/such one".into()));
        assert_eq!((error.status().as_u16(), error.code()), (404, "SANDBOX_NOT_FOUND"));
    }

    #[test]
    fn what_is_too_much_for_an_agent_is_no_failure_of_its() {
        let of = |source| ApiError::from(Error::Agent { id: SandboxId::parse("sbx_1").unwrap(), source });
        let error = of(AgentError::TooManyEntries { max: 7 });
        assert_eq!((error.status().as_u16(), error.code()), (422, "TOO_MANY_ENTRIES"));
        assert!(error.message().contains("more than 7 entries"), "{}", error.message());
        let response = of(AgentError::Busy { operations: 9, seconds: 30 }).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
            (503, &"1".parse().unwrap())
        );
    }

    #[test]
    fn a_retryable_answer_says_when_in_header_and_body() {
        let response = ApiError::stopping().into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
