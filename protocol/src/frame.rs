//! Length-prefixed frames: a little-endian `u32` byte count, then that many bytes of postcard.
//!
//! Both peers may be hostile (the guest always is), so a length above the maximum is an error before anything is
//! allocated. [`Decoder`] is the pure core: it is fed bytes as they come and gives whole frames; [`read`] and [`write`]
//! serve blocking sockets; tokio users feed a [`Decoder`].

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The largest payload of one frame, in bytes. Bulk data travels in chunks of [`crate::guest::CHUNK_BYTES_MAX`].
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced, or the caller tried to send, more than a frame may hold.
    #[error("A frame of {bytes} bytes is larger than the {FRAME_BYTES_MAX} bytes allowed")]
    TooLarge {
        /// The payload's length.
        bytes: usize,
    },
    /// The payload is not the message that was expected.
    #[error("A frame of {bytes} bytes does not decode")]
    Malformed {
        /// The payload's length.
        bytes: usize,
        /// What postcard says.
        #[source]
        source: postcard::Error,
    },
    /// The stream ended inside a frame.
    #[error("The stream ended inside a frame, {missing} bytes short")]
    Truncated {
        /// How many bytes were still to come.
        missing: usize,
    },
    /// The socket failed.
    #[error("The socket failed")]
    Io(#[from] io::Error),
}

/// `message` as one frame, prefix included.
///
/// # Errors
/// [`FrameError::TooLarge`] above [`FRAME_BYTES_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = postcard::to_extend(message, vec![0; PREFIX_BYTES])
        .map_err(|source| FrameError::Malformed { bytes: 0, source })?;
    let payload = bytes.len() - PREFIX_BYTES;
    if payload > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes: payload });
    }
    bytes[..PREFIX_BYTES].copy_from_slice(&(payload as u32).to_le_bytes());
    Ok(bytes)
}

/// One message from a frame's payload (without its prefix). Bytes after the message are an error.
///
/// # Errors
/// [`FrameError::Malformed`] when the payload is not exactly one `T`.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    let malformed = |source| FrameError::Malformed { bytes: payload.len(), source };
    let (message, rest) = postcard::take_from_bytes(payload).map_err(malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(malformed(postcard::Error::DeserializeBadEncoding)) }
}

/// Collects bytes as they arrive and gives whole payloads. Holds at most one frame and what was fed after it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes that came from the peer.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] as soon as a prefix announces too much, [`FrameError::Malformed`] for a payload that is
    /// not a `T`. After an error the stream cannot be trusted: drop the connection.
    #[expect(clippy::should_implement_trait, reason = "the type of the message is the caller's choice at each call")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let pending = &self.bytes[self.start..];
        let Some(prefix) = pending.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = payload_length(*prefix)?;
        let Some(payload) = pending[PREFIX_BYTES..].get(..length) else { return Ok(None) };
        let message = decode(payload)?;
        self.start += PREFIX_BYTES + length;
        Ok(Some(message))
    }

    /// True when no partial frame is held: the only place where a stream may end.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }
}

/// Reads one message from a blocking stream; `None` when the peer closed between frames.
///
/// # Errors
/// As [`Decoder::next`], and [`FrameError::Truncated`] when the peer closed inside a frame.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    match read_full(stream, &mut prefix)? {
        0 => return Ok(None),
        PREFIX_BYTES => {}
        got => return Err(FrameError::Truncated { missing: PREFIX_BYTES - got }),
    }
    let mut payload = vec![0; payload_length(prefix)?];
    let got = read_full(stream, &mut payload)?;
    if got < payload.len() {
        return Err(FrameError::Truncated { missing: payload.len() - got });
    }
    decode(&payload).map(Some)
}

/// Writes one message to a blocking stream, in one call.
///
/// # Errors
/// [`FrameError::TooLarge`] before anything is written, or the stream's error.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(())
}

fn payload_length(prefix: [u8; PREFIX_BYTES]) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(prefix) as usize;
    if bytes > FRAME_BYTES_MAX { Err(FrameError::TooLarge { bytes }) } else { Ok(bytes) }
}

/// Fills `buffer` as far as the stream goes and says how far that was.
fn read_full(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match stream.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::Input;

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..2000).prop_map(|bytes| Input::Data(bytes.into())),
            Just(Input::End),
            any::<i32>().prop_map(Input::Signal),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            messages in proptest::collection::vec(input(), 0..8),
            cuts in proptest::collection::vec(1..200usize, 1..50),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
            let (mut decoder, mut got, mut rest, mut cut) = (Decoder::default(), Vec::new(), &stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                decoder.feed(piece);
                rest = tail;
                while let Some(message) = decoder.next::<Input>().unwrap() {
                    got.push(message);
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next::<crate::guest::Reply>() {}
            let _ = read::<crate::guest::Reply>(&mut &bytes[..]);
        }
    }

    #[test]
    fn a_length_above_the_maximum_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::default();
        decoder.feed(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        assert!(matches!(decoder.next::<Input>(), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn a_stream_may_end_between_frames_but_not_inside_one() {
        let whole = encode(&Input::End).unwrap();
        assert!(read::<Input>(&mut &whole[..0]).unwrap().is_none());
        assert!(matches!(read::<Input>(&mut &whole[..2]), Err(FrameError::Truncated { missing: 2 })));
        assert!(matches!(read::<Input>(&mut &whole[..4]), Err(FrameError::Truncated { missing: 1 })));
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        let mut payload = encode(&Input::End).unwrap().split_off(PREFIX_BYTES);
        payload.push(0);
        assert!(matches!(decode::<Input>(&payload), Err(FrameError::Malformed { .. })));
    }
}
