//! What happened to sandboxes, as a stream that anyone may follow (contract 8.14).
//!
//! Events are told after the fact was written to the database. Nobody waits for a listener: one that is too slow loses
//! the oldest events and is told how many.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cove_protocol::guest::Listener;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::broadcast;

use crate::sandbox::SandboxId;
use crate::snapshot::files::Hidden;

/// Events that a listener may lag behind, and that [`Events::since`] remembers.
const EVENTS_KEPT_MAX: usize = 1024;

/// Letters of a ULID: Crockford's base 32.
const ULID_LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// A ULID, larger than that of every earlier event of this server.
    pub id: String,
    /// When.
    pub at: OffsetDateTime,
    /// To which sandbox.
    pub sandbox_id: SandboxId,
    /// What.
    pub kind: EventKind,
}

/// What can happen to a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// It was asked for and its record exists.
    Created,
    /// Its machine runs, and the agent answered.
    Started,
    /// It is command-ready.
    Ready,
    /// A command was started in it.
    ExecStarted {
        /// Unique among the commands of this server.
        exec_id: String,
        /// The command, as a shell line; at most 1000 characters.
        command: String,
    },
    /// A command ended.
    ExecCompleted {
        /// As in `ExecStarted`.
        exec_id: String,
        /// The exit code; 128 + signal for a signal; 124 for a timeout; `None` when the end is unknown, as after a
        /// cancelled call.
        exit_code: Option<i32>,
        /// Milliseconds from start to end.
        duration_ms: u64,
    },
    /// Nothing happened in it for its idle timeout; it is being paused or destroyed.
    Idle,
    /// Its processor stands still, memory and disk are kept.
    Paused,
    /// It is command-ready again.
    Resumed,
    /// A snapshot of it is whole.
    SnapshotReady {
        /// The snapshot.
        snapshot_id: String,
    },
    /// It could not go on from its captured memory and was booted from its disk: what ran in it is gone, its files are not.
    ColdBoot {
        /// Why.
        reason: String,
    },
    /// It failed.
    Error {
        /// What its record says in `last_error`.
        reason: String,
    },
    /// It is gone.
    Destroyed,
    /// A port of it can be reached at this URL.
    PreviewReady {
        /// The preview.
        preview_id: String,
        /// Where it is.
        url: String,
        /// The port in the guest.
        port: u16,
    },
    /// A program in it listens on a port.
    PortOpened(Listener),
    /// Nothing listens there any more.
    PortClosed {
        /// The port.
        port: u16,
        /// The address in the guest.
        address: IpAddr,
    },
    /// Its name, times, tags or environment were changed.
    Updated,
    /// A share token was made.
    ShareCreated {
        /// The share.
        share_id: String,
    },
    /// A share token was taken back.
    ShareRevoked {
        /// The share.
        share_id: String,
    },
}

impl EventKind {
    /// The event's name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            EventKind::Created => "sandbox.created",
            EventKind::Started => "sandbox.started",
            EventKind::Ready => "sandbox.ready",
            EventKind::ExecStarted { .. } => "sandbox.exec.started",
            EventKind::ExecCompleted { .. } => "sandbox.exec.completed",
            EventKind::Idle => "sandbox.idle",
            EventKind::Paused => "sandbox.paused",
            EventKind::Resumed => "sandbox.resumed",
            EventKind::SnapshotReady { .. } => "sandbox.snapshot.ready",
            EventKind::ColdBoot { .. } => "sandbox.cold_boot",
            EventKind::Error { .. } => "sandbox.error",
            EventKind::Destroyed => "sandbox.destroyed",
            EventKind::PreviewReady { .. } => "sandbox.preview.ready",
            EventKind::PortOpened(_) => "sandbox.port.opened",
            EventKind::PortClosed { .. } => "sandbox.port.closed",
            EventKind::Updated => "sandbox.updated",
            EventKind::ShareCreated { .. } => "sandbox.share.created",
            EventKind::ShareRevoked { .. } => "sandbox.share.revoked",
        }
    }
}

impl Event {
    /// The payload on the wire, `sandbox_id` among it.
    pub fn data(&self) -> Map<String, Value> {
        let mut data = Map::new();
        data.insert("sandbox_id".into(), json!(self.sandbox_id));
        match &self.kind {
            EventKind::ExecStarted { exec_id, command } => {
                data.insert("exec_id".into(), json!(exec_id));
                data.insert("command".into(), json!(command));
            }
            EventKind::ExecCompleted { exec_id, exit_code, duration_ms } => {
                data.insert("exec_id".into(), json!(exec_id));
                data.insert("exit_code".into(), json!(exit_code));
                data.insert("duration_ms".into(), json!(duration_ms));
            }
            EventKind::Error { reason } => {
                data.insert("state".into(), json!("error"));
                data.insert("error".into(), json!(reason));
            }
            EventKind::SnapshotReady { snapshot_id } => {
                data.insert("snapshot_id".into(), json!(snapshot_id));
            }
            EventKind::ColdBoot { reason } => {
                data.insert("reason".into(), json!(reason));
            }
            EventKind::Paused => {
                data.insert("state".into(), json!("paused"));
            }
            EventKind::Ready | EventKind::Started | EventKind::Resumed => {
                data.insert("state".into(), json!("running"));
            }
            EventKind::Destroyed => {
                data.insert("state".into(), json!("destroyed"));
            }
            EventKind::PreviewReady { preview_id, url, port } => {
                data.insert("preview_id".into(), json!(preview_id));
                data.insert("url".into(), json!(url));
                data.insert("port".into(), json!(port));
            }
            EventKind::PortOpened(listener) => {
                data.insert("port".into(), json!(listener.port));
                data.insert("address".into(), json!(listener.address));
                data.insert("pid".into(), json!(listener.pid));
                data.insert("command".into(), json!(listener.command));
            }
            EventKind::PortClosed { port, address } => {
                data.insert("port".into(), json!(port));
                data.insert("address".into(), json!(address));
            }
            EventKind::ShareCreated { share_id } | EventKind::ShareRevoked { share_id } => {
                data.insert("share_id".into(), json!(share_id));
            }
            EventKind::Created | EventKind::Idle | EventKind::Updated => {}
        }
        data
    }
}

/// The one place through which every event goes.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hidden: Hidden,
    sender: broadcast::Sender<Event>,
    kept: Mutex<Kept>,
    /// Receivers that are the engine's own.
    inside: AtomicUsize,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    last: u128,
    /// The newest event that is not kept any more.
    forgotten: Option<String>,
}

/// Where a listener goes on.
#[derive(Debug)]
pub struct Resumed {
    /// The remembered events after the one it saw last.
    pub missed: Vec<Event>,
    /// Events may lie between the one it saw last and the first of `missed`: that one is too old, or not of this server's
    /// life.
    pub gap: bool,
    /// Every event from then on.
    pub receiver: broadcast::Receiver<Event>,
}

impl Events {
    /// Of `hidden` sandboxes nothing is told.
    pub(crate) fn new(hidden: Hidden) -> Self {
        let (sender, _) = broadcast::channel(EVENTS_KEPT_MAX);
        Self { shared: Arc::new(Shared { hidden, sender, kept: Mutex::default(), inside: AtomicUsize::default() }) }
    }

    /// Tells everyone who listens.
    pub(crate) fn tell(&self, sandbox_id: &SandboxId, kind: EventKind) {
        if self.shared.hidden.contains(sandbox_id) {
            return;
        }
        let at = OffsetDateTime::now_utc();
        // Sent under the lock, so that listeners see ids in order.
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last = next_ulid(kept.last, at);
        let event = Event { id: ulid_text(kept.last), at, sandbox_id: sandbox_id.clone(), kind };
        if kept.events.len() == EVENTS_KEPT_MAX {
            kept.forgotten = kept.events.pop_front().map(|event| event.id);
        }
        kept.events.push_back(event.clone());
        // No listener is no error.
        let _ = self.shared.sender.send(event);
    }

    /// Somebody follows the events.
    pub(crate) fn has_listeners(&self) -> bool {
        self.shared.sender.receiver_count() > self.shared.inside.load(Ordering::Relaxed)
    }

    /// For a part of the engine that follows the events as long as the engine lives, and counts for nobody.
    pub(crate) fn subscribe_inside(&self) -> broadcast::Receiver<Event> {
        self.shared.inside.fetch_add(1, Ordering::Relaxed);
        self.subscribe()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared.sender.subscribe()
    }

    /// What is remembered of the events after `id`, and a receiver that goes on exactly there.
    pub(crate) fn since(&self, id: &str) -> Resumed {
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = kept.events.iter().filter(|event| event.id.as_str() > id).cloned().collect();
        let known = kept.forgotten.as_deref() == Some(id) || kept.events.iter().any(|event| event.id == id);
        Resumed { missed, gap: !known, receiver: self.shared.sender.subscribe() }
    }
}

/// A ULID (48 bits of milliseconds, 80 bits of the rest) after `last`. The rest counts up from zero within one
/// millisecond: these ids must be ordered, not unguessable.
fn next_ulid(last: u128, at: OffsetDateTime) -> u128 {
    let milliseconds = u128::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    let fresh = (milliseconds & ((1 << 48) - 1)) << 80;
    fresh.max(last + 1)
}

fn ulid_text(ulid: u128) -> String {
    (0..26).rev().map(|letter| ULID_LETTERS[(ulid >> (letter * 5) & 31) as usize] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SandboxId {
        SandboxId::parse("sbx_1").unwrap()
    }

    #[tokio::test]
    async fn ids_grow_and_a_listener_can_go_on_where_it_was() {
        let events = Events::new(Hidden::default());
        let mut all = events.subscribe();
        for _ in 0..100 {
            events.tell(&id(), EventKind::Ready);
        }
        let first = all.recv().await.unwrap();
        let mut last = first.id.clone();
        assert_eq!(last.len(), 26);
        for _ in 1..100 {
            let next = all.recv().await.unwrap();
            assert!(next.id > last, "{} after {last}", next.id);
            last = next.id;
        }
        let resumed = events.since(&first.id);
        assert_eq!((resumed.missed.len(), resumed.gap), (99, false));
        assert!(events.since(&last).missed.is_empty());
    }

    #[test]
    fn a_ulid_never_goes_back_with_the_clock() {
        let now = OffsetDateTime::now_utc();
        let first = next_ulid(0, now);
        assert!(next_ulid(first, now - time::Duration::hours(1)) > first);
    }

    #[test]
    fn only_so_many_events_are_kept() {
        let events = Events::new(Hidden::default());
        for _ in 0..EVENTS_KEPT_MAX + 10 {
            events.tell(&id(), EventKind::Created);
        }
        assert_eq!(events.since("").missed.len(), EVENTS_KEPT_MAX);
    }

    #[test]
    fn who_was_away_for_too_long_is_told_of_a_gap() {
        let events = Events::new(Hidden::default());
        let ids: Vec<String> = (0..EVENTS_KEPT_MAX + 2)
            .map(|_| {
                events.tell(&id(), EventKind::Created);
                events.shared.kept.lock().unwrap().events.back().unwrap().id.clone()
            })
            .collect();
        assert!(events.since(&ids[0]).gap, "the event after this one is forgotten");
        let resumed = events.since(&ids[1]);
        assert_eq!((resumed.missed.len(), resumed.gap), (EVENTS_KEPT_MAX, false));
        assert!(events.since("01ARZ3NDEKTSV4RRFFQ69G5FAV").gap, "an event of another server");
    }
}
