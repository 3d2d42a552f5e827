//! `cove bench`: figures of a running server, by the same road that every client takes.
//!
//! `exec` runs `true` over and over in one machine of one vCPU and asks the machine's own counters before and after each
//! call. Of the call's time, the guest's share is the processor time of the vCPU's thread without its handling of exits;
//! the rest is the host's: API, engine, vmm, and the guest's waiting for them. Time in `KVM_RUN` alone would not tell: an
//! idle guest waits inside it. `boot` makes sandboxes and destroys them.

mod figures;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Client, ConnectionArgs, CreateRequest};
use crate::exec::Interrupts;
use crate::run::ready;
use figures::{Figures, milliseconds};

/// Calls before the measured ones: caches fill, lazy pages come in.
const WARM_UP_CALLS: usize = 3;

/// Most calls or boots of one run.
const COUNT_MAX: u64 = 10_000;

/// Arguments of `cove bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// `true` in a sandbox, through the API
    Exec(ExecArgs),
    /// From create to command-ready
    Boot(BootArgs),
}

#[derive(clap::Args)]
struct ExecArgs {
    /// How many calls are measured
    #[arg(long, short = 'n', default_value_t = 30, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    n: u64,
    /// Measure in this sandbox instead of a fresh one
    #[arg(long, value_name = "SANDBOX")]
    sandbox: Option<String>,
    /// Send `true` as a list of words, or as a shell line as the SDK does
    #[arg(long, value_enum, default_value_t = Form::Shell)]
    form: Form,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct BootArgs {
    /// How many sandboxes are made, one after the other
    #[arg(long, short = 'n', default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    n: u64,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    Argv,
    Shell,
}

/// Runs `cove bench`. What it made is destroyed on every way out.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    match args.what {
        What::Exec(args) => exec(&client, &args).await,
        What::Boot(args) => boot(&client, &args).await,
    }
}

/// What one call cost.
struct Call {
    wall: Duration,
    /// From the command's start to its end, by the guest's clock.
    command: Duration,
    /// Of `wall`, what the vCPU was not running the guest.
    host: Duration,
    /// Of `host`, the vmm's handling of exits.
    exits: Duration,
}

async fn exec(client: &Client, args: &ExecArgs) -> Result<u8> {
    let (id, own) = match &args.sandbox {
        Some(text) => (client.resolve(text).await?.id, false),
        None => (make(client).await?, true),
    };
    let measured = interruptible(measure_exec(client, &id, args)).await;
    if own {
        client.destroy(&id).await?;
    }
    let calls = measured?;
    let column = |of: fn(&Call) -> Duration| Figures::of(calls.iter().map(of));
    let (wall, command, host, exits) =
        (column(|call| call.wall), column(|call| call.command), column(|call| call.host), column(|call| call.exits));
    if args.json {
        return print_json(&json!({
            "bench": "exec", "command": "true", "form": args.form, "n": args.n, "sandbox_id": id,
            "p50_ms": wall.p50_ms, "p95_ms": wall.p95_ms, "min_ms": wall.min_ms, "max_ms": wall.max_ms,
            "guest_command_ms": command, "host_outside_kvm_run_ms": host, "vmm_exit_handling_ms": exits,
        }));
    }
    let rows = [
        ("wall", wall),
        ("command, by the guest's clock", command),
        ("host, outside the guest", host),
        ("  of it exits", exits),
    ];
    print_table(&format!("exec true ({} calls)", args.n), &rows)
}

async fn measure_exec(client: &Client, id: &str, args: &ExecArgs) -> Result<Vec<Call>> {
    let command = match args.form {
        Form::Argv => json!(["true"]),
        Form::Shell => json!("true"),
    };
    let mut calls = Vec::new();
    for round in 0..WARM_UP_CALLS + args.n as usize {
        let before = counters(client, id).await?;
        let began = Instant::now();
        let result = client.exec_value(id, &json!({ "command": command })).await?;
        let wall = began.elapsed();
        let after = counters(client, id).await?;
        if result.get("exit_code") != Some(&Value::from(0)) {
            bail!("`true` did not end with 0: {result}");
        }
        if round >= WARM_UP_CALLS {
            let command = result.get("duration_ms").and_then(Value::as_u64).unwrap_or_default();
            calls.push(Call {
                wall,
                command: Duration::from_millis(command),
                host: wall.saturating_sub(after.guest().saturating_sub(before.guest())),
                exits: after.exits.saturating_sub(before.exits),
            });
        }
    }
    Ok(calls)
}

/// The machine's own counters, of the vCPU that ran most.
struct Counters {
    cpu: Duration,
    exits: Duration,
}

impl Counters {
    /// Time in which the guest ran.
    fn guest(&self) -> Duration {
        self.cpu.saturating_sub(self.exits)
    }
}

async fn counters(client: &Client, id: &str) -> Result<Counters> {
    let stats = client.sandbox_value(id, "stats", &[]).await?;
    let vcpus = stats.get("vcpus").and_then(Value::as_array).context("The machine's figures tell nothing of vCPUs")?;
    let micros =
        |vcpu: &Value, name: &str| Duration::from_micros(vcpu.get(name).and_then(Value::as_u64).unwrap_or_default());
    let busiest = vcpus.iter().max_by_key(|vcpu| micros(vcpu, "cpu_us")).context("The machine has no vCPU")?;
    Ok(Counters { cpu: micros(busiest, "cpu_us"), exits: micros(busiest, "exit_us") })
}

async fn boot(client: &Client, args: &BootArgs) -> Result<u8> {
    let (wall, boot) = interruptible(measure_boot(client, args.n)).await?;
    if args.json {
        return print_json(&json!({
            "bench": "boot", "n": args.n, "create_to_ready_ms": wall, "boot_ms": boot,
        }));
    }
    print_table(&format!("boot ({} sandboxes)", args.n), &[("create to ready", wall), ("boot_ms of the record", boot)])
}

async fn measure_boot(client: &Client, n: u64) -> Result<(Figures, Figures)> {
    let (mut walls, mut boots) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let began = Instant::now();
        let id = make(client).await?;
        walls.push(began.elapsed());
        let record = client.get(&id).await;
        client.destroy(&id).await?;
        boots.push(Duration::from_millis(record?.boot_ms.context("The record has no boot_ms")?));
    }
    Ok((Figures::of(walls), Figures::of(boots)))
}

/// A small machine of one vCPU, command-ready; destroyed when it does not get there.
async fn make(client: &Client) -> Result<String> {
    let wanted = CreateRequest {
        cpu_count: Some(1),
        memory_mb: Some(512),
        disk_size_mb: Some(4096),
        persistent: Some(false),
        timeout_sec: Some(3600),
        ..CreateRequest::default()
    };
    let id = client.create(&wanted).await?.id;
    match interruptible(ready(client, &id)).await {
        Ok(_) => Ok(id),
        Err(error) => {
            client.destroy(&id).await?;
            Err(error)
        }
    }
}

/// `work`, or an error when an interrupt comes first.
async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupts = Interrupts::new()?;
    tokio::select! {
        result = work => result,
        _ = interrupts.next() => bail!("Interrupted"),
    }
}

fn print_json(figures: &Value) -> Result<u8> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, figures).context("Cannot print the figures")?;
    writeln!(out).context("Cannot print the figures")?;
    Ok(0)
}

fn print_table(title: &str, rows: &[(&str, Figures)]) -> Result<u8> {
    let mut text = format!("{title:<32} {:>9} {:>9} {:>9} {:>9}\n", "p50", "p95", "min", "max");
    for (name, figures) in rows {
        let Figures { p50_ms, p95_ms, min_ms, max_ms } = figures;
        let cells = [p50_ms, p95_ms, min_ms, max_ms].map(|value| format!("{:>9}", milliseconds(*value)));
        text.push_str(&format!("{name:<32} {}\n", cells.join(" ")));
    }
    io::stdout().lock().write_all(text.as_bytes()).context("Cannot print the figures")?;
    Ok(0)
}
