//! Connections to previews: accepted, bounded, and served until the preview or the server ends.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use cove_engine::PreviewId;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::alias::Alias;
use super::proxy::Proxy;

/// Connections of one listener at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;

/// A client has this long to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests that are at work may go on after the server was told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// When the host has no descriptor left, which no event tells the end of.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What a listener serves.
#[derive(Clone, Debug)]
pub enum Served {
    /// One preview.
    Door { preview: PreviewId, at: SocketAddrV4 },
    /// All, by their aliases.
    Alias(Alias),
}

/// Serves a listener until `closed`, or until the proxy stops.
pub async fn serve(listener: TcpListener, served: Served, proxy: Proxy, closed: CancellationToken) {
    let served = Arc::new(served);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    let stopping = proxy.stopping().clone();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = closed.cancelled() => break,
            () = stopping.cancelled() => break,
        };
        let Some((stream, peer, turn)) = accepted else { continue };
        let (proxy, served, closed) = (proxy.clone(), Arc::clone(&served), closed.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = serve_connection(stream, peer, &proxy, &served) => {}
                // At once: what it leads to is gone. A server that stops ends its connections in good order.
                () = closed.cancelled(), if !proxy.stopping().is_cancelled() => {}
            }
            drop(turn);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

type Turn = tokio::sync::OwnedSemaphorePermit;

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, IpAddr, Turn)> {
    let turn = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Small answers must not wait for acknowledgements; a socket that cannot be told is only slower.
            let _ = stream.set_nodelay(true);
            Some((stream, peer.ip(), turn))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection to a preview was not accepted");
            tokio::time::sleep_until(tokio::time::Instant::now() + ACCEPT_AGAIN_AFTER).await;
            None
        }
    }
}

async fn serve_connection(stream: TcpStream, peer: IpAddr, proxy: &Proxy, served: &Served) {
    let service = service_fn(async |request| Ok::<_, Infallible>(proxy.answer(request, peer, served).await));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .preserve_header_case(true)
        // The app says when it answered, or does not.
        .auto_date_header(false)
        // A client that has said all still gets its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = proxy.stopping().cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(STOP_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to a preview broke off");
    }
}
