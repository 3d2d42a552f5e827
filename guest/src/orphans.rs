//! Commands whose connection a restore of the machine took away: they go on, and nobody hears them.
//!
//! A snapshot keeps the commands that ran, and no stream leads to them afterwards. Their output is read and dropped so that
//! it does not block them, what they were sent before is still written to them, their time still runs out, and their end
//! is noticed. Their standard input stays open: nobody said that it is at its end. Called by `server`.

use std::{collections::VecDeque, time::Instant};

use rustix::process::Pid;

use crate::command::RunningCommand;

/// Most of them; the oldest loses its pipes for a further one.
const ORPHANS_MAX: usize = 128;

/// All of them, the oldest first.
#[derive(Debug, Default)]
pub struct Orphans {
    commands: VecDeque<RunningCommand>,
}

impl Orphans {
    /// Takes one over. What it wrote already is dropped.
    pub fn adopt(&mut self, mut command: RunningCommand, buffer: &mut [u8]) {
        if self.commands.len() >= ORPHANS_MAX {
            self.commands.pop_front();
        }
        command.drop_output(buffer);
        self.commands.push_back(command);
    }

    /// The one with this id.
    pub fn find(&mut self, id: u64) -> Option<&mut RunningCommand> {
        self.commands.iter_mut().find(|command| command.id == id)
    }

    /// Forgets the one whose leader ended, if it is one of them.
    pub fn note_exit(&mut self, pid: Pid) {
        self.commands.retain(|command| command.pid != pid);
    }

    /// The first time that runs out.
    pub fn deadline(&self) -> Option<Instant> {
        self.commands.iter().filter_map(RunningCommand::deadline).min()
    }

    /// Ends those whose time has run out.
    pub fn check_deadlines(&mut self, now: Instant) {
        self.commands.iter_mut().for_each(|command| command.check_deadline(now));
    }
}
