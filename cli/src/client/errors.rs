//! What can go wrong between this program and a server.

use std::path::PathBuf;

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;

/// The most of an unexpected answer that is shown.
const TEXT_CHARS_MAX: usize = 400;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address was given and no server runs here.
    #[error("No server holds {}: start one with `cove serve`, or give --url and --token", data_dir.display())]
    NoServer {
        /// The data directory that was looked at.
        data_dir: PathBuf,
    },
    /// The server here does not listen yet.
    #[error("The server (process {pid}) is still starting")]
    Starting {
        /// Its process.
        pid: u32,
    },
    /// The data directory cannot be told.
    #[error("Cannot tell where the data directory is")]
    Places(#[source] cove_engine::config::ConfigError),
    /// The token of the local server cannot be had.
    #[error(transparent)]
    Token(#[from] cove_api::token::TokenError),
    /// The address is not one.
    #[error("'{url}' is not an address")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        #[source]
        source: <reqwest::Url as std::str::FromStr>::Err,
    },
    /// Only plain HTTP is spoken, to this computer.
    #[error("'{url}' is not an http:// address")]
    Scheme {
        /// What was given.
        url: String,
    },
    /// The HTTP client cannot be made.
    #[error("Cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// Nothing answered.
    #[error("The server at {url} does not answer")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer broke off.
    #[error("The server's answer about {what} broke off")]
    Interrupted {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is not what the API promises.
    #[error("The server's answer about {what} is not understood")]
    Malformed {
        /// What was asked for.
        what: &'static str,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// An event stream is not one.
    #[error("The server's events are not understood")]
    Events(#[from] crate::sse::FrameTooLarge),
    /// A command's stream ended without its exit code.
    #[error("The server closed the command's output before its exit code")]
    NoExit,
    /// A WebSocket could not be had.
    #[error("The connection to the terminal cannot be made")]
    WebSocket {
        /// Why.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The server said no.
    #[error("{message} ({code})")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The API's stable code.
        code: String,
        /// Its sentence.
        message: String,
    },
    /// The answer is well formed and still not what should have come.
    #[error("{what} ended otherwise than it should: {found}")]
    Unexpected {
        /// What was asked for.
        what: &'static str,
        /// What came.
        found: String,
    },
    /// No sandbox has this id, name or prefix.
    #[error("No sandbox has the id, the name or the unique id prefix '{0}'")]
    NoSuchSandbox(String),
    /// No snapshot has this id, name or prefix.
    #[error("No snapshot has the id, the name or the unique id prefix '{0}'")]
    NoSuchSnapshot(String),
    /// Neither a sandbox nor a snapshot has.
    #[error("No sandbox and no snapshot has the id, the name or the unique id prefix '{0}'")]
    NoSuchSource(String),
    /// Several have.
    #[error("'{text}' begins the ids of {count} snapshots: {ids}")]
    AmbiguousSnapshot {
        /// What was given.
        text: String,
        /// How many it fits.
        count: usize,
        /// Which, the first few.
        ids: String,
    },
    /// Several have.
    #[error("'{text}' begins the ids of {count} sandboxes: {ids}")]
    AmbiguousSandbox {
        /// What was given.
        text: String,
        /// How many it fits.
        count: usize,
        /// Which, the first few.
        ids: String,
    },
}

/// The error body of the API.
#[derive(Deserialize)]
struct Body {
    error: Details,
}

#[derive(Deserialize)]
struct Details {
    code: String,
    message: String,
    #[serde(default)]
    details: Value,
}

impl ClientError {
    /// The error that a refused response carries.
    pub async fn refused(response: Response) -> Self {
        let status = response.status();
        Self::from_body(status, &response.text().await.unwrap_or_default())
    }

    /// The error that a body tells.
    pub fn from_body(status: StatusCode, text: &str) -> Self {
        match serde_json::from_str::<Body>(text) {
            Ok(Body { error }) => {
                let field = error.details.get("field").and_then(Value::as_str);
                let message = match field {
                    Some(field) if !error.message.contains(field) => format!("{field}: {}", error.message),
                    _ => error.message,
                };
                ClientError::Refused { status, code: error.code, message }
            }
            Err(_) => {
                let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
                ClientError::Refused { status, code: status.to_string(), message: text }
            }
        }
    }

    /// The error that an answer tells which had begun with success.
    pub fn late(body: &[u8]) -> Option<Self> {
        let Body { error } = serde_json::from_slice(body).ok()?;
        Some(ClientError::Refused { status: StatusCode::OK, code: error.code, message: error.message })
    }

    /// The API's stable code, or a word for what happened on the way.
    pub fn code(&self) -> &str {
        match self {
            ClientError::Refused { code, .. } => code,
            ClientError::Unreachable { .. } => "UNREACHABLE",
            ClientError::Interrupted { .. } => "BROKEN_OFF",
            _ => "CLIENT",
        }
    }

    /// The server had no room: it said no, and is none the worse.
    pub fn is_rejection(&self) -> bool {
        matches!(self, ClientError::Refused { status, .. }
            if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(status))
    }

    /// The server knows no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}
