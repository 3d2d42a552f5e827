//! `cove doctor`: what this computer needs for Cove, checked one by one: ok, warning or error, and what to do.
//!
//! Works without a server and without KVM. The checks themselves are the engine's (`engine/src/doctor`).

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use cove_api::PORT_DEFAULT;
use cove_engine::EngineConfig;
use cove_engine::doctor::{self, Report, Status};

use crate::client::ConnectionArgs;

/// Arguments of `cove doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// The guest image's directory
    #[arg(long, value_name = "DIR")]
    guest_dir: Option<PathBuf>,
}

/// Runs `cove doctor`. Gives 1 when a check is an error.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let config =
        EngineConfig { data_dir: connection.data_dir.clone(), guest_dir: args.guest_dir, ..EngineConfig::default() };
    let report = doctor::report(config.places()?, Some(PORT_DEFAULT)).await;
    print(&report, args.json).context("Cannot print the report")?;
    Ok(u8::from(report.status == Status::Error))
}

fn print(report: &Report, as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return writeln!(out);
    }
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &report.checks {
        let word = match check.status {
            Status::Ok => "ok     ",
            Status::Warning => "warning",
            Status::Error => "ERROR  ",
        };
        writeln!(out, "{word}  {:<width$}  {}", check.name, check.detail)?;
        if let Some(advice) = &check.advice {
            writeln!(out, "{:9}{:width$}  -> {advice}", "", "")?;
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    writeln!(out, "{} errors, {} warnings", count(Status::Error), count(Status::Warning))
}
