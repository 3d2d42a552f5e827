//! The bytes of one connection: frames in, frames out, over a stream socket (vsock in a machine, unix in tests).
//!
//! The socket stays in blocking mode. The server's loop never waits on it (each call says so with a flag); a file worker
//! that owns the connection for the length of an operation does. So no mode has to be switched between them.

use std::{io, os::fd::OwnedFd};

use cove_protocol::{
    frame::{Decoder, FrameError, encode},
    guest::Reply,
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use serde::de::DeserializeOwned;

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The buffer was filled: there may be more.
    More,
    /// Some bytes, and the socket is empty now.
    Last,
    /// Nothing.
    Nothing,
    /// The peer is gone.
    Closed,
}

/// One connection's socket with what is on its way in and out.
#[derive(Debug)]
pub struct Transport {
    /// The stream.
    pub socket: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
}

impl Transport {
    /// Over a connected stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, decoder: Decoder::default(), out: Vec::new(), sent: 0 }
    }

    /// The next whole message that has arrived.
    ///
    /// # Errors
    /// A frame that cannot be trusted: drop the connection.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        self.decoder.next()
    }

    /// Takes what the socket holds, at most `buffer`'s size, without waiting.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Received::Closed,
            Ok((count, _)) => {
                self.decoder.feed(&buffer[..count]);
                if count < buffer.len() { Received::Last } else { Received::More }
            }
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }

    /// Waits for bytes.
    ///
    /// # Errors
    /// The socket's; `UnexpectedEof` when the peer closed.
    pub fn wait_for_bytes(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let (count, _) = rustix::io::retry_on_intr(|| recv(&self.socket, &mut *buffer, RecvFlags::empty()))?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.decoder.feed(&buffer[..count]);
        Ok(())
    }

    /// Puts a reply behind those that wait to be sent.
    ///
    /// # Errors
    /// A reply larger than a frame.
    pub fn queue(&mut self, reply: &Reply) -> Result<(), FrameError> {
        let frame = encode(reply)?;
        if self.out.is_empty() {
            self.out = frame;
            return Ok(());
        }
        // A peer that is never quite caught up would otherwise make us keep all it ever got. What is moved is less than
        // what was sent, so each byte is moved once at most on average.
        if self.sent > self.backlog() {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        self.out.extend_from_slice(&frame);
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub fn backlog(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Sends what the socket takes without waiting. True when nothing is left.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.send(SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    }

    /// Queues a reply and waits until all is sent.
    ///
    /// # Errors
    /// The peer is gone, or the reply is larger than a frame.
    pub fn send_all(&mut self, reply: &Reply) -> Result<(), FrameError> {
        self.queue(reply)?;
        self.send(SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn send(&mut self, flags: SendFlags) -> io::Result<bool> {
        while self.backlog() > 0 {
            match send(&self.socket, &self.out[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.out = Vec::new();
        self.sent = 0;
        Ok(true)
    }
}
