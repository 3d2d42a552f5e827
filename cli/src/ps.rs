//! `cove ps` and `cove kill`: the background processes of a sandbox.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::Value;
use time::OffsetDateTime;

use crate::client::{Client, ConnectionArgs, Process};
use crate::text::{age, printable, table};

/// Most of a command that the table shows.
const COMMAND_CHARS_MAX: usize = 60;

/// Arguments of `cove ps`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox: its id, its name, or the unique beginning of its id
    sandbox: String,
    /// Print process ids alone
    #[arg(long, short = 'q', conflicts_with = "json")]
    quiet: bool,
    /// Print the records as a JSON list
    #[arg(long)]
    json: bool,
}

/// Arguments of `cove kill`.
#[derive(clap::Args)]
pub struct KillArgs {
    /// The sandbox: its id, its name, or the unique beginning of its id
    sandbox: String,
    /// The process ids that `cove ps` shows
    #[arg(required = true, value_name = "PID")]
    pids: Vec<i32>,
    /// Send only this signal [default: SIGTERM, and SIGKILL after five seconds]
    #[arg(long, short = 's', value_name = "SIGNAL")]
    signal: Option<String>,
}

/// Runs `cove ps`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    let records = client.processes(&sandbox.id).await?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &records).context("Cannot print the list")?;
        writeln!(out).context("Cannot print the list")?;
        return Ok(0);
    }
    let parse = |record: Value| serde_json::from_value(record).context("A process record is not understood");
    let processes: Vec<Process> = records.into_iter().map(parse).collect::<Result<_>>()?;
    let text = if args.quiet {
        processes.iter().map(|process| format!("{}\n", process.pid)).collect()
    } else {
        listing(&processes, OffsetDateTime::now_utc())
    };
    out.write_all(text.as_bytes()).context("Cannot print the list")?;
    Ok(0)
}

/// Runs `cove kill`.
pub async fn kill(args: KillArgs, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    for pid in args.pids {
        client.end_process(&sandbox.id, pid, args.signal.as_deref()).await?;
    }
    Ok(0)
}

fn listing(processes: &[Process], now: OffsetDateTime) -> String {
    let header = ["PID", "NAME", "STATUS", "AGE", "COMMAND"].map(str::to_owned);
    let rows = processes.iter().map(|process| {
        let status = match process.exit_code {
            Some(code) => format!("{} ({code})", process.status),
            None => process.status.clone(),
        };
        let started = process.started_at.as_deref().map_or_else(|| "?".to_owned(), |at| age(at, now));
        let command: String = process.command.chars().take(COMMAND_CHARS_MAX).collect();
        let name = process.name.as_deref().unwrap_or("-");
        [process.pid.to_string(), printable(name), printable(&status), started, printable(&command)]
    });
    table(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_how_it_ended() {
        let process = Process {
            pid: 7,
            name: None,
            command: "a\x1b[31m".to_owned(),
            status: "exited".to_owned(),
            exit_code: Some(3),
            started_at: None,
        };
        let text = listing(&[process], OffsetDateTime::UNIX_EPOCH);
        assert!(text.starts_with("PID  NAME") && text.contains("7    -     exited (3)  ?    a\u{fffd}[31m"), "{text}");
    }
}
