//! The machine's end: ask every process to end, write everything to the disk, tell the peer, power off.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use cove_protocol::{frame::FrameError, guest::Reply};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mount::{MountFlags, mount_remount},
    net::{Shutdown, shutdown},
    process::Signal,
    system::{RebootCommand, reboot},
};

use crate::{process::signal_all, reaper::Reaper, transport::Transport};

/// How long processes may take to end after SIGTERM.
const TERMINATE_MS: u64 = 3000;

/// How long they may take after SIGKILL: what is left then waits for a device.
const KILL_MS: u64 = 2000;

/// How long the peer may take to close after it got its answer.
const ANSWER_MS: i64 = 500;

/// Where the vmm listens for "power off": an I/O port and the byte written to it (sleep control S5 of a PIIX4).
const POWER_OFF: (u64, u8) = (0x600, 0x34);

/// Ends the machine. Returns only if it would not end.
pub fn off(transport: &mut Transport) {
    end_processes();
    rustix::fs::sync();
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, "") {
        eprintln!("cove-agent: cannot make the root file system read-only: {error}");
    }
    if let Err(error) = answer(transport) {
        eprintln!("cove-agent: nobody waits for the power-off: {error}");
    }
    if let Err(error) = write_port() {
        eprintln!("cove-agent: cannot write to the power-off port: {error}");
    }
    // A machine without that port, or a kernel without /dev/port: a reset ends it too.
    if let Err(error) = reboot(RebootCommand::Restart) {
        eprintln!("cove-agent: cannot reset the machine: {error}");
    }
}

/// Tells the peer, and waits until it has closed: what is still on its way when the machine ends is lost.
fn answer(transport: &mut Transport) -> Result<(), FrameError> {
    transport.send_all(&Reply::Done)?;
    shutdown(&transport.socket, Shutdown::Write).map_err(io::Error::from)?;
    let timeout = Timespec { tv_sec: 0, tv_nsec: ANSWER_MS * 1_000_000 };
    poll(&mut [PollFd::new(&transport.socket, PollFlags::IN)], Some(&timeout)).map_err(io::Error::from)?;
    Ok(())
}

/// Ends every process but this one, gently, then not.
fn end_processes() {
    let Ok(reaper) = Reaper::new() else { return };
    for (signal, wait_ms) in [(Signal::TERM, TERMINATE_MS), (Signal::KILL, KILL_MS)] {
        signal_all(signal);
        if all_ended(&reaper, Instant::now() + Duration::from_millis(wait_ms)) {
            return;
        }
    }
    eprintln!("cove-agent: some processes did not end");
}

/// Reaps until no child is left. All processes are or become children of PID 1, so then none is left at all.
fn all_ended(reaper: &Reaper, deadline: Instant) -> bool {
    loop {
        while reaper.next().is_some() {}
        if !reaper.has_children() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(reaper, PollFlags::IN)], Some(&timeout));
        reaper.acknowledge();
    }
}

fn write_port() -> io::Result<()> {
    let (port, value) = POWER_OFF;
    OpenOptions::new().write(true).open("/dev/port")?.write_all_at(&[value], port)
}
