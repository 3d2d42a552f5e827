//! Commands (contract X24-X28): exec with a ready gate, a relative directory and a limit of 600 s; detached ones are
//! background processes, which X25-X28 read and end.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cove_engine::protocol::guest::{AttachTerminal, Command, OpenTerminal};
use cove_engine::{Engine, SandboxId, TerminalEvent};
use futures_util::StreamExt;
use tokio::time::{Duration, timeout};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exec::{self, Broken};
use super::processes::{self, ProcessLogsQuery, process_id, record};
use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Pid, Query};
use crate::heartbeat::{self, Failure};
use crate::types::{
    COMMAND_SECONDS_MAX, CommandBody, Data, Detached, ExecBody, ExecData, ExecResult, ProcessBody, ProcessLogs,
    ProcessRecord, exit_code,
};

/// Most bytes of a terminal's output that an answer keeps.
const TTY_BYTES_MAX: usize = 16 << 20;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(run_command, list_commands))
        .routes(routes!(get_command))
        .routes(routes!(get_command_logs))
        .routes(routes!(kill_command))
}

/// Runs a command and answers at its end, like exec; with `detached` it answers at once with the `pid` of a background
/// process.
#[utoipa::path(post, path = "/sandboxes/{id}/commands", tag = "processes", params(("id" = String, Path)),
    request_body = CommandBody, responses((status = 200, body = ExecData), (status = 201, body = Data<Detached>)))]
pub async fn run_command(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(mut body): JsonBody<CommandBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    body.check()?;
    if body.detached {
        let work = async move { detach(&api.engine, &id, body).await.map_err(ApiError::starting) };
        return Ok(heartbeat::answer(StatusCode::CREATED, work).await);
    }
    let (tty, seconds) =
        (body.tty, body.timeout_seconds.filter(|seconds| *seconds > 0.0).unwrap_or(COMMAND_SECONDS_MAX));
    let CommandBody { command, cwd, env, stdin, user, .. } = body;
    let whole = ExecBody { command, cwd, env, timeout: Some(seconds), user, stdin, stdin_base64: None, output: None };
    let (exec, stdin) = whole.into_exec()?;
    if tty {
        let open = OpenTerminal {
            command: match exec.command {
                Command::Argv(words) => words,
                Command::Shell(line) => vec!["bash".into(), "-c".into(), line],
            },
            cwd: exec.cwd,
            env: exec.env,
            user: exec.user,
            ..OpenTerminal::default()
        };
        let work = async move { on_terminal(&api.engine, &id, open, stdin, seconds).await.map_err(ApiError::starting) };
        return Ok(heartbeat::answer(StatusCode::OK, work).await);
    }
    let work = async move { exec::run(api.engine, id, exec, stdin).await.map_err(Starting) };
    Ok(heartbeat::answer(StatusCode::OK, work).await)
}

/// A command that failed; while the sandbox is being made it fails in the words of this route.
struct Starting(Broken);

impl Failure for Starting {
    fn early(self) -> Response {
        let Broken { error, .. } = self.0;
        error.starting().into_response()
    }

    fn late(self) -> Result<Bytes, cove_engine::BoxError> {
        self.0.late()
    }
}

async fn detach(engine: &Engine, id: &SandboxId, body: CommandBody) -> Result<Data<Detached>, ApiError> {
    let CommandBody { command, cwd, env, timeout_seconds, stdin, name, user, .. } = body;
    let start = ProcessBody { command, name, cwd, env, timeout: timeout_seconds, user }.into_job()?;
    let job = engine.start_job(id, start).await?;
    if let Some(stdin) = stdin {
        engine.write_job(id, job.pid, stdin.into(), true).await?;
    }
    let record = ProcessRecord::from(job);
    let ProcessRecord { pid, name, command, started_at, status, .. } = record;
    Ok(Data { data: Detached { pid, status, name, command, started_at } })
}

/// Runs a command on a terminal of its own to its end.
async fn on_terminal(
    engine: &Engine,
    id: &SandboxId,
    open: OpenTerminal,
    stdin: Option<Bytes>,
    seconds: f64,
) -> Result<Data<ExecResult>, ApiError> {
    let session = engine.open_terminal(id, open).await?.session;
    let _busy = engine.activity(id).await?.begin();
    let attach = AttachTerminal { session: Some(session), size: None };
    let mut terminal = engine.attach_terminal(id, attach).await?;
    if let Some(stdin) = stdin {
        terminal.input.data(&stdin).await;
        // The end of input on a terminal (VEOF, termios(3)).
        terminal.input.data(b"\x04").await;
    }
    let mut result = ExecResult::default();
    let mut output = Vec::new();
    let run = async {
        while let Some(event) = terminal.output.next().await {
            match event? {
                TerminalEvent::Output(data) => {
                    let room = TTY_BYTES_MAX - output.len();
                    output.extend_from_slice(&data[..data.len().min(room)]);
                    result.stdout_truncated |= data.len() > room;
                }
                TerminalEvent::Exited(exit) => return Ok(Some(exit)),
            }
        }
        Ok::<_, ApiError>(None)
    };
    let ended = timeout(Duration::from_secs_f64(seconds), run).await;
    match ended {
        Ok(exit) => {
            let exit = exit?.ok_or_else(|| ApiError::internal("The terminal ended without its end"))?;
            (result.exit_code, result.duration_ms) = (exit_code(exit), exit.duration_us / 1000);
        }
        Err(_) => {
            engine.close_terminal(id, session).await?;
            (result.exit_code, result.duration_ms) = (124, (seconds * 1000.0) as u64);
            result.stderr = format!("\n[cove] The command was killed: its time of {seconds} s is over\n");
        }
    }
    result.stdout = String::from_utf8_lossy(&output).into_owned();
    Ok(Data { data: result })
}

/// The background processes, as `GET /sandboxes/{id}/processes`.
#[utoipa::path(get, path = "/sandboxes/{id}/commands", tag = "processes", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<ProcessRecord>>)))]
pub async fn list_commands(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<ProcessRecord>>>, ApiError> {
    processes::list_processes(State(api), Id(id)).await
}

/// One background process.
#[utoipa::path(get, path = "/sandboxes/{id}/commands/{pid}", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path)), responses((status = 200, body = Data<ProcessRecord>)))]
pub async fn get_command(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
) -> Result<Json<Data<ProcessRecord>>, ApiError> {
    processes::get_process(State(api), Id(id), Pid(pid)).await
}

/// What a background process wrote last.
#[utoipa::path(get, path = "/sandboxes/{id}/commands/{pid}/logs", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path), ProcessLogsQuery), responses((status = 200, body = ProcessLogs)))]
pub async fn get_command_logs(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
    Query(query): Query<ProcessLogsQuery>,
) -> Result<Json<ProcessLogs>, ApiError> {
    processes::get_process_logs(State(api), Id(id), Pid(pid), Query(query)).await
}

/// Ends a background process: SIGTERM, and SIGKILL after five seconds.
#[utoipa::path(post, path = "/sandboxes/{id}/commands/{pid}/kill", tag = "processes",
    params(("id" = String, Path), ("pid" = i32, Path)), responses((status = 200, body = Data<ProcessRecord>)))]
pub async fn kill_command(
    State(api): State<Api>,
    Id(id): Id,
    Pid(pid): Pid,
) -> Result<Json<Data<ProcessRecord>>, ApiError> {
    let (id, pid) = (sandbox_id(&id)?, process_id(&pid)?);
    Ok(Json(record(api.engine.stop_job(&id, pid).await?)))
}
