//! What a job wrote last: pieces of both output streams in the order they came, under one cursor that counts their bytes.

use std::{collections::VecDeque, io};

use cove_protocol::guest::Stream;

use crate::command::Sink;

/// Bytes that small pieces are joined to.
const JOINED_BYTES: usize = 4 << 10;

/// What a piece costs besides its bytes, so that many small ones are bounded too.
const PIECE_COST: usize = 64;

/// The newest output of a job.
#[derive(Debug)]
pub struct Log {
    pieces: VecDeque<Piece>,
    /// The cursor behind the last byte.
    end: u64,
    cost: usize,
    cost_max: usize,
}

#[derive(Debug)]
struct Piece {
    /// The cursor of its first byte.
    at: u64,
    stream: Stream,
    bytes: Vec<u8>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    fn cost(&self) -> usize {
        self.bytes.len() + PIECE_COST
    }
}

impl Log {
    /// An empty one that keeps `cost_max` bytes.
    pub fn new(cost_max: usize) -> Self {
        Self { pieces: VecDeque::new(), end: 0, cost: 0, cost_max }
    }

    /// Keeps less from now on.
    pub fn limit(&mut self, cost_max: usize) {
        self.cost_max = cost_max;
        self.drop_oldest();
    }

    /// The cursor of the first byte that is kept.
    pub fn start(&self) -> u64 {
        self.pieces.front().map_or(self.end, |piece| piece.at)
    }

    /// The cursor behind the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The bytes at a cursor, or at the first one after it that is kept: where they really begin, whose they are.
    pub fn read(&self, from: u64, bytes_max: usize) -> Option<(u64, Stream, &[u8])> {
        let first = self.pieces.partition_point(|piece| piece.end() <= from);
        let piece = self.pieces.get(first)?;
        let skipped = from.saturating_sub(piece.at) as usize;
        let bytes = piece.bytes.get(skipped..)?;
        Some((piece.at + skipped as u64, piece.stream, &bytes[..bytes.len().min(bytes_max)]))
    }

    fn drop_oldest(&mut self) {
        while self.cost > self.cost_max
            && let Some(piece) = self.pieces.pop_front()
        {
            self.cost -= piece.cost();
        }
    }
}

impl Sink for Log {
    /// A job never waits for its readers.
    fn has_room(&self) -> bool {
        true
    }

    fn put(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match self.pieces.back_mut() {
            Some(last) if last.stream == stream && last.bytes.len() + bytes.len() <= JOINED_BYTES => {
                last.bytes.extend_from_slice(bytes);
                self.cost += bytes.len();
            }
            last => {
                if let Some(last) = last {
                    last.bytes.shrink_to_fit();
                }
                self.cost += bytes.len() + PIECE_COST;
                self.pieces.push_back(Piece { at: self.end, stream, bytes: bytes.to_vec() });
            }
        }
        self.end += bytes.len() as u64;
        self.drop_oldest();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(log: &Log, mut from: u64) -> (u64, String) {
        let (mut first, mut text) = (from, String::new());
        while let Some((at, stream, bytes)) = log.read(from, 3) {
            if text.is_empty() {
                first = at;
            }
            let mark = if stream == Stream::Stdout { "" } else { "!" };
            text += &format!("{mark}{}", String::from_utf8_lossy(bytes));
            from = at + bytes.len() as u64;
        }
        (first, text)
    }

    #[test]
    fn output_is_read_from_any_cursor_in_the_order_it_came() {
        let mut log = Log::new(1000);
        for (stream, text) in
            [(Stream::Stdout, "ab"), (Stream::Stdout, "cd"), (Stream::Stderr, "ef"), (Stream::Stdout, "g")]
        {
            log.put(stream, text.as_bytes()).unwrap();
        }
        assert_eq!(all(&log, 0), (0, "abcd!efg".into()));
        assert_eq!(all(&log, 3), (3, "d!efg".into()));
        assert_eq!(all(&log, 7), (7, String::new()));
        assert_eq!((log.start(), log.end()), (0, 7));
    }

    #[test]
    fn what_is_overwritten_is_skipped_and_small_pieces_cost_too() {
        let mut log = Log::new(10 * (PIECE_COST + 1));
        for n in 0..100_000u32 {
            let stream = if n % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
            log.put(stream, &[b'0' + (n % 10) as u8]).unwrap();
        }
        assert_eq!((log.start(), log.end(), log.pieces.len()), (99_990, 100_000, 10));
        assert_eq!(all(&log, 5), (99_990, "0!12!34!56!78!9".into()));
        log.limit(PIECE_COST + 1);
        assert_eq!(all(&log, 0), (99_999, "!9".into()));
        log.put(Stream::Stdout, &[b'x'; 1000]).unwrap();
        assert_eq!((log.start(), log.end()), (101_000, 101_000), "what is larger than all is not kept");
    }
}
