//! `cove expose`, `previews`, `unexpose`, `ports`: ports of sandboxes as URLs on this computer.

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;

use crate::client::{Client, ConnectionArgs, Preview};
use crate::text::{printable, table};

/// How long the link to a private preview works when nothing else is said.
const SHARE_SECONDS_DEFAULT: u32 = 86_400;

/// Arguments of `cove expose`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox: id, name, or unique beginning of an id
    sandbox: String,
    /// The port in the sandbox
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Who may use it: every process and page of this computer, or who has the link that is printed
    #[arg(long, value_enum)]
    visibility: Option<Visibility>,
    /// Take it away after this many seconds
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// Print the URL by name, which browsers know, instead of that by address, which everything knows
    #[arg(long)]
    alias: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Visibility {
    Public,
    Private,
}

impl Visibility {
    fn word(self) -> &'static str {
        match self {
            Visibility::Public => "public",
            Visibility::Private => "private",
        }
    }
}

/// Arguments of `cove previews` and `cove ports`.
#[derive(clap::Args)]
pub struct OneArgs {
    /// The sandbox: id, name, or unique beginning of an id
    sandbox: String,
}

/// Arguments of `cove unexpose`.
#[derive(clap::Args)]
pub struct UnexposeArgs {
    /// The sandbox: id, name, or unique beginning of an id
    sandbox: String,
    /// The ports in the sandbox
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<u16>,
}

/// Runs `cove expose`: prints the URL and nothing else.
pub async fn expose(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    let mut body = json!({ "port": args.port });
    if let Some(visibility) = args.visibility {
        body["visibility"] = visibility.word().into();
    }
    if let Some(seconds) = args.ttl {
        body["ttl_seconds"] = seconds.into();
    }
    if let Some(name) = &args.name {
        body["name"] = name.as_str().into();
    }
    let preview = client.create_preview(&sandbox.id, &body).await?;
    if args.alias {
        match &preview.alias_url {
            Some(url) => println!("{url}"),
            None => bail!("This server has no port for aliases; the URL is {}", preview.url),
        }
    } else if preview.visibility == "private" {
        let seconds = args.ttl.unwrap_or(SHARE_SECONDS_DEFAULT);
        println!("{}", client.share_preview(&sandbox.id, &preview.id, seconds).await?);
    } else {
        println!("{}", preview.url);
    }
    Ok(0)
}

/// Runs `cove previews`.
pub async fn previews(args: OneArgs, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    let header = ["ID", "PORT", "URL", "VISIBILITY", "STATE", "EXPIRES", "NAME"].map(str::to_owned);
    let rows = client.previews(&sandbox.id).await?.into_iter().map(row);
    print!("{}", table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
    Ok(0)
}

fn row(preview: Preview) -> [String; 7] {
    [
        preview.id,
        preview.port.to_string(),
        preview.url,
        preview.visibility,
        preview.state,
        preview.expires_at.unwrap_or_else(|| "-".to_owned()),
        preview.name.map_or_else(String::new, |name| printable(&name)),
    ]
}

/// Runs `cove unexpose`.
pub async fn unexpose(args: UnexposeArgs, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    let previews = client.previews(&sandbox.id).await?;
    for port in &args.ports {
        match previews.iter().find(|preview| preview.port == *port) {
            Some(preview) => client.delete_preview(&sandbox.id, &preview.id).await?,
            None => bail!("Port {port} of {} is not exposed", sandbox.id),
        }
    }
    Ok(0)
}

/// Runs `cove ports`.
pub async fn ports(args: OneArgs, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    let header = ["PORT", "ADDRESS", "PID", "URL", "COMMAND"].map(str::to_owned);
    let rows = client.listeners(&sandbox.id).await?.into_iter().map(|listener| {
        [
            listener.port.to_string(),
            listener.address,
            listener.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            listener.url.unwrap_or_else(|| "-".to_owned()),
            listener.command.map_or_else(String::new, |command| printable(&command)),
        ]
    });
    print!("{}", table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
    Ok(0)
}
