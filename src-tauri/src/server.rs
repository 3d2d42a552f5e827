//! The server behind the window: the one that holds the data directory already, or one in this process.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use cove_api::{ApiConfig, base_url, token};
use cove_engine::{Engine, EngineConfig, Error};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;

/// A server to talk to.
pub struct Server {
    /// Where it is.
    pub connection: Connection,
    own: Option<Own>,
}

/// A server in this process.
struct Own {
    engine: Engine,
    stopping: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Starts a server, or finds the one that holds the data directory.
    pub async fn find_or_start() -> Result<Server> {
        match Engine::start(EngineConfig::default()).await {
            Ok(engine) => Self::start(engine).await,
            Err(Error::DataDirLocked { directory, port: Some(port), .. }) => {
                let token = token::load(&directory)?;
                Ok(Server { connection: Connection { base_url: base_url(port), token }, own: None })
            }
            Err(error) => Err(error).context("Cannot start"),
        }
    }

    async fn start(engine: Engine) -> Result<Server> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("Cannot listen on 127.0.0.1")?;
        let port = listener.local_addr().context("Cannot tell the port")?.port();
        let token = token::load_or_make(engine.data_dir())?;
        engine.announce_port(port)?;
        let api = ApiConfig::new(token.clone(), port);
        let stopping = api.stopping.clone();
        let serving = cove_api::serve_all(listener, engine.clone(), api, cove_api::ALIAS_PORT_DEFAULT);
        let own = Own { engine, stopping, task: tokio::spawn(serving) };
        Ok(Server { connection: Connection { base_url: base_url(port), token }, own: Some(own) })
    }

    /// Stops the server if it is ours; machines go on.
    pub async fn stop(self) -> Result<()> {
        let Some(own) = self.own else { return Ok(()) };
        own.stopping.cancel();
        let served = own.task.await.context("The server's task failed")?;
        own.engine.shutdown().await;
        served.context("The server failed while stopping")
    }
}
