//! Finds out which ports a guest listens on, and tells it as events.
//!
//! Linux has no event for listen(2): the socket diagnosis group tells of sockets that are destroyed and of none that begin
//! to listen, and a filter or probe in the guest's kernel would cost every machine something all the time. So the guest is
//! asked, but only when the answer may have changed and somebody wants it: after something was done in the sandbox (a
//! command, a file, terminal input, a preview's request), at growing distances for about a minute, and only while an event
//! stream is open. A machine in which nothing is done is asked nothing. A program that begins to listen by itself later
//! than that is found when something is next done, or when the list is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cove_protocol::guest::Listener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::events::EventKind;
use crate::sandbox::driver::Live;
use crate::sandbox::{Activity, Sandbox, SandboxState};
use crate::shared::Shared;

/// Milliseconds from something done in a sandbox to each look at its ports.
const LOOKS_MS: [u64; 7] = [500, 1500, 3500, 7500, 15_000, 30_000, 60_000];

/// However much is done, looks have at least this distance.
const DISTANCE_MIN: Duration = Duration::from_secs(2);

/// How long the guest may take for one answer.
const LOOK_DEADLINE: Duration = Duration::from_secs(20);

/// The listeners that were told of.
type Known = BTreeMap<(u16, IpAddr), Listener>;

/// What a sandbox's watch looks at.
pub(crate) struct Watched {
    pub(crate) record: watch::Receiver<Sandbox>,
    pub(crate) live: watch::Receiver<Live>,
    pub(crate) activity: Activity,
}

/// Watches one sandbox's ports until its driver is gone.
pub(crate) async fn keep(shared: Arc<Shared>, mut watched: Watched) {
    let mut known = Known::new();
    let activity = watched.activity.clone();
    loop {
        tokio::select! {
            () = activity.begun() => {}
            () = gone(&mut watched.record) => return,
            () = shared.stopping.cancelled() => return,
        }
        let mut since = Instant::now();
        let mut last_look = None;
        let mut looks = LOOKS_MS.iter();
        let mut next = looks.next();
        while let Some(after) = next.map(|ms| since + Duration::from_millis(*ms)) {
            if !shared.events.has_listeners() {
                break;
            }
            let at = last_look.map_or(after, |last: Instant| after.max(last + DISTANCE_MIN));
            tokio::select! {
                () = sleep_until(at) => {
                    look(&shared, &watched, &mut known).await;
                    last_look = Some(Instant::now());
                    next = looks.next();
                }
                // Something more was done: what comes of it may take as long again.
                () = activity.begun() => {
                    since = Instant::now();
                    looks = LOOKS_MS.iter();
                    next = looks.next();
                }
                () = gone(&mut watched.record) => return,
                () = shared.stopping.cancelled() => return,
            }
        }
    }
}

async fn gone(record: &mut watch::Receiver<Sandbox>) {
    // An error means that the sender, the driver, is gone.
    let _ = record.wait_for(|sandbox| sandbox.state == SandboxState::Destroyed).await;
}

/// Asks once and tells what changed. What cannot be asked now has not changed.
async fn look(shared: &Shared, watched: &Watched, known: &mut Known) {
    let id = {
        let record = watched.record.borrow();
        if record.state != SandboxState::Running {
            return;
        }
        record.id.clone()
    };
    let Some(agent) = watched.live.borrow().agent.clone() else { return };
    let found = match agent.listeners(LOOK_DEADLINE).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "ports are not known");
            return;
        }
    };
    let now: Known = found.into_iter().map(|listener| ((listener.port, listener.address), listener)).collect();
    for listener in difference(known, &now) {
        shared.events.tell(&id, EventKind::PortClosed { port: listener.port, address: listener.address });
    }
    for listener in difference(&now, known) {
        shared.events.tell(&id, EventKind::PortOpened(listener.clone()));
    }
    *known = now;
}

/// What is in `of` and not in `without`.
fn difference<'a>(of: &'a Known, without: &'a Known) -> impl Iterator<Item = &'a Listener> {
    of.iter().filter(|(place, _)| !without.contains_key(place)).map(|(_, listener)| listener)
}
