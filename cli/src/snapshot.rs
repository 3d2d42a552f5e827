//! `cove snapshot`: take, list, delete and name snapshots. `cove restore` and `cove fork` use them; `cove tree` draws them.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::client::{Client, ConnectionArgs, Snapshot};
use crate::text::{age, bytes, printable, table};

/// Arguments of `cove snapshot`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Take a snapshot of a running or paused sandbox, and print its id
    Create(CreateArgs),
    /// List snapshots, newest first
    Ls(LsArgs),
    /// Delete snapshots; what came from them lives on
    Rm(RmArgs),
    /// Give a snapshot a name, which keeps it; or take the name away
    Name(NameArgs),
}

#[derive(clap::Args)]
struct CreateArgs {
    /// The sandbox: its id, its name, or the unique beginning of its id
    sandbox: String,
    /// A name that keeps it, unique among snapshots
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A note for people
    #[arg(long, short = 'm', value_name = "TEXT")]
    comment: Option<String>,
    /// Delete it by itself after this many seconds; 0 is never
    #[arg(long, value_name = "SECONDS")]
    expire: Option<u64>,
}

#[derive(clap::Args)]
struct LsArgs {
    /// Only those of this sandbox, which may be gone
    sandbox: Option<String>,
    /// Print ids alone
    #[arg(long, short = 'q', conflicts_with = "json")]
    quiet: bool,
    /// Print the records as a JSON list
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RmArgs {
    /// The snapshots: ids, names, or unique beginnings of ids
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Also those that a name keeps
    #[arg(long, short = 'f')]
    force: bool,
}

#[derive(clap::Args)]
struct NameArgs {
    /// The snapshot: its id, its name, or the unique beginning of its id
    snapshot: String,
    /// The new name
    #[arg(required_unless_present = "remove")]
    name: Option<String>,
    /// Take the name away
    #[arg(long, conflicts_with = "name")]
    remove: bool,
}

/// Runs `cove snapshot`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    match args.what {
        What::Create(args) => create(&client, args).await,
        What::Ls(args) => ls(&client, &args).await,
        What::Rm(args) => rm(&client, &args).await,
        What::Name(args) => name(&client, args).await,
    }
}

async fn create(client: &Client, args: CreateArgs) -> Result<u8> {
    let sandbox = client.resolve(&args.sandbox).await?;
    let fields = [
        ("name", args.name.map(Value::from)),
        ("comment", args.comment.map(Value::from)),
        ("expiration_sec", args.expire.map(Value::from)),
    ];
    let body: Map<String, Value> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    println!("{}", client.snapshot(&sandbox.id, &Value::Object(body)).await?.id);
    Ok(0)
}

async fn ls(client: &Client, args: &LsArgs) -> Result<u8> {
    let sandbox = match &args.sandbox {
        Some(text) => Some(sandbox_id(client, text).await?),
        None => None,
    };
    let records = client.snapshots(sandbox.as_deref()).await?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &records).context("Cannot print the list")?;
        writeln!(out).context("Cannot print the list")?;
        return Ok(0);
    }
    let snapshots: Vec<Snapshot> = records
        .into_iter()
        .map(|record| serde_json::from_value(record).context("A snapshot record is not understood"))
        .collect::<Result<_>>()?;
    let text = if args.quiet {
        snapshots.iter().map(|snapshot| format!("{}\n", snapshot.id)).collect()
    } else {
        listing(&snapshots, OffsetDateTime::now_utc())
    };
    out.write_all(text.as_bytes()).context("Cannot print the list")?;
    Ok(0)
}

/// A destroyed sandbox has snapshots too, also when its record is forgotten.
async fn sandbox_id(client: &Client, text: &str) -> Result<String> {
    match client.resolve(text).await {
        Ok(sandbox) => Ok(sandbox.id),
        Err(_) if text.starts_with("sbx_") => Ok(text.to_owned()),
        Err(error) => Err(error.into()),
    }
}

fn listing(snapshots: &[Snapshot], now: OffsetDateTime) -> String {
    let header = ["ID", "NAME", "SANDBOX", "MEMORY", "OWN", "SHARED", "AGE", "COMMENT"].map(str::to_owned);
    let row = |snapshot: &Snapshot| {
        [
            snapshot.id.clone(),
            snapshot.name.as_deref().map_or_else(|| "-".to_owned(), printable),
            snapshot.sandbox_name.as_deref().map_or_else(|| snapshot.sandbox_id.clone(), printable),
            if snapshot.has_memory { "yes" } else { "no" }.to_owned(),
            bytes(snapshot.exclusive_bytes),
            bytes(snapshot.shared_bytes),
            age(&snapshot.created_at, now),
            snapshot.comment.as_deref().map_or_else(String::new, printable),
        ]
    };
    table(&std::iter::once(header).chain(snapshots.iter().map(row)).collect::<Vec<_>>())
}

/// Goes on after a failure, and then gives 1.
async fn rm(client: &Client, args: &RmArgs) -> Result<u8> {
    let mut failures = 0;
    for text in &args.snapshots {
        let done = async {
            let snapshot = client.resolve_snapshot(text).await?;
            if args.force && snapshot.name.is_some() {
                client.update_snapshot(&snapshot.id, &json!({ "name": null })).await?;
            }
            client.delete_snapshot(&snapshot.id).await?;
            Ok::<_, crate::client::ClientError>(snapshot.id)
        };
        match done.await {
            Ok(id) => println!("{id}"),
            Err(error) => {
                failures += 1;
                eprintln!("cove: {text}: {:#}", anyhow::Error::from(error));
            }
        }
    }
    Ok(u8::from(failures > 0))
}

async fn name(client: &Client, args: NameArgs) -> Result<u8> {
    let snapshot = client.resolve_snapshot(&args.snapshot).await?;
    let snapshot = client.update_snapshot(&snapshot.id, &json!({ "name": args.name })).await?;
    println!("{}  {}", snapshot.id, snapshot.name.as_deref().map_or_else(|| "-".to_owned(), printable));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests_of_snapshots::snapshot;

    #[test]
    fn a_row_tells_what_there_is() {
        let text = listing(&[snapshot("snap_1", Some("golden"), None)], OffsetDateTime::UNIX_EPOCH);
        let expected = "ID      NAME    SANDBOX  MEMORY  OWN      SHARED  AGE  COMMENT\n\
                        snap_1  golden  sbx_1    yes     1.0 MiB  0 B     0 s\n";
        assert_eq!(text, expected);
    }
}
