//! What the API must know besides the engine: who may call it, and when it stops.
//!
//! Made by `cove serve` and by the desktop window, once the port is known.

use std::fmt;
use std::num::NonZeroU32;

use tokio_util::sync::CancellationToken;

use crate::limits::RATE_DEFAULT;

/// Origins of our own windows; a page from anywhere else is refused.
const WINDOW_ORIGINS: [&str; 2] = ["tauri://localhost", "cove://app.shell"];

/// Where a server listens when nothing else is said.
pub const PORT_DEFAULT: u16 = 7333;

/// The API root of a server on `port`, as clients are told it.
pub fn base_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/api/v1")
}

/// Settings of [`crate::router`].
#[derive(Clone)]
pub struct ApiConfig {
    /// The bearer token every caller must show.
    pub token: String,
    /// The port of the listener: `Host` and `Origin` headers must name it.
    pub port: u16,
    /// The port of the listener for preview aliases, when there is one.
    pub alias_port: Option<u16>,
    /// Origins whose pages may call, besides the server's own.
    pub origins: Vec<String>,
    /// Requests a second of who has the token, a few seconds' worth at once; `None` for no limit.
    pub rate_per_second: Option<NonZeroU32>,
    /// Cancelled when the server is to stop: streams end, and [`crate::serve`] returns.
    pub stopping: CancellationToken,
}

impl ApiConfig {
    /// Settings for a server on `port`, with the origins of our own windows.
    pub fn new(token: impl Into<String>, port: u16) -> Self {
        Self {
            token: token.into(),
            port,
            alias_port: None,
            origins: WINDOW_ORIGINS.map(str::to_owned).to_vec(),
            rate_per_second: Some(RATE_DEFAULT),
            stopping: CancellationToken::new(),
        }
    }

    /// The origins of the pages that are ours: they may show previews in a frame.
    pub(crate) fn own_pages(&self) -> Vec<String> {
        let served = self.hosts().into_iter().map(|host| format!("http://{host}"));
        served.chain(self.origins.iter().cloned()).collect()
    }

    /// The names under which a client may reach this server (`Host`).
    pub(crate) fn hosts(&self) -> [String; 3] {
        ["127.0.0.1", "localhost", "[::1]"].map(|name| format!("{name}:{}", self.port))
    }

    /// True when a page of `origin` may call.
    pub(crate) fn allows_origin(&self, origin: &str) -> bool {
        let own = origin.strip_prefix("http://").is_some_and(|host| self.hosts().iter().any(|own| own == host));
        own || self.origins.iter().any(|allowed| allowed == origin)
    }
}

impl fmt::Debug for ApiConfig {
    /// Without the token, so that a log line cannot give it away.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiConfig").field("port", &self.port).field("origins", &self.origins).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_and_listed_origins_are_allowed_and_no_others() {
        let config = ApiConfig::new("t", 8080);
        for origin in ["tauri://localhost", "cove://app.shell", "http://127.0.0.1:8080", "http://localhost:8080"] {
            assert!(config.allows_origin(origin), "{origin}");
        }
        for origin in
            ["null", "http://127.0.0.1", "http://127.0.0.1:8081", "https://evil.example", "tauri://localhost.evil"]
        {
            assert!(!config.allows_origin(origin), "{origin}");
        }
    }

    #[test]
    fn the_token_is_not_in_the_debug_text() {
        assert!(!format!("{:?}", ApiConfig::new("secret", 1)).contains("secret"));
    }
}
