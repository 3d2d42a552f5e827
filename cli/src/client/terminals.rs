//! Terminal sessions and background processes of a sandbox.

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, HeaderValue};
use tokio_tungstenite::tungstenite::{self};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::{Client, ClientError};

/// A WebSocket to a terminal session.
pub type TerminalSocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A session to open.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TerminalRequest {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// A program and its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Where it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub env: std::collections::BTreeMap<String, String>,
    /// Login name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A session.
#[derive(Clone, Debug, Deserialize)]
pub struct TerminalSession {
    /// Names it.
    pub session_id: String,
    /// What runs.
    pub command: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// Who looks at it.
    pub clients: u32,
    /// ISO 8601.
    pub opened_at: Option<String>,
}

/// A background process.
#[derive(Clone, Debug, Deserialize)]
pub struct Process {
    /// Names it.
    pub pid: i32,
    /// For people.
    pub name: Option<String>,
    /// What runs.
    pub command: String,
    /// `running` or `exited`.
    pub status: String,
    /// Once it ended.
    pub exit_code: Option<i32>,
    /// ISO 8601.
    pub started_at: Option<String>,
}

impl Client {
    /// Opens a session.
    pub async fn open_terminal(&self, id: &str, request: &TerminalRequest) -> Result<TerminalSession, ClientError> {
        let post = self.request(Method::POST, &["sandboxes", id, "terminal"]);
        self.data("a terminal", post.json(request)).await
    }

    /// The open sessions.
    pub async fn terminals(&self, id: &str) -> Result<Vec<TerminalSession>, ClientError> {
        self.data("terminals", self.request(Method::GET, &["sandboxes", id, "terminal"])).await
    }

    /// Closes a session.
    pub async fn close_terminal(&self, id: &str, session: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["sandboxes", id, "terminal", session])).await.map(drop)
    }

    /// Looks at a session.
    pub async fn attach_terminal(
        &self,
        id: &str,
        session: &str,
        (cols, rows): (u16, u16),
    ) -> Result<TerminalSocket, ClientError> {
        let mut url = self.base.clone();
        // The scheme was checked, so this cannot fail.
        let _ = url.set_scheme("ws");
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["sandboxes", id, "terminal", "stream"]);
        }
        let (cols, rows) = (cols.to_string(), rows.to_string());
        url.query_pairs_mut().extend_pairs([("session", session), ("cols", &cols), ("rows", &rows)]);
        let mut request = url.as_str().into_client_request().map_err(broken)?;
        let token = HeaderValue::from_str(&format!("Bearer {}", self.token));
        let token = token.map_err(|error| broken(tungstenite::Error::HttpFormat(error.into())))?;
        request.headers_mut().insert(AUTHORIZATION, token);
        match connect_async_with_config(request, None, true).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                let status = reqwest::StatusCode::from_u16(response.status().as_u16()).unwrap_or_default();
                Err(ClientError::from_body(status, &body))
            }
            Err(error) => Err(broken(error)),
        }
    }

    /// Starts a background process.
    pub async fn start_process(&self, id: &str, body: &Value) -> Result<Process, ClientError> {
        self.data("a process", self.request(Method::POST, &["sandboxes", id, "processes"]).json(body)).await
    }

    /// Background processes as they come.
    pub async fn processes(&self, id: &str) -> Result<Vec<Value>, ClientError> {
        self.data("processes", self.request(Method::GET, &["sandboxes", id, "processes"])).await
    }

    /// Ends a background process, or sends it a signal.
    pub async fn end_process(&self, id: &str, pid: i32, signal: Option<&str>) -> Result<(), ClientError> {
        let pid = pid.to_string();
        let request = match signal {
            None => self.request(Method::DELETE, &["sandboxes", id, "processes", &pid]),
            Some(signal) => {
                let body = json!({ "signal": signal });
                self.request(Method::POST, &["sandboxes", id, "processes", &pid, "signal"]).json(&body)
            }
        };
        self.send(request).await.map(drop)
    }

    /// The newest lines that a background process wrote.
    pub async fn process_logs(&self, id: &str, pid: i32, lines: u32) -> Result<String, ClientError> {
        let get = self.request(Method::GET, &["sandboxes", id, "processes", &pid.to_string(), "logs"]);
        self.data("a process", get.query(&[("tail", lines)])).await
    }
}

fn broken(source: tungstenite::Error) -> ClientError {
    ClientError::WebSocket { source: Box::new(source) }
}
