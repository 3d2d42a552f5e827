//! `cove pause`, `resume`, `stop`, `extend`: each on one sandbox or several, one after the other.

use anyhow::Result;
use serde_json::Value;

use crate::client::{Client, ClientError, ConnectionArgs, Sandbox};
use crate::exec::env_pair;

/// Arguments of `cove pause` and `cove stop`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandboxes: ids, names, or unique beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

/// Arguments of `cove resume`.
#[derive(clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    which: Args,
    /// Laid over the sandbox's environment; may be repeated
    #[arg(long, short = 'e', value_name = "KEY=VALUE", value_parser = env_pair)]
    env: Vec<(String, String)>,
}

/// Arguments of `cove extend`.
#[derive(clap::Args)]
pub struct ExtendArgs {
    #[command(flatten)]
    which: Args,
    /// Seconds of the session from now on, 1-86400; as before when not given
    #[arg(long, short = 't', value_name = "SECONDS")]
    timeout: Option<u32>,
}

/// Runs `cove pause`.
pub async fn pause(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    each(&args, connection, async |client, id| client.pause(id).await).await
}

/// Runs `cove stop`.
pub async fn stop(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    each(&args, connection, async |client, id| client.stop(id).await).await
}

/// Runs `cove resume`.
pub async fn resume(args: ResumeArgs, connection: &ConnectionArgs) -> Result<u8> {
    let env: Value = args.env.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    each(&args.which, connection, async |client, id| client.resume(id, &env).await).await
}

/// Runs `cove extend`.
pub async fn extend(args: ExtendArgs, connection: &ConnectionArgs) -> Result<u8> {
    each(&args.which, connection, async |client, id| client.extend(id, args.timeout).await).await
}

/// Goes on after a failure, and then gives 1.
async fn each(
    args: &Args,
    connection: &ConnectionArgs,
    act: impl AsyncFn(&Client, &str) -> Result<Sandbox, ClientError>,
) -> Result<u8> {
    let client = Client::connect(connection)?;
    let mut failures = 0;
    for text in &args.sandboxes {
        let done = async {
            let sandbox = client.resolve(text).await?;
            act(&client, &sandbox.id).await
        };
        match done.await {
            Ok(sandbox) => println!("{}  {}", sandbox.id, sandbox.state),
            Err(error) => {
                failures += 1;
                eprintln!("cove: {text}: {:#}", anyhow::Error::from(error));
            }
        }
    }
    Ok(u8::from(failures > 0))
}
