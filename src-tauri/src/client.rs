//! What the window's own parts ask of the API: the tray, notifications, and the end. They are clients like any other, so that
//! they work alike with a server in this process and with one that was found.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Method, RequestBuilder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::connection::Connection;

/// An answer that takes longer does not come; pauses write a machine's memory to the disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Streams carry a heartbeat at least every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Longest line of a stream.
const LINE_BYTES_MAX: usize = 256 << 10;

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    connection: Connection,
}

/// What is looked at of a sandbox's record.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Record {
    pub id: String,
    pub name: Option<String>,
    pub state: String,
    pub persistent: bool,
    pub paused_at: Option<String>,
}

impl Record {
    /// What people call it.
    pub fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }

    pub fn is_running(&self) -> bool {
        self.state == "running"
    }
}

/// What is looked at of an event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: String,
    pub sandbox_id: Option<String>,
    pub error: Option<String>,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Client {
    pub fn new(connection: Connection) -> Result<Self> {
        // A proxy of the environment must not see the token.
        let http = reqwest::Client::builder().no_proxy().read_timeout(SILENCE_MAX).build();
        Ok(Self { http: http.context("Cannot make a client")?, connection })
    }

    /// The live sandboxes.
    pub async fn list(&self) -> Result<Vec<Record>> {
        self.call(self.request(Method::GET, "/sandboxes")).await
    }

    /// Saves a sandbox and ends its machine.
    pub async fn pause(&self, id: &str) -> Result<Record> {
        self.call(self.request(Method::POST, &format!("/sandboxes/{id}/pause")).json(&Nothing {})).await
    }

    /// Lets a paused sandbox go on.
    pub async fn resume(&self, id: &str) -> Result<Record> {
        self.call(self.request(Method::POST, &format!("/sandboxes/{id}/resume")).json(&Nothing {})).await
    }

    /// All events from now on.
    pub async fn events(&self) -> Result<Events> {
        let response = self.request(Method::GET, "/events/stream").send().await?.error_for_status()?;
        Ok(Events { response, rest: Vec::new() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.connection.base_url)).bearer_auth(&self.connection.token)
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = request.timeout(ANSWER_TIMEOUT).send().await?;
        let status = response.status();
        // An error can also come with a good status: a long call is answered before its outcome is known.
        let answer: Answer<T> = response.json().await.with_context(|| format!("The answer with status {status}"))?;
        match answer {
            Answer { error: Some(refusal), .. } => bail!("{}", refusal.message),
            Answer { data: Some(data), .. } => Ok(data),
            Answer { .. } => bail!("The answer with status {status} has no data"),
        }
    }
}

/// A stream of events.
pub struct Events {
    response: reqwest::Response,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` when the stream ended.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if let Some(event) = line.strip_prefix(b"data:").and_then(|data| serde_json::from_slice(data).ok()) {
                    return Ok(Some(event));
                }
            }
            if self.rest.len() > LINE_BYTES_MAX {
                bail!("A line of the event stream has more than {LINE_BYTES_MAX} bytes");
            }
            let Some(piece) = self.response.chunk().await? else { return Ok(None) };
            self.rest.extend_from_slice(&piece);
        }
    }
}

/// An empty JSON body.
#[derive(Serialize)]
struct Nothing {}
