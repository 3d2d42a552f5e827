//! The last words of a machine's logs, for the reason of a failure.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Newest bytes that are looked at.
const TAIL_BYTES: u64 = 1024;

/// Newest lines that are told.
const LINES_MAX: usize = 3;

/// Longest line that is told, in characters.
const LINE_CHARS_MAX: usize = 200;

/// The newest lines of a log in one; empty when there are none. A guest may have written them: control characters go.
pub(crate) fn last_words(path: &Path) -> String {
    let text = tail(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.lines().map(printable).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join(" | ")
}

fn printable(line: &str) -> String {
    let clean: String = line.chars().filter(|letter| !letter.is_control()).take(LINE_CHARS_MAX).collect();
    clean.trim().to_owned()
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    // The first line is cut, unless the whole log is here.
    if length > TAIL_BYTES
        && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
    {
        bytes.drain(..=end);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn last_words_are_few_whole_printable_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert_eq!(last_words(&path), "");
        fs::write(&path, "one\r\n\n\x1b[1mtwo\x07\n").unwrap();
        assert_eq!(last_words(&path), "one | [1mtwo");
        fs::write(&path, format!("{}\na\nb\nc\nd\n", "x".repeat(5000))).unwrap();
        assert_eq!(last_words(&path), "b | c | d");
        fs::write(&path, "y".repeat(5000)).unwrap();
        assert_eq!(last_words(&path).len(), LINE_CHARS_MAX);
    }
}
