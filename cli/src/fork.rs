//! `cove fork`: new sandboxes that go on from a sandbox as it is now, or from a snapshot.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::client::{Client, ConnectionArgs, ForkRequest};
use crate::exec::env_pair;

/// Arguments of `cove fork`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox or snapshot: its id, its name, or the unique beginning of its id
    source: String,
    /// A name for the new sandbox
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Laid over the source's environment; may be repeated
    #[arg(long, short = 'e', value_name = "KEY=VALUE", value_parser = env_pair)]
    env: Vec<(String, String)>,
    /// Seconds until its session ends
    #[arg(long, short = 't', value_name = "SECONDS")]
    timeout: Option<u32>,
    /// How many sandboxes to make; a name gets a number then
    #[arg(long, short = 'n', default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    n: u32,
}

/// Runs `cove fork`: prints the ids as they come.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let source = client.resolve_source(&args.source).await?;
    let env: BTreeMap<String, String> = args.env.into_iter().collect();
    for number in 1..=args.n {
        let name = args.name.as_ref().map(|name| if args.n == 1 { name.clone() } else { format!("{name}-{number}") });
        let request = ForkRequest { name, env: env.clone(), timeout_sec: args.timeout, ..ForkRequest::default() };
        let child = client.fork(&source, &request).await?;
        if child.state != "running" {
            bail!("Fork {} is {}: {}", child.id, child.state, child.last_error().unwrap_or("no reason is recorded"));
        }
        println!("{}", child.id);
    }
    Ok(0)
}
