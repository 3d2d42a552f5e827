//! Serving the router on a loopback listener until it is told to stop.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long requests that are at work may go on after the server was told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `stopping` is cancelled, which must be the token of the router's [`crate::ApiConfig`]. Then no new
/// request is taken, streams end, and requests at work get 10 seconds.
///
/// # Errors
///
/// When the listener is not on loopback, or fails.
pub async fn serve(listener: TcpListener, router: Router, stopping: CancellationToken) -> io::Result<()> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        let message = format!("The API serves on loopback only, not on {address}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    // Without this every small answer waits 40 ms for the client's delayed acknowledgement (contract 2.1).
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
    });
    let server = axum::serve(listener, router).with_graceful_shutdown(stopping.clone().cancelled_owned());
    let too_late = async {
        stopping.cancelled().await;
        tokio::time::sleep_until(tokio::time::Instant::now() + STOP_TIMEOUT).await;
    };
    tokio::select! {
        outcome = server => outcome,
        () = too_late => {
            tracing::warn!(seconds = STOP_TIMEOUT.as_secs(), "requests are still at work; they are dropped");
            Ok(())
        }
    }
}
