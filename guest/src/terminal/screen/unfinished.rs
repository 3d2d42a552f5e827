//! The beginning of a control sequence whose end has not come: a client that joins right then needs it too, or it takes the
//! rest for text.

/// Longest beginning that is kept; longer ones are strings that nobody misses.
const BYTES_MAX: usize = 4096;

/// What the output so far ends with (ECMA-48, 5.4 and 8.3; the states are those of a VT500, cut down).
#[derive(Debug, Default)]
pub struct Unfinished {
    state: Place,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Between characters and sequences.
    #[default]
    Ground,
    /// In a character of UTF-8: so many bytes are still to come, the next one in this range.
    Character(u8, u8, u8),
    Escape,
    Control,
    /// In a string, up to BEL or `ESC \`.
    String,
}

impl Unfinished {
    /// Takes output.
    pub fn process(&mut self, output: &[u8]) {
        for &byte in output {
            let broken = matches!(self.state, Place::Character(_, first, last) if !(first..=last).contains(&byte));
            if broken {
                // A character that breaks off was shown as such already.
                self.bytes.clear();
            }
            self.state = self.state.after(byte);
            match self.state {
                Place::Ground => self.bytes.clear(),
                // Controls inside a sequence were done at once.
                _ if self.bytes.len() < BYTES_MAX && (byte >= 0x20 || byte == 0x1b) => self.bytes.push(byte),
                _ => {}
            }
        }
    }

    /// The beginning, or nothing.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Place {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Place::String, 0x07) | (_, 0x18 | 0x1a) => Place::Ground,
            (_, 0x1b) => Place::Escape,
            (Place::String, _) => Place::String,
            (Place::Character(left, first, last), _) if (first..=last).contains(&byte) => match left {
                1 => Place::Ground,
                _ => Place::Character(left - 1, 0x80, 0xbf),
            },
            (Place::Ground | Place::Character(..), 0xc2..=0xf4) => match byte {
                ..=0xdf => Place::Character(1, 0x80, 0xbf),
                0xe0 => Place::Character(2, 0xa0, 0xbf),
                0xed => Place::Character(2, 0x80, 0x9f),
                0xe1..=0xec | 0xee..=0xef => Place::Character(2, 0x80, 0xbf),
                0xf0 => Place::Character(3, 0x90, 0xbf),
                0xf4 => Place::Character(3, 0x80, 0x8f),
                _ => Place::Character(3, 0x80, 0xbf),
            },
            (Place::Ground | Place::Character(..), _) => Place::Ground,
            (Place::Escape, b'[') => Place::Control,
            (Place::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Place::String,
            // Intermediate bytes, and controls inside a sequence.
            (Place::Escape, ..=0x2f) => Place::Escape,
            (Place::Control, ..=0x3f) => Place::Control,
            (Place::Escape | Place::Control, _) => Place::Ground,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(output: &[u8]) -> Vec<u8> {
        let mut unfinished = Unfinished::default();
        unfinished.process(output);
        unfinished.bytes().to_vec()
    }

    #[test]
    fn only_what_has_no_end_is_kept() {
        for whole in [
            "",
            "text\r\n",
            "\x1b[1;31m",
            "\x1b(B",
            "\x1b]2;title\x07",
            "\x1b]2;title\x1b\\",
            "\u{6f22}\u{1f468}é",
            "\x1bc",
        ] {
            assert_eq!(rest(whole.as_bytes()), b"", "{whole:?}");
        }
        for (output, beginning) in
            [("text\x1b", "\x1b"), ("\x1b[m\x1b[38;5", "\x1b[38;5"), ("\x1b(", "\x1b("), ("\x1b]2;ti", "\x1b]2;ti")]
        {
            assert_eq!(rest(output.as_bytes()), beginning.as_bytes());
        }
        assert_eq!(rest(b"a\xe6\xbc"), b"\xe6\xbc");
        assert_eq!(rest(&[b"\x1b]".as_slice(), &[b'x'; 10_000]].concat()).len(), BYTES_MAX);
    }
}
