//! Log lines of the server, on standard error.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The variables that say what is logged, the first that is set.
const FILTER_VARIABLES: [&str; 2] = ["COVE_LOG", "RUST_LOG"];

/// What is logged when nothing else is said.
const FILTER_DEFAULT: &str = "info";

/// How lines are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging; called once.
pub fn init(format: LogFormat) -> Result<()> {
    let set = FILTER_VARIABLES.into_iter().find_map(|name| Some((name, std::env::var(name).ok()?)));
    let filter = match set {
        Some((name, text)) => EnvFilter::try_new(text).with_context(|| format!("{name} is not a log filter"))?,
        None => EnvFilter::new(FILTER_DEFAULT),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!(error)).context("Cannot start logging")
}
