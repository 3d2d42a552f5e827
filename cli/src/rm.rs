//! `cove rm`: destroys sandboxes, with all that is in them.

use anyhow::{Result, bail};

use crate::client::{Client, ConnectionArgs, Sandbox, find};

/// Arguments of `cove rm`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandboxes: ids, names, or unique beginnings of ids
    #[arg(required_unless_present = "all", value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// All sandboxes; needs --yes
    #[arg(long, conflicts_with = "sandboxes")]
    all: bool,
    /// Yes, destroy all of them
    #[arg(long, short = 'y')]
    yes: bool,
    /// Do not complain about a sandbox that is not there
    #[arg(long, short = 'f')]
    force: bool,
}

/// Runs `cove rm`. Goes on after a failure, and then gives 1.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let live = client.list().await?;
    let (chosen, mut failures) = if args.all {
        if !args.yes && !live.is_empty() {
            bail!("This would destroy {} sandboxes with all their files; say so with --yes", live.len());
        }
        (live.iter().collect(), 0)
    } else {
        choose(&live, &args)
    };
    for sandbox in chosen {
        match client.destroy(&sandbox.id).await {
            Ok(()) => println!("{}", sandbox.id),
            Err(error) => {
                failures += 1;
                eprintln!("cove: {}: {:#}", sandbox.id, anyhow::Error::from(error));
            }
        }
    }
    Ok(u8::from(failures > 0))
}

/// The sandboxes that were named, each once, and how many names fit none.
fn choose<'a>(live: &'a [Sandbox], args: &Args) -> (Vec<&'a Sandbox>, usize) {
    let mut chosen: Vec<&Sandbox> = Vec::new();
    let mut failures = 0;
    for text in &args.sandboxes {
        match find(live, text) {
            Ok(sandbox) if chosen.iter().any(|known| known.id == sandbox.id) => {}
            Ok(sandbox) => chosen.push(sandbox),
            Err(crate::client::ClientError::NoSuchSandbox(_)) if args.force => {}
            Err(error) => {
                failures += 1;
                eprintln!("cove: {error}");
            }
        }
    }
    (chosen, failures)
}
