//! A client's place in a session: the replay it gets first, and its cursor after that.

use std::time::Instant;

use super::{PATIENCE, Session};

/// A connection that looks at a session.
#[derive(Debug)]
pub struct Client {
    /// Which session.
    pub session: u64,
    cursor: u64,
    replay: Vec<u8>,
    replayed: usize,
    /// It lost its place, and the screen is drawn for it anew.
    lost: bool,
    /// When it last took something, or had all there was.
    moved: Instant,
}

impl Client {
    /// A client that sees the screen as it is now.
    pub fn new(session: &Session, now: Instant) -> Self {
        Self {
            session: session.number,
            cursor: session.end(),
            replay: session.replay(true),
            replayed: 0,
            lost: false,
            moved: now,
        }
    }

    /// The cursor of what it wants next; `None` for one that lost its place.
    pub fn wanted_from(&self) -> Option<u64> {
        (!self.lost).then_some(self.cursor)
    }

    /// True when it has all there is.
    pub fn has_all(&self, session: &Session) -> bool {
        !self.lost && self.replayed == self.replay.len() && self.cursor == session.end()
    }

    /// The next bytes for it, at most `bytes_max`; nothing when it has all.
    pub fn next<'a>(&'a mut self, session: &'a Session, bytes_max: usize, now: Instant) -> &'a [u8] {
        if self.lost {
            self.lost = false;
            self.cursor = session.end();
            (self.replay, self.replayed) = (session.replay(false), 0);
        }
        self.moved = now;
        let from_replay = self.replayed < self.replay.len();
        if from_replay {
            let rest = &self.replay[self.replayed..];
            let bytes = &rest[..rest.len().min(bytes_max)];
            self.replayed += bytes.len();
            return bytes;
        }
        self.replay = Vec::new();
        self.replayed = 0;
        let bytes = session.read(self.cursor);
        let bytes = if self.cursor < session.end() { &bytes[..bytes.len().min(bytes_max)] } else { &[] };
        self.cursor += bytes.len() as u64;
        bytes
    }

    /// When its patience with others ends: it holds them up from then on.
    pub fn late_at(&self) -> Instant {
        self.moved + PATIENCE
    }

    /// Takes its place away.
    pub fn lose(&mut self) {
        self.lost = true;
        (self.replay, self.replayed) = (Vec::new(), 0);
    }
}
