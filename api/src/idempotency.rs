//! Same key, same answer (contract 2.5), for calls that make a sandbox.
//!
//! The engine keeps what was answered; this file says what a key means in HTTP. The scope of a key is method, path and
//! key. A second request that comes while the first is at work waits for it. A replay answers the sandbox's *current*
//! record, and failures of 500 and more are forgotten, so that they can be tried again.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cove_engine::{Answer, Claim, ClaimGuard, Engine, Sandbox};
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::trace::carry;

/// The request header.
const KEY: &str = "idempotency-key";

/// Longest key.
const KEY_BYTES_MAX: usize = 255;

/// What a request under a key comes to.
pub enum Once {
    /// The work was done now.
    New(Box<Sandbox>),
    /// It was done before; this is the record as it is now.
    Replayed(Box<Sandbox>),
    /// It was refused before, with this answer.
    Refused(Response),
}

/// The request's key, if it has one.
pub fn key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key)),
        _ => Err(ApiError::invalid(
            "Idempotency-Key",
            format!("Idempotency-Key must have 1 to {KEY_BYTES_MAX} printable ASCII characters"),
        )),
    }
}

/// Runs `work` unless the key was used before. `call` is method and path, `body` the request's bytes.
///
/// The work goes on when the client goes away: a client that lost its connection asks again with the same key, and must
/// then find what it made.
pub async fn once<W>(engine: &Engine, call: &str, key: Option<&str>, body: &[u8], work: W) -> Result<Once, ApiError>
where
    W: Future<Output = Result<Sandbox, ApiError>> + Send + 'static,
{
    let Some(key) = key else {
        return detached(work).await.map(|sandbox| Once::New(Box::new(sandbox)));
    };
    let scope = format!("{call} {key}");
    let body_hash = format!("{:x}", Sha256::digest(body));
    loop {
        match engine.claim(&scope, &body_hash).await? {
            Claim::New(guard) => {
                return detached(keep(guard, work)).await.map(|sandbox| Once::New(Box::new(sandbox)));
            }
            Claim::InFlight(other) => other.wait().await,
            Claim::Replay(replay) => match replay.answer {
                Answer::Sandbox(id) => {
                    let sandbox = engine.get(id.as_str()).await?;
                    return Ok(Once::Replayed(Box::new(sandbox)));
                }
                Answer::Body(body) => return Ok(Once::Refused(stored(replay.status, body))),
            },
            Claim::Conflict => return Err(conflict(key)),
        }
    }
}

/// Does the work and keeps its answer.
async fn keep<W>(guard: ClaimGuard, work: W) -> Result<Sandbox, ApiError>
where
    W: Future<Output = Result<Sandbox, ApiError>>,
{
    let outcome = work.await;
    match &outcome {
        Ok(sandbox) => guard.complete(StatusCode::CREATED.as_u16(), Answer::Sandbox(sandbox.id.clone())).await?,
        Err(error) if !error.status().is_server_error() => {
            let body = serde_json::to_string(&error.body()).unwrap_or_default();
            guard.complete(error.status().as_u16(), Answer::Body(body)).await?;
        }
        // The guard is dropped, and the key is free again.
        Err(_) => {}
    }
    outcome
}

/// Runs `work` to its end even if nobody waits for it any more.
pub async fn detached<T, W>(work: W) -> Result<T, ApiError>
where
    T: Send + 'static,
    W: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    match tokio::spawn(carry(work)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ApiError::internal("The server met a bug; the log has the details")),
    }
}

fn stored(status: u16, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn conflict(key: &str) -> ApiError {
    let message = format!("The idempotency key '{key}' was used with another body");
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "IDEMPOTENCY_KEY_REUSED", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_must_be_short_and_printable() {
        let with = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(KEY, value.try_into().unwrap());
            headers
        };
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
        assert_eq!(key(&with(b"923200d9-26ff")).unwrap(), Some("923200d9-26ff"));
        for wrong in [&b""[..], &b"\xff"[..], &[b'x'; 256][..]] {
            assert_eq!(key(&with(wrong)).unwrap_err().status().as_u16(), 422);
        }
    }
}
