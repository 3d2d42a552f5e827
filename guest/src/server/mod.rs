//! The agent's one loop: an epoll set over the listener, the connections, their commands' pipes and SIGCHLD.
//!
//! ```text
//!   accept ──► idle ──Request::Exec──► command ──Exited sent──► idle
//!               │
//!               ├──Request::Connect──► relay ──Done sent──► idle
//!               ├──FollowJob, AttachTerminal──► looks on ──end sent──► idle
//!               │
//!               └──file operation──► lent to a worker ──final reply sent──► idle
//!                  (and the start of a command while a mount could hang it)
//! ```
//!
//! Jobs and terminal sessions belong to no connection: they are in `jobs` and `terminal`, and the loop serves them beside.
//! All descriptors but the listener are watched by edge, and what a connection could do is kept here (`readable`,
//! `ready`): on hosts that emulate the guest's kernel a system call saved is a third of a millisecond. Each connection
//! gets a bounded turn, so none can starve the others. Called by `main`, once.

mod commands;

mod connection;

mod jobs;

mod relays;

mod requests;

mod terminals;

mod turns;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use cove_protocol::guest::{CHUNK_BYTES_MAX, Configure, ExitStatus, Reply};
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    process::Pid,
};

use self::connection::{Connection, Work};
use crate::{
    command::RunningCommand,
    failure::Failure,
    jobs::Jobs,
    launch::{Launcher, Pipes},
    mounts::Mounts,
    orphans::Orphans,
    reaper::Reaper,
    settle::Preparation,
    shell::{FastShell, WaitingShells},
    terminal::Sessions,
    token::{GONE_EVENTS, MOUNT_EVENTS, Token},
    transport::Transport,
    watch::Watch,
    workers::Workers,
};

/// Events taken from the kernel at once: more than there are connections.
const EVENTS_MAX: usize = 256;

/// A command younger than this is likely to be a short one.
const YOUNG: Duration = Duration::from_secs(1);

/// How long nothing happens before a shell is made that waits: commands that follow each other closely would only share
/// the processor with it.
const QUIET: Duration = Duration::from_millis(100);

/// What the agent does to the machine it runs in. `main` gives the real one, and none where the agent is only a
/// process among others.
pub trait Host {
    /// Sets the machine's clock, then its entropy, name and ids.
    ///
    /// # Errors
    /// Names the field that is wrong.
    fn configure(&mut self, configure: &Configure) -> Result<(), Failure>;

    /// Sets the machine's wall clock, to microseconds since 1970.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn set_clock(&mut self, clock_us: u64) -> Result<(), Failure>;

    /// The answer to [`Request::Hello`].
    fn hello(&self) -> Reply;

    /// True when a broken stream means that the machine was restored: a peer that goes away closes. Where it is false,
    /// both mean that the peer went away.
    fn restores_reset_streams(&self) -> bool;
}

/// The loop's state.
pub struct Server<'a> {
    watch: Arc<Watch>,
    listener: OwnedFd,
    host: &'a mut dyn Host,
    reaper: Reaper,
    workers: Workers,
    launcher: Launcher,
    /// The environment that [`Request::Configure`] gave.
    environment: Vec<(String, String)>,
    connections: Vec<Connection>,
    /// Connections that workers have.
    lent: usize,
    /// Those of them whose command is being started.
    starting: Vec<u64>,
    /// Children that ended while commands were being started: one of them may be such a command's.
    unclaimed: Vec<(Pid, ExitStatus)>,
    mounts: Mounts,
    shells: Arc<WaitingShells>,
    /// Commands that lost their connection to a restore.
    orphans: Orphans,
    jobs: Jobs,
    terminals: Sessions,
    /// Commands whose end is told already.
    finished: Vec<RunningCommand>,
    /// Pipes for the next command, made while nothing waits.
    spare: Option<(u64, Pipes)>,
    buffer: Box<[u8]>,
}

impl<'a> Server<'a> {
    /// A server on a listening, non-blocking stream socket. No other thread may run yet.
    ///
    /// # Errors
    /// When the kernel lacks a descriptor.
    pub fn new(
        listener: OwnedFd,
        host: &'a mut dyn Host,
        watch: Arc<Watch>,
        shell: Arc<FastShell>,
        preparation: Preparation,
    ) -> io::Result<Self> {
        let shells = Arc::clone(&preparation.shells);
        let server = Self {
            watch,
            listener,
            host,
            reaper: Reaper::new()?,
            workers: Workers::new(Arc::clone(&shell), preparation)?,
            launcher: Launcher::new(shell)?,
            environment: Vec::new(),
            connections: Vec::new(),
            lent: 0,
            starting: Vec::new(),
            unclaimed: Vec::new(),
            mounts: Mounts::open()?,
            shells,
            orphans: Orphans::default(),
            jobs: Jobs::default(),
            terminals: Sessions::default(),
            finished: Vec::new(),
            spare: None,
            buffer: vec![0; CHUNK_BYTES_MAX].into_boxed_slice(),
        };
        let watch =
            |fd: &dyn AsFd, token: Token| epoll::add(&server.watch, fd.as_fd(), token.data(), epoll::EventFlags::IN);
        watch(&server.listener, Token::Listener)?;
        watch(&server.reaper, Token::Children)?;
        watch(&server.workers, Token::Workers)?;
        epoll::add(&server.watch, &server.mounts, Token::Mounts.data(), MOUNT_EVENTS)?;
        Ok(server)
    }

    /// Serves until a peer asks for power-off; gives back that peer's connection, which awaits its reply.
    ///
    /// # Errors
    /// When the kernel's event queue itself fails, which nothing can go on without.
    pub fn run(&mut self) -> io::Result<Transport> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let timeout = self.timeout();
            if timeout != Some(ZERO) {
                self.prepare();
            }
            events.clear();
            let quiet = timeout.is_none_or(|timeout| timeout > QUIET_TIMEOUT) && self.misses_shell();
            let timeout = if quiet { Some(QUIET_TIMEOUT) } else { timeout };
            match epoll::wait(&self.watch, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if quiet && events.is_empty() {
                self.shells.want();
            }
            for event in &events {
                self.note(Token::of(event.data), event.flags);
            }
            self.check_deadlines();
            self.pump_jobs();
            self.pump_terminals();
            if let Some(transport) = self.turns() {
                return Ok(transport);
            }
            self.settle_terminals();
            // After those that closed have made room.
            if events.iter().any(|event| Token::of(event.data) == Token::Listener) {
                self.accept();
            }
        }
    }

    /// How long to wait: not at all while something has more to do, else until the first deadline.
    fn timeout(&self) -> Option<Timespec> {
        let due = self.connections.iter().any(|connection| connection.due);
        if due || self.jobs.is_due() || self.terminals.is_due() {
            return Some(ZERO);
        }
        let commands = self.connections.iter().filter_map(Connection::deadline);
        let others =
            [self.orphans.deadline(), self.jobs.deadline(), self.terminals.deadline(), self.next_late_client()];
        let first = commands.chain(others.into_iter().flatten()).min()?;
        let left = first.saturating_duration_since(Instant::now()).min(TIMEOUT_MAX) + Duration::from_millis(1);
        Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    /// True when no shell waits and none is being made, and no command runs that somebody waits for.
    fn misses_shell(&self) -> bool {
        let commands = || self.connections.iter().filter_map(Connection::command);
        self.shells.is_absent() && {
            let now = Instant::now();
            commands().all(|command| command.age(now) >= YOUNG)
        }
    }

    /// What can wait until nobody does: closing the last commands' pipes and making the next one's.
    fn prepare(&mut self) {
        self.finished.clear();
        if self.spare.is_none() && self.connections.iter().all(|connection| connection.command().is_none()) {
            self.spare = self.watch.pipes().ok();
        }
    }

    fn note(&mut self, token: Token, flags: epoll::EventFlags) {
        match token {
            Token::Listener => {}
            Token::Children => self.reap(),
            Token::Workers => self.take_back(),
            Token::Mounts => self.mounts.refresh(),
            Token::Socket(id) => {
                if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) {
                    connection.readable |= flags.contains(epoll::EventFlags::IN);
                    connection.blocked &= !flags.contains(epoll::EventFlags::OUT);
                    connection.gone |= flags.intersects(GONE_EVENTS);
                    connection.due = true;
                }
            }
            Token::Output(id, stream) => {
                self.note_command(id, |command| command.note_output(stream));
            }
            Token::Stdin(id) => self.note_command(id, RunningCommand::note_stdin),
            Token::Relay(id) => {
                if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) {
                    if let Work::Relay(relay) = &mut connection.work {
                        relay.note(flags);
                    }
                    connection.due = true;
                }
            }
            Token::Terminal(id) => self.note_terminal(id, flags),
        }
    }

    fn note_command(&mut self, id: u64, note: impl FnOnce(&mut RunningCommand)) {
        for connection in &mut self.connections {
            if let Some(command) = connection.command_mut().filter(|command| command.id == id) {
                note(command);
                connection.due = true;
                return;
            }
        }
        if let Some(command) = self.jobs.note(id) {
            note(command);
            command.pump_stdin();
            return;
        }
        if let Some(command) = self.orphans.find(id) {
            note(command);
            command.drop_output(&mut self.buffer);
            command.pump_stdin();
        }
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        if self.orphans.deadline().is_some() {
            self.orphans.check_deadlines(now);
        }
        self.jobs.check_deadlines(now);
        self.terminals.check_deadlines(now);
        let commands = self.connections.iter_mut().filter_map(Connection::command_mut);
        commands.for_each(|command| command.check_deadline(now));
        let late = |connection: &&mut Connection| {
            matches!(connection.work, Work::Relay(_)) && connection.deadline().is_some_and(|deadline| deadline <= now)
        };
        self.connections.iter_mut().filter(late).for_each(|connection| connection.due = true);
    }
}

const ZERO: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// [`QUIET`] for the kernel.
const QUIET_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: QUIET.as_nanos() as i64 };

/// The longest single wait; a deadline further away is simply looked at again.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
