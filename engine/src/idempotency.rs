//! Same key, same answer (contract 2.5): who asked something under a key, and what they were told.

use crate::error::Error;
use crate::sandbox::SandboxId;

/// What a key means for the request that brings it.
#[derive(Debug)]
pub enum Claim {
    /// It is new: do the work, then call [`ClaimGuard::complete`]. Dropping the guard forgets the key.
    New(ClaimGuard),
    /// The same request is being worked on: [`InFlight::wait`], then claim again.
    InFlight(InFlight),
    /// It was answered before.
    Replay(Replay),
    /// The key was used with another request.
    Conflict,
}

/// The answer that was given before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The HTTP status.
    pub status: u16,
    /// The answer.
    pub answer: Answer,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A sandbox: its current record is the answer.
    Sandbox(SandboxId),
    /// These words.
    Body(String),
}

/// The right to answer a key.
#[derive(Debug)]
pub struct ClaimGuard {
    never: std::convert::Infallible,
}

impl ClaimGuard {
    /// Keeps the answer for 24 hours; a status of 500 or more is forgotten at once.
    pub async fn complete(self, _status: u16, _answer: Answer) -> Result<(), Error> {
        match self.never {}
    }
}

/// Someone else is answering the key.
#[derive(Debug)]
pub struct InFlight {
    never: std::convert::Infallible,
}

impl InFlight {
    /// Returns when the other one is done, whatever came of it.
    pub async fn wait(self) {
        match self.never {}
    }
}
