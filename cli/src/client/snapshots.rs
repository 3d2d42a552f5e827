//! Snapshots and forks: take, list, delete, name, restore, fork, and the words a user may use for a snapshot.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::records::IDS_SHOWN_MAX;
use super::{Client, ClientError, Sandbox};

/// Snapshots that one request asks for; the most that the server gives.
const PAGE: usize = 200;

/// The parts of a snapshot record that this program uses.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// The sandbox of which it was taken.
    pub sandbox_id: String,
    /// That sandbox's name then.
    pub sandbox_name: Option<String>,
    /// Its parent in the tree of snapshots.
    pub parent_id: Option<String>,
    /// A name that keeps it.
    pub name: Option<String>,
    /// For people.
    pub comment: Option<String>,
    /// The template of the sandbox.
    pub template_id: String,
    /// What comes from it goes on where it was.
    pub has_memory: bool,
    /// Bytes that are free again without it.
    pub exclusive_bytes: u64,
    /// Bytes that others need too.
    pub shared_bytes: u64,
    /// Milliseconds that the sandbox stood still for it.
    pub pause_ms: Option<f64>,
    /// When it was taken, RFC 3339.
    pub created_at: String,
    /// When it is deleted by itself.
    pub expires_at: Option<String>,
}

/// What a fork comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForkSource {
    /// A sandbox as it is now, by id.
    Sandbox(String),
    /// A snapshot, by id.
    Snapshot(String),
}

/// What is to be different in a fork.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ForkRequest {
    /// Unique among live sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Over the source's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// In place of the source's labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Seconds until its session ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u32>,
    /// Kept when it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
}

impl Client {
    /// Takes a snapshot and waits until it is whole.
    pub async fn snapshot(&self, id: &str, body: &Value) -> Result<Snapshot, ClientError> {
        self.data("a snapshot", self.request(Method::POST, &["sandboxes", id, "snapshots"]).json(body)).await
    }

    /// Snapshots, newest first, those with a name too; of one sandbox or of all.
    pub async fn snapshots(&self, sandbox: Option<&str>) -> Result<Vec<Value>, ClientError> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let (limit, offset) = (PAGE.to_string(), all.len().to_string());
            let mut query = vec![("include_named", "true"), ("limit", &limit), ("offset", &offset)];
            query.extend(sandbox.map(|id| ("resource_id", id)));
            let page: Vec<Value> =
                self.data("snapshots", self.request(Method::GET, &["snapshots"]).query(&query)).await?;
            let last = page.len() < PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// Deletes the snapshot with this id.
    pub async fn delete_snapshot(&self, id: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["snapshots", id])).await.map(drop)
    }

    /// Deletes all snapshots of a sandbox that have no name.
    pub async fn delete_history(&self, sandbox: &str) -> Result<(), ClientError> {
        let body = json!({ "resource_id": sandbox, "all": true, "confirm": sandbox });
        self.send(self.request(Method::POST, &["snapshots", "delete"]).json(&body)).await.map(drop)
    }

    /// Changes a snapshot's name or comment; `null` takes it away.
    pub async fn update_snapshot(&self, id: &str, change: &Value) -> Result<Snapshot, ClientError> {
        self.data("a snapshot", self.request(Method::PATCH, &["snapshots", id]).json(change)).await
    }

    /// Puts a sandbox back to where a snapshot was.
    pub async fn restore(&self, id: &str, snapshot: &str) -> Result<Sandbox, ClientError> {
        let request = self.request(Method::POST, &["sandboxes", id, "restore", snapshot]);
        self.data("a sandbox", request.json(&json!({}))).await
    }

    /// Makes a new sandbox that goes on from `source`, and waits until it is command-ready.
    pub async fn fork(&self, source: &ForkSource, fork: &ForkRequest) -> Result<Sandbox, ClientError> {
        let path = match source {
            ForkSource::Sandbox(id) => ["sandboxes", id, "fork"],
            ForkSource::Snapshot(id) => ["snapshots", id, "fork"],
        };
        self.data("a fork", self.request(Method::POST, &path).json(fork)).await
    }

    /// The snapshot that a user means by `text`: an id, a name, or the unique beginning of an id.
    pub async fn resolve_snapshot(&self, text: &str) -> Result<Snapshot, ClientError> {
        let all = self.snapshots(None).await?;
        let read = |value| serde_json::from_value(value);
        let all: Vec<Snapshot> = all
            .into_iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(|source| ClientError::Malformed { what: "snapshots", source })?;
        find_snapshot(&all, text).cloned()
    }

    /// The sandbox or snapshot that a user means by `text`; a sandbox wins.
    pub async fn resolve_source(&self, text: &str) -> Result<ForkSource, ClientError> {
        match self.resolve(text).await {
            Ok(sandbox) => return Ok(ForkSource::Sandbox(sandbox.id)),
            Err(ClientError::NoSuchSandbox(_)) => {}
            Err(error) => return Err(error),
        }
        match self.resolve_snapshot(text).await {
            Ok(snapshot) => Ok(ForkSource::Snapshot(snapshot.id)),
            Err(ClientError::NoSuchSnapshot(text)) => Err(ClientError::NoSuchSource(text)),
            Err(error) => Err(error),
        }
    }
}

/// The one of `snapshots` that `text` means: its id, else its name, else the beginning of one id alone, with or without
/// the `snap_`.
fn find_snapshot<'a>(snapshots: &'a [Snapshot], text: &str) -> Result<&'a Snapshot, ClientError> {
    let named = |snapshot: &&Snapshot| snapshot.name.as_deref() == Some(text);
    let exact = snapshots.iter().find(|snapshot| snapshot.id == text).or_else(|| snapshots.iter().find(named));
    if let Some(snapshot) = exact {
        return Ok(snapshot);
    }
    let begins = |snapshot: &&Snapshot| {
        let bare = snapshot.id.strip_prefix("snap_").unwrap_or(&snapshot.id);
        snapshot.id.starts_with(text) || bare.starts_with(text)
    };
    let fits: Vec<&Snapshot> = if text.is_empty() { Vec::new() } else { snapshots.iter().filter(begins).collect() };
    match fits[..] {
        [snapshot] => Ok(snapshot),
        [] => Err(ClientError::NoSuchSnapshot(text.to_owned())),
        _ => {
            let shown: Vec<&str> = fits.iter().take(IDS_SHOWN_MAX).map(|snapshot| snapshot.id.as_str()).collect();
            Err(ClientError::AmbiguousSnapshot { text: text.to_owned(), count: fits.len(), ids: shown.join(", ") })
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A snapshot with a place in the tree.
    pub fn snapshot(id: &str, name: Option<&str>, parent: Option<&str>) -> Snapshot {
        Snapshot {
            id: id.to_owned(),
            sandbox_id: "sbx_1".to_owned(),
            sandbox_name: None,
            parent_id: parent.map(str::to_owned),
            name: name.map(str::to_owned),
            comment: None,
            template_id: "miosa-sandbox".to_owned(),
            has_memory: true,
            exclusive_bytes: 1 << 20,
            shared_bytes: 0,
            pause_ms: None,
            created_at: "1970-01-01T00:00:00Z".to_owned(),
            expires_at: None,
        }
    }

    #[test]
    fn a_user_may_name_a_snapshot_by_id_name_or_unique_prefix() {
        let all = [
            snapshot("snap_ab1", None, None),
            snapshot("snap_ab2", Some("ab1"), None),
            snapshot("snap_cd", Some("x"), None),
        ];
        let id = |text| find_snapshot(&all, text).map(|snapshot| snapshot.id.clone());
        assert_eq!(id("snap_ab1").unwrap(), "snap_ab1");
        assert_eq!(id("ab1").unwrap(), "snap_ab2", "a name wins over a prefix");
        assert_eq!(id("c").unwrap(), "snap_cd");
        assert!(matches!(id("ab"), Err(ClientError::AmbiguousSnapshot { count: 2, .. })));
        assert!(matches!(id(""), Err(ClientError::NoSuchSnapshot(_))));
    }
}
