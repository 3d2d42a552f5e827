//! What happens to sandboxes, as it happens (contract C36, X78), and tickets for pages that follow it (X126).
//!
//! A client that comes back with `Last-Event-ID` goes on where it was. Whatever it missed for good is told by a frame
//! `gap`; nothing is lost in silence.

use std::collections::VecDeque;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use cove_engine::{Error, Event, EventKind, SandboxId, SandboxState};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::broadcast::{self, error::RecvError};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, Query};
use crate::sse;
use crate::tickets::TICKET_SECONDS;
use crate::types::{Data, EventRecord, GapRecord, Ticket};

/// The header in which a page says which event it saw last.
const LAST_EVENT_ID: &str = "last-event-id";

/// Most patterns of one filter, and the longest.
const PATTERNS_MAX: usize = 32;
const PATTERN_BYTES_MAX: usize = 128;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(stream_sandbox_events))
        .routes(routes!(stream_events))
        .routes(routes!(make_ticket))
        .routes(routes!(make_ticket_alias))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only these: names with commas between them; `*` stands for anything, as in `sandbox.exec.*`.
    types: Option<String>,
    /// The same as `types`.
    action: Option<String>,
    /// The id of the last event seen; the header `Last-Event-ID` says the same and wins.
    last_event_id: Option<String>,
    /// In place of the token: see `POST /sse/ticket`.
    #[allow(dead_code, reason = "read where requests are let in; listed here for the document")]
    ticket: Option<String>,
}

/// Which events a client wants.
#[derive(Debug, Default)]
struct Wanted {
    sandbox: Option<SandboxId>,
    /// None means all.
    patterns: Vec<String>,
}

impl Wanted {
    fn of(query: &EventsQuery, sandbox: Option<SandboxId>) -> Result<Self, ApiError> {
        let (field, list) = match (&query.types, &query.action) {
            (Some(types), _) => ("types", types.as_str()),
            (None, Some(action)) => ("action", action.as_str()),
            (None, None) => ("types", ""),
        };
        let patterns: Vec<String> =
            list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if patterns.len() > PATTERNS_MAX || patterns.iter().any(|pattern| pattern.len() > PATTERN_BYTES_MAX) {
            let message = format!("{field} can have {PATTERNS_MAX} names of {PATTERN_BYTES_MAX} bytes at most");
            return Err(ApiError::invalid(field, message));
        }
        Ok(Self { sandbox, patterns })
    }

    fn has(&self, event: &Event) -> bool {
        self.sandbox.as_ref().is_none_or(|id| *id == event.sandbox_id)
            && (self.patterns.is_empty() || self.patterns.iter().any(|pattern| fits(pattern, event.kind.name())))
    }

    /// Nothing can come after this event.
    fn ends_with(&self, event: &Event) -> bool {
        matches!(event.kind, EventKind::Destroyed) && self.sandbox.as_ref() == Some(&event.sandbox_id)
    }
}

/// True when `name` is what the pattern says, `*` being any run of characters.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    // The earliest place of each part leaves the most for those behind it.
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// What happens to one sandbox from now on. Ends when the sandbox is destroyed.
#[utoipa::path(get, path = "/sandboxes/{id}/events", tag = "events",
    params(("id" = String, Path), EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event")),
    responses((status = 200, description = "Frames `sandbox.*` with an id, and `gap`", body = EventRecord,
        content_type = "text/event-stream")))]
pub async fn stream_sandbox_events(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let wanted = Wanted::of(&query, Some(id.clone()))?;
    let following = Following::begin(&api, wanted, last_event_id(&headers, &query))?;
    // Looked at after the listening began, so that its end is not missed.
    let sandbox = api.engine.get(id.as_str()).await?;
    if sandbox.state == SandboxState::Destroyed && !following.will_end() {
        return Err(Error::SandboxDestroyed(id).into());
    }
    Ok(following.into_response(&api))
}

/// What happens to all sandboxes from now on.
#[utoipa::path(get, path = "/events/stream", tag = "events",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event")),
    responses((status = 200, description = "Frames `sandbox.*` with an id, and `gap`", body = EventRecord,
        content_type = "text/event-stream")))]
pub async fn stream_events(
    State(api): State<Api>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wanted = Wanted::of(&query, None)?;
    Ok(Following::begin(&api, wanted, last_event_id(&headers, &query))?.into_response(&api))
}

fn last_event_id<'a>(headers: &'a HeaderMap, query: &'a EventsQuery) -> Option<&'a str> {
    let header = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    header.or(query.last_event_id.as_deref()).map(str::trim).filter(|id| !id.is_empty())
}

/// One client's place among the events.
struct Following {
    wanted: Wanted,
    /// What it missed; sent first.
    missed: VecDeque<Event>,
    /// It is to be told first that more was missed than that.
    gap: bool,
    receiver: broadcast::Receiver<Event>,
    ended: bool,
}

impl Following {
    fn begin(api: &Api, wanted: Wanted, last: Option<&str>) -> Result<Self, ApiError> {
        let Some(last) = last else {
            let receiver = api.engine.events();
            return Ok(Self { wanted, missed: VecDeque::new(), gap: false, receiver, ended: false });
        };
        let is_ulid = last.len() == 26 && last.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_ulid {
            let message = format!("last_event_id is '{}', which is no event's id", last.escape_debug());
            return Err(ApiError::invalid("last_event_id", message));
        }
        let resumed = api.engine.events_since(last);
        let missed = resumed.missed.into_iter().filter(|event| wanted.has(event) || wanted.ends_with(event)).collect();
        Ok(Self { wanted, missed, gap: resumed.gap, receiver: resumed.receiver, ended: false })
    }

    /// True when the end is among what was missed.
    fn will_end(&self) -> bool {
        self.missed.iter().any(|event| self.wanted.ends_with(event))
    }

    fn into_response(self, api: &Api) -> Response {
        // The comment makes the head go out at once, and tells the client that it listens from here.
        let open = stream::once(async { Bytes::from_static(b": open\n\n") });
        let frames = stream::unfold(self, |mut following| async {
            let frame = following.next().await?;
            Some((frame, following))
        });
        sse::response(futures_util::StreamExt::chain(open, frames), api.config.stopping.clone())
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.gap) {
            return Some(sse::frame("gap", &GapRecord::unknown_id()));
        }
        loop {
            if self.ended {
                return None;
            }
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => match self.receiver.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(dropped)) => return Some(sse::frame("gap", &GapRecord::too_slow(dropped))),
                    Err(RecvError::Closed) => return None,
                },
            };
            self.ended = self.wanted.ends_with(&event);
            if self.wanted.has(&event) {
                let record = EventRecord::from(&event);
                return Some(sse::frame_with_id(&event.id, &record.kind, &record));
            }
        }
    }
}

/// A ticket for one stream: pages cannot send the token with `EventSource` or a WebSocket.
#[utoipa::path(post, path = "/sse/ticket", tag = "events",
    responses((status = 201, description = "Good once, within 60 s, as `?ticket=`", body = Data<Ticket>)))]
pub async fn make_ticket(State(api): State<Api>) -> Result<(StatusCode, Json<Data<Ticket>>), ApiError> {
    let ticket = api.tickets.make().map_err(|error| ApiError::internal(format!("No ticket can be made: {error}")))?;
    Ok((StatusCode::CREATED, Json(Data { data: Ticket { ticket, expires_in: TICKET_SECONDS } })))
}

/// The same as `/sse/ticket`.
#[utoipa::path(post, path = "/auth/sse-ticket", tag = "events",
    responses((status = 201, description = "Good once, within 60 s, as `?ticket=`", body = Data<Ticket>)))]
pub async fn make_ticket_alias(state: State<Api>) -> Result<(StatusCode, Json<Data<Ticket>>), ApiError> {
    make_ticket(state).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_run_of_characters() {
        for (pattern, name, fit) in [
            ("sandbox.ready", "sandbox.ready", true),
            ("sandbox.ready", "sandbox.readyx", false),
            ("sandbox.*", "sandbox.exec.started", true),
            ("*", "anything", true),
            ("*.ready", "sandbox.snapshot.ready", true),
            ("*.ready", "sandbox.ready.not", false),
            ("sandbox.*.completed", "sandbox.exec.completed", true),
            ("s*a*b", "saab", true),
            ("s*ab*b", "sab", false),
            ("", "x", false),
            ("*x", "", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }

    #[test]
    fn a_filter_is_bounded() {
        let query = |types: String| EventsQuery { types: Some(types), ..EventsQuery::default() };
        assert_eq!(Wanted::of(&query("a, b,,c".into()), None).unwrap().patterns, ["a", "b", "c"]);
        assert!(Wanted::of(&query("a,".repeat(PATTERNS_MAX + 1)), None).is_err());
        assert!(Wanted::of(&query("a".repeat(PATTERN_BYTES_MAX + 1)), None).is_err());
    }
}
