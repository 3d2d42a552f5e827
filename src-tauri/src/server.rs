//! The server behind the window: the one that holds the data directory already, or one in this process.
//!
//! It starts beside the window, so that the page is there at once, also when no server can be started: the page then says
//! why, and asks again.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use cove_api::{ApiConfig, base_url, token};
use cove_engine::doctor::{self, Status};
use cove_engine::{Engine, EngineConfig, Error, local};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, Problem};

/// How long another server that has just taken the data directory may take to say where it listens.
const OTHER_STARTS_TIMEOUT: Duration = Duration::from_secs(90);

/// Between two looks at what it says.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The server, however it is now.
pub struct Server {
    data_dir: PathBuf,
    state: watch::Sender<State>,
    own: Mutex<Option<Own>>,
}

/// How it is.
#[derive(Clone, Debug)]
enum State {
    Starting,
    /// `own`: it runs in this process.
    Ready {
        connection: Connection,
        own: bool,
    },
    Failed(Problem),
}

/// A server in this process.
struct Own {
    engine: Engine,
    stopping: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// No server yet; [`Server::find_or_start`] makes one.
    pub fn new(data_dir: &Path) -> Self {
        let state = watch::Sender::new(State::Starting);
        Self { data_dir: data_dir.to_path_buf(), state, own: Mutex::default() }
    }

    /// The connection, as soon as there is one, or why there is none. What failed or is gone is tried anew first.
    pub async fn connection(&self) -> Result<Connection, Problem> {
        let mut anew = false;
        self.state.send_if_modified(|state| {
            anew = match &*state {
                State::Starting => false,
                State::Failed(_) => true,
                State::Ready { connection, own } => !own && !self.is_there(connection),
            };
            if anew {
                *state = State::Starting;
            }
            anew
        });
        if anew {
            self.find_or_start().await;
        }
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Starting)).await;
        match settled.as_deref() {
            Ok(State::Ready { connection, .. }) => Ok(connection.clone()),
            Ok(State::Failed(problem)) => Err(problem.clone()),
            // The sender is ours, so it is there.
            Ok(State::Starting) | Err(_) => Err(Problem { message: "Cove is ending".into(), checks: Vec::new() }),
        }
    }

    /// Waits until there is a connection, tried by whoever asks for one. `None` when the process ends.
    pub async fn ready(&self) -> Option<Connection> {
        let mut state = self.state.subscribe();
        let ready = state.wait_for(|state| matches!(state, State::Ready { .. })).await.ok()?;
        if let State::Ready { connection, .. } = &*ready { Some(connection.clone()) } else { None }
    }

    /// The server that runs in this process now, if one does.
    pub fn is_own(&self) -> bool {
        matches!(&*self.state.borrow(), State::Ready { own: true, .. })
    }

    /// Where everything is kept.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A server that was found may have been started anew, and listen elsewhere. Starts none.
    pub fn look_again(&self) {
        let port = local::server(&self.data_dir).and_then(|server| server.port);
        let Some((port, token)) = port.and_then(|port| Some((port, token::load(&self.data_dir).ok()?))) else { return };
        self.state.send_if_modified(|state| match state {
            State::Ready { connection, own: false } if connection.base_url != base_url(port) => {
                *connection = Connection { base_url: base_url(port), token };
                true
            }
            _ => false,
        });
    }

    /// The server that was found holds the data directory still, and listens where it did.
    fn is_there(&self, connection: &Connection) -> bool {
        let held = local::server(&self.data_dir).and_then(|server| server.port);
        held.is_some_and(|port| base_url(port) == connection.base_url)
    }

    /// Starts a server, or finds the one that holds the data directory; afterwards the state says how that went.
    pub async fn find_or_start(&self) {
        let state = match self.try_start().await {
            Ok((connection, own)) => State::Ready { connection, own },
            Err(error) => {
                tracing::error!("no server: {error:#}");
                State::Failed(Problem { message: format!("{error:#}"), checks: self.wrong().await })
            }
        };
        self.state.send_replace(state);
    }

    async fn try_start(&self) -> Result<(Connection, bool)> {
        let deadline = Instant::now() + OTHER_STARTS_TIMEOUT;
        loop {
            let config = EngineConfig { data_dir: Some(self.data_dir.clone()), ..EngineConfig::default() };
            match Engine::start(config).await {
                Ok(engine) => return Ok((self.serve(engine).await?, true)),
                Err(Error::DataDirLocked { directory, port: Some(port), .. }) => {
                    let token = token::load(&directory)?;
                    tracing::info!(port, "another server has the data directory");
                    return Ok((Connection { base_url: base_url(port), token }, false));
                }
                Err(Error::DataDirLocked { .. }) if Instant::now() < deadline => {
                    // The lock file tells nobody when its text changes.
                    sleep_until(Instant::now() + LOOK_AGAIN_AFTER).await;
                }
                Err(error) => return Err(error).context("Cannot start"),
            }
        }
    }

    async fn serve(&self, engine: Engine) -> Result<Connection> {
        // The usual port, so that clients find it where `cove serve` would be; else any.
        let usual = TcpListener::bind((Ipv4Addr::LOCALHOST, cove_api::PORT_DEFAULT)).await;
        let listener = match usual {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("Cannot listen on 127.0.0.1")?,
        };
        let port = listener.local_addr().context("Cannot tell the port")?.port();
        let token = token::load_or_make(engine.data_dir())?;
        engine.announce_port(port)?;
        let api = ApiConfig::new(token.clone(), port);
        let stopping = api.stopping.clone();
        let serving = cove_api::serve_all(listener, engine.clone(), api, cove_api::ALIAS_PORT_DEFAULT);
        let own = Own { engine, stopping, task: tokio::spawn(serving) };
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
        tracing::info!(port, "serving");
        Ok(Connection { base_url: base_url(port), token })
    }

    /// What this computer lacks.
    async fn wrong(&self) -> Vec<doctor::Check> {
        let config = EngineConfig { data_dir: Some(self.data_dir.clone()), ..EngineConfig::default() };
        let Ok(places) = config.places() else { return Vec::new() };
        let report = doctor::report(places, None).await;
        report.checks.into_iter().filter(|check| check.status == Status::Error).collect()
    }

    /// Stops the server if it is ours; machines that run go on.
    pub async fn stop(&self) -> Result<()> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(own) = own else { return Ok(()) };
        own.stopping.cancel();
        let served = own.task.await.map_err(|error| anyhow!(error)).context("The server's task failed");
        own.engine.shutdown().await;
        served?.context("The server failed while stopping")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_cannot_start_says_why_and_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::write(&data, "in the way").unwrap();
        let server = Server::new(&data);
        server.find_or_start().await;
        let problem = server.connection().await.unwrap_err();
        assert!(problem.message.contains("data"), "{}", problem.message);
        assert!(problem.checks.iter().any(|check| check.name == "data_dir"), "{:?}", problem.checks);

        std::fs::remove_file(&data).unwrap();
        let connection = server.connection().await.unwrap();
        assert!(server.is_own() && connection.base_url.starts_with("http://127.0.0.1:"));
        server.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_runs_is_used_until_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Server::new(&folder.path().join("data"));
        first.find_or_start().await;
        let second = Server::new(&folder.path().join("data"));
        second.find_or_start().await;
        assert_eq!(second.connection().await.unwrap(), first.connection().await.unwrap());
        assert!(first.is_own() && !second.is_own());
        first.stop().await.unwrap();
        second.connection().await.unwrap();
        assert!(second.is_own(), "it took over");
        second.stop().await.unwrap();
    }
}
