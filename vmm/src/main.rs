//! `vmm --control SOCKET_PATH [--log-json]` serves one machine; `vmm probe` says what this host can do; `vmm disk`
//! makes and repairs layer files. Diagnostics go to standard error; `COVE_LOG` (error, warn, info, debug, trace) says how
//! many.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use cove_protocol::vmm::ExitReason;
use cove_vmm::{disk, event_loop, host, jail, signal};
use tracing::level_filters::LevelFilter;

const USAGE: &str =
    "usage: vmm --control SOCKET_PATH [--log-json]\n       vmm probe\n       vmm disk create|repair ...";

/// What the process was asked to be.
enum Command {
    Serve { control: PathBuf, log_json: bool },
    Probe,
    Disk(Vec<OsString>),
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match parse()? {
        Command::Probe => {
            println!("{}", serde_json::to_string_pretty(&host::probe())?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Disk(arguments) => disk::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Serve { control, log_json } => serve(control, log_json),
    }
}

fn parse() -> anyhow::Result<Command> {
    let mut arguments = std::env::args_os().skip(1);
    let (mut control, mut log_json) = (None, false);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("probe") => return Ok(Command::Probe),
            Some("disk") => return Ok(Command::Disk(arguments.collect())),
            Some("--control") => control = arguments.next(),
            Some("--log-json") => log_json = true,
            _ => bail!("unknown argument {argument:?}\n{USAGE}"),
        }
    }
    let control = control.with_context(|| format!("--control is missing\n{USAGE}"))?.into();
    Ok(Command::Serve { control, log_json })
}

fn serve(control: PathBuf, log_json: bool) -> anyhow::Result<ExitCode> {
    jail::enter().context("Cannot give up what is not needed")?;
    log(log_json);
    let termination = signal::Termination::new().context("Cannot take signals")?;
    let reason = event_loop::run(&control, termination)?;
    tracing::info!(?reason, "The machine has ended");
    Ok(match reason {
        ExitReason::Stopped | ExitReason::PowerOff | ExitReason::Reset => ExitCode::SUCCESS,
        ExitReason::GuestFault(_) | ExitReason::HostFault(_) => ExitCode::FAILURE,
    })
}

fn log(json: bool) {
    let level = std::env::var("COVE_LOG").ok().and_then(|level| level.parse::<LevelFilter>().ok());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .with_ansi(std::io::stderr().is_terminal());
    if json { subscriber.json().init() } else { subscriber.init() }
}
