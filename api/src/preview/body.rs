//! Bodies on their way through: they keep the sandbox from being idle as they move, and wait for leave to be sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use cove_engine::Activity;
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A body that is sent to a client.
pub type OutBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// How long a client's body waits for an app that was asked whether it wants it and says nothing (RFC 9110, 10.1.1: a
/// client that expects `100 Continue` should not wait for ever).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A body that comes from the other side.
pub struct Passing {
    inner: Incoming,
    activity: Option<Activity>,
    gate: Option<BoxFuture<'static, ()>>,
}

impl Passing {
    pub fn new(inner: Incoming, activity: Option<Activity>) -> Self {
        Self { inner, activity, gate: None }
    }

    /// The body is not taken from its client before `opened` says so, or has waited long enough. Taking it is what tells
    /// the client to send it.
    pub fn gated(mut self, opened: oneshot::Receiver<()>) -> Self {
        self.gate = Some(Box::pin(async move {
            let _ = tokio::time::timeout(CONTINUE_WAIT, opened).await;
        }));
        self
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(gate) = &mut self.gate {
            ready!(gate.as_mut().poll(context));
            self.gate = None;
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(activity) = &self.activity {
            activity.touch();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A stream that keeps the sandbox from being idle as bytes move.
pub struct Touching<S> {
    inner: S,
    activity: Option<Activity>,
}

impl<S> Touching<S> {
    pub fn new(inner: S, activity: Option<Activity>) -> Self {
        Self { inner, activity }
    }

    fn touch(&self) {
        if let Some(activity) = &self.activity {
            activity.touch();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Touching<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = ready!(Pin::new(&mut self.inner).poll_read(context, buffer));
        self.touch();
        Poll::Ready(done)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Touching<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = ready!(Pin::new(&mut self.inner).poll_write(context, bytes));
        self.touch();
        Poll::Ready(done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
