//! `cove ls`: sandboxes as a table, or their records as JSON.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::Value;
use time::OffsetDateTime;

use crate::client::{Client, ConnectionArgs, Sandbox};
use crate::text::{age, mib, printable, table};

/// Most of a reason that the table shows.
const NOTE_CHARS_MAX: usize = 80;

/// Arguments of `cove ls`.
#[derive(clap::Args)]
pub struct Args {
    /// Only those in this state
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only those with this tag; may be repeated, all must fit
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Only those made from this template
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// Also destroyed ones whose record is still kept
    #[arg(long, short = 'a', conflicts_with = "state")]
    all: bool,
    /// Print ids alone
    #[arg(long, short = 'q', conflicts_with = "json")]
    quiet: bool,
    /// Print the records as a JSON list
    #[arg(long)]
    json: bool,
}

/// Runs `cove ls`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let records = fetch(&client, &args).await?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &records).context("Cannot print the list")?;
        writeln!(out).context("Cannot print the list")?;
        return Ok(0);
    }
    let sandboxes: Vec<Sandbox> = records
        .into_iter()
        .map(|record| serde_json::from_value(record).context("A sandbox record is not understood"))
        .collect::<Result<_>>()?;
    let text = if args.quiet {
        sandboxes.iter().map(|sandbox| format!("{}\n", sandbox.id)).collect()
    } else {
        listing(&sandboxes, OffsetDateTime::now_utc())
    };
    out.write_all(text.as_bytes()).context("Cannot print the list")?;
    Ok(0)
}

async fn fetch(client: &Client, args: &Args) -> Result<Vec<Value>> {
    let tags = args.tag.join(",");
    let mut query: Vec<(&str, &str)> = Vec::new();
    if !tags.is_empty() {
        query.push(("tags", &tags));
    }
    if let Some(template) = &args.template {
        query.push(("template_id", template));
    }
    let live = args.state.as_deref().map(|state| ("state", state));
    let mut records = client.list_values(&[&query[..], live.as_slice()].concat()).await?;
    if args.all {
        query.push(("state", "destroyed"));
        records.extend(client.list_values(&query).await?);
    }
    Ok(records)
}

fn listing(sandboxes: &[Sandbox], now: OffsetDateTime) -> String {
    let header = ["ID", "NAME", "STATE", "TEMPLATE", "CPU", "MEMORY", "DISK", "AGE", "NOTE"].map(str::to_owned);
    let rows = sandboxes.iter().map(|sandbox| row(sandbox, now));
    table(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

fn row(sandbox: &Sandbox, now: OffsetDateTime) -> [String; 9] {
    [
        sandbox.id.clone(),
        sandbox.name.as_deref().map_or_else(|| "-".to_owned(), printable),
        sandbox.state.clone(),
        sandbox.template_id.clone(),
        sandbox.cpu_count.to_string(),
        mib(sandbox.memory_mb),
        mib(sandbox.disk_size_mb),
        age(&sandbox.created_at, now),
        sandbox.last_error().map_or_else(String::new, note),
    ]
}

/// The beginning of a reason; the whole of it is in `--json`.
fn note(reason: &str) -> String {
    let line = printable(reason.lines().next().unwrap_or_default());
    if line.chars().count() <= NOTE_CHARS_MAX {
        return line;
    }
    line.chars().take(NOTE_CHARS_MAX - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_there_is() {
        let sandbox = Sandbox {
            id: "sbx_1".to_owned(),
            name: Some("größe".to_owned()),
            state: "error".to_owned(),
            template_id: "miosa-sandbox".to_owned(),
            cpu_count: 2,
            memory_mb: 4096,
            disk_size_mb: 20480,
            boot_ms: None,
            created_at: "1970-01-01T00:00:00Z".to_owned(),
            snapshot_id: None,
            boot_path: None,
            metadata: serde_json::json!({ "last_error": "it broke\nbadly" }),
        };
        let text = listing(&[sandbox], OffsetDateTime::UNIX_EPOCH);
        let expected = "ID     NAME   STATE  TEMPLATE       CPU  MEMORY  DISK    AGE  NOTE\n\
                        sbx_1  größe  error  miosa-sandbox  2    4 GiB   20 GiB  0 s  it broke\n";
        assert_eq!(text, expected);
    }
}
