//! `cove restore`: puts a sandbox back to where a snapshot was, disk and memory.

use anyhow::Result;

use crate::client::{Client, ConnectionArgs};

/// Arguments of `cove restore`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox: its id, its name, or the unique beginning of its id. What runs in it ends
    sandbox: String,
    /// The snapshot: its id, its name, or the unique beginning of its id
    snapshot: String,
}

/// Runs `cove restore`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    let snapshot = client.resolve_snapshot(&args.snapshot).await?;
    let sandbox = client.restore(&sandbox.id, &snapshot.id).await?;
    println!("{}  {}", sandbox.id, sandbox.state);
    Ok(0)
}
