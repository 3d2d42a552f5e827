//! `cove top`: sandboxes and what they take of this computer, drawn anew every few seconds.
//!
//! Figures change all the time and nobody tells of that, so this looks by the clock, as the server itself does (every 5 s).

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::join_all;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, ConnectionArgs, Sandbox};
use crate::text::{age, bytes, mib, printable, table};

/// Puts the cursor at the top and wipes what is below (ECMA-48: CUP, ED).
const REDRAW: &str = "\x1b[H\x1b[J";

/// Arguments of `cove top`.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Print the table once and end, as when the output is no terminal
    #[arg(long)]
    once: bool,
}

/// One line of the table.
struct Row {
    sandbox: Sandbox,
    /// What the server knows; `None` when it went away meanwhile.
    current: Option<Value>,
}

/// Runs `cove top` until it is interrupted.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let live = io::stdout().is_terminal() && !args.once;
    loop {
        let next = Instant::now() + Duration::from_secs(args.every);
        let text = drawn(&look(&client).await?, OffsetDateTime::now_utc());
        let mut out = io::stdout().lock();
        let begin = if live { REDRAW } else { "" };
        write!(out, "{begin}{text}").and_then(|()| out.flush()).context("Cannot print the table")?;
        drop(out);
        if !live {
            return Ok(0);
        }
        sleep_until(next).await;
    }
}

/// Every live sandbox, those that take the most first.
async fn look(client: &Client) -> Result<Vec<Row>> {
    let sandboxes = client.list().await?;
    let rows = sandboxes.into_iter().map(|sandbox| async {
        let metrics = client.sandbox_value(&sandbox.id, "metrics", &[("window", "30s")]).await;
        let current = match metrics {
            Ok(metrics) => metrics.get("current").cloned(),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        Ok(Row { sandbox, current })
    });
    let mut rows: Vec<Row> = join_all(rows).await.into_iter().collect::<Result<_, _>>()?;
    let order = |row: &Row| (figure(row, "cpu_percent").unwrap_or(-1.0), figure(row, "memory_resident_bytes"));
    rows.sort_by(|a, b| order(b).partial_cmp(&order(a)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(rows)
}

fn figure(row: &Row, name: &str) -> Option<f64> {
    row.current.as_ref()?.get(name)?.as_f64()
}

fn drawn(rows: &[Row], now: OffsetDateTime) -> String {
    let sum = |name| rows.iter().filter_map(|row| figure(row, name)).sum::<f64>();
    let running = rows.iter().filter(|row| row.sandbox.state == "running").count();
    let head = format!(
        "{} sandboxes, {running} running: {:.1} % of a processor, {} memory, {} disk\n\n",
        rows.len(),
        sum("cpu_percent"),
        bytes(sum("memory_resident_bytes") as u64),
        bytes(sum("disk_bytes") as u64),
    );
    let header = ["ID", "NAME", "STATE", "CPU %", "MEMORY", "OF", "DISK", "OF", "AGE"].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(header).chain(rows.iter().map(|row| line(row, now))).collect();
    head + &table(&lines)
}

fn line(row: &Row, now: OffsetDateTime) -> [String; 9] {
    // Unknown is not zero.
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let sandbox = &row.sandbox;
    let size = |name| or_dash(figure(row, name).map(|found| bytes(found as u64)));
    [
        sandbox.id.clone(),
        or_dash(sandbox.name.as_deref().map(printable)),
        sandbox.state.clone(),
        or_dash(figure(row, "cpu_percent").map(|percent| format!("{percent:.1}"))),
        size("memory_resident_bytes"),
        mib(sandbox.memory_mb),
        size("disk_bytes"),
        mib(sandbox.disk_size_mb),
        age(&sandbox.created_at, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_unknown_is_a_dash_and_not_a_zero() {
        let sandbox: Sandbox = serde_json::from_value(json!({
            "id": "sbx_1", "name": null, "state": "running", "template_id": "t", "cpu_count": 1, "memory_mb": 512,
            "disk_size_mb": 4096, "boot_ms": null, "created_at": "1970-01-01T00:00:00Z"
        }))
        .unwrap();
        let paused = Sandbox { id: "sbx_2".into(), state: "paused".into(), ..sandbox.clone() };
        let current = json!({ "cpu_percent": 12.34, "memory_resident_bytes": 80 << 20, "disk_bytes": null });
        let rows = [Row { sandbox, current: Some(current) }, Row { sandbox: paused, current: None }];
        let text = drawn(&rows, OffsetDateTime::UNIX_EPOCH);
        assert_eq!(
            text,
            "2 sandboxes, 1 running: 12.3 % of a processor, 80.0 MiB memory, 0 B disk\n\n\
             ID     NAME  STATE    CPU %  MEMORY    OF       DISK  OF     AGE\n\
             sbx_1  -     running  12.3   80.0 MiB  512 MiB  -     4 GiB  0 s\n\
             sbx_2  -     paused   -      -         512 MiB  -     4 GiB  0 s\n"
        );
    }
}
