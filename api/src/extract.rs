//! What a handler takes from a request, with errors that name the field: JSON bodies, path parameters, queries.
//!
//! axum's own extractors answer plain text; these answer the contract's error body. A JSON body needs the JSON content
//! type, which also keeps a foreign page's "simple" request out. No body at all counts as `{}`: the SDK sends some POSTs
//! that way. Unknown fields are accepted, since the SDK and its documents know more fields than any server.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::error::ApiError;

/// Most bytes of an ordinary JSON body; a shell line with a heredoc has to fit.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Most bytes of a JSON body with base64 files in it: a file of 256 MiB and the JSON around it.
pub const FILES_BODY_BYTES_MAX: usize = 384 << 20;

/// How much of a refused body is read and thrown away, so that the client gets to see the answer.
const DRAIN_BYTES_MAX: usize = 1 << 30;

/// The longest silence inside a body.
pub const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a JSON body may take in all. Files that are sent as they are have no such limit.
const BODY_DEADLINE: Duration = Duration::from_secs(600);

/// The bytes of a JSON body, not yet parsed; `{}` when there is none.
pub struct JsonBytes<const BYTES_MAX: usize = BODY_BYTES_MAX>(pub Bytes);

impl<S: Sync, const BYTES_MAX: usize> FromRequest<S> for JsonBytes<BYTES_MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let has_json_type = is_json(request.headers());
        let body = read_body(request, BYTES_MAX).await?;
        if body.is_empty() {
            return Ok(Self(Bytes::from_static(b"{}")));
        }
        if !has_json_type {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                "The body must be JSON, with the header 'Content-Type: application/json'",
            ));
        }
        Ok(Self(body))
    }
}

/// A JSON body of at most [`BODY_BYTES_MAX`], parsed.
pub struct JsonBody<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = JsonBytes::<BODY_BYTES_MAX>::from_request(request, state).await?;
        Ok(Self(parse(&bytes.0)?))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn read_body(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut stream = request.into_body().into_data_stream();
    // The pages of a reserve are not there until they are written, so a false length costs nothing.
    let mut body = Vec::with_capacity(length.unwrap_or(0usize).min(bytes_max));
    let mut dropped = 0;
    let deadline = Instant::now() + BODY_DEADLINE;
    loop {
        let by = deadline.min(Instant::now() + CHUNK_TIMEOUT);
        let Ok(chunk) = timeout_at(by, stream.next()).await else {
            let message = "The body came too slowly: a part of it every 30 s, and all of it within 10 minutes";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", message));
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "BODY_INCOMPLETE", format!("The body broke off: {error}"))
        })?;
        if dropped > 0 || body.len() + chunk.len() > bytes_max {
            body = Vec::new();
            dropped += chunk.len();
            if dropped > DRAIN_BYTES_MAX {
                break;
            }
        } else {
            body.extend_from_slice(&chunk);
        }
    }
    if dropped > 0 {
        let message = format!("The body is larger than {bytes_max} bytes, the most for this call");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", message)
            .with_detail("body_bytes_max", bytes_max as u64));
    }
    Ok(Bytes::from(body))
}

/// Parses JSON as `T`, which may borrow from it; an error names the path of the field that is wrong.
pub fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        json_error(&path, error.into_inner())
    })?;
    reader.end().map_err(|error| json_error(".", error))?;
    Ok(value)
}

fn json_error(path: &str, error: serde_json::Error) -> ApiError {
    if !error.is_data() {
        let message = format!("The body is not JSON: {error}");
        return ApiError::new(StatusCode::BAD_REQUEST, "VALIDATION_ERROR", message);
    }
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    match (path, missing_field(reason)) {
        (".", Some(field)) => ApiError::invalid(field, format!("{field} is missing")),
        (path, Some(field)) => ApiError::invalid(&format!("{path}.{field}"), format!("{path}.{field} is missing")),
        (".", None) => ApiError::invalid("", format!("The body must be a JSON object: {reason}")),
        (path, None) => ApiError::invalid(path, format!("{path}: {reason}")),
    }
}

fn missing_field(reason: &str) -> Option<&str> {
    reason.strip_prefix("missing field `")?.strip_suffix('`')
}

/// The `{id}` of a path: a sandbox's or a template's, as text. What is not even UTF-8 is answered like any unknown id.
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(path_parameter(parts, state, "id").await))
    }
}

/// The `{sid}` of a path below a sandbox: a snapshot's id or name, in the same way.
pub struct SnapshotRef(pub String);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotRef {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(path_parameter(parts, state, "sid").await))
    }
}

/// The `{key}` of a path: a variable's name, in the same way.
pub struct EnvKey(pub String);

impl<S: Send + Sync> FromRequestParts<S> for EnvKey {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(path_parameter(parts, state, "key").await))
    }
}

/// The `{part}` of a path below a sandbox: a preview's or share's id, a port.
pub struct Part(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Part {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(path_parameter(parts, state, "part").await))
    }
}

/// The `{pid}` of a path, as text.
pub struct Pid(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Pid {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(path_parameter(parts, state, "pid").await))
    }
}

/// The `{session}` of a path: a terminal session's id.
pub struct SessionRef(pub String);

impl<S: Send + Sync> FromRequestParts<S> for SessionRef {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(path_parameter(parts, state, "session").await))
    }
}

async fn path_parameter<S: Send + Sync>(parts: &mut Parts, state: &S, wanted: &str) -> String {
    let params = RawPathParams::from_request_parts(parts, state).await;
    let value = params
        .ok()
        .and_then(|params| params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned()));
    value.unwrap_or_else(|| char::REPLACEMENT_CHARACTER.into())
}

/// The query string as `T`.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // What is not UTF-8 would be replaced below, and name something else.
        if percent_decode_str(parts.uri.query().unwrap_or_default()).decode_utf8().is_err() {
            let message = "The query is not UTF-8 after percent-decoding";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "VALIDATION_ERROR", message));
        }
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        let axum::extract::Query(value) = query.map_err(|error: QueryRejection| {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "VALIDATION_ERROR", error.body_text())
        })?;
        Ok(Self(value))
    }
}

/// A number in a query.
pub fn number<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|_| ApiError::invalid(field, format!("{field} is '{text}', which is not a whole number")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Body {
        command: String,
        env: Option<BTreeMap<String, String>>,
        files: Option<Vec<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        path: String,
    }

    fn fault(json: &str) -> (u16, String, serde_json::Value) {
        let error = parse::<Body>(json.as_bytes()).unwrap_err();
        let status = error.status().as_u16();
        let body = serde_json::to_value(error.into_body()).unwrap();
        (status, body["error"]["message"].as_str().unwrap().to_owned(), body["error"]["details"]["field"].clone())
    }

    #[test]
    fn the_wrong_field_is_named_however_deep() {
        assert_eq!(fault("{}").2, "command");
        assert_eq!(fault(r#"{"command":1}"#).2, "command");
        assert_eq!(fault(r#"{"command":"x","env":{"A":1}}"#).2, "env.A");
        assert_eq!(fault(r#"{"command":"x","files":[{"path":"a"},{}]}"#).2, "files[1].path");
        assert_eq!(fault(r#"{"command":1}"#).1, "command: invalid type: integer `1`, expected a string");
    }

    #[test]
    fn what_is_not_json_is_400_and_not_an_object_422() {
        assert_eq!(fault("{").0, 400);
        assert_eq!(fault("{} x").0, 422);
        assert_eq!(fault(r#"{"command":"x"} x"#).0, 400);
        assert_eq!(fault("[]").0, 422);
        assert_eq!(fault("\u{0}").0, 400);
    }

    #[test]
    fn unknown_fields_are_fine() {
        assert!(parse::<Body>(br#"{"command":"x","shape":{"of":"things"}}"#).is_ok());
    }

    #[test]
    fn json_types_are_told_from_others() {
        for (value, fine) in [
            ("application/json", true),
            ("application/json; charset=utf-8", true),
            ("Application/JSON", true),
            ("application/merge-patch+json", true),
            ("text/plain", false),
            ("text/json", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_json(&headers), fine, "{value}");
        }
    }
}
