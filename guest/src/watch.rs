//! The server's epoll set with the ids in it, shared with the thread that makes commands ready before they are asked for.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use cove_protocol::guest::Stream;
use rustix::event::epoll;

use crate::{
    launch::Pipes,
    token::{OUTPUT_EVENTS, Token},
};

/// The set. Ids are never used twice.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    last_id: AtomicU64,
}

impl Watch {
    /// An empty set.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, last_id: AtomicU64::new(0) })
    }

    /// The next connection's or command's.
    pub fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Watches the agent's ends of a command's output pipes.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn output(&self, id: u64, stdout: &OwnedFd, stderr: &OwnedFd) -> io::Result<()> {
        for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            epoll::add(&self.epoll, pipe, Token::Output(id, stream).data(), OUTPUT_EVENTS)?;
        }
        Ok(())
    }

    /// Pipes for a command to come, watched already.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn pipes(&self) -> io::Result<(u64, Pipes)> {
        let (id, pipes) = (self.next_id(), Pipes::new()?);
        self.output(id, &pipes.stdout.0, &pipes.stderr.0)?;
        Ok((id, pipes))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
