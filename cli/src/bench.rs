//! `cove bench`: figures of a running server, by the same road that every client takes.
//!
//! Each operation is measured from the request to its whole answer, by workers that each do one after the other. The
//! template is made warm first, and each worker warms up; neither is measured. What the bench made has a tag of its own
//! and is destroyed on every way out.
//!
//! What of it is the *host's* share: the machine's own counters say how long its vCPU ran the guest (processor time of
//! the vCPU's thread without its handling of exits); the rest is API, engine, vmm, and waiting. Time in `KVM_RUN` alone
//! would not tell: an idle guest waits inside it. `report` says for each operation what was taken from what.

mod figures;
mod op;
mod report;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::client::{Client, ClientError, ConnectionArgs, CreateRequest};
use crate::exec::Interrupts;
use op::Op;
use report::Report;
use worker::{Sample, Worker};

/// Most operations of one run.
const COUNT_MAX: u64 = 10_000;

/// Most workers.
const CONCURRENCY_MAX: u64 = 256;

/// Most MiB that a worker's sandbox is told to change.
const DIRTY_MIB_MAX: u32 = 16_384;

/// Arguments of `cove bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// From create to command-ready
    #[command(alias = "boot")]
    Create(Common),
    /// Create, wait and `echo 2` in one call (xs unless another machine is asked for)
    Run(Common),
    /// `true` in a running sandbox
    Exec(ExecArgs),
    /// From resume to command-ready, of a paused sandbox
    #[command(alias = "resume")]
    Restore(DirtyArgs),
    /// From fork to a command-ready child
    Fork(ForkArgs),
    /// A snapshot of a running sandbox
    Snapshot(DirtyArgs),
    /// Pause of a running sandbox
    Pause(DirtyArgs),
}

/// What every measurement has.
#[derive(Clone, clap::Args)]
struct Common {
    /// How many operations are measured
    #[arg(short = 'n', long = "n", default_value_t = 30, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    n: u64,
    /// How many are under way at a time
    #[arg(long, short = 'c', default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=CONCURRENCY_MAX))]
    concurrency: u64,
    /// The machines' size instead of 1 vCPU, 512 MiB, 4 GiB of disk: xs, small, medium, large or xl
    #[arg(long, value_name = "SIZE", value_parser = ["xs", "small", "medium", "large", "xl"])]
    size: Option<String>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, clap::Args)]
struct ExecArgs {
    #[command(flatten)]
    common: Common,
    /// Measure in this sandbox instead of fresh ones
    #[arg(long, value_name = "SANDBOX")]
    sandbox: Option<String>,
    /// Send `true` as a list of words, or as a shell line as the SDK does
    #[arg(long, value_enum, default_value_t = Form::Shell)]
    form: Form,
}

#[derive(Clone, clap::Args)]
struct DirtyArgs {
    #[command(flatten)]
    common: Common,
    /// Change this many MiB of the sandbox's memory before each operation
    #[arg(long, default_value_t = 0, value_name = "MIB", value_parser = clap::value_parser!(u32).range(0..=i64::from(DIRTY_MIB_MAX)))]
    dirty: u32,
}

#[derive(Clone, clap::Args)]
struct ForkArgs {
    #[command(flatten)]
    dirty: DirtyArgs,
    /// Fork the running sandbox itself, instead of a snapshot of it
    #[arg(long)]
    live: bool,
}

/// How a command is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A list of words.
    Argv,
    /// A line for the shell.
    Shell,
}

impl What {
    fn into_plan(self) -> (Op, Common) {
        match self {
            What::Create(common) => (Op::Create, common),
            What::Run(common) => (Op::Run, common),
            What::Exec(args) => (Op::Exec { form: args.form, sandbox: args.sandbox }, args.common),
            What::Restore(args) => (Op::Restore { dirty_mib: args.dirty }, args.common),
            What::Fork(args) => (Op::Fork { live: args.live, dirty_mib: args.dirty.dirty }, args.dirty.common),
            What::Snapshot(args) => (Op::Snapshot { dirty_mib: args.dirty }, args.common),
            What::Pause(args) => (Op::Pause { dirty_mib: args.dirty }, args.common),
        }
    }
}

/// What is measured, and with what.
struct Plan {
    op: Op,
    n: u64,
    concurrency: u64,
    machine: CreateRequest,
    tag: String,
}

/// Runs `cove bench`. Gives 1 when nothing succeeded.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let (mut op, common) = args.what.into_plan();
    if let Op::Exec { sandbox: Some(text), .. } = &mut op {
        *text = client.resolve(text).await?.id;
    }
    let tag = tag();
    let machine = machine(&op, common.size.as_deref(), &tag);
    let plan = Arc::new(Plan { op, n: common.n, concurrency: common.concurrency.min(common.n), machine, tag });
    let measured = interruptible(measure(&client, &plan)).await;
    let cleaned = clean_up(&client, &plan.tag).await.context("What the bench made cannot be destroyed");
    let report = measured?;
    cleaned?;
    report.print(common.json)?;
    Ok(u8::from(report.successes() == 0))
}

/// A tag that nobody else has.
fn tag() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("cove-bench-{}-{}", std::process::id(), since.as_micros())
}

fn machine(op: &Op, size: Option<&str>, tag: &str) -> CreateRequest {
    let size = size.or_else(|| matches!(op, Op::Run).then_some("xs")).map(str::to_owned);
    let small = |figure| size.is_none().then_some(figure);
    CreateRequest {
        cpu_count: small(1),
        memory_mb: small(512),
        disk_size_mb: small(4096),
        persistent: Some(op.needs_persistence()),
        timeout_sec: Some(3600),
        tags: vec![tag.to_owned()],
        size,
        ..CreateRequest::default()
    }
}

async fn measure(client: &Client, plan: &Arc<Plan>) -> Result<Report> {
    let host = client.system().await?["host"].clone();
    warm(client, plan).await?;
    let mut workers = Vec::new();
    for _ in 0..plan.concurrency {
        workers.push(Worker::ready(client.clone(), Arc::clone(plan)).await?);
    }
    let taken = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let (taken, n) = (Arc::clone(&taken), plan.n);
        tasks.spawn(async move {
            let mut outcomes: Vec<Result<Sample, ClientError>> = Vec::new();
            while taken.fetch_add(1, Ordering::Relaxed) < n {
                outcomes.push(worker.round().await);
            }
            outcomes
        });
    }
    let mut outcomes = Vec::new();
    while let Some(done) = tasks.join_next().await {
        outcomes.append(&mut done.context("A worker of the bench broke")?);
    }
    Ok(Report::of(plan, host, began.elapsed(), outcomes))
}

/// Removes all sandboxes of this bench and their snapshots, however far it came.
async fn clean_up(client: &Client, tag: &str) -> Result<()> {
    for sandbox in client.list_values(&[("tags", tag)]).await? {
        if let Some(id) = sandbox["id"].as_str() {
            client.delete_history(id).await?;
        }
    }
    let left = client.destroy_tagged(tag).await?;
    match left["failed"].as_array() {
        Some(failed) if !failed.is_empty() => bail!("These are left: {}", left["failed"]),
        _ => Ok(()),
    }
}

/// Makes the template's machine for this shape, so that what is measured is the usual case.
async fn warm(client: &Client, plan: &Plan) -> Result<()> {
    if matches!(&plan.op, Op::Exec { sandbox: Some(_), .. }) {
        return Ok(());
    }
    let shape = json!({
        "size": plan.machine.size, "cpu_count": plan.machine.cpu_count, "memory_mb": plan.machine.memory_mb,
        "disk_size_mb": plan.machine.disk_size_mb,
    });
    let template = client.default_template().await?;
    client.warm_template(&template, &shape).await.context("The template cannot be made warm")
}

/// `work`, or an error when an interrupt comes first.
async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupts = Interrupts::new()?;
    tokio::select! {
        result = work => result,
        _ = interrupts.next() => bail!("Interrupted"),
    }
}
