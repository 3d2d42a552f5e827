//! Commands: their start, here or by a worker, their turns, and whose a process is that ended.

use std::{io, mem, time::Instant};

use cove_protocol::guest::{Exec, ExitStatus, Input, Reply};
use rustix::{event::epoll, process::Pid};

use super::{
    Server,
    connection::{Connection, Work},
    turns::Turn,
};
use crate::{
    command::RunningCommand,
    failure::Failure,
    launch::Launched,
    process::signal_group,
    token::{ROOM_EVENTS, Token},
    workers::{Start, Started, Wanted},
};

/// Ended children that are kept while commands are being started.
const UNCLAIMED_MAX: usize = 1024;

impl Server<'_> {
    pub(super) fn reap(&mut self) {
        self.reaper.acknowledge();
        let now = Instant::now();
        while let Some((pid, status)) = self.reaper.next() {
            if self.jobs.note_exit(pid, status, now) || self.note_terminal_exit(pid, status, now) {
                continue;
            }
            let mut owners = self.connections.iter_mut();
            let owner = owners.find(|connection| connection.command().is_some_and(|command| command.pid == pid));
            match owner {
                Some(connection) => {
                    connection.command_mut().into_iter().for_each(|command| command.note_exit(status, now));
                    connection.due = true;
                }
                None if !self.starting.is_empty() && self.unclaimed.len() < UNCLAIMED_MAX => {
                    self.unclaimed.push((pid, status));
                }
                None => self.orphans.note_exit(pid),
            }
        }
    }

    pub(super) fn take_back(&mut self) {
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

    /// Goes on with what a worker started.
    fn adopt(&mut self, connection: u64, Start { wanted, at: started, result }: Start) {
        let at = self.connections.iter().position(|candidate| candidate.id == connection);
        let reply = match (result, wanted) {
            (Ok(Started::Pipes(launched)), Wanted::Command(exec)) => self.adopt_command(at, launched, &exec, started),
            (Ok(Started::Pipes(launched)), Wanted::Job(start)) => self.adopt_job(launched, *start, started),
            (Ok(Started::Terminal(pid, terminal)), Wanted::Terminal(open)) => {
                self.adopt_terminal(pid, terminal, &open, started)
            }
            (Ok(started), _) => {
                let _ = signal_group(started.pid(), libc::SIGKILL);
                return;
            }
            (Err(failure), _) => failure.into(),
        };
        if let Some(connection) = at.and_then(|at| self.connections.get_mut(at)) {
            connection.gone |= connection.transport.queue(&reply).is_err();
            connection.due = true;
        }
    }

    fn adopt_command(&mut self, at: Option<usize>, launched: Launched, exec: &Exec, started: Instant) -> Reply {
        let (id, pid) = (self.watch.next_id(), launched.pid);
        let watched = self.watch.output(id, &launched.stdout, &launched.stderr);
        let exit = self.claim(pid);
        let Some(connection) = at.and_then(|at| self.connections.get_mut(at)) else {
            if exit.is_none() {
                let _ = signal_group(pid, libc::SIGKILL);
            }
            return started_reply(pid);
        };
        let mut command = RunningCommand::new(id, launched, exec, started);
        // Output that is never told of would never come: better no command than half of one.
        connection.gone |= watched.is_err();
        if let Some(status) = exit {
            command.note_exit(status, Instant::now());
        }
        connection.work = Work::Command(Box::new(command));
        started_reply(pid)
    }

    /// How a process that a worker started has ended, if it has already.
    pub(super) fn claim(&mut self, pid: Pid) -> Option<ExitStatus> {
        let exited = self.unclaimed.iter().position(|(candidate, _)| *candidate == pid);
        exited.map(|exited| self.unclaimed.swap_remove(exited).1)
    }

    pub(super) fn step_command(&mut self, at: usize) -> io::Result<Turn> {
        let Connection { transport, work, .. } = &mut self.connections[at];
        let Work::Command(command) = work else { return Ok(Turn::Waits) };
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
            if let Work::Command(command) = mem::replace(work, Work::Idle) {
                self.finished.push(*command);
            }
            moved = true;
        }
        Ok(if moved { Turn::GoesOn } else { Turn::Waits })
    }

    pub(super) fn start(&mut self, at: usize, exec: &Exec) -> Result<Pid, Failure> {
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

    fn attach(&mut self, at: usize, id: u64, launched: Launched, exec: &Exec, started: Instant) {
        self.connections[at].work = Work::Command(Box::new(RunningCommand::new(id, launched, exec, started)));
    }
}

/// A command runs.
pub(super) fn started_reply(pid: Pid) -> Reply {
    Reply::Started { pid: pid.as_raw_nonzero().get() }
}
