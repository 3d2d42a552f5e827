//! `cove demo`: the main job once, from outside to inside and back: a sandbox, a Python program written into it as a
//! file over the API, the program run there, its output and exit code, and how long each step took.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::{Client, ConnectionArgs, CreateRequest};
use crate::exec::Interrupts;
use crate::run::ready;

/// Where the program is written.
const PROGRAM_PATH: &str = "/workspace/hello.py";

/// The program: it says where it runs and computes something, so that its output cannot come from anywhere else.
const PROGRAM: &str = r#"import os, platform, sys

with open("/etc/os-release") as release:
    system = next(line for line in release if line.startswith("PRETTY_NAME=")).split('"')[1]
print(f"Hello from {platform.node()}: {system}, Linux {platform.release()}, Python {platform.python_version()}")
print(f"The first 10 squares: {', '.join(str(n * n) for n in range(10))}")
sys.exit(0 if os.getcwd() == "/workspace" else 1)
"#;

/// Arguments of `cove demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Keep the sandbox afterwards
    #[arg(long)]
    keep: bool,
}

/// Runs `cove demo` and gives the program's exit code.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let mut interrupts = Interrupts::new()?;
    let began = Instant::now();
    let wanted = CreateRequest {
        cpu_count: Some(1),
        memory_mb: Some(512),
        disk_size_mb: Some(4096),
        persistent: (!args.keep).then_some(false),
        ..CreateRequest::default()
    };
    let id = client.create(&wanted).await?.id;
    println!("Sandbox {id} is being made");
    let outcome = tokio::select! {
        outcome = main_job(&client, &id, began) => outcome,
        code = interrupts.next() => Ok(code),
    };
    if !args.keep {
        let began = Instant::now();
        client.destroy(&id).await.with_context(|| format!("Sandbox {id} is left behind"))?;
        report("destroyed in", began.elapsed());
    }
    outcome
}

async fn main_job(client: &Client, id: &str, began: Instant) -> Result<u8> {
    let sandbox = ready(client, id).await?;
    report("ready after", began.elapsed());
    if let Some(boot_ms) = sandbox.boot_ms {
        report("of it boot", Duration::from_millis(boot_ms));
    }
    let began = Instant::now();
    client.upload(id, PROGRAM_PATH, 0o644, PROGRAM.into()).await?;
    report(&format!("{PROGRAM_PATH} written in"), began.elapsed());

    let began = Instant::now();
    let result = client.exec_value(id, &serde_json::json!({ "command": ["python3", PROGRAM_PATH] })).await?;
    let took = began.elapsed();
    let text = |name| result.get(name).and_then(Value::as_str).unwrap_or_default();
    println!("--- python3 {PROGRAM_PATH}");
    print!("{}", text("stdout"));
    eprint!("{}", text("stderr"));
    io::stdout().flush().context("Cannot print the program's output")?;
    let code = result.get("exit_code").and_then(Value::as_i64).context("The program's result has no exit code")?;
    println!("--- exit code {code}");
    report("run in", took);
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn report(what: &str, took: Duration) {
    println!("{what:<34} {:>8.0} ms", took.as_secs_f64() * 1000.0);
}
