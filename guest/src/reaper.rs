//! SIGCHLD as a descriptor, and the exit codes of children and orphans.
//!
//! As PID 1 the agent inherits every orphan, so it takes whatever ended and lets the server find whose it was. The
//! descriptor goes into the server's epoll set.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use cove_protocol::guest::ExitStatus;
use rustix::{
    io::Errno,
    process::{Pid, WaitIdOptions, WaitOptions, WaitStatus},
};

/// Says when children ended.
#[derive(Debug)]
pub struct Reaper {
    signals: OwnedFd,
}

impl Reaper {
    /// Blocks SIGCHLD for this thread (call it before any other thread starts) and opens the descriptor for it.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: `set` is a plain array of bits that `sigemptyset` initialises before use, and all three calls only
        // read or write it. The descriptor is new and ours alone.
        let descriptor = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `signalfd` just returned it, so it is open and nobody else owns it.
        Ok(Self { signals: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// Takes the pending signal, so that the descriptor speaks up again for the next child.
    pub fn acknowledge(&self) {
        let mut siginfo = [0u8; size_of::<libc::signalfd_siginfo>()];
        let _ = rustix::io::read(&self.signals, &mut siginfo[..]);
    }

    /// The next child that ended, or `None` when all that is left still runs.
    pub fn next(&self) -> Option<(Pid, ExitStatus)> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(status) = exit_status(status) {
                        return Some((pid, status));
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// True while a child is left, running or not.
    pub fn has_children(&self) -> bool {
        let any = rustix::process::WaitId::All;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        rustix::process::waitid(any, look).err() != Some(Errno::CHILD)
    }
}

impl AsFd for Reaper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    let code = status.exit_status().map(|code| ExitStatus::Code(code as u8));
    code.or_else(|| status.terminating_signal().map(ExitStatus::Signal))
}
