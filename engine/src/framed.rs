//! Frames of `protocol::frame` over an asynchronous unix socket: the form of both sockets that the engine speaks on.

use std::io;

use cove_protocol::frame::{self, Decoder, FrameError};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Bytes taken from the socket at once: one full chunk of data with its frame.
const READ_BYTES: usize = cove_protocol::guest::CHUNK_BYTES_MAX + 1024;

/// A unix socket that carries frames both ways, its halves usable at the same time.
#[derive(Debug)]
pub(crate) struct Framed {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

/// The half that reads.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: OwnedReadHalf,
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// The half that writes.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    stream: OwnedWriteHalf,
}

impl Framed {
    /// Speaks frames on `stream`; `first` are bytes already taken from it.
    pub(crate) fn new(stream: UnixStream, first: &[u8]) -> Self {
        let (reader, writer) = stream.into_split();
        let mut decoder = Decoder::default();
        decoder.feed(first);
        Self {
            reader: FrameReader { stream: reader, decoder, buffer: Vec::new() },
            writer: FrameWriter { stream: writer },
        }
    }
}

impl FrameReader {
    /// The next message, or `None` when the peer closed between frames. Cancel-safe: a partial frame is kept.
    pub(crate) async fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(Some(message));
            }
            self.buffer.resize(READ_BYTES, 0);
            let count = self.stream.read(&mut self.buffer).await?;
            if count == 0 {
                let whole = self.decoder.is_empty();
                return if whole { Ok(None) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) };
            }
            self.decoder.feed(&self.buffer[..count]);
        }
    }

    /// Nothing came that nobody asked for, and the peer did not close: what a connection at rest must look like.
    pub(crate) fn is_at_rest(&self) -> bool {
        let mut byte = [0; 1];
        let quiet = matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        quiet && self.decoder.is_empty()
    }
}

impl FrameWriter {
    /// Writes one message. Not cancel-safe: after a cancelled write the connection is of no use.
    pub(crate) async fn write<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        Ok(self.stream.write_all(&frame::encode(message)?).await?)
    }

    /// The stream itself, for tests that write what no frame may be.
    #[cfg(test)]
    pub(crate) fn into_stream(self) -> OwnedWriteHalf {
        self.stream
    }
}
