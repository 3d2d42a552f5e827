//! Terminal sessions: a shell on a pseudo-terminal, what its screen shows, and what its clients have not got yet.
//!
//! ```text
//!  shell ─► pseudo-terminal ─► screen (the model)          ┌─► client: replay of the screen, then bytes from its cursor
//!                         └──► backlog (BACKLOG_BYTES_MAX) ┴─► client ...
//! ```
//!
//! Output is read only while the backlog has room for it, so the slowest client sets the pace, as on a real terminal, and
//! nothing is lost. A client that takes nothing for [`PATIENCE`] while another waits loses its place: it gets the screen anew
//! once it reads again. Without clients the output goes to the model alone. Called by `server::terminals`.

mod client;

pub mod pty;

mod screen;

mod sessions;

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use cove_protocol::guest::{Exit, ExitStatus, OpenTerminal, TerminalInfo, WindowSize};
use rustix::{io::Errno, process::Pid};

pub use self::client::Client;
pub use self::sessions::Sessions;

use self::screen::Screen;
use crate::{command::STDIN_BYTES_MAX, jobs::now_us, process::signal_group};

/// Output that waits for the slowest client.
pub const BACKLOG_BYTES_MAX: usize = 256 << 10;

/// How long a client may take nothing while another waits.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a shell that is hung up has until it is killed.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// Reads of one session before the others get their turn. The kernel gives 4 KiB at a time.
const READS_PER_TURN: usize = 16;

/// What is still read after the shell's end, if something else keeps on writing: more than the kernel can hold.
const DRAIN_BYTES_MAX: usize = 256 << 10;

/// Longest command in a description, in characters.
const COMMAND_CHARS_MAX: usize = 500;

/// One session.
#[derive(Debug)]
pub struct Session {
    /// Names it for clients.
    pub number: u64,
    /// Names its terminal among the server's events.
    pub id: u64,
    /// Its shell.
    pub pid: Pid,
    text: String,
    opened_us: u64,
    started: Instant,
    size: WindowSize,
    terminal: OwnedFd,
    screen: Screen,
    /// Output that some client still wants, up to the cursor `end`.
    backlog: VecDeque<u8>,
    end: u64,
    /// The terminal may hold output.
    readable: bool,
    /// The terminal took no more input, and has not said since that it would.
    blocked: bool,
    watched_for_room: bool,
    input: VecDeque<u8>,
    exit: Option<Exit>,
    left: usize,
    /// All that it wrote was read.
    drained: bool,
    closing: bool,
    kill_at: Option<Instant>,
}

impl Session {
    /// A session whose shell was just started.
    pub fn new(number: u64, id: u64, pid: Pid, terminal: OwnedFd, open: &OpenTerminal, started: Instant) -> Self {
        let text = if open.command.is_empty() { "shell".to_owned() } else { open.command.join(" ") };
        Self {
            number,
            id,
            pid,
            text: text.chars().take(COMMAND_CHARS_MAX).collect(),
            opened_us: now_us(),
            started,
            size: open.size,
            terminal,
            screen: Screen::new(open.size),
            backlog: VecDeque::new(),
            end: 0,
            readable: true,
            blocked: false,
            watched_for_room: false,
            input: VecDeque::new(),
            exit: None,
            left: DRAIN_BYTES_MAX,
            drained: false,
            closing: false,
            kill_at: None,
        }
    }

    /// How it is, with so many clients.
    pub fn info(&self, clients: usize) -> TerminalInfo {
        TerminalInfo {
            session: self.number,
            pid: self.pid.as_raw_nonzero().get(),
            command: self.text.clone(),
            opened_us: self.opened_us,
            size: self.size,
            clients: clients as u32,
        }
    }

    /// The agent's end of the terminal.
    pub fn terminal(&self) -> &OwnedFd {
        &self.terminal
    }

    /// Its shell runs, and nobody closed it.
    pub fn is_open(&self) -> bool {
        self.exit.is_none() && !self.closing
    }

    /// How it ended, once all that it wrote was read.
    pub fn ended(&self) -> Option<Exit> {
        self.exit.filter(|_| self.drained)
    }

    /// The terminal says something.
    pub fn note(&mut self, readable: bool, room: bool) {
        self.readable |= readable && !self.drained;
        self.blocked &= !room;
    }

    /// The reaper took the shell.
    pub fn note_exit(&mut self, status: ExitStatus, now: Instant) {
        let duration_us = now.saturating_duration_since(self.started).as_micros() as u64;
        self.exit = Some(Exit { status, duration_us });
        self.kill_at = None;
        self.input.clear();
        // What it wrote last may be on its way still; reading finds out.
        self.readable = !self.drained;
    }

    /// Takes another size.
    pub fn resize(&mut self, size: WindowSize) {
        if size.is_possible() && size != self.size && pty::resize(&self.terminal, size).is_ok() {
            self.size = size;
            self.screen.resize(size);
        }
    }

    /// True while more input may be queued.
    pub fn takes_input(&self) -> bool {
        self.input.len() < STDIN_BYTES_MAX
    }

    /// Queues input.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.exit.is_none() {
            self.input.extend(bytes);
        }
    }

    /// Writes queued input. True when it has to be watched for room in another way than it is.
    pub fn pump_input(&mut self) -> bool {
        while !self.blocked && !self.input.is_empty() {
            match rustix::io::write(&self.terminal, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.blocked = true,
                Err(_) => self.input.clear(),
            }
        }
        if self.input.is_empty() {
            self.input.shrink_to(0);
        }
        let changed = self.blocked != self.watched_for_room;
        self.watched_for_room = self.blocked;
        changed
    }

    /// Events are wanted when there is room for input.
    pub fn is_watched_for_room(&self) -> bool {
        self.watched_for_room
    }

    /// True when output may be there and there is a place for it.
    pub fn wants_output(&self) -> bool {
        self.readable && self.backlog.len() < BACKLOG_BYTES_MAX
    }

    /// True when output waits for the slowest client.
    pub fn is_held_up(&self) -> bool {
        self.readable && self.backlog.len() >= BACKLOG_BYTES_MAX
    }

    /// Reads what there is, a bounded amount. `kept` tells whether some client wants it.
    pub fn pump_output(&mut self, kept: bool, buffer: &mut [u8]) {
        for _ in 0..READS_PER_TURN {
            if !self.wants_output() {
                return;
            }
            let room = (BACKLOG_BYTES_MAX - self.backlog.len()).min(buffer.len());
            match rustix::io::read(&self.terminal, &mut buffer[..room]) {
                Ok(count) if count > 0 => self.take(&buffer[..count], kept),
                Err(Errno::INTR) => {}
                // The kernel has passed on all that was written before it says so (n_tty_read).
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    self.drained |= self.exit.is_some();
                }
                // No process has it open any more.
                Ok(_) | Err(_) => self.end_output(),
            }
        }
    }

    fn take(&mut self, output: &[u8], kept: bool) {
        self.screen.process(output);
        self.end += output.len() as u64;
        if kept {
            self.backlog.extend(output);
        }
        if self.exit.is_some() {
            self.left = self.left.saturating_sub(output.len());
            if self.left == 0 {
                self.end_output();
            }
        }
    }

    fn end_output(&mut self) {
        self.readable = false;
        self.drained = true;
    }

    /// The cursor behind the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Output at a cursor, as far as it lies in one piece.
    pub fn read(&self, from: u64) -> &[u8] {
        let skipped = self.backlog.len().saturating_sub(self.end.saturating_sub(from) as usize);
        let (first, second) = self.backlog.as_slices();
        first
            .get(skipped..)
            .filter(|rest| !rest.is_empty())
            .unwrap_or_else(|| second.get(skipped.saturating_sub(first.len())..).unwrap_or_default())
    }

    /// Forgets what lies before a cursor; everything when nobody wants anything.
    pub fn trim(&mut self, wanted_from: Option<u64>) {
        let wanted = wanted_from.map_or(0, |from| self.end.saturating_sub(from) as usize);
        let surplus = self.backlog.len().saturating_sub(wanted);
        self.backlog.drain(..surplus);
        if self.backlog.is_empty() {
            self.backlog.shrink_to(0);
        }
    }

    /// What draws its screen.
    pub fn replay(&self, scrollback: bool) -> Vec<u8> {
        self.screen.replay(scrollback)
    }

    /// Hangs up: the shell gets SIGHUP now, and SIGKILL if it is still there later.
    pub fn close(&mut self, now: Instant) {
        if self.is_open() {
            self.closing = true;
            let _ = signal_group(self.pid, libc::SIGHUP);
            // A stopped one would not see it.
            let _ = signal_group(self.pid, libc::SIGCONT);
            self.kill_at = Some(now + HANG_UP_GRACE);
        }
    }

    /// Kills the shell that did not go.
    pub fn check_deadline(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            let _ = signal_group(self.pid, libc::SIGKILL);
        }
    }
}
