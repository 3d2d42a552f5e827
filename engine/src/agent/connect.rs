//! A byte stream to a TCP port of the guest's loopback: what previews and tunnels are carried on.
//!
//! A task of its own carries the connection, both directions at the same time. Each direction has a short channel: when
//! nobody takes what comes, the task stops reading, and the program in the guest waits.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use cove_protocol::guest::{CHUNK_BYTES_MAX, Input, Listener, Reply, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::PollSender;
use tracing::Instrument;

use super::connection::Connection;
use super::{Agent, Final, REPLY_DEADLINE, unexpected};
use crate::error::Error;
use crate::framed::{FrameReader, FrameWriter};

/// Chunks of one direction that wait, each at most [`CHUNK_BYTES_MAX`].
const CHUNKS_QUEUED_MAX: usize = 2;

/// How long a program may go on with a stream that nobody hears any more, when it was told its end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A stream to a program in the guest. [`AsyncWrite::poll_shutdown`] ends one direction alone; dropped before both ended, it
/// resets the program's connection.
#[derive(Debug)]
pub struct GuestStream {
    incoming: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
    outgoing: PollSender<Input>,
    ended: bool,
}

impl Agent {
    /// Opens a stream to a port.
    pub(crate) async fn connect(&self, port: u16) -> Result<GuestStream, Error> {
        let opened = self.shared.pool.open_stream().await;
        let connection = match self.begin(opened, &Request::Connect { port }, REPLY_DEADLINE).await? {
            (connection, Reply::Connected) => connection,
            (_, other) => return Err(self.explain(unexpected("connect", &other)).await),
        };
        let (sender, incoming) = mpsc::channel(CHUNKS_QUEUED_MAX);
        let (outgoing, inputs) = mpsc::channel(CHUNKS_QUEUED_MAX);
        tokio::spawn(carry(connection, inputs, sender).in_current_span());
        Ok(GuestStream { incoming, rest: Bytes::new(), outgoing: PollSender::new(outgoing), ended: false })
    }

    /// Who listens on TCP ports in the guest.
    pub(crate) async fn listeners(&self, within: Duration) -> Result<Vec<Listener>, Error> {
        match self.ask(&Request::Listeners, within).await {
            Ok(Final::Reply(Reply::Listeners(listeners))) => Ok(listeners),
            other => Err(self.refused("listeners", other).await),
        }
    }
}

/// Carries a stream's connection to its end. A [`GuestStream`] that is dropped without having ended its direction closes the
/// connection at once, one that did has some time left for what it said last.
async fn carry(mut connection: Connection, inputs: mpsc::Receiver<Input>, sender: mpsc::Sender<io::Result<Bytes>>) {
    let sent_end = AtomicBool::new(false);
    let (reader, writer) = (&mut connection.framed.reader, &mut connection.framed.writer);
    let whole = async {
        let (mut reading, writing) = (pin!(read(reader, &sender)), write(writer, inputs, &sent_end));
        tokio::select! {
            over = reading.as_mut() => Some(over),
            () = writing => if sent_end.load(Ordering::Relaxed) { Some(reading.await) } else { None },
        }
    };
    let unheard = async {
        sender.closed().await;
        sleep_until(Instant::now() + LAST_WORDS).await;
    };
    let over = tokio::select! {
        over = whole => over,
        () = unheard => None,
    };
    match over {
        // Only when the end was sent can nothing else be on its way.
        Some(Ok(())) if sent_end.load(Ordering::Relaxed) => connection.give_back(),
        Some(Err(error)) => {
            let _ = sender.send(Err(error)).await;
        }
        _ => {}
    }
}

/// Passes on what the program says, until both directions have ended.
async fn read(reader: &mut FrameReader, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    loop {
        match reader.read::<Reply>().await.map_err(io::Error::other)? {
            Some(Reply::Data(data)) => {
                // What nobody hears any more is dropped, for as long as `carry` lets it.
                let _ = sender.send(Ok(Bytes::from(data.into_vec()))).await;
            }
            // Told as an empty chunk, which no data is.
            Some(Reply::End) => {
                let _ = sender.send(Ok(Bytes::new())).await;
            }
            Some(Reply::Done) => return Ok(()),
            Some(Reply::Error { message, .. }) => return Err(io::Error::new(io::ErrorKind::ConnectionReset, message)),
            Some(other) => return Err(io::Error::other(unexpected("connect", &other))),
            None => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// Passes on what the program is told, to the end of it, or until the [`GuestStream`] is dropped.
async fn write(writer: &mut FrameWriter, mut inputs: mpsc::Receiver<Input>, sent_end: &AtomicBool) {
    while let Some(input) = inputs.recv().await {
        if writer.write(&input).await.is_err() {
            // The reader sees that too, and what came before.
            std::future::pending().await
        }
        if input == Input::End {
            sent_end.store(true, Ordering::Relaxed);
            return;
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() && !self.ended {
            match ready!(self.incoming.poll_recv(context)) {
                Some(Ok(chunk)) => {
                    self.ended = chunk.is_empty();
                    self.rest = chunk;
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => self.ended = true,
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.outgoing.poll_reserve(context)).map_err(broken)?;
        let count = bytes.len().min(CHUNK_BYTES_MAX);
        self.outgoing.send_item(Input::Data(bytes[..count].to_vec().into())).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    /// What is queued is on its way: the connection's task writes without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.is_closed() {
            return Poll::Ready(Ok(()));
        }
        if ready!(self.outgoing.poll_reserve(context)).is_ok() {
            let _ = self.outgoing.send_item(Input::End);
        }
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

fn broken<E>(_: E) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
