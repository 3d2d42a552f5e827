//! `cove events`: what happens to sandboxes, as it happens.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::{Client, ConnectionArgs, Event};
use crate::text::printable;

/// What stands in a column of its own, or is the same for all.
const SHOWN_ELSEWHERE: [&str; 2] = ["id", "tenant_id"];

/// Arguments of `cove events`.
#[derive(clap::Args)]
pub struct Args {
    /// Only of this sandbox: its id, its name, or the unique beginning of its id
    sandbox: Option<String>,
    /// Only these kinds, with commas between them; * stands for anything, as in `sandbox.exec.*`
    #[arg(long, value_name = "KINDS")]
    types: Option<String>,
    /// Print each event as one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs `cove events` until it is interrupted, or the sandbox is destroyed.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = match &args.sandbox {
        Some(text) => Some(client.resolve(text).await?.id),
        None => None,
    };
    let mut events = client.events(sandbox.as_deref(), args.types.as_deref()).await?;
    while let Some((_, value)) = events.next().await? {
        let line = if args.json { value.to_string() } else { line(value)? };
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).context("Cannot print an event")?;
    }
    Ok(0)
}

fn line(value: Value) -> Result<String> {
    let event: Event = serde_json::from_value(value).context("An event is not understood")?;
    let time = event.ts.get(11..23).unwrap_or("            ");
    let more: Vec<String> = event
        .more
        .iter()
        .filter(|(name, value)| !SHOWN_ELSEWHERE.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{name}={}", printable(&value.replace('\n', "\\n")))
        })
        .collect();
    Ok(format!("{time}  {}  {}  {}", event.sandbox_id, event.kind, more.join(" ")).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = json!({
            "type": "sandbox.exec.started", "id": "01", "tenant_id": "local", "ts": "2026-01-02T03:04:05.678901Z",
            "sandbox_id": "sbx_1", "exec_id": "exec_3", "command": "echo \u{1b}[31m\nls", "exit_code": null
        });
        assert_eq!(
            line(event).unwrap(),
            "03:04:05.678  sbx_1  sandbox.exec.started  command=echo \u{fffd}[31m\\nls exec_id=exec_3"
        );
        assert_eq!(line(json!({"type": "gap", "reason": "too_slow"})).unwrap().trim(), "gap  reason=too_slow");
    }
}
