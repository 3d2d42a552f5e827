//! One window a data directory: a second start hands its link to the first and ends.
//!
//! The lock decides who is first, so it ends with its process however that ends; the socket beside it only carries what the
//! second one was asked to open. Both need no session bus.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Longest message.
const MESSAGE_BYTES_MAX: u64 = 4096;

/// How long the first one may take to listen, and then to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two looks whether the first one listens.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Which one we are.
pub enum Instance {
    /// The first: keeps the window.
    First(First),
    /// Another one has the window, and was told.
    Second,
}

/// The lock and the socket; dropping it lets go.
pub struct First {
    socket: PathBuf,
    listener: Option<UnixListener>,
    _lock: File,
}

impl Instance {
    /// Takes the window of `data_dir`, or gives `link` to the one that has it.
    pub fn claim(data_dir: &Path, link: Option<&str>) -> Result<Instance> {
        let shown = data_dir.display();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
        made.with_context(|| format!("Cannot make the directory {shown}"))?;
        let dir = File::open(data_dir).with_context(|| format!("Cannot open {shown}"))?;
        let path = data_dir.join("window.lock");
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.with_context(|| format!("Cannot open {}", path.display()))?;
        // The directory's path may be longer than a socket's may be; a descriptor of it never is.
        let address = PathBuf::from(format!("/proc/self/fd/{}/window.socket", dir.as_raw_fd()));
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let _ = std::fs::remove_file(&address);
                let listener = UnixListener::bind(&address).context("Cannot listen for a second start")?;
                let socket = data_dir.join("window.socket");
                Ok(Instance::First(First { socket, listener: Some(listener), _lock: lock }))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => tell(&address, link).map(|()| Instance::Second),
            Err(errno) => Err(errno).with_context(|| format!("Cannot lock {}", path.display())),
        }
    }
}

impl First {
    /// Calls `opened` with the link, if it has one, of each later start.
    pub fn listen(&mut self, opened: impl Fn(Option<String>) + Send + 'static) {
        let Some(listener) = self.listener.take() else { return };
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                match hear(stream) {
                    Ok(link) => opened(link),
                    Err(error) => tracing::warn!("a second start was not understood: {error}"),
                }
            }
        });
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// One line: a link, or nothing.
fn hear(mut stream: UnixStream) -> std::io::Result<Option<String>> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(Read::by_ref(&mut stream).take(MESSAGE_BYTES_MAX)).read_line(&mut line)?;
    stream.write_all(b"ok\n")?;
    Ok(Some(line.trim_end().to_owned()).filter(|link| !link.is_empty()))
}

fn tell(address: &Path, link: Option<&str>) -> Result<()> {
    let began = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if began.elapsed() > ANSWER_TIMEOUT => {
                return Err(error).context("Cove runs already, but its window does not answer");
            }
            #[allow(clippy::disallowed_methods, reason = "nobody tells when a socket is bound; it takes microseconds")]
            Err(_) => std::thread::sleep(LOOK_AGAIN_AFTER),
        }
    };
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    writeln!(stream, "{}", link.unwrap_or_default())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("The window that runs already does not answer")?;
    if answer == "ok\n" { Ok(()) } else { bail!("The window that runs already answered '{}'", answer.trim()) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_second_start_hands_its_link_to_the_first() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than a socket's path may be.
        let data = folder.path().join("x".repeat(120));
        let Instance::First(mut first) = Instance::claim(&data, None).unwrap() else { panic!("nobody has it") };
        let (sender, links) = channel();
        first.listen(move |link| sender.send(link).unwrap());
        for link in [Some("cove://sandbox/sbx_1"), None] {
            assert!(matches!(Instance::claim(&data, link).unwrap(), Instance::Second));
            assert_eq!(links.recv().unwrap().as_deref(), link);
        }
        drop(first);
        assert!(!data.join("window.socket").exists());
        assert!(matches!(Instance::claim(&data, None).unwrap(), Instance::First(_)));
    }
}
