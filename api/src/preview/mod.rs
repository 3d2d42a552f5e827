//! Previews over HTTP: a port of a guest behind a loopback address of its own, and behind an alias on one shared port.
//!
//! ```text
//!  door 127.a.b.c:port ──────────────┐
//!  <port>-<label>.localhost:<proxy> ─┴► host (exact name) ─► access (foreign page? token?) ─► proxy ─► Engine::connect
//! ```
//!
//! An app's answer is passed on as it is, whatever its status; an answer of ours has the header `x-cove-error`. What "public"
//! means on a computer of one's own, and how a page is shown in our own window, is said in `access` and `frame`.

mod access;
mod alias;
mod body;
mod frame;
mod headers;
mod listener;
mod page;
mod proxy;
mod upstream;

#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

use cove_engine::Engine;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use alias::url as alias_url;
use proxy::Proxy;

/// The port for preview aliases unless another one is wanted.
pub const ALIAS_PORT_DEFAULT: u16 = 7334;

/// Serves every preview of the engine, and their aliases on `alias`, until `stopping`. `pane_origins` are the pages that may
/// show a preview in a frame. Returns when every connection has ended, at most some seconds after `stopping`.
pub(crate) async fn serve_previews(
    engine: Engine,
    alias: Option<TcpListener>,
    pane_origins: Vec<String>,
    stopping: CancellationToken,
) {
    let Some(mut doors) = engine.take_doors() else { return };
    let proxy = Proxy::new(upstream::Guests::of(engine), pane_origins, stopping.clone());
    let tasks = TaskTracker::new();
    if let Some(listener) = alias {
        let port = listener.local_addr().map_or(0, |address| address.port());
        let alias = alias::Alias { port };
        tasks.spawn(listener::serve(listener, listener::Served::Alias(alias), proxy.clone(), stopping.clone()));
    }
    loop {
        let door = tokio::select! {
            Some(door) = doors.recv() => door,
            () = stopping.cancelled() => break,
        };
        match TcpListener::from_std(door.listener) {
            Ok(listener) => {
                let closed = door.closed;
                let served = listener::Served::Door { preview: door.preview, at: door.at };
                tasks.spawn(listener::serve(listener, served, proxy.clone(), closed));
            }
            Err(error) => tracing::error!(at = %door.at, %error, "a preview is not served"),
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// The listener for aliases: on the wanted port, or where that is taken on any free one.
///
/// # Errors
/// When not even a free port can be had.
pub(crate) async fn alias_listener(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Err(error) if port != 0 => {
            tracing::warn!(port, %error, "the port for preview aliases is taken; another one is used");
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
        }
        other => other,
    }
}
