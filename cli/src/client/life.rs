//! Pause, resume, stop, extend.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Client, ClientError, Sandbox};

impl Client {
    /// Saves a sandbox and stops its machine.
    pub async fn pause(&self, id: &str) -> Result<Sandbox, ClientError> {
        self.act(id, "pause", &json!({})).await
    }

    /// Lets a paused sandbox go on; `env` is laid over its environment.
    pub async fn resume(&self, id: &str, env: &Value) -> Result<Sandbox, ClientError> {
        self.act(id, "resume", &json!({ "env": env })).await
    }

    /// Ends a session: pauses a persistent sandbox and destroys another one.
    pub async fn stop(&self, id: &str) -> Result<Sandbox, ClientError> {
        self.act(id, "stop", &json!({})).await
    }

    /// Starts the session's clock anew.
    pub async fn extend(&self, id: &str, timeout_sec: Option<u32>) -> Result<Sandbox, ClientError> {
        let body = timeout_sec.map_or_else(|| json!({}), |seconds| json!({ "timeout_sec": seconds }));
        self.act(id, "extend", &body).await
    }

    async fn act(&self, id: &str, route: &'static str, body: &Value) -> Result<Sandbox, ClientError> {
        self.data("a sandbox", self.request(Method::POST, &["sandboxes", id, route]).json(body)).await
    }

    /// Creates a sandbox, runs a command in it and gives the whole answer: `data`, `exec`, `timings`.
    pub async fn run_fused(&self, body: &Value) -> Result<Value, ClientError> {
        self.whole("a run", self.request(Method::POST, &["sandboxes", "run"]).json(body)).await
    }

    /// Makes the default template warm for a shape, and waits until it is.
    pub async fn warm_template(&self, template: &str, shape: &Value) -> Result<(), ClientError> {
        let request = self.request(Method::POST, &["sandbox-templates", template, "warm"]).json(shape);
        self.data::<Value>("a template", request).await.map(drop)
    }

    /// The id of the template that create uses when none is named.
    pub async fn default_template(&self) -> Result<String, ClientError> {
        let list = self.whole("templates", self.request(Method::GET, &["sandbox-templates"])).await?;
        Ok(list["default_template_id"].as_str().unwrap_or("miosa-sandbox").to_owned())
    }

    /// Destroys the sandboxes with this tag; what is not there any more is fine.
    pub async fn destroy_tagged(&self, tag: &str) -> Result<Value, ClientError> {
        let body = json!({ "filter": { "tags": [tag] } });
        self.data("sandboxes", self.request(Method::POST, &["bulk", "sandboxes", "destroy"]).json(&body)).await
    }

    /// What the server knows of itself and its host.
    pub async fn system(&self) -> Result<Value, ClientError> {
        self.data("the server", self.request(Method::GET, &["system"])).await
    }
}
