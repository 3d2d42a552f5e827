//! Runs the usual tools once, so that a machine restored from a prepared snapshot finds their files, names and directories
//! in memory.
//!
//! What a start needs is best known by a start: reading the files alone would bring in more than that, and not the names.
//! Each is done once for a template. A tool that is missing or fails is none that will be missed. Called by `settle`.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use cove_protocol::guest::DEFAULT_CWD;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    accounts::Account,
    environment::Environment,
    process::{Program, Spawner, Stdio, signal_group},
    shell::FastShell,
};

/// The most wanted first. Nothing is written anywhere.
const LINES: [&str; 6] = [
    "/bin/bash -c true",
    "ls -l /; cat /etc/hosts | grep -c localhost; sed -n 1p /etc/hosts; find . -maxdepth 1; head -c1 /etc/hosts; wc -l /etc/hosts",
    "python3 -c 'import json, re, subprocess, pathlib'",
    "git --version",
    "curl --version",
    "node -e 0",
];

/// No further line is begun when this has passed: on a host that emulates the guest's kernel one can take half a minute.
const BEGIN_WITHIN: Duration = Duration::from_secs(15);

/// A line that takes longer than this is ended.
const LINE_SECONDS_MAX: i64 = 60;

/// Runs them all, as far as there is time.
///
/// # Errors
/// No process could be started.
pub fn run_tools(shell: &FastShell) -> io::Result<()> {
    let begin = Instant::now();
    let mut spawner = Spawner::default();
    for line in LINES {
        if begin.elapsed() > BEGIN_WITHIN {
            break;
        }
        run(&mut spawner, shell, line)?;
    }
    Ok(())
}

/// What the agent would run for this line in an ordinary request.
pub fn program(shell: &FastShell, line: &str) -> io::Result<Program> {
    let account = Account::root();
    let environment = Environment::merge(&account, &[], &[]).map_err(io::Error::other)?;
    Ok(Program {
        candidates: vec![shell.path().to_owned(), c"/bin/bash".to_owned(), c"/bin/sh".to_owned()],
        argv: vec![c"bash".to_owned(), c"-c".to_owned(), CString::new(line)?],
        env: environment.strings(),
        cwd: CString::new(DEFAULT_CWD)?,
        identity: None,
        controls_terminal: false,
    })
}

/// Runs a line and waits until it has ended. The loop takes the process away as it does orphans.
fn run(spawner: &mut Spawner, shell: &FastShell, line: &str) -> io::Result<()> {
    let null = File::open("/dev/null")?;
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let stdio = Stdio { stdin: null.as_fd(), stdout: theirs.as_fd(), stderr: theirs.as_fd(), go: None };
    let pid = spawner.spawn(&program(shell, line)?, stdio).map_err(io::Error::other)?;
    drop(theirs);
    if !read_to_end(&ours)? {
        let _ = signal_group(pid, libc::SIGKILL);
    }
    Ok(())
}

/// Drops all that comes until nobody can write any more. False when that takes too long.
pub fn read_to_end(pipe: &OwnedFd) -> io::Result<bool> {
    let begin = Instant::now();
    let mut buffer = [0; 4096];
    while let Some(left) = LINE_SECONDS_MAX.checked_sub_unsigned(begin.elapsed().as_secs()).filter(|left| *left > 0) {
        poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&Timespec { tv_sec: left, tv_nsec: 0 }))?;
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => return Ok(true),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
