//! A running command: its output on the way to the connection, its standard input, its end.
//!
//! ```text
//!            child ended            all it wrote is queued
//!   running ────────────► draining ───────────────────────► finished (Exited is queued)
//! ```
//!
//! The end counts, not the pipes' end: a background grandchild may keep them open for hours. At the end each pipe is
//! asked how much it holds, and exactly that is still forwarded. No side can make the agent hold
//! more than [`OUT_BYTES_MAX`] and [`STDIN_BYTES_MAX`] for it: past them its pipes or its connection are not read.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use cove_protocol::guest::{CHUNK_BYTES_MAX, Exec, Exit, ExitStatus, Input, Reply, Stream};
use rustix::{
    io::{Errno, ioctl_fionread},
    process::Pid,
};

use crate::{launch::Launched, process::signal_group, transport::Transport};

/// A connection with more than this many bytes to send gets no more output queued.
pub const OUT_BYTES_MAX: usize = 256 << 10;

/// With more than this many bytes waiting for a command's standard input, its connection is not read.
pub const STDIN_BYTES_MAX: usize = 256 << 10;

/// Most bytes of a pipe that are dropped at once: the largest that a pipe of an ordinary user can be made to hold.
const DRAIN_BYTES_MAX: usize = 1 << 20;

/// Signal numbers that may be sent.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// Where a command's output goes.
pub trait Sink {
    /// True while it takes more.
    fn has_room(&self) -> bool;

    /// Takes some bytes.
    ///
    /// # Errors
    /// It is broken.
    fn put(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()>;
}

impl Sink for Transport {
    fn has_room(&self) -> bool {
        self.backlog() < OUT_BYTES_MAX
    }

    fn put(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.queue(&Reply::Output { stream, data: bytes.to_vec().into() }).map_err(io::Error::other)
    }
}

/// A command from its start to its end.
#[derive(Debug)]
pub struct RunningCommand {
    /// Names its pipes among the server's events.
    pub id: u64,
    /// Leader of its process group.
    pub pid: Pid,
    started: Instant,
    deadline: Option<Instant>,
    timed_out: bool,
    stdout: Output,
    stderr: Output,
    stdin: Option<Stdin>,
    exit: Option<Exit>,
    _theirs: (OwnedFd, OwnedFd),
}

impl RunningCommand {
    /// Takes over a command that was started at `started`.
    pub fn new(id: u64, launched: Launched, exec: &Exec, started: Instant) -> Self {
        Self {
            id,
            pid: launched.pid,
            started,
            // A time too long to be told is no limit.
            deadline: exec.timeout_ms.and_then(|ms| started.checked_add(Duration::from_millis(ms))),
            timed_out: false,
            stdout: Output::new(Stream::Stdout, launched.stdout),
            stderr: Output::new(Stream::Stderr, launched.stderr),
            stdin: launched.stdin.map(Stdin::new),
            exit: None,
            _theirs: launched.theirs,
        }
    }

    /// How long it has run.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// When the command's time runs out, while that still matters.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.timed_out && self.exit.is_none())
    }

    /// Kills the process group if the time has run out.
    pub fn check_deadline(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.timed_out = true;
            self.kill();
        }
    }

    /// Kills the process group, unless the leader has ended: then its number may belong to someone else.
    pub fn kill(&self) {
        if self.exit.is_none() {
            let _ = signal_group(self.pid, libc::SIGKILL);
        }
    }

    /// The reaper took the leader.
    pub fn note_exit(&mut self, status: ExitStatus, now: Instant) {
        let status = if self.timed_out { ExitStatus::TimedOut } else { status };
        let duration_us = now.saturating_duration_since(self.started).as_micros() as u64;
        self.exit = Some(Exit { status, duration_us });
        self.stdin = None;
        self.stdout.limit_to_what_is_there();
        self.stderr.limit_to_what_is_there();
    }

    /// A pipe has something to read.
    pub fn note_output(&mut self, stream: Stream) {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        output.ready = !output.ended;
    }

    /// The standard input's pipe takes bytes again, or lost its reader.
    pub fn note_stdin(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.writable = true;
        }
    }

    /// Its leader ended.
    pub fn has_exited(&self) -> bool {
        self.exit.is_some()
    }

    /// Its standard input takes bytes.
    pub fn has_stdin(&self) -> bool {
        self.stdin.as_ref().is_some_and(|stdin| !stdin.ended)
    }

    /// Bytes on their way to its standard input.
    pub fn stdin_waiting(&self) -> usize {
        self.stdin.as_ref().map_or(0, Stdin::waiting)
    }

    /// True while another [`Input`] may be taken from the connection.
    pub fn takes_input(&self) -> bool {
        self.stdin.as_ref().is_none_or(|stdin| stdin.waiting() < STDIN_BYTES_MAX)
    }

    /// Takes one frame from the peer. Data for a closed standard input is dropped, as a shell would let it be.
    pub fn take(&mut self, input: Input) {
        match (input, &mut self.stdin) {
            (Input::Data(bytes), Some(stdin)) if !stdin.ended => stdin.push(&bytes),
            (Input::End, Some(stdin)) => stdin.ended = true,
            (Input::Signal(signal), _) if SIGNALS.contains(&signal) && self.exit.is_none() => {
                let _ = signal_group(self.pid, signal);
            }
            _ => {}
        }
    }

    /// Writes waiting bytes to the standard input. The pipe is returned when it is full and has to be watched from now on.
    pub fn pump_stdin(&mut self) -> Option<&OwnedFd> {
        match self.stdin.as_mut()?.pump() {
            Pumped::Open => None,
            Pumped::Closed => {
                self.stdin = None;
                None
            }
            Pumped::Full => {
                let stdin = self.stdin.as_mut()?;
                let first = !stdin.watched;
                stdin.watched = true;
                first.then_some(&stdin.pipe)
            }
        }
    }

    /// Forwards output while there is room for it, at most one chunk a stream. True if it did anything.
    ///
    /// # Errors
    /// The sink failed.
    pub fn pump_output(&mut self, sink: &mut impl Sink, buffer: &mut [u8]) -> io::Result<bool> {
        let mut moved = false;
        for output in [&mut self.stdout, &mut self.stderr] {
            if output.ready && sink.has_room() {
                moved |= output.pump(sink, buffer)?;
            }
        }
        Ok(moved)
    }

    /// Reads and drops what its pipes hold, for a command that nobody hears.
    pub fn drop_output(&mut self, buffer: &mut [u8]) {
        self.stdout.drain(buffer);
        self.stderr.drain(buffer);
    }

    /// How it ended, once all that it wrote before is queued.
    pub fn finished(&self) -> Option<Exit> {
        self.exit.filter(|_| self.stdout.ended && self.stderr.ended)
    }
}

/// The agent's end of an output pipe.
#[derive(Debug)]
struct Output {
    stream: Stream,
    pipe: OwnedFd,
    /// The pipe may hold bytes. The events come by edge: only an empty read takes this back.
    ready: bool,
    /// What is still to be forwarded after the command's end.
    left: Option<u64>,
    /// Nothing more is forwarded.
    ended: bool,
}

impl Output {
    fn new(stream: Stream, pipe: OwnedFd) -> Self {
        Self { stream, pipe, ready: false, left: None, ended: false }
    }

    fn end(&mut self) {
        self.ended = true;
        self.ready = false;
    }

    fn limit_to_what_is_there(&mut self) {
        match ioctl_fionread(&self.pipe) {
            Ok(bytes) if bytes > 0 => {
                self.left = Some(bytes);
                self.ready = true;
            }
            _ => self.end(),
        }
    }

    /// Reads until nothing is there, or as much as a pipe can hold: a writer that never stops must not keep us.
    fn drain(&mut self, buffer: &mut [u8]) {
        let mut left = DRAIN_BYTES_MAX;
        while !self.ended && left > 0 {
            match rustix::io::read(&self.pipe, &mut *buffer) {
                Ok(0) => self.end(),
                Ok(count) => left = left.saturating_sub(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.end(),
            }
        }
    }

    /// Reads once and passes on what came.
    fn pump(&mut self, sink: &mut impl Sink, buffer: &mut [u8]) -> io::Result<bool> {
        let wanted = self.left.unwrap_or(u64::MAX).min(CHUNK_BYTES_MAX.min(buffer.len()) as u64) as usize;
        match rustix::io::read(&self.pipe, &mut buffer[..wanted]) {
            Ok(0) => self.end(),
            Ok(count) => {
                sink.put(self.stream, &buffer[..count])?;
                self.ready = count == wanted || self.left.is_some();
                self.left = self.left.map(|left| left - count as u64);
                if self.left == Some(0) {
                    self.end();
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if self.left.is_none() => self.ready = false,
            Err(_) => self.end(),
        }
        Ok(true)
    }
}

/// What writing to a standard input came to.
enum Pumped {
    Open,
    Full,
    Closed,
}

/// The agent's end of a standard input.
#[derive(Debug)]
struct Stdin {
    pipe: OwnedFd,
    queue: Vec<u8>,
    written: usize,
    ended: bool,
    writable: bool,
    watched: bool,
}

impl Stdin {
    fn new(pipe: OwnedFd) -> Self {
        Self { pipe, queue: Vec::new(), written: 0, ended: false, writable: true, watched: false }
    }

    fn waiting(&self) -> usize {
        self.queue.len() - self.written
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.written >= STDIN_BYTES_MAX {
            self.queue.drain(..self.written);
            self.written = 0;
        }
        self.queue.extend_from_slice(bytes);
    }

    fn pump(&mut self) -> Pumped {
        while self.writable && self.waiting() > 0 {
            match rustix::io::write(&self.pipe, &self.queue[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                // The command closed it: it wants no more.
                Err(_) => return Pumped::Closed,
            }
        }
        if self.waiting() > 0 {
            return Pumped::Full;
        }
        self.queue = Vec::new();
        self.written = 0;
        if self.ended { Pumped::Closed } else { Pumped::Open }
    }
}
