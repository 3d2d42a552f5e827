//! Serving the router on a loopback listener until it is told to stop.
//!
//! Clients may be slow or hostile: connections are counted, a request's head has a time and a size, and a connection on which
//! nothing is asked is closed after a while. What bodies may do is said where they are read (`extract`).

mod patience;

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use cove_engine::Engine;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::preview::{alias_listener, serve_previews};
use crate::{ApiConfig, router};
use patience::{Patience, Patient};

/// Connections at one time. One more is told so and closed: to let it wait would let slow clients lock the others out.
const CONNECTIONS_MAX: usize = 1024;

/// How long a connection may stay without a request: twice as long as the SDK keeps one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// What hyper holds of a head. The limits of `limits` are below and answer better.
const HEAD_BYTES_MAX: usize = 256 << 10;
const HEADERS_MAX: usize = 512;

/// How long requests that are at work may go on after the server was told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept (no descriptor left), the next is tried this much later.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long a refused client may take to take its answer.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the engine's API on `listener` and its previews, their aliases on `preview_port`, until the config's `stopping` is
/// cancelled: what `cove serve` and the window do.
///
/// # Errors
///
/// As [`serve`]. Without a port for aliases previews work as well, on addresses of their own.
pub async fn serve_all(
    listener: TcpListener,
    engine: Engine,
    mut config: ApiConfig,
    preview_port: u16,
) -> io::Result<()> {
    let stopping = config.stopping.clone();
    let alias = alias_listener(preview_port).await.ok();
    config.alias_port = alias.as_ref().and_then(|listener| Some(listener.local_addr().ok()?.port()));
    let previews = tokio::spawn(serve_previews(engine.clone(), alias, config.own_pages(), stopping.clone()));
    let served = serve(listener, router(engine, config), stopping.clone()).await;
    // Also when the API ended by itself.
    stopping.cancel();
    if let Err(error) = previews.await {
        tracing::error!(%error, "the task of the previews failed");
    }
    served
}

/// Serves until `stopping` is cancelled, which must be the token of the router's [`crate::ApiConfig`]. Then no new
/// request is taken, streams end, and requests at work get 10 seconds.
///
/// # Errors
///
/// When the listener is not on loopback.
pub async fn serve(listener: TcpListener, router: Router, stopping: CancellationToken) -> io::Result<()> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        let message = format!("The API serves on loopback only, not on {address}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep_until(Instant::now() + ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        // Without this every small answer waits 40 ms for the client's delayed acknowledgement (contract 2.1).
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        match Arc::clone(&room).try_acquire_owned() {
            Ok(turn) => {
                let (router, stopping) = (router.clone(), stopping.clone());
                tasks.spawn(async move {
                    serve_connection(stream, router, stopping).await;
                    drop(turn);
                });
            }
            // Short, and bounded by what the kernel accepts meanwhile.
            Err(_) => refuse(stream).await,
        }
    }
    drop(listener);
    tasks.close();
    if timeout(STOP_TIMEOUT + REFUSAL_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(seconds = STOP_TIMEOUT.as_secs(), "requests are still at work; they are dropped");
    }
    Ok(())
}

async fn serve_connection(stream: TcpStream, router: Router, stopping: CancellationToken) {
    let patience = Patience::default();
    let stream = Patient::new(stream, patience.clone());
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut router = router.clone();
        let turn = patience.begin();
        async move {
            // A router is always ready.
            let response = router.call(request.map(Body::new)).await?;
            Ok::<_, Infallible>(turn.until_sent(response))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(STOP_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke off");
    }
}

/// Says that there are too many connections.
async fn refuse(mut stream: TcpStream) {
    let message = format!("{CONNECTIONS_MAX} connections are open, which is the most at one time");
    let answer = patience::raw_answer("503 Service Unavailable", "TOO_MANY_CONNECTIONS", &message);
    let _ = timeout(REFUSAL_TIMEOUT, stream.write_all(answer.as_bytes())).await;
}
