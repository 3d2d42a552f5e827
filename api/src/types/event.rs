//! Events on the wire (contract 8.14, X78, X126).

use cove_engine::Event;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::timestamp;

/// Whose events these are: this server has one tenant.
const TENANT: &str = "local";

/// The data of an event's frame. What else the event says stands beside these fields, such as `exit_code`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "sandbox.exec.completed", "id": "01KB3Z8Q5T0000000000000000", "tenant_id": "local",
    "ts": "2026-01-02T03:04:05.000006Z", "sandbox_id": "sbx_7", "exec_id": "exec_3", "exit_code": 0, "duration_ms": 12
}))]
pub struct EventRecord {
    /// Such as `sandbox.ready`; also the name of the frame.
    #[serde(rename = "type")]
    pub kind: String,
    /// A ULID, larger than that of every earlier event; also the id of the frame.
    pub id: String,
    /// `local`.
    #[schema(value_type = String)]
    pub tenant_id: &'static str,
    /// When.
    pub ts: String,
    /// `sandbox_id`, and what this kind of event says.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub data: Map<String, Value>,
}

impl From<&Event> for EventRecord {
    fn from(event: &Event) -> Self {
        Self {
            kind: event.kind.name().to_owned(),
            id: event.id.clone(),
            tenant_id: TENANT,
            ts: timestamp(event.at),
            data: event.data(),
        }
    }
}

/// The data of a frame `gap`: events are missing here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"type": "gap", "reason": "too_slow", "dropped": 12}))]
pub struct GapRecord {
    /// `gap`.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// `unknown_id`: what `Last-Event-ID` names is too old, or of another life of the server. `too_slow`: the client did not
    /// read as fast as things happened.
    #[schema(value_type = String)]
    pub reason: &'static str,
    /// How many events are missing, of all sandboxes and kinds; `null` when that cannot be told.
    pub dropped: Option<u64>,
}

impl GapRecord {
    /// The client's last event is not remembered.
    pub fn unknown_id() -> Self {
        Self { kind: "gap", reason: "unknown_id", dropped: None }
    }

    /// The client lost so many.
    pub fn too_slow(dropped: u64) -> Self {
        Self { kind: "gap", reason: "too_slow", dropped: Some(dropped) }
    }
}

/// In place of the token, once, in the query of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"ticket": "tkt_5d41402abc4b2a76b9719d911017c592", "expires_in": 60}))]
pub struct Ticket {
    /// For `?ticket=`.
    pub ticket: String,
    /// Seconds.
    pub expires_in: u64,
}
