//! `cove doctor`: what this computer needs for Cove, checked one by one: ok, warning or error, and what to do.
//!
//! Works without a server and without KVM, changes nothing, and every check is bounded in time. Each check is a function
//! that gives one [`Check`]; the sub-modules group them by what they look at.

mod dirs;
mod host;
mod image;
mod kvm;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use cove_engine::EngineConfig;
use serde::Serialize;

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

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// Cove works, but something is less than it could be.
    Warning,
    /// Cove cannot work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Check {
    /// What was looked at; stable, for programs.
    name: &'static str,
    status: Status,
    /// What was found.
    detail: String,
    /// What to do about it; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), advice: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, detail: detail.into(), advice: Some(advice.into()) }
    }

    fn error(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Error, detail: detail.into(), advice: Some(advice.into()) }
    }
}

/// All of it.
#[derive(Serialize)]
struct Report {
    /// This program's version.
    version: &'static str,
    /// The worst of the checks.
    status: Status,
    checks: Vec<Check>,
}

/// Runs `cove doctor`. Gives 1 when a check is an error.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let config =
        EngineConfig { data_dir: connection.data_dir.clone(), guest_dir: args.guest_dir, ..EngineConfig::default() };
    let places = config.places()?;
    let mut checks = vec![host::versions(), host::user()];
    checks.extend(kvm::checks(places.kvm, places.vmm).await);
    checks.extend([host::memory(), host::umask(), host::open_files()]);
    checks.extend(dirs::checks(&places.data_dir, &places.runtime_dir));
    checks.extend(image::checks(places.guest_dir));
    checks.extend(host::tools());
    checks.push(host::port());

    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    let report = Report { version: env!("CARGO_PKG_VERSION"), status, checks };
    print(&report, args.json).context("Cannot print the report")?;
    Ok(u8::from(status == Status::Error))
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
