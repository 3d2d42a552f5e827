//! Terminal sessions (contract X33-X35): open, list, close, and a WebSocket that looks at one.
//!
//! The sandbox's agent keeps the sessions and what they show; here each client's frames are passed on. A client that does
//! not read stops its reading of the session, and so, at last, the program in it; what waits for it here is a few chunks.

use axum::Json;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use cove_engine::protocol::guest::{AttachTerminal, COLUMNS_MAX, ROWS_MAX, WindowSize};
use cove_engine::{Activity, SandboxId, Terminal, TerminalEvent, TerminalInput, TerminalOutput};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Duration, timeout};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Query, SessionRef, number};
use crate::heartbeat;
use crate::types::{Control, Data, TerminalBody, TerminalRecord, exit_code, session_id, session_number};

/// Largest frame that a client may send.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// How long a client may take to answer the end of its stream.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Longest reason of a close frame (RFC 6455, 5.5: a control frame has 125 bytes, two of which are the code).
const REASON_BYTES_MAX: usize = 123;

/// The session of a stream, for clients that let the server choose it.
const SESSION_HEADER: HeaderName = HeaderName::from_static("x-cove-session");

/// The sandbox stopped for now, or the server does: the same session can be looked at later (RFC 6455's registry: service
/// restart).
const CLOSE_RESTART: u16 = close_code::RESTART;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(open_terminal, list_terminals))
        .routes(routes!(stream_terminal))
        .routes(routes!(close_terminal))
}

/// Opens a terminal session: a shell on a terminal of its own. It stays when nobody looks at it, until its shell ends; at
/// most 16 are open at one time.
#[utoipa::path(post, path = "/sandboxes/{id}/terminal", tag = "terminal", params(("id" = String, Path)),
    request_body = TerminalBody, responses((status = 201, body = Data<TerminalRecord>)))]
pub async fn open_terminal(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<TerminalBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let base = stream_base(&api, &id);
    let work = async move {
        let info = api.engine.open_terminal(&id, body.into_open()).await?;
        Ok::<_, ApiError>(Data { data: TerminalRecord::new(info, &base) })
    };
    Ok(heartbeat::answer(StatusCode::CREATED, work).await)
}

/// The open sessions, oldest first.
#[utoipa::path(get, path = "/sandboxes/{id}/terminal", tag = "terminal", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<TerminalRecord>>)))]
pub async fn list_terminals(State(api): State<Api>, Id(id): Id) -> Result<Json<Data<Vec<TerminalRecord>>>, ApiError> {
    let id = sandbox_id(&id)?;
    let base = stream_base(&api, &id);
    let sessions = api.engine.terminals(&id).await?;
    Ok(Json(Data { data: sessions.into_iter().map(|info| TerminalRecord::new(info, &base)).collect() }))
}

/// Closes a session: its shell is hung up (SIGHUP), and killed after five seconds.
#[utoipa::path(delete, path = "/sandboxes/{id}/terminal/{session}", tag = "terminal",
    params(("id" = String, Path), ("session" = String, Path)), responses((status = 204)))]
pub async fn close_terminal(
    State(api): State<Api>,
    Id(id): Id,
    SessionRef(session): SessionRef,
) -> Result<StatusCode, ApiError> {
    api.engine.close_terminal(&sandbox_id(&id)?, session_number(&session)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TerminalQuery {
    /// Which session. When absent: the one opened last, or a new one when there is none.
    session: Option<String>,
    /// Columns of the client's terminal, which the session gets; with `rows`.
    cols: Option<String>,
    /// Rows of the client's terminal.
    rows: Option<String>,
    /// In place of the token: see `POST /sse/ticket`.
    #[allow(dead_code, reason = "read where requests are let in; listed here for the document")]
    ticket: Option<String>,
}

/// Looks at a terminal session over a WebSocket (RFC 6455).
///
/// **Server to client**: binary frames with the terminal's output. The first ones draw what there is: up to 1000 lines of
/// scrollback, then the screen as it is, colours, cursor and modes included. The header `x-cove-session` of the answer
/// names the session.
///
/// **Client to server**: binary frames are typed bytes. Text frames are typed text, but for
/// `{"type":"resize","cols":120,"rows":40}`, which gives the terminal this size. The last size that any client gave counts.
///
/// **End**: when the shell ends the server closes with code 1000 and the reason `{"exit_code":0}`. Code 1012 means that the
/// sandbox was paused or the server stops: the session goes on, look at it again. 1011 is a failure, with its code and
/// sentence in the reason. A client that closes leaves the session alone. A refusal comes as an ordinary error answer before
/// the WebSocket is there.
///
/// **Several clients** see the same. Nothing is lost for a slow one: the program in the terminal waits for it. Only when it
/// takes nothing for 10 seconds while another client waits does it lose its place; then it gets the screen anew when it
/// reads again.
#[utoipa::path(get, path = "/sandboxes/{id}/terminal/stream", tag = "terminal",
    params(("id" = String, Path), TerminalQuery), responses((status = 101, description = "The WebSocket")))]
pub async fn stream_terminal(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<TerminalQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let upgrade = upgrade.map_err(|rejection| {
        let message = format!("This is a WebSocket: {}", rejection.body_text());
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "UPGRADE_REQUIRED", message)
    })?;
    let size = size(&query)?;
    let terminal = match query.session.as_deref() {
        Some(session) => {
            let session = Some(session_number(session)?);
            api.engine.attach_terminal(&id, AttachTerminal { session, size }).await?
        }
        None => api.engine.attach_any_terminal(&id, size).await?,
    };
    let activity = api.engine.activity(&id).await?;
    let session = session_id(terminal.info.session);
    let upgrade = upgrade.max_message_size(FRAME_BYTES_MAX).max_frame_size(FRAME_BYTES_MAX);
    let stopping = api.config.stopping.clone();
    let mut response = upgrade.on_upgrade(async move |socket| {
        let Terminal { mut output, input, .. } = terminal;
        let (mut sink, mut stream) = socket.split();
        let last = tokio::select! {
            last = show(&mut sink, &mut output) => last,
            () = listen(&mut stream, &input, &activity) => None,
            () = stopping.cancelled() => Some(close(CLOSE_RESTART, "The server stops".to_owned())),
        };
        let Some(frame) = last else { return };
        // A client that does not read its end is not waited for.
        let _ = timeout(CLOSE_DEADLINE, async {
            let _ = sink.send(Message::Close(Some(frame))).await;
            while let Some(Ok(_)) = stream.next().await {}
        })
        .await;
    });
    if let Ok(value) = HeaderValue::from_str(&session) {
        response.headers_mut().insert(SESSION_HEADER, value);
    }
    Ok(response)
}

/// Passes output on until the session's end; gives the frame that tells it. `None` when the client is gone.
async fn show(sink: &mut SplitSink<WebSocket, Message>, output: &mut TerminalOutput) -> Option<CloseFrame> {
    loop {
        match output.next().await {
            Some(Ok(TerminalEvent::Output(data))) => sink.send(Message::Binary(data)).await.ok()?,
            Some(Ok(TerminalEvent::Exited(exit))) => {
                return Some(close(close_code::NORMAL, json!({ "exit_code": exit_code(exit) }).to_string()));
            }
            Some(Err(error @ cove_engine::Error::Interrupted { .. })) => {
                return Some(close(CLOSE_RESTART, error.to_string()));
            }
            Some(Err(error)) => {
                let error = ApiError::from(error);
                let reason = format!("{}: {}", error.code(), error.message());
                // Writes the log line.
                drop(error.into_body());
                return Some(close(close_code::ERROR, reason));
            }
            None => return Some(close(close_code::ERROR, "The terminal ended without its end".to_owned())),
        }
    }
}

/// Passes input on until the client is gone.
async fn listen(stream: &mut SplitStream<WebSocket>, input: &TerminalInput, activity: &Activity) {
    while let Some(Ok(message)) = stream.next().await {
        let taken = match message {
            Message::Binary(bytes) => {
                activity.touch();
                input.data(&bytes).await
            }
            Message::Text(text) => {
                activity.touch();
                match Control::parse(&text) {
                    Some(Control::Resize { cols, rows }) => {
                        let size = WindowSize { columns: cols.clamp(1, COLUMNS_MAX), rows: rows.clamp(1, ROWS_MAX) };
                        input.resize(size).await
                    }
                    None => input.data(text.as_bytes()).await,
                }
            }
            Message::Ping(_) | Message::Pong(_) => true,
            Message::Close(_) => return,
        };
        if !taken {
            // The session ended; the other direction tells it.
            std::future::pending::<()>().await;
        }
    }
}

fn close(code: u16, mut reason: String) -> CloseFrame {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    CloseFrame { code, reason: reason.into() }
}

fn size(query: &TerminalQuery) -> Result<Option<WindowSize>, ApiError> {
    let number = |field, text: &Option<String>| text.as_deref().map(|text| number(field, text)).transpose();
    match (number("cols", &query.cols)?, number("rows", &query.rows)?) {
        (Some(columns), Some(rows)) => Ok(Some(WindowSize { columns, rows })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(ApiError::invalid("rows", "rows is missing: a size has cols and rows")),
        (None, Some(_)) => Err(ApiError::invalid("cols", "cols is missing: a size has cols and rows")),
    }
}

/// Where the WebSockets of a sandbox are.
fn stream_base(api: &Api, id: &SandboxId) -> String {
    let base = crate::base_url(api.config.port);
    format!("ws{}/sandboxes/{id}", base.strip_prefix("http").unwrap_or(&base))
}
