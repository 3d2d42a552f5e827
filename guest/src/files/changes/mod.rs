//! Telling what changes in a directory, for as long as the peer wants to know.
//!
//! ```text
//!  kernel's queue ──► watcher (paths, renames, new directories) ──► queue (bounded) ──► frames, as the peer takes them
//! ```
//!
//! A peer that is slow holds up nothing: the kernel's queue is emptied all the same, and what does not fit here is counted.

mod queue;

mod tree;

mod watcher;

use std::{
    fs, io,
    os::fd::AsFd,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use cove_protocol::{
    frame::FrameError,
    guest::{Input, Reply},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::FileError;
use crate::{
    failure::{Failure, absolute},
    transport::{Received, Transport},
};
use watcher::Watcher;

/// Watches at one time: each has a thread and, in the kernel, a queue.
const WATCHES_MAX: usize = 16;

/// Bytes that a peer may send at once; it has only one thing to say.
const RECEIVE_BYTES: usize = 256;

/// Events that the kernel holds for one watch: those of a second of a busy machine.
const KERNEL_EVENTS: &str = "131072";

/// Directories that all programs of the guest may watch together.
const KERNEL_WATCHES: &str = "524288";

static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// Keeps the number of watches.
struct Counted;

impl Counted {
    fn begin() -> Result<Self, Failure> {
        let counted = Self;
        if WATCHES.fetch_add(1, Ordering::Relaxed) < WATCHES_MAX {
            Ok(counted)
        } else {
            Err(Failure::request(format!("{WATCHES_MAX} watches are the most at one time; end one of them first")))
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells of changes until the peer ends it or the directory is gone; gives the final reply.
pub fn watch(transport: &mut Transport, path: &str, recursive: bool, buffer: &mut Vec<u8>) -> Result<Reply, FileError> {
    absolute("path", path)?;
    let failed = |error: io::Error| Failure::io(format!("Cannot watch {path}"), &error);
    let root = fs::canonicalize(path).map_err(failed)?;
    let counted = Counted::begin()?;
    raise_kernel_limits();
    let mut watcher = Watcher::begin(&root, recursive).map_err(failed)?;
    transport.send_all(&Reply::Watching { directories: watcher.directories() })?;
    buffer.resize(buffer.len().max(RECEIVE_BYTES), 0);
    loop {
        watcher.read().map_err(failed)?;
        while transport.backlog() == 0 && !watcher.queue.is_empty() {
            transport.queue(&Reply::Changes(watcher.queue.take()))?;
            transport.flush()?;
        }
        if watcher.ended && watcher.queue.is_empty() && transport.backlog() == 0 {
            break;
        }
        if wait(&watcher, transport, &mut buffer[..RECEIVE_BYTES])? {
            break;
        }
    }
    drop(counted);
    Ok(Reply::Done)
}

/// Waits for the kernel, the peer, or the second half of a move. True when the peer wants no more.
fn wait(watcher: &Watcher, transport: &mut Transport, buffer: &mut [u8]) -> Result<bool, FrameError> {
    let room = if transport.backlog() > 0 { PollFlags::OUT } else { PollFlags::empty() };
    let (spoken, has_room) = {
        let events = if watcher.ended { PollFlags::empty() } else { PollFlags::IN };
        let mut fds =
            [PollFd::from_borrowed_fd(watcher.as_fd(), events), PollFd::new(&transport.socket, PollFlags::IN | room)];
        let timeout = watcher.deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that it is not looked at too early.
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos().min(999_000_000)) + 100_000,
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let socket = fds[1].revents();
        (socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR), socket.contains(PollFlags::OUT))
    };
    if spoken {
        match transport.receive(buffer) {
            Received::Closed => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Received::More | Received::Last | Received::Nothing => {}
        }
        while let Some(input) = transport.next::<Input>()? {
            if input == Input::End {
                return Ok(true);
            }
        }
    }
    if has_room {
        transport.flush()?;
    }
    Ok(false)
}

/// The kernel's own limits are made for little memory; a machine of ours is for one user. Where the agent is a process among
/// others it leaves them alone.
fn raise_kernel_limits() {
    if std::process::id() != 1 {
        return;
    }
    for (name, wanted) in [("max_queued_events", KERNEL_EVENTS), ("max_user_watches", KERNEL_WATCHES)] {
        let path = Path::new("/proc/sys/fs/inotify").join(name);
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        let low = fs::read_to_string(&path).is_ok_and(|now| number(&now) < number(wanted));
        if low && let Err(error) = fs::write(&path, wanted) {
            eprintln!("cove-agent: {} stays as it is: {error}", path.display());
        }
    }
}
