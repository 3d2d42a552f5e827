//! Server-sent events, the receiving side: bytes in as they come, whole frames out.
//!
//! Pure; [`crate::client`] feeds it. Follows the field rules of the HTML standard that the API uses: `event`, `data`
//! (several lines joined by a line feed), comments ignored, a blank line ends a frame.

/// The largest frame that is collected; a line of 4 MiB, every byte escaped, fits.
pub const FRAME_BYTES_MAX: usize = 32 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its name, `message` when the frame gave none.
    pub event: String,
    /// Its data.
    pub data: String,
}

/// A frame grew past [`FRAME_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("A server event is larger than the {FRAME_BYTES_MAX} bytes allowed")]
pub struct FrameTooLarge;

/// Collects bytes and gives frames. Frames without data (pings, comments) are dropped.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
    event: String,
    data: Option<String>,
}

impl Decoder {
    /// Adds bytes and gives the frames they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, FrameTooLarge> {
        self.pending.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut start = 0;
        while let Some(length) = self.pending[start..].iter().position(|byte| *byte == b'\n') {
            let line = &self.pending[start..start + length];
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
            start += length + 1;
            frames.extend(self.line(&line));
        }
        self.pending.drain(..start);
        let held = self.pending.len() + self.data.as_ref().map_or(0, String::len);
        if held > FRAME_BYTES_MAX { Err(FrameTooLarge) } else { Ok(frames) }
    }

    fn line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = self.data.take()?;
            return Some(Frame { event: if event.is_empty() { "message".to_owned() } else { event }, data });
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (name, &mut self.data) {
            ("event", _) => self.event = value.to_owned(),
            ("data", Some(data)) => {
                data.push('\n');
                data.push_str(value);
            }
            ("data", None) => self.data = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(event: &str, data: &str) -> Frame {
        Frame { event: event.to_owned(), data: data.to_owned() }
    }

    const STREAM: &str = ": ping\n\nevent: stdout\r\ndata: {\"line\":\"ä\"}\r\n\r\ndata: a\ndata:b\n\nevent: lost\n\nevent: exit\ndata: 0\n\n";

    fn expected() -> Vec<Frame> {
        vec![frame("stdout", "{\"line\":\"ä\"}"), frame("message", "a\nb"), frame("exit", "0")]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(size in 1..STREAM.len()) {
            let mut decoder = Decoder::default();
            let frames: Vec<Frame> = STREAM.as_bytes().chunks(size).flat_map(|piece| decoder.feed(piece).unwrap()).collect();
            prop_assert_eq!(frames, expected());
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Decoder::default().feed(&bytes);
        }
    }

    #[test]
    fn a_frame_without_end_is_refused() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(&vec![b'x'; FRAME_BYTES_MAX]), Ok(Vec::new()));
        assert_eq!(decoder.feed(b"y"), Err(FrameTooLarge));
    }
}
