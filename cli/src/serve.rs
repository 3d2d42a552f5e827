//! `cove serve`: engine and API in one process, without a window.
//!
//! Takes the data directory, listens on loopback, says where, and serves until SIGINT or SIGTERM. Stopping lets running
//! machines be: the next start finds them again. A second signal ends the process at once.

mod log;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cove_api::{ApiConfig, PORT_DEFAULT, token};
use cove_engine::{Engine, EngineConfig};
use tokio::net::TcpListener;

use crate::client::ConnectionArgs;
use crate::exec::Interrupts;
use log::LogFormat;

/// Requests a second when nothing else is said.
const RATE_DEFAULT: u32 = cove_api::RATE_DEFAULT.get();

/// Most machines that wait.
const WARM_MAX: usize = 64;

/// Arguments of `cove serve`.
#[derive(clap::Args)]
pub struct Args {
    /// The port on 127.0.0.1; 0 takes any free one
    #[arg(long, value_name = "PORT", default_value_t = PORT_DEFAULT, env = "COVE_PORT")]
    port: u16,
    /// The port on 127.0.0.1 for preview aliases such as http://3000-my-app.localhost:7334/; where it is taken any free one is
    /// used, as with 0
    #[arg(long, value_name = "PORT", default_value_t = cove_api::ALIAS_PORT_DEFAULT, env = "COVE_PREVIEW_PORT")]
    preview_port: u16,
    /// The guest image's directory
    #[arg(long, value_name = "DIR", env = "COVE_GUEST_DIR")]
    guest_dir: Option<PathBuf>,
    /// Keep this many machines of the default template and size waiting for creates, restored and paused; each takes some
    /// memory
    #[arg(long, value_name = "COUNT", default_value_t = 0, env = "COVE_WARM", value_parser = warm_count)]
    warm: usize,
    /// Requests a second that are answered, five seconds' worth at once; 0 for no limit
    #[arg(long, value_name = "COUNT", default_value_t = RATE_DEFAULT, env = "COVE_RATE_LIMIT")]
    rate_limit: u32,
    /// How log lines are written to standard error; COVE_LOG says which (such as `debug` or `info,cove_engine=trace`)
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// Runs `cove serve`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    // Before anything is made, so that nothing is ever open to others.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    log::init(args.log_format)?;
    let mut interrupts = Interrupts::new()?;
    let data_dir = connection.data_dir()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    // Bound early to fail early; but who holds the data directory says more than who holds the port, so that comes first.
    let listener = TcpListener::bind(address).await;
    let config = EngineConfig {
        data_dir: Some(data_dir.clone()),
        guest_dir: args.guest_dir,
        warm_pool: args.warm,
        ..EngineConfig::default()
    };
    let engine = tokio::select! {
        engine = Engine::start(config) => engine.context("Cannot start")?,
        code = interrupts.next() => return Ok(code),
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            engine.shutdown().await;
            let advice = "give --port another one, or 0 for any free one";
            return Err(error).with_context(|| format!("Cannot listen on {address}: {advice}"));
        }
    };
    let port = listener.local_addr().context("Cannot tell the port")?.port();
    let token = token::load_or_make(&data_dir)?;
    engine.announce_port(port)?;
    announce(port, &data_dir.join(token::FILE_NAME), &token);

    let mut api = ApiConfig::new(token, port);
    api.rate_per_second = NonZeroU32::new(args.rate_limit);
    let stopping = api.stopping.clone();
    let server = cove_api::serve_all(listener, engine.clone(), api, args.preview_port);
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => return served.map(|()| 0).context("The server ended by itself"),
        _ = interrupts.next() => {}
    }
    tracing::info!("stopping; running machines stay");
    stopping.cancel();
    let orderly = async {
        // The API bounds how long its requests may take to end.
        let served = server.await.context("The server failed while stopping");
        engine.shutdown().await;
        served
    };
    tokio::select! {
        served = orderly => served.map(|()| 0),
        code = interrupts.next() => {
            tracing::warn!("second signal: ending at once");
            Ok(code)
        }
    }
}

/// A number of waiting machines, at most [`WARM_MAX`].
fn warm_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count <= WARM_MAX => Ok(count),
        _ => Err(format!("'{text}' is not a whole number from 0 to {WARM_MAX}")),
    }
}

/// Says where the server is. Programs read these lines; the last one means that it answers.
fn announce(port: u16, token_file: &Path, token: &str) {
    let lines = format!(
        "MIOSA_BASE_URL={}\n\
         Token: {} (export MIOSA_API_KEY=\"$(cat '{}')\")\n\
         Page: http://127.0.0.1:{port}/#token={token}\n\
         Ready\n",
        cove_api::base_url(port),
        token_file.display(),
        token_file.display()
    );
    // Whoever started us may have closed its end; that is no reason not to serve.
    let _ = io::stdout().lock().write_all(lines.as_bytes());
}
