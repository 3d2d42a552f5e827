//! A pseudo-terminal: the agent's end of it, and the one that a shell gets (pty(7)).
//!
//! Done with the system calls that `rustix` makes safe, and not through a crate that also starts the process: the agent
//! starts processes its own way (`process`), because a `fork` of it is dear, and reaps them itself.

use std::{io, os::fd::OwnedFd};

use cove_protocol::guest::WindowSize;
use rustix::{
    fs::{OFlags, Uid, fchown, fcntl_setfl},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};

/// Makes one; the first end is the agent's and never blocks. The other belongs to the user.
///
/// # Errors
/// When the kernel has no descriptor or pseudo-terminal left.
pub fn open(size: WindowSize, user: Option<u32>) -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
    resize(&ours, size)?;
    // So that erasing a character erases all its bytes.
    let mut modes = tcgetattr(&theirs)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    if let Some(user) = user {
        fchown(&theirs, Some(Uid::from_raw(user)), None)?;
    }
    Ok((ours, theirs))
}

/// Gives it another size; the kernel tells the programs on it (SIGWINCH).
///
/// # Errors
/// What the kernel says.
pub fn resize(terminal: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}
