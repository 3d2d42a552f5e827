//! The serial console's log: the newest bytes of what a guest wrote, in a file that a guest's flood cannot grow.
//!
//! Two segments, `<log>` and `<log>.old`, of half the limit each: when `<log>` is full it becomes `<log>.old`. So
//! between half the limit and all of it is kept, and never more.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that wait for a write; a line's end writes at once.
const BUFFER_BYTES: usize = 4096;

/// The log file and its predecessor.
pub struct ConsoleLog {
    path: PathBuf,
    old: PathBuf,
    file: File,
    written: u64,
    segment_bytes_max: u64,
    buffer: Vec<u8>,
}

impl ConsoleLog {
    /// A new log at `path` that keeps at most `bytes_max` bytes. What was there before is dropped.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let mut old = OsString::from(path);
        old.push(".old");
        let old = PathBuf::from(old);
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = open(path)?;
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Ok(Self { path: path.into(), old, file, written: 0, segment_bytes_max: (bytes_max / 2).max(1), buffer })
    }

    /// The newest `bytes_max` bytes.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn tail(&mut self, bytes_max: usize) -> io::Result<Vec<u8>> {
        self.write_buffer()?;
        let mut tail = read_end(&mut self.file, bytes_max)?;
        if tail.len() < bytes_max {
            match File::open(&self.old) {
                Ok(mut old) => {
                    let mut whole = read_end(&mut old, bytes_max - tail.len())?;
                    whole.append(&mut tail);
                    tail = whole;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(tail)
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.buffer);
        let result = self.write_out(&bytes);
        self.buffer = bytes;
        self.buffer.clear();
        result
    }

    fn write_out(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.written >= self.segment_bytes_max {
                fs::rename(&self.path, &self.old)?;
                self.file = open(&self.path)?;
                self.written = 0;
            }
            let room = (self.segment_bytes_max - self.written).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(room as usize);
            self.file.write_all(now)?;
            self.written += room;
            bytes = later;
        }
        Ok(())
    }
}

impl Write for ConsoleLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES || self.buffer.last() == Some(&b'\n') {
            self.write_buffer()?;
        }
        Ok(bytes.len())
    }

    /// Does nothing: the serial port flushes after each byte, and only lines are worth a system call.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        // The machine ends: nobody is left to tell, and the log is for people only.
        let _ = self.write_buffer();
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

/// The last `bytes_max` bytes of `file`, whose position is at its end before and after.
fn read_end(file: &mut File, bytes_max: usize) -> io::Result<Vec<u8>> {
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(end.saturating_sub(bytes_max as u64)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_its_newest_bytes_and_no_more_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut log = ConsoleLog::create(&path, 1000).unwrap();
        for line in 0..500 {
            writeln!(log, "line {line:03}").unwrap();
        }
        let tail = log.tail(1000).unwrap();
        assert!(tail.ends_with(b"line 498\nline 499\n"));
        assert!((500..=1000).contains(&tail.len()), "{}", tail.len());
        let on_disk: u64 = fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(on_disk <= 1000, "{on_disk}");
        assert_eq!(log.tail(9).unwrap(), b"line 499\n");
    }

    #[test]
    fn a_line_without_an_end_is_in_the_tail() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = ConsoleLog::create(&folder.path().join("log"), 100).unwrap();
        log.write_all(b"login: ").unwrap();
        assert_eq!(log.tail(100).unwrap(), b"login: ");
        log.write_all(b"root\n").unwrap();
        assert_eq!(log.tail(100).unwrap(), b"login: root\n");
    }
}
