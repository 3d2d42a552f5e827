//! Tickets: what a page shows in place of the token where it cannot send a header, as `EventSource` cannot (X126).
//!
//! A ticket is good for one request within [`TICKET_SECONDS`], and only for the streams that [`is_stream`] names. It lives
//! in memory: a restart of the server makes all of them worthless. Made by `routes::events`, taken by `auth`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::token;

/// How long a ticket is good.
pub const TICKET_SECONDS: u64 = 60;

/// Tickets that are not used yet; a further one takes the place of the oldest.
const TICKETS_MAX: usize = 1024;

/// What every ticket begins with.
const PREFIX: &str = "tkt_";

/// The tickets that are good.
#[derive(Debug, Default)]
pub struct Tickets {
    good: Mutex<HashMap<String, Instant>>,
}

impl Tickets {
    /// A new ticket.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn make(&self) -> std::io::Result<String> {
        let ticket = format!("{PREFIX}{}", token::random_text()?);
        let now = Instant::now();
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.retain(|_, made| is_fresh(*made, now));
        if good.len() >= TICKETS_MAX
            && let Some(oldest) = good.iter().min_by_key(|(_, made)| **made).map(|(ticket, _)| ticket.clone())
        {
            good.remove(&oldest);
        }
        good.insert(ticket.clone(), now);
        Ok(ticket)
    }

    /// True when the ticket is good; it is not from then on.
    pub fn take(&self, ticket: &str) -> bool {
        let made = self.good.lock().unwrap_or_else(PoisonError::into_inner).remove(ticket);
        made.is_some_and(|made| is_fresh(made, Instant::now()))
    }
}

fn is_fresh(made: Instant, now: Instant) -> bool {
    now.saturating_duration_since(made) < Duration::from_secs(TICKET_SECONDS)
}

/// True for the paths, prefix cut off, that a ticket opens: streams of events, output and terminals, and downloads, which a
/// browser writes to disk by itself.
pub fn is_stream(path: &str) -> bool {
    path == "/events/stream"
        || path.strip_prefix("/sandboxes/").is_some_and(|rest| {
            let mut parts = rest.splitn(2, '/');
            parts.next().is_some_and(|id| !id.is_empty())
                && parts.next().is_some_and(|route| {
                    matches!(route, "events" | "files/watch" | "exports/download")
                        || (route.ends_with("/stream") && !route.contains("//"))
                })
        })
}

/// The ticket in a query string.
pub fn in_query(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("ticket="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_good_once_and_for_a_minute() {
        let tickets = Tickets::default();
        let ticket = tickets.make().unwrap();
        assert!(ticket.starts_with(PREFIX) && ticket.len() > 30, "{ticket}");
        assert!(!tickets.take("tkt_"));
        assert!(tickets.take(&ticket));
        assert!(!tickets.take(&ticket), "used twice");
        let late = tickets.make().unwrap();
        tokio::time::advance(Duration::from_secs(TICKET_SECONDS)).await;
        assert!(!tickets.take(&late), "too old");
    }

    #[test]
    fn only_so_many_tickets_are_kept() {
        let tickets = Tickets::default();
        let last = (0..TICKETS_MAX + 5).map(|_| tickets.make().unwrap()).last().unwrap();
        assert_eq!(tickets.good.lock().unwrap().len(), TICKETS_MAX);
        assert!(tickets.take(&last));
    }

    #[test]
    fn a_ticket_opens_streams_and_nothing_else() {
        for path in [
            "/events/stream",
            "/sandboxes/sbx_1/events",
            "/sandboxes/sbx_1/readiness/stream",
            "/sandboxes/sbx_1/logs/stream",
            "/sandboxes/sbx_1/files/watch",
            "/sandboxes/sbx_1/exports/download",
            "/sandboxes/sbx_1/processes/7/stream",
            "/sandboxes/sbx_1/terminal/stream",
        ] {
            assert!(is_stream(path), "{path}");
        }
        for path in [
            "/sandboxes",
            "/sandboxes/sbx_1",
            "/sandboxes//events",
            "/sandboxes/sbx_1/files",
            "/sandboxes/sbx_1/fs/download",
            "/events",
        ] {
            assert!(!is_stream(path), "{path}");
        }
        assert_eq!(in_query("types=a&ticket=tkt_x"), Some("tkt_x"));
        assert_eq!(in_query("tickets=tkt_x"), None);
    }
}
