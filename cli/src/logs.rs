//! `cove logs`: the newest lines of a sandbox's console, and with `--follow` those that come.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::{Client, ConnectionArgs};
use crate::text::printable;

/// Arguments of `cove logs`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox: its id, its name, or the unique beginning of its id
    sandbox: String,
    /// How many lines
    #[arg(long, short = 'n', default_value_t = 200, value_name = "COUNT")]
    lines: u32,
    /// Go on with each line as it comes, until interrupted
    #[arg(long, short = 'f')]
    follow: bool,
    /// What this background process wrote, instead of the console
    #[arg(long, short = 'p', value_name = "PID", conflicts_with = "follow")]
    process: Option<i32>,
}

/// Runs `cove logs`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    if args.follow {
        return follow(&client, &sandbox.id, args.lines).await;
    }
    if let Some(pid) = args.process {
        let text = client.process_logs(&sandbox.id, pid, args.lines).await?;
        let mut out = io::stdout().lock();
        return out.write_all(text.as_bytes()).context("Cannot print the log").map(|()| 0);
    }
    let answer = client.sandbox_value(&sandbox.id, "logs", &[("lines", &args.lines.to_string())]).await?;
    let lines = answer.get("lines").and_then(Value::as_array).context("The server's answer about logs has no lines")?;
    let mut out = io::stdout().lock();
    for line in lines {
        // A line is text, or an object with the text in `line` where the server says more about it.
        let text = line.as_str().or_else(|| line.get("line").and_then(Value::as_str)).unwrap_or_default();
        writeln!(out, "{}", printable(text)).context("Cannot print the log")?;
    }
    Ok(0)
}

async fn follow(client: &Client, id: &str, lines: u32) -> Result<u8> {
    let mut told = client.follow_logs(id, &lines.to_string()).await?;
    while let Some((kind, value)) = told.next().await? {
        let mut out = io::stdout().lock();
        match kind.as_str() {
            "gap" => eprintln!("cove: lines are missing here: the console was written faster than it was read"),
            _ => writeln!(out, "{}", printable(value["line"].as_str().unwrap_or_default()))
                .and_then(|()| out.flush())
                .context("Cannot print the log")?,
        }
    }
    Ok(0)
}
