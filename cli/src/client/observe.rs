//! What is told of sandboxes: events and consoles as they come, figures, environment.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::streams::Frames;
use super::{Client, ClientError};

/// One thing that happened.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Such as `sandbox.ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When, RFC 3339; a gap has no time.
    #[serde(default)]
    pub ts: String,
    /// To which sandbox; a gap is of none.
    #[serde(default)]
    pub sandbox_id: String,
    /// What else it says.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

/// A stream of JSON values, each with the name of its frame.
pub struct Told {
    frames: Frames,
    what: &'static str,
}

impl Told {
    /// The next one; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(String, Value)>, ClientError> {
        let Some(frame) = self.frames.next().await? else { return Ok(None) };
        if frame.event == "error" {
            return Err(ClientError::from_body(reqwest::StatusCode::OK, &frame.data));
        }
        let malformed = |source| ClientError::Malformed { what: self.what, source };
        Ok(Some((frame.event, serde_json::from_str(&frame.data).map_err(malformed)?)))
    }
}

impl Client {
    /// What happens from now on, to one sandbox or to all; of the kinds that fit `types` only.
    pub async fn events(&self, sandbox: Option<&str>, types: Option<&str>) -> Result<Told, ClientError> {
        let segments = match sandbox {
            Some(id) => vec!["sandboxes", id, "events"],
            None => vec!["events", "stream"],
        };
        let query: Vec<(&str, &str)> = types.map(|types| ("types", types)).into_iter().collect();
        self.told("events", &segments, &query).await
    }

    /// The newest lines of a console, and each new one as it comes.
    pub async fn follow_logs(&self, id: &str, lines: &str) -> Result<Told, ClientError> {
        self.told("a log", &["sandboxes", id, "logs", "stream"], &[("lines", lines)]).await
    }

    async fn told(&self, what: &'static str, segments: &[&str], query: &[(&str, &str)]) -> Result<Told, ClientError> {
        let get = self.request(Method::GET, segments).query(query).header("accept", "text/event-stream");
        Ok(Told { frames: Frames::new(self.send(get).await?), what })
    }

    /// Sets variables of a sandbox's environment; gives all of them.
    pub async fn set_env(&self, id: &str, vars: &[(String, String)]) -> Result<Vec<Value>, ClientError> {
        let vars: Vec<Value> = vars.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        let put = self.request(Method::PUT, &["sandboxes", id, "env"]).json(&json!({ "vars": vars }));
        self.data("an environment", put).await
    }

    /// Takes a variable away.
    pub async fn unset_env(&self, id: &str, name: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["sandboxes", id, "env", name])).await.map(drop)
    }
}
