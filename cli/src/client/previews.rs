//! Previews, tokens, and who listens in a sandbox.

use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, ClientError};

/// A preview, as far as it is shown.
#[derive(Debug, Deserialize)]
pub struct Preview {
    pub id: String,
    pub port: u16,
    pub visibility: String,
    pub state: String,
    pub url: String,
    pub alias_url: Option<String>,
    pub name: Option<String>,
    pub expires_at: Option<String>,
}

/// Who listens on a port.
#[derive(Debug, Deserialize)]
pub struct Listener {
    pub port: u16,
    pub address: String,
    pub pid: Option<i32>,
    pub command: Option<String>,
    pub url: Option<String>,
}

impl Client {
    /// Exposes a port, or changes the preview that it has.
    pub async fn create_preview(&self, id: &str, body: &Value) -> Result<Preview, ClientError> {
        self.data("a preview", self.below(Method::POST, id, &["previews"]).json(body)).await
    }

    /// A sandbox's previews.
    pub async fn previews(&self, id: &str) -> Result<Vec<Preview>, ClientError> {
        self.data("previews", self.below(Method::GET, id, &["previews"])).await
    }

    /// Takes a preview away.
    pub async fn delete_preview(&self, id: &str, preview: &str) -> Result<(), ClientError> {
        self.send(self.below(Method::DELETE, id, &["previews", preview])).await.map(drop)
    }

    /// The URL of a preview with a token in it.
    pub async fn share_preview(&self, id: &str, preview: &str, ttl_seconds: u32) -> Result<String, ClientError> {
        let request = self.below(Method::POST, id, &["previews", preview, "share"]);
        let answer = self.whole("a share", request.json(&json!({ "ttl_seconds": ttl_seconds }))).await?;
        Ok(answer["share_url"].as_str().unwrap_or_default().to_owned())
    }

    /// Who listens on TCP ports in a sandbox.
    pub async fn listeners(&self, id: &str) -> Result<Vec<Listener>, ClientError> {
        self.data("ports", self.below(Method::GET, id, &["ports"])).await
    }

    fn below(&self, method: Method, id: &str, path: &[&str]) -> RequestBuilder {
        self.request(method, &[&["sandboxes", id], path].concat())
    }
}
