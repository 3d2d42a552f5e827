//! How long a client may take to say what it wants: from the first byte of a request's head to its last.
//!
//! hyper has one clock for the head and for the time before it; a connection at rest may stay for minutes, and one that sends
//! its head a byte at a time may not. So the stream is told when requests are at work ([`Patience::begin`]), and counts the
//! time itself in between.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a head may take.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection's stream and its requests share.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Requests whose answer is not sent to its end.
    at_work: AtomicUsize,
    /// The connection speaks something else than HTTP now.
    upgraded: AtomicBool,
}

impl Patience {
    /// A request's head is whole.
    pub fn begin(&self) -> Turn {
        self.shared.at_work.fetch_add(1, Ordering::Relaxed);
        Turn { shared: Arc::clone(&self.shared) }
    }

    fn is_short(&self) -> bool {
        self.shared.at_work.load(Ordering::Relaxed) == 0 && !self.shared.upgraded.load(Ordering::Relaxed)
    }
}

/// A request at work.
pub struct Turn {
    shared: Arc<Shared>,
}

impl Turn {
    /// The answer, with which this turn ends.
    pub fn until_sent(self, response: Response<Body>) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.shared.upgraded.store(true, Ordering::Relaxed);
        }
        response.map(|body| Body::new(Counted { body, _turn: self }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that holds its turn.
struct Counted {
    body: Body,
    _turn: Turn,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose patience is short while it waits for the rest of a head.
pub struct Patient {
    stream: TcpStream,
    patience: Patience,
    /// When the head that is being sent must be whole.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Over an accepted connection.
    pub fn new(stream: TcpStream, patience: Patience) -> Self {
        Self { stream, patience, deadline: None }
    }

    /// Says why, as far as the client listens, and gives up.
    fn give_up(&mut self) -> io::Error {
        let message = format!("The head of the request was not whole after {} s", HEAD_TIMEOUT.as_secs());
        let _ = self.stream.try_write(raw_answer("408 Request Timeout", "REQUEST_TIMEOUT", &message).as_bytes());
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.patience.is_short() {
            this.deadline = None;
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => {
                if buffer.filled().len() > before && this.deadline.is_none() {
                    this.deadline = Some(Box::pin(sleep_until(Instant::now() + HEAD_TIMEOUT)));
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if let Some(deadline) = &mut this.deadline {
                    ready!(deadline.as_mut().poll(context));
                    return Poll::Ready(Err(this.give_up()));
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// An answer to who has not asked yet.
pub fn raw_answer(status: &str, code: &str, message: &str) -> String {
    let body = json!({ "error": { "code": code, "message": message, "details": {}, "retryable": true } }).to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: 1\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
