//! The agent's one loop: an epoll set over the listener, the connections, their commands' pipes and SIGCHLD.
//!
//! ```text
//!   accept ──► idle ──Request::Exec──► command ──Exited sent──► idle
//!               │
//!               ├──Request::Connect──► relay ──Done sent──► idle
//!               └──file operation──► lent to a worker ──final reply sent──► idle
//!                  (and the start of a command while a mount could hang it)
//! ```
//!
//! All descriptors but the listener are watched by edge, and what a connection could do is kept here (`readable`,
//! `ready`): on hosts that emulate the guest's kernel a system call saved is a third of a millisecond. Each connection
//! gets a bounded turn, so none can starve the others. Called by `main`, once.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use cove_protocol::guest::{CHUNK_BYTES_MAX, Configure, Exec, ExitStatus, Input, Reply, Request};
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    net::{SocketFlags, accept_with, sockopt::socket_error},
    process::Pid,
};

use crate::{
    command::{OUT_BYTES_MAX, RunningCommand},
    environment,
    failure::Failure,
    launch::{Launched, Launcher, Pipes},
    mounts::Mounts,
    orphans::Orphans,
    process::signal_group,
    reaper::Reaper,
    relay::{self, Relay},
    settle::Preparation,
    shell::{FastShell, WaitingShells},
    token::{GONE_EVENTS, MOUNT_EVENTS, RELAY_EVENTS, ROOM_EVENTS, SOCKET_EVENTS, Token},
    transport::{Received, Transport},
    watch::Watch,
    workers::{Job, Start, Task, Workers},
};

/// Connections at one time, those of streams to ports among them; a further one is closed at once.
pub const CONNECTIONS_MAX: usize = 192;

/// Steps of one connection before the others get their turn.
const STEPS_PER_TURN: usize = 8;

/// Events taken from the kernel at once: more than there are connections.
const EVENTS_MAX: usize = 256;

/// A command younger than this is likely to be a short one.
const YOUNG: Duration = Duration::from_secs(1);

/// How long nothing happens before a shell is made that waits: commands that follow each other closely would only share
/// the processor with it.
const QUIET: Duration = Duration::from_millis(100);

/// Ended children that are kept while commands are being started.
const UNCLAIMED_MAX: usize = 1024;

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
    /// Commands whose end is told already.
    finished: Vec<RunningCommand>,
    /// Pipes for the next command, made while nothing waits.
    spare: Option<(u64, Pipes)>,
    buffer: Box<[u8]>,
}

struct Connection {
    id: u64,
    transport: Transport,
    command: Option<Box<RunningCommand>>,
    relay: Option<Box<Relay>>,
    /// The socket may hold bytes.
    readable: bool,
    /// The peer closed, or the stream broke.
    gone: bool,
    /// The socket took no more bytes, and has not said since that it would.
    blocked: bool,
    /// The set reports when the socket takes bytes again.
    watched_for_room: bool,
    /// It has something to do in this round.
    due: bool,
}

/// What a connection's turn came to.
enum Turn {
    Waits,
    GoesOn,
    Ends,
    Lends(Task),
    PowersOff,
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
            if let Some(transport) = self.turns() {
                return Ok(transport);
            }
            // After those that closed have made room.
            if events.iter().any(|event| Token::of(event.data) == Token::Listener) {
                self.accept();
            }
        }
    }

    /// How long to wait: not at all while a connection has more to do, else until the first deadline.
    fn timeout(&self) -> Option<Timespec> {
        if self.connections.iter().any(|connection| connection.due) {
            return Some(ZERO);
        }
        let deadlines = self.connections.iter().filter_map(Connection::deadline);
        let first = deadlines.chain(self.orphans.deadline()).min()?;
        let left = first.saturating_duration_since(Instant::now()).min(TIMEOUT_MAX) + Duration::from_millis(1);
        Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    /// True when no shell waits and none is being made, and no command runs that somebody waits for.
    fn misses_shell(&self) -> bool {
        let commands = || self.connections.iter().filter_map(|connection| connection.command.as_ref());
        self.shells.is_absent() && {
            let now = Instant::now();
            commands().all(|command| command.age(now) >= YOUNG)
        }
    }

    /// What can wait until nobody does: closing the last commands' pipes and making the next one's.
    fn prepare(&mut self) {
        self.finished.clear();
        if self.spare.is_none() && self.connections.iter().all(|connection| connection.command.is_none()) {
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
                    connection.relay.iter_mut().for_each(|relay| relay.note(flags));
                    connection.due = true;
                }
            }
        }
    }

    fn note_command(&mut self, id: u64, note: impl FnOnce(&mut RunningCommand)) {
        for connection in &mut self.connections {
            if let Some(command) = connection.command.as_mut().filter(|command| command.id == id) {
                note(command);
                connection.due = true;
                return;
            }
        }
        if let Some(command) = self.orphans.find(id) {
            note(command);
            command.drop_output(&mut self.buffer);
            command.pump_stdin();
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        if self.connections.len() + self.lent >= CONNECTIONS_MAX {
            return;
        }
        let id = self.watch.next_id();
        self.admit(id, Transport::new(socket));
    }

    /// Takes a connection into the loop. The set reports at once what its socket already holds.
    fn admit(&mut self, id: u64, transport: Transport) {
        match epoll::add(&self.watch, &transport.socket, Token::Socket(id).data(), SOCKET_EVENTS) {
            Ok(()) => self.connections.push(Connection {
                id,
                transport,
                command: None,
                relay: None,
                readable: false,
                gone: false,
                blocked: false,
                watched_for_room: false,
                // Frames that came with the last operation's may wait already.
                due: true,
            }),
            Err(error) => eprintln!("cove-agent: cannot watch a connection: {error}"),
        }
    }

    fn reap(&mut self) {
        self.reaper.acknowledge();
        let now = Instant::now();
        while let Some((pid, status)) = self.reaper.next() {
            let mut commands = self.connections.iter_mut();
            let owner =
                commands.find(|connection| connection.command.as_ref().is_some_and(|command| command.pid == pid));
            match owner {
                Some(connection) => {
                    connection.command.iter_mut().for_each(|command| command.note_exit(status, now));
                    connection.due = true;
                }
                None if !self.starting.is_empty() && self.unclaimed.len() < UNCLAIMED_MAX => {
                    self.unclaimed.push((pid, status));
                }
                None => self.orphans.note_exit(pid),
            }
        }
    }

    fn take_back(&mut self) {
        for returned in self.workers.take_returned() {
            self.lent = self.lent.saturating_sub(1);
            self.starting.retain(|id| *id != returned.id);
            if let Some(transport) = returned.transport {
                self.admit(returned.id, transport);
            }
            if let Some(start) = returned.start {
                self.adopt(returned.id, start);
            }
        }
        if self.starting.is_empty() {
            self.unclaimed.clear();
        }
    }

    /// Goes on with a command that a worker started.
    fn adopt(&mut self, connection: u64, Start { exec, at: started, result }: Start) {
        let at = self.connections.iter().position(|candidate| candidate.id == connection);
        match (at, result) {
            (Some(at), Ok(launched)) => {
                let id = self.watch.next_id();
                let pid = launched.pid;
                let watched = self.watch.output(id, &launched.stdout, &launched.stderr);
                self.attach(at, id, launched, &exec, started);
                let exited = self.unclaimed.iter().position(|(candidate, _)| *candidate == pid);
                let connection = &mut self.connections[at];
                // Output that is never told of would never come: better no command than half of one.
                connection.gone |= watched.is_err();
                connection.gone |= connection.transport.queue(&started_reply(pid)).is_err();
                if let (Some(exited), Some(command)) = (exited, &mut connection.command) {
                    command.note_exit(self.unclaimed.swap_remove(exited).1, Instant::now());
                }
            }
            (Some(at), Err(failure)) => {
                let connection = &mut self.connections[at];
                connection.gone |= connection.transport.queue(&failure.into()).is_err();
            }
            (None, Ok(launched)) => {
                let _ = signal_group(launched.pid, libc::SIGKILL);
            }
            (None, Err(_)) => {}
        }
    }

    fn check_deadlines(&mut self) {
        if self.orphans.deadline().is_some() {
            self.orphans.check_deadlines(Instant::now());
        }
        if self.connections.iter().any(|c| c.command.as_ref().is_some_and(|command| command.deadline().is_some())) {
            let now = Instant::now();
            self.connections
                .iter_mut()
                .filter_map(|c| c.command.as_mut())
                .for_each(|command| command.check_deadline(now));
        }
        if self.connections.iter().any(|connection| connection.relay.is_some()) {
            let now = Instant::now();
            let late = |c: &&mut Connection| c.relay.is_some() && c.deadline().is_some_and(|deadline| deadline <= now);
            self.connections.iter_mut().filter(late).for_each(|connection| connection.due = true);
        }
    }

    /// A turn for each connection that has something to do.
    fn turns(&mut self) -> Option<Transport> {
        let mut at = 0;
        while at < self.connections.len() {
            if !std::mem::take(&mut self.connections[at].due) {
                at += 1;
                continue;
            }
            match self.turn(at) {
                Turn::Waits => at += 1,
                Turn::GoesOn => {
                    self.connections[at].due = true;
                    at += 1;
                }
                Turn::Ends => {
                    let ended = self.connections.swap_remove(at);
                    self.end(ended);
                }
                Turn::Lends(task) => {
                    let Connection { id, transport, .. } = self.connections.swap_remove(at);
                    let _ = epoll::delete(&self.watch, &transport.socket);
                    self.lent += 1;
                    if matches!(task, Task::Start(..)) {
                        self.starting.push(id);
                    }
                    self.workers.start(Job { id, transport, task });
                }
                Turn::PowersOff => return Some(self.connections.swap_remove(at).transport),
            }
        }
        None
    }

    /// A peer that closed cancelled its command. A stream that a restore broke did not: the command is as much a part of
    /// the machine as any process.
    fn end(&mut self, connection: Connection) {
        let Some(command) = connection.command else { return };
        let restored = self.host.restores_reset_streams()
            && matches!(socket_error(&connection.transport.socket), Ok(Err(Errno::CONNRESET)));
        if restored {
            self.orphans.adopt(*command, &mut self.buffer);
        } else {
            command.kill();
        }
    }

    fn turn(&mut self, at: usize) -> Turn {
        for _ in 0..STEPS_PER_TURN {
            match self.step(at) {
                Ok(Turn::GoesOn) => {}
                Ok(turn) => return turn,
                Err(error) => {
                    eprintln!("cove-agent: a connection is dropped: {error}");
                    return Turn::Ends;
                }
            }
        }
        Turn::GoesOn
    }

    /// One bounded piece of work. `GoesOn` when it moved something, so that there may be more.
    fn step(&mut self, at: usize) -> io::Result<Turn> {
        if self.connections[at].gone {
            return Ok(Turn::Ends);
        }
        // Only after the socket said that it has room again: each step leaves nothing unsent that could be sent.
        self.flush(at)?;
        let mut turn = match &self.connections[at] {
            Connection { command: Some(_), .. } => self.step_command(at)?,
            Connection { relay: Some(_), .. } => self.step_relay(at)?,
            _ => self.step_idle(at)?,
        };
        // Bytes are taken only where no whole frame waits, so that a peer cannot pile up frames here.
        let connection = &mut self.connections[at];
        if matches!(turn, Turn::Waits) && connection.wants_bytes() {
            turn = Turn::GoesOn;
            match connection.transport.receive(&mut self.buffer) {
                Received::More => {}
                Received::Last | Received::Nothing => connection.readable = false,
                Received::Closed => return Ok(Turn::Ends),
            }
        }
        let had_room = self.connections[at].has_room();
        self.flush(at)?;
        // What waited for room would wait for an event that does not come if the room came right here.
        if !had_room && self.connections[at].has_room() {
            turn = Turn::GoesOn;
        }
        Ok(turn)
    }

    fn step_idle(&mut self, at: usize) -> io::Result<Turn> {
        let connection = &mut self.connections[at];
        if !connection.has_room() {
            return Ok(Turn::Waits);
        }
        match connection.transport.next::<Request>().map_err(io::Error::other)? {
            None => Ok(Turn::Waits),
            Some(Request::PowerOff) => Ok(Turn::PowersOff),
            Some(request) => self.begin(at, request),
        }
    }

    fn step_command(&mut self, at: usize) -> io::Result<Turn> {
        let Connection { transport, command: slot, .. } = &mut self.connections[at];
        let Some(command) = slot else { return Ok(Turn::Waits) };
        let mut moved = false;
        while command.takes_input()
            && let Some(input) = transport.next::<Input>().map_err(io::Error::other)?
        {
            command.take(input);
            moved = true;
        }
        let stdin = Token::Stdin(command.id).data();
        if let Some(pipe) = command.pump_stdin() {
            epoll::add(&self.watch, pipe, stdin, ROOM_EVENTS)?;
        }
        moved |= command.pump_output(transport, &mut self.buffer)?;
        if let Some(exit) = command.finished() {
            transport.queue(&Reply::Exited(exit)).map_err(io::Error::other)?;
            self.finished.extend(slot.take().map(|command| *command));
            moved = true;
        }
        Ok(if moved { Turn::GoesOn } else { Turn::Waits })
    }

    fn step_relay(&mut self, at: usize) -> io::Result<Turn> {
        let Connection { id, transport, relay: slot, .. } = &mut self.connections[at];
        let Some(relay) = slot else { return Ok(Turn::Waits) };
        match relay.step(transport, &mut self.buffer)? {
            relay::Step::Waits => return Ok(Turn::Waits),
            relay::Step::GoesOn => {}
            relay::Step::Reconnects => epoll::add(&self.watch, &**relay, Token::Relay(*id).data(), RELAY_EVENTS)?,
            relay::Step::Ends(reply) => {
                transport.queue(&reply).map_err(io::Error::other)?;
                *slot = None;
            }
        }
        Ok(Turn::GoesOn)
    }

    fn flush(&mut self, at: usize) -> io::Result<()> {
        let connection = &mut self.connections[at];
        if connection.transport.backlog() == 0 || connection.blocked {
            return Ok(());
        }
        connection.blocked = !connection.transport.flush()?;
        // Watched for room only while there is none: the set would speak up at each acknowledgement otherwise.
        if connection.blocked != connection.watched_for_room {
            let events = if connection.blocked { SOCKET_EVENTS | ROOM_EVENTS } else { SOCKET_EVENTS };
            epoll::modify(&self.watch, &connection.transport.socket, Token::Socket(connection.id).data(), events)?;
            connection.watched_for_room = connection.blocked;
        }
        Ok(())
    }

    fn begin(&mut self, at: usize, request: Request) -> io::Result<Turn> {
        let reply = match request {
            Request::Hello => self.host.hello(),
            Request::Configure(configure) => match self.configure(configure) {
                Ok(()) => Reply::Done,
                Err(failure) => failure.into(),
            },
            Request::SetClock { clock_us } => match self.host.set_clock(clock_us) {
                Ok(()) => Reply::Done,
                Err(failure) => failure.into(),
            },
            Request::Exec(exec) if self.mounts.may_hang() => {
                return Ok(Turn::Lends(Task::Start(exec, self.environment.clone())));
            }
            Request::Exec(exec) => match self.start(at, &exec) {
                Ok(pid) => started_reply(pid),
                Err(failure) => failure.into(),
            },
            Request::Connect { port } => match self.connect(at, port) {
                Ok(()) => return Ok(Turn::GoesOn),
                Err(failure) => failure.into(),
            },
            Request::Listeners => return Ok(Turn::Lends(Task::Listeners)),
            Request::Sync => return Ok(Turn::Lends(Task::Sync { may_hang: self.mounts.may_hang() })),
            Request::Prepare => return Ok(Turn::Lends(Task::Prepare)),
            request => return Ok(Turn::Lends(Task::File(request))),
        };
        self.connections[at].transport.queue(&reply).map_err(io::Error::other)?;
        Ok(Turn::GoesOn)
    }

    fn configure(&mut self, configure: Configure) -> Result<(), Failure> {
        configure.env.iter().try_for_each(|(name, value)| environment::check(name, value))?;
        self.host.configure(&configure)?;
        self.environment = configure.env;
        Ok(())
    }

    fn start(&mut self, at: usize, exec: &Exec) -> Result<Pid, Failure> {
        let started = Instant::now();
        let program = self.launcher.program(exec, &self.environment)?;
        let fits = self.launcher.fits_waiting_shell(exec, &program);
        let (id, launched) = match if fits { self.shells.launch(&program) } else { None } {
            Some(launched) => launched,
            None => {
                let spare = self.spare.take().map_or_else(|| self.watch.pipes(), Ok);
                let (id, pipes) = spare.map_err(|error| Failure::io("Cannot make pipes".into(), &error))?;
                (id, self.launcher.launch(exec, &program, pipes)?)
            }
        };
        let pid = launched.pid;
        self.attach(at, id, launched, exec, started);
        Ok(pid)
    }

    fn connect(&mut self, at: usize, port: u16) -> Result<(), Failure> {
        let relay = Box::new(Relay::connect(port)?);
        let connection = &mut self.connections[at];
        epoll::add(&self.watch, &*relay, Token::Relay(connection.id).data(), RELAY_EVENTS)
            .map_err(|error| Failure::io("Cannot watch a socket".into(), &error.into()))?;
        connection.relay = Some(relay);
        Ok(())
    }

    fn attach(&mut self, at: usize, id: u64, launched: Launched, exec: &Exec, started: Instant) {
        self.connections[at].command = Some(Box::new(RunningCommand::new(id, launched, exec, started)));
    }
}

fn started_reply(pid: Pid) -> Reply {
    Reply::Started { pid: pid.as_raw_nonzero().get() }
}

const ZERO: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// [`QUIET`] for the kernel.
const QUIET_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: QUIET.as_nanos() as i64 };

/// The longest single wait; a deadline further away is simply looked at again.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

impl Connection {
    /// True when bytes may be there and there is a place for them.
    fn wants_bytes(&self) -> bool {
        self.readable
            && match self {
                Connection { command: Some(command), .. } => command.takes_input(),
                Connection { relay: Some(relay), .. } => relay.takes_input(),
                _ => self.has_room(),
            }
    }

    /// When something is to be looked at again that no event tells of.
    fn deadline(&self) -> Option<Instant> {
        match self {
            Connection { command: Some(command), .. } => command.deadline(),
            Connection { relay: Some(relay), .. } => relay.deadline(),
            _ => None,
        }
    }

    /// True while more may be queued for the peer.
    fn has_room(&self) -> bool {
        let most = if self.relay.is_some() { relay::OUT_BYTES_MAX } else { OUT_BYTES_MAX };
        self.transport.backlog() < most
    }
}
