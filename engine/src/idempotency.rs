//! Same key, same answer (contract 2.5): who asked something under a key, and what they were told.
//!
//! What is in flight is known to this process alone; what was answered is in the database for 24 hours, or until the
//! sandbox it speaks of is destroyed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use tokio::sync::watch;

use crate::db::Db;
use crate::error::Error;
use crate::sandbox::SandboxId;

/// The first status that is forgotten at once: the server failed, and trying again may do better.
const STATUS_FORGOTTEN: u16 = 500;

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

/// The keys that are being answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    in_flight: Arc<Mutex<HashMap<String, Flight>>>,
}

#[derive(Debug)]
struct Flight {
    body_hash: String,
    /// Closed when the answer is there, or the key forgotten.
    landed: watch::Receiver<()>,
}

impl Keys {
    /// See [`crate::Engine::claim`].
    pub(crate) async fn claim(&self, db: &Db, scope: &str, body_hash: &str) -> Result<Claim, Error> {
        let (landing, landed) = watch::channel(());
        {
            let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(flight) = in_flight.get(scope) {
                let same = flight.body_hash == body_hash;
                return Ok(if same {
                    Claim::InFlight(InFlight { landed: flight.landed.clone() })
                } else {
                    Claim::Conflict
                });
            }
            in_flight.insert(scope.to_owned(), Flight { body_hash: body_hash.to_owned(), landed });
        }
        // Ours from here on; dropped on every way out but the last.
        let guard = ClaimGuard {
            keys: self.clone(),
            db: db.clone(),
            scope: scope.to_owned(),
            body_hash: body_hash.to_owned(),
            _landing: landing,
        };
        match db.answer(scope, OffsetDateTime::now_utc()).await? {
            Some((before, replay)) if before == body_hash => Ok(Claim::Replay(replay)),
            Some(_) => Ok(Claim::Conflict),
            None => Ok(Claim::New(guard)),
        }
    }
}

/// The right to answer a key.
#[derive(Debug)]
pub struct ClaimGuard {
    keys: Keys,
    db: Db,
    scope: String,
    body_hash: String,
    _landing: watch::Sender<()>,
}

impl ClaimGuard {
    /// Keeps the answer for 24 hours; a status of 500 or more is forgotten at once.
    ///
    /// # Errors
    /// [`Error::Database`]: the answer is not kept.
    pub async fn complete(self, status: u16, answer: Answer) -> Result<(), Error> {
        if status < STATUS_FORGOTTEN {
            self.db.put_answer(&self.scope, &self.body_hash, &Replay { status, answer }).await?;
        }
        Ok(())
    }
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        self.keys.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.scope);
    }
}

/// Someone else is answering the key.
#[derive(Debug)]
pub struct InFlight {
    landed: watch::Receiver<()>,
}

impl InFlight {
    /// Returns when the other one is done, whatever came of it.
    pub async fn wait(mut self) {
        // Nothing is ever sent: the sender's end is the news.
        while self.landed.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn keys() -> (tempfile::TempDir, Db, Keys) {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("cove.db")).await.unwrap();
        (folder, db, Keys::default())
    }

    fn new(claim: Claim) -> ClaimGuard {
        match claim {
            Claim::New(guard) => guard,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_same_request_gets_the_same_answer_and_another_one_a_conflict() {
        let (_folder, db, keys) = keys().await;
        let guard = new(keys.claim(&db, "POST /sandboxes k", "h").await.unwrap());
        assert!(matches!(keys.claim(&db, "POST /sandboxes k", "other").await.unwrap(), Claim::Conflict));
        let Claim::InFlight(second) = keys.claim(&db, "POST /sandboxes k", "h").await.unwrap() else { panic!() };
        let waiting = tokio::spawn(second.wait());
        let answer = Answer::Sandbox(SandboxId::generate());
        guard.complete(201, answer.clone()).await.unwrap();
        waiting.await.unwrap();
        match keys.claim(&db, "POST /sandboxes k", "h").await.unwrap() {
            Claim::Replay(replay) => assert_eq!(replay, Replay { status: 201, answer }),
            other => panic!("{other:?}"),
        }
        assert!(matches!(keys.claim(&db, "POST /sandboxes k", "other").await.unwrap(), Claim::Conflict));
        new(keys.claim(&db, "POST /sandboxes k2", "h").await.unwrap());
    }

    #[tokio::test]
    async fn a_failure_and_a_dropped_guard_are_forgotten() {
        let (_folder, db, keys) = keys().await;
        new(keys.claim(&db, "k", "h").await.unwrap()).complete(503, Answer::Body("no".into())).await.unwrap();
        drop(new(keys.claim(&db, "k", "h").await.unwrap()));
        new(keys.claim(&db, "k", "h").await.unwrap());
    }
}
