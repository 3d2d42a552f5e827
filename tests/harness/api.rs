//! Requests to the server, each remembered for the report of a failure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::Value;

/// No answer takes longer: boots are the slowest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(150);

/// A client of one server.
#[derive(Clone)]
pub struct Api {
    http: Client,
    /// `http://127.0.0.1:<port>`.
    pub origin: String,
    pub token: String,
    history: Arc<Mutex<Vec<String>>>,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("Not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The `data` of a good answer.
    pub fn data(&self) -> Result<Value> {
        let text = String::from_utf8_lossy(&self.body);
        ensure!((200..300).contains(&self.status), "Status {}: {text}", self.status);
        self.json()?.get("data").cloned().with_context(|| format!("No data: {text}"))
    }

    /// The code and message of an error answer.
    pub fn error(&self) -> Result<(String, String)> {
        let body = self.json()?;
        let text = |name| body["error"][name].as_str().map(str::to_owned).with_context(|| format!("No {name}: {body}"));
        Ok((text("code")?, text("message")?))
    }
}

impl Api {
    /// A client that remembers what it asked in `history`.
    pub fn new(port: u16, token: String, history: Arc<Mutex<Vec<String>>>) -> Result<Self> {
        let http = Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).tcp_nodelay(true).build()?;
        Ok(Self { http, origin: format!("http://127.0.0.1:{port}"), token, history })
    }

    /// The API root.
    pub fn base_url(&self) -> String {
        format!("{}/api/v1", self.origin)
    }

    /// A request below the API root, with the token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base_url())).bearer_auth(&self.token)
    }

    /// Sends a request, whatever its answer.
    pub fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let request = request.build()?;
        let began = Instant::now();
        let words = format!("{} {}", request.method(), request.url().path());
        let outcome = self.http.execute(request).and_then(|response| {
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok(Answer { status, headers, body: response.bytes()?.into() })
        });
        let result = match &outcome {
            Ok(answer) => format!("{} ({} bytes)", answer.status, answer.body.len()),
            Err(error) => format!("{error:?}"),
        };
        let line = format!("{words} -> {result} in {} ms", began.elapsed().as_millis());
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(outcome?)
    }

    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path))
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.request(Method::POST, path).json(body))
    }

    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::DELETE, path))
    }
}
