//! The fused run: create, wait, exec in one call (contract 8.3).
//!
//! The sandbox is like any other: it goes on running, and its own `persistent` and timeouts say what becomes of it. Every
//! error from its creation on names it (`details.sandbox_id`). When the client goes away the command is ended, and the
//! sandbox stays.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cove_engine::protocol::guest::Exec;
use cove_engine::{BoxError, Engine, Error, Sandbox, SandboxSpec, SandboxState};
use tokio::time::Instant;

use super::exec::{self, Broken};
use super::sandboxes::{CREATE_WAIT_DEFAULT, create};
use crate::Api;
use crate::error::ApiError;
use crate::extract::{JsonBytes, parse};
use crate::heartbeat::{self, Failure, json_bytes};
use crate::idempotency::detached;
use crate::types::{CreateBody, ExecBody, ExecResult, RunAnswer, RunBody, RunCommand, RunRecord, RunTimings};
use crate::types::{Data, SandboxRecord};

/// Makes a sandbox, waits until it is command-ready, runs a command in it, and answers once. A command that fails is a
/// success of the call, with its exit code. The sandbox goes on running.
#[utoipa::path(post, path = "/sandboxes/run", tag = "sandboxes", request_body = RunBody,
    responses((status = 201, body = RunAnswer)))]
pub async fn run_sandbox(State(api): State<Api>, JsonBytes(body): JsonBytes) -> Result<Response, ApiError> {
    let command: RunCommand = parse(&body)?;
    let (exec, stdin) = ExecBody::from(command).into_exec()?;
    let request: CreateBody = parse(&body)?;
    let fail_fast = request.fail_fast == Some(true);
    let run = Run { spec: request.into_spec()?, fail_fast, exec, stdin };
    Ok(heartbeat::answer(StatusCode::CREATED, run.run(api.engine)).await)
}

/// What was asked for.
struct Run {
    spec: SandboxSpec,
    fail_fast: bool,
    exec: Exec,
    stdin: Option<Bytes>,
}

impl Run {
    async fn run(self, engine: Engine) -> Result<RunAnswer, RunBroken> {
        let began = Instant::now();
        let mut timings = RunTimings::default();
        let sandbox = detached(create(engine.clone(), self.spec, self.fail_fast)).await.map_err(RunBroken::before)?;
        let created = Instant::now();
        timings.create_ms = milliseconds(created - began);

        let waited = engine.wait_settled(&sandbox.id, created + CREATE_WAIT_DEFAULT).await;
        let ready = Instant::now();
        timings.wait_ms = milliseconds(ready - created);
        let sandbox = match waited.and_then(|sandbox| command_ready(sandbox, ready - created)) {
            Ok(sandbox) => sandbox,
            Err(error) => return Err(RunBroken::with(ApiError::from(error).into(), sandbox, timings)),
        };

        let result = exec::run(engine.clone(), sandbox.id.clone(), self.exec, self.stdin).await;
        timings.exec_ms = milliseconds(ready.elapsed());
        timings.server_wait_and_exec_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let sandbox = engine.get(sandbox.id.as_str()).await.unwrap_or(sandbox);
        match result {
            Ok(Data { data }) => Ok(answer(sandbox, data, timings)),
            Err(broken) => Err(RunBroken::with(broken, sandbox, timings)),
        }
    }
}

/// A sandbox that can be asked to run a command.
fn command_ready(sandbox: Sandbox, waited: std::time::Duration) -> Result<Sandbox, Error> {
    let id = sandbox.id.clone();
    match sandbox.state {
        SandboxState::Error => {
            Err(Error::SandboxFailed { id, reason: sandbox.last_error.unwrap_or_else(|| "no reason is known".into()) })
        }
        SandboxState::Creating => {
            let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            Err(Error::NotReady { id, state: sandbox.state, waited_ms })
        }
        SandboxState::Destroying | SandboxState::Destroyed => Err(Error::SandboxDestroyed(id)),
        _ => Ok(sandbox),
    }
}

fn answer(sandbox: Sandbox, exec: ExecResult, timings: RunTimings) -> RunAnswer {
    let data = RunRecord { sandbox: SandboxRecord::now(sandbox), exec: exec.clone() };
    RunAnswer { data, exec, timings, error: None }
}

/// To a hundredth: more is noise.
fn milliseconds(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

/// A run without a true result.
struct RunBroken {
    broken: Broken,
    /// What is known of the sandbox, once there is one, and how long it took.
    sandbox: Option<(Box<Sandbox>, RunTimings)>,
}

impl RunBroken {
    fn before(error: ApiError) -> Self {
        Self { broken: error.into(), sandbox: None }
    }

    fn with(mut broken: Broken, sandbox: Sandbox, timings: RunTimings) -> Self {
        broken.error = broken.error.with_detail("sandbox_id", sandbox.id.as_str());
        Self { broken, sandbox: Some((Box::new(sandbox), timings)) }
    }
}

impl Failure for RunBroken {
    fn early(self) -> Response {
        self.broken.error.into_response()
    }

    /// The SDK passes on `data` alone, so the sandbox and an exit code that says failure are in it.
    fn late(self) -> Result<Bytes, BoxError> {
        let result = self.broken.result();
        let error = self.broken.error.into_body();
        Ok(match self.sandbox {
            Some((sandbox, timings)) => {
                json_bytes(&RunAnswer { error: Some(error.error), ..answer(*sandbox, result, timings) })
            }
            None => json_bytes(&error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_before_there_is_a_sandbox_is_the_envelope() {
        let document = RunBroken::before(ApiError::invalid("command", "no")).late().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["error"]["code"], "VALIDATION_ERROR");
        assert!(document.get("data").is_none());
    }

    #[test]
    fn an_error_names_its_sandbox_and_is_never_taken_for_success() {
        let sandbox = crate::types::tests::sandbox();
        let id = sandbox.id.to_string();
        let broken = || RunBroken::with(ApiError::internal("gone").into(), sandbox.clone(), RunTimings::default());
        let document: serde_json::Value = serde_json::from_slice(&broken().late().unwrap()).unwrap();
        assert_eq!((&document["data"]["id"], &document["exec"]["exit_code"]), (&id.clone().into(), &255.into()));
        assert_eq!(document["error"]["details"]["sandbox_id"], id);
        assert_eq!(document["data"]["exec"], document["exec"]);
        assert_eq!(broken().early().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn what_cannot_run_commands_is_told_apart() {
        let in_state = |state| {
            let sandbox = Sandbox { state, ..crate::types::tests::sandbox() };
            command_ready(sandbox, std::time::Duration::from_secs(1)).map_err(|error| ApiError::from(error).code())
        };
        assert!(in_state(SandboxState::Running).is_ok());
        assert_eq!(in_state(SandboxState::Error).unwrap_err(), "SANDBOX_FAILED");
        assert_eq!(in_state(SandboxState::Creating).unwrap_err(), "SANDBOX_NOT_COMMAND_READY");
        assert_eq!(in_state(SandboxState::Destroyed).unwrap_err(), "SANDBOX_DESTROYED");
    }
}
