//! The way from the proxy into guests: streams, records, tokens. A trait, so that the proxy can be tested against servers
//! of its own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cove_engine::{Activity, Engine, Error, OpenPreview, Preview, PreviewId, SandboxId, Scope};
use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::Passing;

/// Connections to one port of a guest that are kept when no request is under way.
const IDLE_MAX: usize = 8;

/// How long: a program that is asked again within it saves a connection, and after it nothing is left in the guest.
const IDLE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// A stream to a program.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// What the proxy asks.
pub trait Upstream: Send + Sync + 'static {
    /// The record of an open preview.
    fn preview(&self, id: &PreviewId) -> Option<OpenPreview>;

    /// The open preview that an alias means.
    fn by_alias(&self, port: u16, label: &str) -> Option<OpenPreview>;

    /// What a token allows on a preview.
    fn scope<'a>(&'a self, token: &'a str, preview: &'a Preview) -> BoxFuture<'a, Result<Option<Scope>, Error>>;

    /// A stream to a port; wakes the sandbox.
    fn connect(&self, sandbox: SandboxId, port: u16) -> BoxFuture<'static, Result<Box<dyn Stream>, Error>>;

    /// The sandbox's idle clock.
    fn activity<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Option<Activity>, Error>>;
}

/// The engine's guests.
pub struct Guests(Engine);

impl Guests {
    pub fn of(engine: Engine) -> Arc<dyn Upstream> {
        Arc::new(Self(engine))
    }
}

impl Upstream for Guests {
    fn preview(&self, id: &PreviewId) -> Option<OpenPreview> {
        self.0.open_preview(id)
    }

    fn by_alias(&self, port: u16, label: &str) -> Option<OpenPreview> {
        self.0.preview_by_alias(port, label)
    }

    fn scope<'a>(&'a self, token: &'a str, preview: &'a Preview) -> BoxFuture<'a, Result<Option<Scope>, Error>> {
        Box::pin(self.0.scope_of(token, preview))
    }

    fn connect(&self, sandbox: SandboxId, port: u16) -> BoxFuture<'static, Result<Box<dyn Stream>, Error>> {
        let engine = self.0.clone();
        Box::pin(async move { Ok(Box::new(engine.connect(&sandbox, port).await?) as Box<dyn Stream>) })
    }

    fn activity<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Option<Activity>, Error>> {
        Box::pin(async { self.0.activity(sandbox).await.map(Some) })
    }
}

/// The HTTP client of all guests, with its idle connections.
pub type GuestClient = Client<Connector, Passing>;

/// A client that connects through `upstream`.
pub fn client(upstream: Arc<dyn Upstream>) -> GuestClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_MAX)
        .http1_preserve_header_case(true)
        .build(Connector(upstream))
}

/// The place of a guest's port among those of one client.
pub fn authority(sandbox: &SandboxId, port: u16) -> String {
    // `_` is in no host name.
    format!("{}:{port}", sandbox.as_str().trim_start_matches("sbx_"))
}

/// Opens streams for a [`GuestClient`].
#[derive(Clone)]
pub struct Connector(Arc<dyn Upstream>);

impl tower_service::Service<Uri> for Connector {
    type Response = GuestIo;
    type Error = Error;
    type Future = BoxFuture<'static, Result<GuestIo, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let place = uri.host().and_then(|name| SandboxId::parse(&format!("sbx_{name}"))).zip(uri.port_u16());
        let upstream = Arc::clone(&self.0);
        Box::pin(async move {
            let (sandbox, port) = place.ok_or_else(|| Error::SandboxNotFound(uri.to_string()))?;
            Ok(GuestIo(TokioIo::new(upstream.connect(sandbox, port).await?)))
        })
    }
}

/// A stream as hyper wants it.
pub struct GuestIo(TokioIo<Box<dyn Stream>>);

impl Connection for GuestIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for GuestIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for GuestIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
