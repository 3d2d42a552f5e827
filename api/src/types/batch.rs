//! Batches on the wire (contract 8.16), and the same as operations (contract X121).

use std::collections::BTreeMap;

use cove_engine::{Batch, BatchItem, BatchStatus, ItemFailure, ItemStatus, SandboxSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{CreateBody, timestamp};
use crate::error::ApiError;

/// How many sandboxes, and which. All other fields are those of create, and hold for every sandbox.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"count": 3, "concurrency": 2, "size": "xs", "name": "worker"}))]
pub struct BatchBody {
    /// How many, at most 500. May be left out with `items`.
    pub count: Option<u32>,
    /// How many are made at one time, at most 16; 4 when absent.
    pub concurrency: Option<u32>,
    /// What differs: create's fields for each sandbox in turn. One that is wrong fails alone.
    #[schema(value_type = Option<Vec<Object>>)]
    pub items: Option<Vec<Map<String, Value>>>,
    /// What is the same for all. A `name` or `slug` gets `-1`, `-2` ... appended.
    #[serde(flatten)]
    #[schema(value_type = CreateBody, inline = false)]
    pub shared: Map<String, Value>,
}

/// What a batch asks for: how many at one time, what is the same for all, each sandbox.
pub struct CheckedBatch {
    /// As given.
    pub concurrency: Option<u32>,
    /// Without what may be secret.
    pub request: Map<String, Value>,
    /// In order.
    pub items: Vec<Result<SandboxSpec, ItemFailure>>,
}

impl BatchBody {
    /// Checks what is the same for all; an item's own fields are checked for it alone.
    pub fn check(self, count_max: usize) -> Result<CheckedBatch, ApiError> {
        let own = self.items.unwrap_or_default();
        let count = self.count.map_or(own.len(), |count| count as usize);
        if count == 0 || count > count_max {
            return Err(ApiError::invalid("count", format!("count is {count}, and must be 1 to {count_max}")));
        }
        if own.len() > count {
            let message = format!("items has {} entries, and count is {count}", own.len());
            return Err(ApiError::invalid("items", message));
        }
        spec(self.shared.clone())?;
        let mut own = own.into_iter();
        let items = (1..=count).map(|number| {
            let mut fields = self.shared.clone();
            for field in ["name", "slug"].into_iter().filter(|_| count > 1) {
                if let Some(Value::String(text)) = fields.get_mut(field) {
                    text.push_str(&format!("-{number}"));
                }
            }
            fields.extend(own.next().unwrap_or_default());
            spec(fields).map_err(|error| failure(&error))
        });
        let items = items.collect();
        let mut request = self.shared;
        request.remove("env");
        Ok(CheckedBatch { concurrency: self.concurrency, request, items })
    }
}

fn spec(fields: Map<String, Value>) -> Result<SandboxSpec, ApiError> {
    let text = Value::Object(fields).to_string();
    crate::extract::parse::<CreateBody>(text.as_bytes())?.into_spec()
}

/// An error as an item carries it.
pub fn failure(error: &ApiError) -> ItemFailure {
    ItemFailure { code: error.code().to_owned(), message: error.message().to_owned() }
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct BatchRecord {
    /// Its id, which names an operation too.
    pub id: String,
    /// `running`, `cancelling`, `succeeded`, `partially_failed`, `failed` or `cancelled`.
    pub status: &'static str,
    /// Sandboxes in all.
    pub requested_count: u32,
    /// Those that are made.
    pub completed_count: u32,
    /// Those that could not be made.
    pub failed_count: u32,
    /// Those that were cancelled before they were begun.
    pub cancelled_count: u32,
    /// Those that wait.
    pub queued_count: u32,
    /// Those that are being made.
    pub creating_count: u32,
    /// How many are made at one time.
    pub concurrency: u32,
    /// Its sandboxes by the state that they are in now.
    pub runtime_counts: BTreeMap<String, u32>,
    /// What is the same for all, without environment.
    #[schema(value_type = Object)]
    pub request: Map<String, Value>,
    /// When it was asked for.
    pub created_at: String,
    /// When its last item ended.
    pub settled_at: Option<String>,
}

impl BatchRecord {
    /// A batch and the states of its sandboxes.
    pub fn new(batch: Batch, runtime: Vec<(String, u32)>) -> Self {
        Self {
            id: batch.id.to_string(),
            status: batch.status.as_str(),
            requested_count: batch.requested,
            completed_count: batch.count(ItemStatus::Succeeded),
            failed_count: batch.count(ItemStatus::Failed),
            cancelled_count: batch.count(ItemStatus::Cancelled),
            queued_count: batch.count(ItemStatus::Queued),
            creating_count: batch.count(ItemStatus::Creating),
            concurrency: batch.concurrency,
            runtime_counts: runtime.into_iter().collect(),
            request: batch.request,
            created_at: timestamp(batch.created_at),
            settled_at: batch.settled_at.map(timestamp),
        }
    }
}

/// One sandbox of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct BatchItemRecord {
    /// Its id.
    pub id: String,
    /// Its place, from 0.
    pub index: u32,
    /// The sandbox's name.
    pub name: Option<String>,
    /// The sandbox, once there is one.
    pub sandbox_id: Option<String>,
    /// `queued`, `creating`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<BatchItemError>,
    /// When it was begun.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
}

/// Why an item failed: the code and message that create would have answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchItemError {
    /// Stable.
    pub code: String,
    /// A sentence.
    pub message: String,
}

impl From<BatchItem> for BatchItemRecord {
    fn from(item: BatchItem) -> Self {
        Self {
            id: item.id.to_string(),
            index: item.position,
            name: item.name,
            sandbox_id: item.sandbox_id.map(|id| id.to_string()),
            status: item.status.as_str(),
            error: item.error.map(|ItemFailure { code, message }| BatchItemError { code, message }),
            started_at: item.started_at.map(timestamp),
            ended_at: item.ended_at.map(timestamp),
        }
    }
}

/// A page of items.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct BatchItems {
    /// The items.
    pub data: Vec<BatchItemRecord>,
    /// What `cursor` takes for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A batch as an operation.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct OperationRecord {
    /// Its id.
    pub id: String,
    /// `sandbox.batch`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `sandbox_batch`.
    pub resource_type: &'static str,
    /// The batch.
    pub resource_id: String,
    /// `running`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    /// What goes on, for people.
    pub current_step: String,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was asked for.
    pub created_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
}

impl From<Batch> for OperationRecord {
    fn from(batch: Batch) -> Self {
        let (made, failed) = (batch.count(ItemStatus::Succeeded), batch.count(ItemStatus::Failed));
        let status = match batch.status {
            BatchStatus::Running | BatchStatus::Cancelling => "running",
            BatchStatus::Succeeded => "succeeded",
            BatchStatus::PartiallyFailed | BatchStatus::Failed => "failed",
            BatchStatus::Cancelled => "cancelled",
        };
        Self {
            id: batch.id.to_string(),
            kind: "sandbox.batch",
            resource_type: "sandbox_batch",
            resource_id: batch.id.to_string(),
            status,
            current_step: format!("{made} of {} sandboxes are made", batch.requested),
            error: (failed > 0).then(|| format!("{failed} of {} sandboxes could not be made", batch.requested)),
            created_at: timestamp(batch.created_at),
            finished_at: batch.settled_at.map(timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: Value) -> Result<CheckedBatch, ApiError> {
        serde_json::from_value::<BatchBody>(value).unwrap().check(500)
    }

    #[test]
    fn every_sandbox_has_a_name_of_its_own_and_a_wrong_one_fails_alone() {
        let batch = check(json!({"count": 3, "name": "w", "size": "xs", "env": {"A": "1"},
            "items": [{}, {"cpu_count": "many"}]}))
        .unwrap();
        assert_eq!(batch.items[0].as_ref().unwrap().name.as_deref(), Some("w-1"));
        assert_eq!(batch.items[1].as_ref().unwrap_err().code, "VALIDATION_ERROR");
        assert_eq!(batch.items[2].as_ref().unwrap().name.as_deref(), Some("w-3"));
        assert!(!batch.request.contains_key("env"));
        let one = check(json!({"count": 1, "name": "w"})).unwrap();
        assert_eq!(one.items[0].as_ref().unwrap().name.as_deref(), Some("w"));
    }

    #[test]
    fn what_is_wrong_for_all_is_refused_at_once() {
        for (value, field) in [
            (json!({}), "count"),
            (json!({"count": 501}), "count"),
            (json!({"count": 1, "items": [{}, {}]}), "items"),
            (json!({"count": 2, "cpu_count": "x"}), "cpu_count"),
        ] {
            let error = check(value).err().unwrap();
            assert_eq!(serde_json::to_value(error.body()).unwrap()["error"]["details"]["field"], field);
        }
    }
}
