//! A TCP port of a guest as a WebSocket: binary messages are bytes (contract X36).

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use cove_engine::{Activity, GuestStream, SandboxId};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, copy, sink};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, Part};

/// Most bytes of one message to a client.
const MESSAGE_BYTES: usize = 64 << 10;

/// How long a program may take to end the stream after its client is gone; then it is reset.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Most bytes of one message from a client.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Opens a WebSocket to a TCP port in the guest. Binary messages are the bytes of the stream, in both directions, cut
/// anywhere; text messages are taken as bytes too. The socket is closed with 1000 when the program in the guest ends the
/// stream, with 1011 when it breaks. A paused persistent sandbox is resumed; a port on which nobody listens is 502.
#[utoipa::path(get, path = "/sandboxes/{id}/tunnel/{part}", tag = "previews",
    params(("id" = String, Path), ("part" = u16, Path, description = "The port in the guest", example = 5432)),
    responses((status = 101, description = "The stream stands")))]
pub async fn open_tunnel(
    State(api): State<Api>,
    Id(id): Id,
    Part(port): Part,
    request: Request,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        ApiError::invalid("port", format!("The port is '{port}', and must be a number from 1 to 65535"))
    })?;
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &api).await.map_err(|error| {
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "WEBSOCKET_REQUIRED", format!("This is a WebSocket: {error}"))
    })?;
    // Before the upgrade, so that a failure has a status.
    let stream = api.engine.connect(&id, port).await?;
    let activity = api.engine.activity(&id).await?;
    let stopping = api.config.stopping.clone();
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| carry(socket, stream, activity, stopping, id)))
}

async fn carry(socket: WebSocket, stream: GuestStream, activity: Activity, stopping: CancellationToken, id: SandboxId) {
    let (mut outgoing, incoming) = socket.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let code = tokio::select! {
        code = to_client(&mut from_guest, &mut outgoing, &activity) => code,
        () = from_client(incoming, &mut to_guest, &activity) => {
            // A program that is told the end instead of being cut off has all that was sent.
            let _ = timeout(LAST_WORDS, async { to_guest.shutdown().await?; copy(&mut from_guest, &mut sink()).await }).await;
            close_code::NORMAL
        }
        () = stopping.cancelled() => close_code::AWAY,
    };
    tracing::debug!(sandbox = %id, code, "tunnel ended");
    // The client may be gone.
    let _ = outgoing.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await;
}

/// Passes on what the program says; gives the code to close with.
async fn to_client(
    guest: &mut ReadHalf<GuestStream>,
    client: &mut SplitSink<WebSocket, Message>,
    activity: &Activity,
) -> u16 {
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        match guest.read(&mut buffer).await {
            Ok(0) => return close_code::NORMAL,
            Ok(count) => {
                activity.touch();
                if client.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                    return close_code::AWAY;
                }
            }
            Err(_) => return close_code::ERROR,
        }
    }
}

/// Passes on what the client says; returns when it is gone. A program that takes no more may still have something to say.
async fn from_client(mut client: SplitStream<WebSocket>, guest: &mut WriteHalf<GuestStream>, activity: &Activity) {
    let mut open = true;
    while let Some(Ok(message)) = client.next().await {
        activity.touch();
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        open = open && guest.write_all(&bytes).await.is_ok();
    }
}
