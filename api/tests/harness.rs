//! A server of its own for each test: fresh data directory, free port, no KVM.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use cove_api::ApiConfig;
use cove_engine::{Engine, EngineConfig};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const TOKEN: &str = "the-token-of-this-test";

pub struct TestServer {
    pub engine: Engine,
    pub port: u16,
    pub stopping: CancellationToken,
    client: Client,
    serving: JoinHandle<std::io::Result<()>>,
    _data: tempfile::TempDir,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With other settings than usual.
    pub async fn start_with(change: impl FnOnce(&mut ApiConfig)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = EngineConfig {
            data_dir: Some(data.path().join("data")),
            runtime_dir: Some(data.path().join("run")),
            guest_dir: Some(data.path().join("no-guest")),
            kvm: Some(PathBuf::from("/nonexistent")),
            ..EngineConfig::default()
        };
        let engine = Engine::start(config).await.unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut config = ApiConfig::new(TOKEN, port);
        change(&mut config);
        let stopping = config.stopping.clone();
        let router = cove_api::router(engine.clone(), config);
        let serving = tokio::spawn(cove_api::serve(listener, router, stopping.clone()));
        // Without a proxy of the environment, and without following anything.
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { engine, port, stopping, client, serving, _data: data }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// A request with the token, below `/api/v1`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, &format!("/api/v1{path}")).bearer_auth(TOKEN)
    }

    /// A request as it is.
    pub fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(&body).send().await.unwrap()).await
    }

    /// Stops the server and the engine, and checks that nothing of the server is left.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.serving.await.unwrap().unwrap();
        self.engine.shutdown().await;
        assert!(tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err());
    }
}

/// A JSON answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, headers, body }
    }

    /// Status and code of an error.
    pub fn refusal(&self) -> (u16, &str) {
        (self.status, self.body["error"]["code"].as_str().unwrap_or_default())
    }

    /// The name of the field that is wrong.
    pub fn field(&self) -> &str {
        self.body["error"]["details"]["field"].as_str().unwrap_or_default()
    }

    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }
}
