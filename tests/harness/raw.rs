//! One HTTP/1.1 exchange by hand, for what a library hides: headers that lie, chunks as they come and when.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Silence after which the server is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What came back.
pub struct RawAnswer {
    /// Status line and headers.
    pub head: String,
    /// All bytes after the head, chunk framing included.
    pub body: Vec<u8>,
    /// When each piece of the body came, and how many bytes of the body there were by then.
    pub arrivals: Vec<(Duration, usize)>,
}

impl RawAnswer {
    pub fn status(&self) -> Option<u16> {
        self.head.split_whitespace().nth(1)?.parse().ok()
    }

    /// The body without its chunk framing.
    pub fn unchunked(&self) -> Result<Vec<u8>> {
        let (mut rest, mut out) = (&self.body[..], Vec::new());
        loop {
            let end = rest.windows(2).position(|pair| pair == b"\r\n").context("A chunk has no size line")?;
            let size = std::str::from_utf8(&rest[..end])?.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).with_context(|| format!("'{size}' is no chunk size"))?;
            if size == 0 {
                return Ok(out);
            }
            let start = end + 2;
            out.extend_from_slice(rest.get(start..start + size).context("A chunk is cut off")?);
            rest = rest.get(start + size + 2..).context("A chunk is not ended")?;
        }
    }
}

/// Sends `request` as it is to `127.0.0.1:port` and reads until the server closes; say `Connection: close`.
pub fn raw_request(port: u16, request: &str) -> Result<RawAnswer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let began = Instant::now();
    stream.write_all(request.as_bytes())?;
    let (mut bytes, mut reads) = (Vec::new(), Vec::new());
    let mut buffer = [0; 1 << 16];
    loop {
        let count = stream.read(&mut buffer).context("The server is silent")?;
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..count]);
        reads.push((began.elapsed(), bytes.len()));
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("The answer has no head")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let arrivals =
        reads.into_iter().filter(|(_, total)| *total > end).map(|(when, total)| (when, total - end)).collect();
    Ok(RawAnswer { head, body: bytes.split_off(end), arrivals })
}
