//! `cove run`: one command in a fresh sandbox, which is destroyed afterwards unless it is to be kept.
//!
//! The sandbox is destroyed on every way out of here, an interrupt included; only `kill -9` of this program leaves it to
//! its own time limit.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::{Client, ConnectionArgs, CreateRequest, Sandbox};
use crate::exec::{ExecOptions, Interrupts, env_pair, pass_through};

/// A machine that is not up by then never will be.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// The longest session there is: the command decides when it is over, and this is the net under a lost `cove run`.
const SESSION_SECONDS: u32 = 86400;

/// Arguments of `cove run`.
#[derive(clap::Args)]
pub struct Args {
    /// The template to start from
    #[arg(long, short = 't', value_name = "TEMPLATE")]
    template: Option<String>,
    /// xs, small, medium, large or xl
    #[arg(long, value_name = "SIZE", value_parser = ["xs", "small", "medium", "large", "xl"])]
    size: Option<String>,
    /// vCPUs, 1-16
    #[arg(long, value_name = "COUNT")]
    cpus: Option<u32>,
    /// Memory in MiB, 512-32768
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Disk in MiB, 1024-204800
    #[arg(long, value_name = "MIB")]
    disk: Option<u32>,
    /// A name for the sandbox
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Environment of every process in the sandbox; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = env_pair)]
    sandbox_env: Vec<(String, String)>,
    /// Keep the sandbox afterwards and print its id to standard error
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    options: ExecOptions,
}

/// Runs `cove run`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let request = args.options.request()?;
    let mut interrupts = Interrupts::new()?;
    let sandbox = client.create(&args.create_request()).await?;
    let outcome = tokio::select! {
        ready = ready(&client, &sandbox.id) => match ready {
            Ok(_) => pass_through(&client, &sandbox.id, &request, &mut interrupts).await,
            Err(error) => Err(error),
        },
        code = interrupts.next() => Ok(code),
    };
    if args.keep && outcome.is_ok() {
        eprintln!("cove: kept sandbox {}", sandbox.id);
        return outcome;
    }
    match (client.destroy(&sandbox.id).await, outcome) {
        (Ok(()), outcome) => outcome,
        (Err(left), Ok(code)) => {
            eprintln!("cove: sandbox {} could not be destroyed: {:#}", sandbox.id, anyhow::Error::from(left));
            Ok(code)
        }
        (Err(_), Err(error)) => Err(error.context(format!("Sandbox {} is left behind", sandbox.id))),
    }
}

impl Args {
    fn create_request(&self) -> CreateRequest {
        CreateRequest {
            template_id: self.template.clone(),
            size: self.size.clone(),
            cpu_count: self.cpus,
            memory_mb: self.memory,
            disk_size_mb: self.disk,
            name: self.name.clone(),
            env: self.sandbox_env.iter().cloned().collect(),
            persistent: (!self.keep).then_some(false),
            timeout_sec: Some(SESSION_SECONDS),
            tags: Vec::new(),
        }
    }
}

/// Waits until the sandbox runs commands.
pub async fn ready(client: &Client, id: &str) -> Result<Sandbox> {
    let sandbox = client.settled(id, BOOT_TIMEOUT).await?;
    match sandbox.state.as_str() {
        "running" => Ok(sandbox),
        "creating" => bail!("Sandbox {id} is not ready after {} s", BOOT_TIMEOUT.as_secs()),
        "error" => bail!("Sandbox {id} failed: {}", sandbox.last_error().unwrap_or("no reason is recorded")),
        state => bail!("Sandbox {id} is {state}"),
    }
}
