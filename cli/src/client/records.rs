//! Sandbox records: create, get, list, destroy, and the words a user may use for a sandbox.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Client, ClientError};

/// How many ids an ambiguity error lists.
pub(super) const IDS_SHOWN_MAX: usize = 5;

/// The parts of a sandbox record that this program uses.
#[derive(Clone, Debug, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Where it is in its life.
    pub state: String,
    /// The template it was made from.
    pub template_id: String,
    /// vCPUs asked for.
    pub cpu_count: u32,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Disk in MiB.
    pub disk_size_mb: u64,
    /// Milliseconds of its latest start, from the request to command-ready.
    pub boot_ms: Option<u64>,
    /// How that came about: `cold`, `warm` or `snapshot`.
    #[serde(default)]
    pub boot_path: Option<String>,
    /// The snapshot that it last came from or took.
    #[serde(default)]
    pub snapshot_id: Option<String>,
    /// When it was asked for, RFC 3339.
    pub created_at: String,
    /// The caller's data; `last_error` is the reason of state `error`.
    #[serde(default)]
    pub metadata: Value,
}

impl Sandbox {
    /// Why it is in state `error`.
    pub fn last_error(&self) -> Option<&str> {
        self.metadata.get("last_error").and_then(Value::as_str)
    }
}

/// What a new sandbox should be; what is absent is the server's choice.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CreateRequest {
    /// Template id, slug or alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// A named size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u32>,
    /// Unique among live sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Environment of every process.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Kept when it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// Seconds until its session ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u32>,
    /// Labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl Client {
    /// Asks for a sandbox and gives its record at once, most often in state `creating`.
    pub async fn create(&self, wanted: &CreateRequest) -> Result<Sandbox, ClientError> {
        let request = self.request(Method::POST, &["sandboxes"]).query(&[("wait", "false")]).json(wanted);
        self.data("a new sandbox", request).await
    }

    /// Asks for a sandbox and waits on the server until it is command-ready or has failed.
    pub async fn create_ready(&self, wanted: &CreateRequest) -> Result<Sandbox, ClientError> {
        self.data("a new sandbox", self.request(Method::POST, &["sandboxes"]).json(wanted)).await
    }

    /// The record of the sandbox with exactly this id.
    pub async fn get(&self, id: &str) -> Result<Sandbox, ClientError> {
        self.data("a sandbox", self.request(Method::GET, &["sandboxes", id])).await
    }

    /// The records that fit `query`, as they came.
    pub async fn list_values(&self, query: &[(&str, &str)]) -> Result<Vec<Value>, ClientError> {
        self.data("sandboxes", self.request(Method::GET, &["sandboxes"]).query(query)).await
    }

    /// Live sandboxes.
    pub async fn list(&self) -> Result<Vec<Sandbox>, ClientError> {
        self.data("sandboxes", self.request(Method::GET, &["sandboxes"])).await
    }

    /// Destroys the sandbox with this id; one that is gone already is fine.
    pub async fn destroy(&self, id: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["sandboxes", id])).await.map(drop)
    }

    /// The sandbox that a user means by `text`: an id, a name, or the unique beginning of an id.
    pub async fn resolve(&self, text: &str) -> Result<Sandbox, ClientError> {
        match find(&self.list().await?, text) {
            Ok(sandbox) => Ok(sandbox.clone()),
            // A destroyed sandbox is in no list, but its id still has a record that says so.
            Err(ClientError::NoSuchSandbox(_)) if text.starts_with("sbx_") => match self.get(text).await {
                Err(error) if error.is_not_found() => Err(ClientError::NoSuchSandbox(text.to_owned())),
                other => other,
            },
            Err(error) => Err(error),
        }
    }
}

/// The one of `sandboxes` that `text` means: its id, else its name, else the beginning of one id alone, with or
/// without the `sbx_`.
pub fn find<'a>(sandboxes: &'a [Sandbox], text: &str) -> Result<&'a Sandbox, ClientError> {
    let named = |sandbox: &&Sandbox| sandbox.name.as_deref() == Some(text);
    let exact = sandboxes.iter().find(|sandbox| sandbox.id == text).or_else(|| sandboxes.iter().find(named));
    if let Some(sandbox) = exact {
        return Ok(sandbox);
    }
    let begins = |sandbox: &&Sandbox| {
        let bare = sandbox.id.strip_prefix("sbx_").unwrap_or(&sandbox.id);
        sandbox.id.starts_with(text) || bare.starts_with(text)
    };
    let fits: Vec<&Sandbox> = if text.is_empty() { Vec::new() } else { sandboxes.iter().filter(begins).collect() };
    match fits[..] {
        [sandbox] => Ok(sandbox),
        [] => Err(ClientError::NoSuchSandbox(text.to_owned())),
        _ => {
            let shown: Vec<&str> = fits.iter().take(IDS_SHOWN_MAX).map(|sandbox| sandbox.id.as_str()).collect();
            Err(ClientError::AmbiguousSandbox { text: text.to_owned(), count: fits.len(), ids: shown.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, name: Option<&str>) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            name: name.map(str::to_owned),
            state: "running".to_owned(),
            template_id: "t".to_owned(),
            cpu_count: 1,
            memory_mb: 512,
            disk_size_mb: 1024,
            boot_ms: None,
            boot_path: None,
            snapshot_id: None,
            created_at: String::new(),
            metadata: Value::Null,
        }
    }

    #[test]
    fn a_user_may_name_a_sandbox_by_id_name_or_unique_prefix() {
        let all = [sandbox("sbx_ab1", None), sandbox("sbx_ab2", Some("ab1")), sandbox("sbx_cd", Some("web"))];
        let id = |text| find(&all, text).map(|sandbox| sandbox.id.clone());
        assert_eq!(id("sbx_ab1").unwrap(), "sbx_ab1");
        assert_eq!(id("ab1").unwrap(), "sbx_ab2", "a name wins over a prefix");
        assert_eq!(id("web").unwrap(), "sbx_cd");
        assert_eq!(id("sbx_c").unwrap(), "sbx_cd");
        assert_eq!(id("c").unwrap(), "sbx_cd");
        assert!(matches!(id("ab"), Err(ClientError::AmbiguousSandbox { count: 2, .. })));
        assert!(matches!(id("zz"), Err(ClientError::NoSuchSandbox(_))));
        assert!(matches!(id(""), Err(ClientError::NoSuchSandbox(_))));
    }
}
