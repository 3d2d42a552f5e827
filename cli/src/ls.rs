//! `cove ls`: sandboxes as a table, or their records as JSON.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Client, ConnectionArgs, Sandbox};

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
        table(&sandboxes, OffsetDateTime::now_utc())
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

/// Rows of one width per column, the last column as wide as it is.
fn table(sandboxes: &[Sandbox], now: OffsetDateTime) -> String {
    let header = ["ID", "NAME", "STATE", "TEMPLATE", "CPU", "MEMORY", "DISK", "AGE", "NOTE"].map(str::to_owned);
    let rows: Vec<[String; 9]> =
        std::iter::once(header).chain(sandboxes.iter().map(|sandbox| row(sandbox, now))).collect();
    let widths: [usize; 9] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; 9]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
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

/// Text that others chose, without what a terminal would obey.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() && char != '\t' { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}

/// A size in MiB, in GiB where that is a whole number.
fn mib(mib: u64) -> String {
    if mib > 0 && mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

/// How long ago, in its largest unit.
fn age(created_at: &str, now: OffsetDateTime) -> String {
    let Ok(created) = OffsetDateTime::parse(created_at, &Rfc3339) else { return "?".to_owned() };
    let seconds = (now - created).whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_use_their_largest_unit() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        let ago = |seconds| {
            let then = now - time::Duration::seconds(seconds);
            age(&then.format(&Rfc3339).unwrap(), now)
        };
        assert_eq!([ago(-5), ago(59), ago(60), ago(7200), ago(90_000)], ["0 s", "59 s", "1 min", "2 h", "1 d"]);
        assert_eq!(age("yesterday", now), "?");
        assert_eq!([mib(512), mib(2048), mib(0)], ["512 MiB", "2 GiB", "0 MiB"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
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
            metadata: serde_json::json!({ "last_error": "it broke\nbadly" }),
        };
        let text = table(&[sandbox], OffsetDateTime::UNIX_EPOCH);
        let expected = "ID     NAME   STATE  TEMPLATE       CPU  MEMORY  DISK    AGE  NOTE\n\
                        sbx_1  größe  error  miosa-sandbox  2    4 GiB   20 GiB  0 s  it broke\n";
        assert_eq!(text, expected);
    }
}
