//! The server's side of terminal sessions: their start, and the connections that look at them.

use std::{io, os::fd::OwnedFd, time::Instant};

use cove_protocol::guest::{AttachTerminal, ErrorKind, ExitStatus, Input, OpenTerminal, Reply, TerminalInfo};
use rustix::{event::epoll, process::Pid};

use super::{
    Server,
    connection::{Connection, Work},
    turns::Turn,
};
use crate::{
    failure::Failure,
    terminal::{Client, Session},
    token::{GONE_EVENTS, TERMINAL_EVENTS, Token},
};

/// A client with more than this many bytes to send gets no more queued: what is queued cannot be taken back from a client
/// that loses its place.
const CLIENT_BYTES_MAX: usize = 64 << 10;

/// Output queued at once.
const CHUNK_BYTES: usize = 32 << 10;

impl Server<'_> {
    pub(super) fn open_terminal(&mut self, open: &OpenTerminal) -> Result<Reply, Failure> {
        let started = Instant::now();
        let program = self.launcher.terminal_program(open, &self.environment)?;
        let (pid, terminal) = self.launcher.launch_terminal(open, &program)?;
        Ok(self.adopt_terminal(pid, terminal, open, started))
    }

    /// Keeps a session whose shell was just started.
    pub(super) fn adopt_terminal(
        &mut self,
        pid: Pid,
        terminal: OwnedFd,
        open: &OpenTerminal,
        started: Instant,
    ) -> Reply {
        let exit = self.claim(pid);
        let id = self.watch.next_id();
        if let Err(error) = epoll::add(&self.watch, &terminal, Token::Terminal(id).data(), TERMINAL_EVENTS) {
            eprintln!("cove-agent: a terminal cannot be watched: {error}");
        }
        let session = self.terminals.add(id, pid, terminal, open, started);
        if let Some(status) = exit {
            session.note_exit(status, Instant::now());
        }
        Reply::Terminal(session.info(0))
    }

    pub(super) fn terminal_infos(&self) -> Vec<TerminalInfo> {
        self.terminals.open().map(|session| session.info(clients(&self.connections, session.number).count())).collect()
    }

    pub(super) fn close_terminal(&mut self, number: u64) -> Reply {
        match self.terminals.find(Some(number)) {
            Ok(session) => {
                session.close(Instant::now());
                Reply::Done
            }
            Err(failure) => failure.into(),
        }
    }

    pub(super) fn attach_terminal(&mut self, at: usize, attach: AttachTerminal) -> Reply {
        if let Some(size) = attach.size.filter(|size| !size.is_possible()) {
            let message = format!("size: {} columns and {} rows are not possible", size.columns, size.rows);
            return Failure { kind: ErrorKind::InvalidRequest, message }.into();
        }
        let session = match self.terminals.find(attach.session) {
            Ok(session) => session,
            Err(failure) => return failure.into(),
        };
        if let Some(size) = attach.size {
            session.resize(size);
        }
        let client = Client::new(session, Instant::now());
        let others = clients(&self.connections, session.number).count();
        let info = session.info(others + 1);
        self.connections[at].work = Work::Attached(Box::new(client));
        Reply::Terminal(info)
    }

    pub(super) fn note_terminal(&mut self, id: u64, flags: epoll::EventFlags) {
        let readable = flags.intersects(epoll::EventFlags::IN | GONE_EVENTS);
        let room = flags.intersects(epoll::EventFlags::OUT | GONE_EVENTS);
        let Some(session) = self.terminals.of_event(id) else { return };
        session.note(readable, room);
        if room {
            pump_input(&self.watch, session);
            wake(&mut self.connections, session.number);
        }
    }

    /// The reaper took a process. True when it was a session's shell.
    pub(super) fn note_terminal_exit(&mut self, pid: Pid, status: ExitStatus, now: Instant) -> bool {
        let ended = self.terminals.note_exit(pid, status, now);
        // Its output may have ended before, and then nothing else tells them.
        ended.map(|number| wake(&mut self.connections, number)).is_some()
    }

    /// Reads what the sessions wrote, as far as their clients keep up, and wakes those clients.
    pub(super) fn pump_terminals(&mut self) {
        for session in self.terminals.all_mut() {
            if !session.wants_output() {
                continue;
            }
            let kept = wanted_from(&self.connections, session.number).is_some();
            session.pump_output(kept, &mut self.buffer);
            wake(&mut self.connections, session.number);
        }
    }

    /// After the clients' turns: forgets what all of them have, takes the place of those who hold up others, and ends what
    /// is over.
    pub(super) fn settle_terminals(&mut self) {
        let Self { terminals, connections, .. } = self;
        let now = Instant::now();
        for session in terminals.all_mut() {
            if session.is_held_up() {
                late_clients(connections, session.number, now);
            }
            session.trim(wanted_from(connections, session.number));
        }
        terminals.remove_ended(|number| clients(connections, number).next().is_some());
    }

    /// When the first client holds up others for too long.
    pub(super) fn next_late_client(&self) -> Option<Instant> {
        let held_up = self.terminals.all().filter(|session| session.is_held_up());
        let late = held_up.flat_map(|session| {
            let first = clients(&self.connections, session.number).filter_map(Client::wanted_from).max();
            let behind = move |client: &&Client| client.wanted_from() < first && client.wanted_from().is_some();
            clients(&self.connections, session.number).filter(behind).map(Client::late_at)
        });
        late.min()
    }

    pub(super) fn step_attached(&mut self, at: usize) -> io::Result<Turn> {
        let Self { connections, terminals, watch, .. } = self;
        let Connection { transport, work, .. } = &mut connections[at];
        let Work::Attached(client) = work else { return Ok(Turn::Waits) };
        let Some(session) = terminals.get(client.session) else { return Ok(Turn::Ends) };
        let mut moved = false;
        while session.takes_input()
            && let Some(input) = transport.next::<Input>().map_err(io::Error::other)?
        {
            match input {
                Input::Data(bytes) => session.push(&bytes),
                Input::Resize(size) => session.resize(size),
                Input::End | Input::Signal(_) => {}
            }
            moved = true;
        }
        pump_input(watch, session);
        let now = Instant::now();
        while transport.backlog() < CLIENT_BYTES_MAX && !client.has_all(session) {
            let data = client.next(session, CHUNK_BYTES, now).to_vec().into();
            let reply = Reply::Output { stream: cove_protocol::guest::Stream::Stdout, data };
            transport.queue(&reply).map_err(io::Error::other)?;
            moved = true;
        }
        if client.has_all(session)
            && let Some(exit) = session.ended()
        {
            transport.queue(&Reply::Exited(exit)).map_err(io::Error::other)?;
            *work = Work::Idle;
            moved = true;
        }
        Ok(if moved { Turn::GoesOn } else { Turn::Waits })
    }
}

/// Those who look at a session.
fn clients(connections: &[Connection], number: u64) -> impl Iterator<Item = &Client> {
    connections.iter().filter_map(Connection::client).filter(move |client| client.session == number)
}

/// The cursor of the slowest client that keeps its place.
fn wanted_from(connections: &[Connection], number: u64) -> Option<u64> {
    clients(connections, number).filter_map(Client::wanted_from).min()
}

fn wake(connections: &mut [Connection], number: u64) {
    let looks = |connection: &&mut Connection| connection.client().is_some_and(|client| client.session == number);
    connections.iter_mut().filter(looks).for_each(|connection| connection.due = true);
}

/// Takes the place of clients that have taken nothing for too long while another is ahead of them.
fn late_clients(connections: &mut [Connection], number: u64, now: Instant) {
    let first = clients(connections, number).filter_map(Client::wanted_from).max();
    for connection in connections {
        let Work::Attached(client) = &mut connection.work else { continue };
        let behind = client.wanted_from().is_some_and(|from| Some(from) < first);
        if client.session == number && behind && client.late_at() <= now {
            client.lose();
        }
    }
}

fn pump_input(watch: &crate::watch::Watch, session: &mut Session) {
    if session.pump_input() {
        let events =
            if session.is_watched_for_room() { TERMINAL_EVENTS | epoll::EventFlags::OUT } else { TERMINAL_EVENTS };
        // It was added with this id; if the kernel has no memory for the change, the next event still comes.
        let _ = epoll::modify(watch, session.terminal(), Token::Terminal(session.id).data(), events);
    }
}
