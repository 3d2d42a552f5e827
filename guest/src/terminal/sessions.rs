//! All sessions of a machine.

use std::{os::fd::OwnedFd, time::Instant};

use cove_protocol::guest::{ErrorKind, ExitStatus, OpenTerminal};
use rustix::process::Pid;

use super::Session;
use crate::failure::Failure;

/// Most of them; each may keep some MiB of screen and scrollback.
const SESSIONS_MAX: usize = 16;

/// Those whose shell runs, and those whose end some client has not heard yet; the oldest first.
#[derive(Debug, Default)]
pub struct Sessions {
    sessions: Vec<Session>,
    last_number: u64,
}

impl Sessions {
    /// Refuses what cannot be opened.
    ///
    /// # Errors
    /// Names the field, or says that there are too many.
    pub fn check(&self, open: &OpenTerminal) -> Result<(), Failure> {
        if !open.size.is_possible() {
            let message = format!("size: {} columns and {} rows are not possible", open.size.columns, open.size.rows);
            return Err(Failure::request(message));
        }
        if self.sessions.len() >= SESSIONS_MAX {
            let message = format!("{SESSIONS_MAX} terminal sessions are open, which is the most; close one first");
            return Err(Failure { kind: ErrorKind::Busy, message });
        }
        Ok(())
    }

    /// Takes one in. `id` names its terminal among the server's events.
    pub fn add(&mut self, id: u64, pid: Pid, terminal: OwnedFd, open: &OpenTerminal, started: Instant) -> &mut Session {
        self.last_number += 1;
        let at = self.sessions.len();
        self.sessions.push(Session::new(self.last_number, id, pid, terminal, open, started));
        &mut self.sessions[at]
    }

    /// Those that are open.
    pub fn open(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(|session| session.is_open())
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter()
    }

    /// True while some session has output that can be taken.
    pub fn is_due(&self) -> bool {
        self.sessions.iter().any(Session::wants_output)
    }

    /// All of them.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.sessions.iter_mut()
    }

    /// The open one with this number, or the one opened last.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&mut self, number: Option<u64>) -> Result<&mut Session, Failure> {
        let mut found = self.sessions.iter_mut().rev().filter(|session| session.is_open());
        let found = match number {
            Some(number) => found.find(|session| session.number == number),
            None => found.next(),
        };
        found.ok_or_else(|| Failure {
            kind: ErrorKind::NotFound,
            message: number.map_or_else(
                || "There is no terminal session".to_owned(),
                |number| format!("There is no terminal session {number}, or its shell has ended"),
            ),
        })
    }

    /// The one with this number, ended or not.
    pub fn get(&mut self, number: u64) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.number == number)
    }

    /// The one whose terminal has this id.
    pub fn of_event(&mut self, id: u64) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    /// The reaper took a process. Gives the number of the session whose shell it was.
    pub fn note_exit(&mut self, pid: Pid, status: ExitStatus, now: Instant) -> Option<u64> {
        let session = self.sessions.iter_mut().find(|session| session.pid == pid && session.exit.is_none());
        session.map(|session| {
            session.note_exit(status, now);
            session.number
        })
    }

    /// Forgets those that are over, where `wanted` does not say that a client still listens.
    pub fn remove_ended(&mut self, wanted: impl Fn(u64) -> bool) {
        self.sessions.retain(|session| session.ended().is_none() || wanted(session.number));
    }

    /// The first shell that has to be killed.
    pub fn deadline(&self) -> Option<Instant> {
        self.sessions.iter().filter_map(|session| session.kill_at).min()
    }

    /// Kills those that did not go.
    pub fn check_deadlines(&mut self, now: Instant) {
        self.sessions.iter_mut().for_each(|session| session.check_deadline(now));
    }
}
