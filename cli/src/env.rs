//! `cove env`: the environment of a sandbox's processes.

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::client::{Client, ConnectionArgs};
use crate::text::printable;

/// Arguments of `cove env`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox: its id, its name, or the unique beginning of its id
    sandbox: String,
    /// Variables to set, for processes that are started from then on
    #[arg(value_name = "NAME=VALUE", value_parser = variable)]
    set: Vec<(String, String)>,
    /// Take this variable away; may be repeated
    #[arg(long, value_name = "NAME")]
    unset: Vec<String>,
}

/// Runs `cove env`: changes what it is told to, and prints what there is.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let id = client.resolve(&args.sandbox).await?.id;
    for name in &args.unset {
        client.unset_env(&id, name).await?;
    }
    if !args.set.is_empty() {
        client.set_env(&id, &args.set).await?;
    }
    let listed = client.sandbox_value(&id, "env", &[]).await?;
    let mut out = io::stdout().lock();
    for variable in listed.as_array().context("The server's answer about the environment is no list")? {
        let text = |name: &str| printable(variable[name].as_str().unwrap_or_default());
        writeln!(out, "{}={}", text("key"), text("value")).context("Cannot print the environment")?;
    }
    Ok(0)
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_anything() {
        assert_eq!(variable("A=b=c ").unwrap(), ("A".to_owned(), "b=c ".to_owned()));
        assert_eq!(variable("A=").unwrap().1, "");
        assert!(variable("A").is_err() && variable("=b").is_err());
    }
}
