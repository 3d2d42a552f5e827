//! The typed HTTP client: where the server is, what may be asked, what an error looks like.
//!
//! Address and token come from flags, from variables (Cove's own, then those of the SDK), or from what a `cove serve` on
//! this computer left in its data directory. Requests never go through a proxy: they carry the token.

mod errors;
mod files;
mod life;
mod observe;
mod previews;
mod records;
mod snapshots;
mod streams;
mod terminals;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cove_engine::{EngineConfig, local};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

pub use errors::ClientError;
pub use files::FileEntry;
pub use observe::Event;
pub use previews::Preview;
pub use records::{CreateRequest, Sandbox, find};
#[cfg(test)]
pub use snapshots::tests as tests_of_snapshots;
pub use snapshots::{ForkRequest, ForkSource, Snapshot};
pub use streams::{ExecEvent, ExecRequest, ExecStream};
pub use terminals::{Process, TerminalRequest, TerminalSession, TerminalSocket};

/// A server that has not answered to a connection by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Long answers carry a heartbeat at least every 15 s, so a silence of this length is a dead server.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Which server to talk to.
#[derive(clap::Args)]
pub struct ConnectionArgs {
    /// The server's API root, such as http://127.0.0.1:7333/api/v1 [env: COVE_URL, MIOSA_BASE_URL]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// The API token; other users can see it in the process list, so prefer a variable [env: COVE_TOKEN, MIOSA_API_KEY]
    #[arg(long, global = true, value_name = "TOKEN")]
    token: Option<String>,
    /// The server's data directory, where its address and token lie
    #[arg(long, global = true, value_name = "DIR", env = "COVE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

impl ConnectionArgs {
    /// The data directory that was named, or the user's own.
    pub fn data_dir(&self) -> Result<PathBuf, ClientError> {
        let config = EngineConfig { data_dir: self.data_dir.clone(), ..EngineConfig::default() };
        Ok(config.places().map_err(ClientError::Places)?.data_dir)
    }
}

/// A connection to one server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
}

/// The envelope of every answer.
#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

impl Client {
    /// Finds address and token; nothing is sent yet. A flag wins over a data directory that was named, that over a
    /// variable (which may be meant for another server), that over the user's own data directory.
    pub fn connect(args: &ConnectionArgs) -> Result<Self, ClientError> {
        let named = args.data_dir.as_deref();
        let or_variable = |flag: &Option<String>, names| {
            flag.clone().or_else(|| if named.is_none() { variable(names) } else { None })
        };
        let url = or_variable(&args.url, ["COVE_URL", "MIOSA_BASE_URL"]);
        let token = or_variable(&args.token, ["COVE_TOKEN", "MIOSA_API_KEY"]);
        let data_dir = || args.data_dir();
        let base = match url {
            Some(url) => url,
            None => local_server(&data_dir()?)?,
        };
        let token = match token {
            Some(token) => token,
            None => cove_api::token::load(&data_dir()?)?,
        };
        Self::new(&base, token)
    }

    /// A client of the server at `base`, which is completed to the API root as the SDK does.
    pub fn new(base: &str, token: String) -> Result<Self, ClientError> {
        let base = api_root(base);
        let url = Url::parse(&base).map_err(|source| ClientError::Address { url: base.clone(), source })?;
        if url.scheme() != "http" || url.cannot_be_a_base() {
            return Err(ClientError::Scheme { url: base });
        }
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_MAX)
            .tcp_nodelay(true)
            .user_agent(concat!("cove/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ClientError::Client)?;
        Ok(Self { http, base: url, token })
    }

    /// The API root, without a slash at its end.
    pub fn base_url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// A request for the path made of `segments`, each of which may hold any character.
    fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        self.http.request(method, url).bearer_auth(&self.token)
    }

    /// Sends a request and gives the answer when its status is good.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let unreachable = |source| ClientError::Unreachable { url: self.base_url().to_owned(), source };
        let response = request.send().await.map_err(unreachable)?;
        if response.status().is_success() { Ok(response) } else { Err(ClientError::refused(response).await) }
    }

    /// Sends a request and reads the `data` of its answer.
    async fn data<T: DeserializeOwned>(&self, what: &'static str, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|source| ClientError::Interrupted { what, source })?;
        match serde_json::from_slice::<Envelope<T>>(&body) {
            Ok(envelope) => Ok(envelope.data),
            Err(source) => Err(ClientError::late(&body).unwrap_or(ClientError::Malformed { what, source })),
        }
    }

    /// Sends a request and reads its answer as it is, for those that have more than `data`.
    async fn whole(&self, what: &'static str, request: RequestBuilder) -> Result<Value, ClientError> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|source| ClientError::Interrupted { what, source })?;
        let answer: Value = serde_json::from_slice(&body).map_err(|source| ClientError::Malformed { what, source })?;
        match answer.get("error") {
            Some(Value::Object(_)) => Err(ClientError::late(&body).unwrap_or(ClientError::NoExit)),
            _ => Ok(answer),
        }
    }

    /// A GET for `data` below a sandbox, for the routes whose answer is shown as it is.
    pub async fn sandbox_value(
        &self,
        id: &str,
        route: &'static str,
        query: &[(&str, &str)],
    ) -> Result<Value, ClientError> {
        self.data(route, self.request(Method::GET, &["sandboxes", id, route]).query(query)).await
    }
}

/// The API root for what a caller may write: `http://host:port` or a root that ends in a version.
fn api_root(given: &str) -> String {
    let trimmed = given.trim().trim_end_matches('/');
    let versioned = trimmed.rsplit('/').next().and_then(|last| last.strip_prefix('v'));
    match versioned {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => trimmed.to_owned(),
        _ => format!("{trimmed}/api/v1"),
    }
}

fn variable<const N: usize>(names: [&str; N]) -> Option<String> {
    names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

fn local_server(data_dir: &Path) -> Result<String, ClientError> {
    let server = local::server(data_dir);
    let url = server.as_ref().and_then(|server| server.port).map(cove_api::base_url);
    url.ok_or_else(|| match server {
        Some(server) => ClientError::Starting { pid: server.pid },
        None => ClientError::NoServer { data_dir: data_dir.to_path_buf() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_completed_as_the_sdk_does() {
        for (given, root) in [
            ("http://127.0.0.1:1", "http://127.0.0.1:1/api/v1"),
            (" http://127.0.0.1:1/ ", "http://127.0.0.1:1/api/v1"),
            ("http://127.0.0.1:1/api/v1/", "http://127.0.0.1:1/api/v1"),
            ("http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1"),
            ("http://127.0.0.1:1/v", "http://127.0.0.1:1/v/api/v1"),
        ] {
            assert_eq!(api_root(given), root);
        }
    }

    #[test]
    fn a_segment_may_hold_any_character() {
        let client = Client::new("http://127.0.0.1:1", "t".to_owned()).unwrap();
        let request = client.request(Method::GET, &["sandboxes", "by-name", "a/b c#?"]).build().unwrap();
        assert_eq!(request.url().path(), "/api/v1/sandboxes/by-name/a%2Fb%20c%23%3F");
    }

    #[test]
    fn only_plain_http_is_spoken() {
        assert!(matches!(Client::new("https://127.0.0.1", String::new()), Err(ClientError::Scheme { .. })));
    }
}
