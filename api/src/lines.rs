//! Output bytes of a command, cut into the lines of a stream (contract 8.9).
//!
//! A line is decoded as a whole, so that a character split between two chunks survives; bytes that are not UTF-8 become
//! U+FFFD. A line longer than [`LINE_BYTES_MAX`] comes in pieces, each but the last marked `partial`.

use std::mem;

/// Most bytes of one line in one frame, and so the most that is held back.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// A line without its newline, or a piece of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// The text.
    pub text: String,
    /// More of the same line follows.
    pub partial: bool,
}

/// Cuts one output stream into lines.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// What came since the last newline.
    held: Vec<u8>,
}

impl LineSplitter {
    /// Takes the next bytes and gives the lines that are complete now.
    pub fn push(&mut self, mut data: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            self.hold(&data[..end], &mut lines);
            lines.push(Line { text: text(&mem::take(&mut self.held)), partial: false });
            data = &data[end + 1..];
        }
        self.hold(data, &mut lines);
        lines
    }

    /// The last line, when it has no newline.
    pub fn finish(&mut self) -> Option<Line> {
        let held = mem::take(&mut self.held);
        (!held.is_empty()).then(|| Line { text: text(&held), partial: false })
    }

    /// Keeps `data` for later, in pieces out as soon as it is too much to keep.
    fn hold(&mut self, mut data: &[u8], lines: &mut Vec<Line>) {
        while self.held.len() + data.len() > LINE_BYTES_MAX {
            let (head, rest) = data.split_at(LINE_BYTES_MAX - self.held.len());
            self.held.extend_from_slice(head);
            let tail = self.held.split_off(piece_end(&self.held));
            lines.push(Line { text: text(&mem::replace(&mut self.held, tail)), partial: true });
            data = rest;
        }
        self.held.extend_from_slice(data);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where to cut so that a character which is only half there stays with the next piece.
fn piece_end(bytes: &[u8]) -> usize {
    let start_of_last = (1..=bytes.len().min(4)).find(|back| bytes[bytes.len() - back] & 0xc0 != 0x80);
    let Some(back) = start_of_last else { return bytes.len() };
    let needs = match bytes[bytes.len() - back] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if needs > back && back < bytes.len() { bytes.len() - back } else { bytes.len() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> Line {
        Line { text: text.into(), partial: false }
    }

    #[test]
    fn lines_come_when_they_are_complete_and_the_rest_at_the_end() {
        let mut lines = LineSplitter::default();
        assert_eq!(lines.push(b"one\ntw"), [whole("one")]);
        assert_eq!(lines.push(b"o\n\nthr"), [whole("two"), whole("")]);
        assert_eq!(lines.finish(), Some(whole("thr")));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn a_character_split_between_chunks_survives() {
        let mut lines = LineSplitter::default();
        let bytes = "é€🦀\n".as_bytes();
        let cut: Vec<Line> = bytes.chunks(1).flat_map(|byte| lines.push(byte)).collect();
        assert_eq!(cut, [whole("é€🦀")]);
    }

    #[test]
    fn a_megabyte_without_newline_is_one_line() {
        let mut lines = LineSplitter::default();
        for chunk in vec![b'x'; 1 << 20].chunks(64 << 10) {
            assert_eq!(lines.push(chunk), []);
        }
        assert_eq!(lines.finish().unwrap().text.len(), 1 << 20);
    }

    #[test]
    fn a_longer_line_comes_in_marked_pieces_that_never_cut_a_character() {
        let mut lines = LineSplitter::default();
        let given = format!("x{}", "€".repeat(LINE_BYTES_MAX / 3 * 2));
        let mut pieces: Vec<Line> = given.as_bytes().chunks(65_536).flat_map(|chunk| lines.push(chunk)).collect();
        pieces.extend(lines.finish());
        assert!(pieces.len() > 1);
        assert!(pieces.iter().rev().skip(1).all(|piece| piece.partial && piece.text.len() <= LINE_BYTES_MAX));
        assert!(!pieces.last().unwrap().partial);
        assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), given);
    }

    proptest! {
        #[test]
        fn however_the_bytes_arrive_the_lines_are_the_same(
            parts in proptest::collection::vec("[a-zé€🦀\n\r ]{0,12}", 0..20),
            size in 1usize..9,
        ) {
            let all = parts.concat();
            let mut lines = LineSplitter::default();
            let mut got: Vec<String> =
                all.as_bytes().chunks(size).flat_map(|chunk| lines.push(chunk)).map(|line| line.text).collect();
            got.extend(lines.finish().map(|line| line.text));
            let mut want: Vec<&str> = all.split('\n').collect();
            if want.last() == Some(&"") {
                want.pop();
            }
            prop_assert_eq!(got, want);
        }
    }
}
