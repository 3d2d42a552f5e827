//! Leads a sandbox of size xs through its whole life on a real machine, and prints what each turn took.
//!
//! `COVE_VMM=... COVE_GUEST_DIR=... cargo run --release -p cove-engine --example life -- <folder> [<times>]`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cove_engine::protocol::guest::{Command, Exec};
use cove_engine::{
    Engine, EngineConfig, ExecEvent, ForkSource, ForkSpec, Sandbox, SandboxFilter, SandboxId, SandboxSpec,
    SandboxState, Size, SnapshotFilter, SnapshotSpec,
};
use futures_util::StreamExt;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Life {
    engine: Engine,
}

impl Life {
    async fn settled(&self, id: &SandboxId) -> Result<Sandbox> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
        let sandbox = self.engine.wait_settled(id, deadline).await?;
        match sandbox.state {
            SandboxState::Running => Ok(sandbox),
            _ => Err(format!("{sandbox:?}").into()),
        }
    }

    async fn create(&self) -> Result<Sandbox> {
        let spec = SandboxSpec { size: Some(Size::Xs), timeout_sec: Some(86_400), ..SandboxSpec::default() };
        self.settled(&self.engine.create(spec).await?.id).await
    }

    async fn fork(&self, source: ForkSource) -> Result<Sandbox> {
        self.settled(&self.engine.fork(&source, ForkSpec::default()).await?.id).await
    }

    async fn run(&self, id: &SandboxId, line: &str) -> Result<String> {
        let begun = Instant::now();
        let command = Command::Shell(line.into());
        let exec = Exec { command, cwd: None, env: vec![], user: None, stdin: false, timeout_ms: Some(120_000) };
        let mut execution = self.engine.exec(id, exec).await?;
        let mut output = Vec::new();
        while let Some(event) = execution.output.next().await {
            if let ExecEvent::Output { data, .. } = event? {
                output.extend(data);
            }
        }
        let output = String::from_utf8_lossy(&output).trim().to_owned();
        println!("{:>8.1} ms  exec {line:?}: {output:?}", begun.elapsed().as_secs_f64() * 1e3);
        Ok(output)
    }
}

fn took(what: &str, begun: Instant, sandbox: &Sandbox) {
    let path = sandbox.boot_path.map_or("-", |path| path.as_str());
    println!("{:>8.1} ms  {what}: {} {path}", begun.elapsed().as_secs_f64() * 1e3, sandbox.state);
}

async fn lead(life: &Life) -> Result<()> {
    let engine = &life.engine;
    let begun = Instant::now();
    let it = life.create().await?;
    took("create", begun, &it);
    life.run(&it.id, "echo 2").await?;
    life.run(&it.id, "mkdir -p /workspace && echo past > /workspace/file && cat /etc/machine-id").await?;
    life.run(&it.id, "(i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.2; done) >/dev/null 2>&1 &")
        .await?;

    let begun = Instant::now();
    let paused = engine.pause(&it.id).await?;
    took("pause", begun, &paused);
    let begun = Instant::now();
    let resumed = engine.resume(&it.id, BTreeMap::new()).await?;
    took("resume", begun, &resumed);
    life.run(&it.id, "cat /workspace/file /tmp/count; date +%s.%N").await?;

    let begun = Instant::now();
    let snapshot = engine.snapshot(&it.id, SnapshotSpec::default()).await?;
    println!("{:>8.1} ms  snapshot: {snapshot:?}", begun.elapsed().as_secs_f64() * 1e3);
    life.run(&it.id, "echo later > /workspace/file; cat /tmp/count").await?;

    let begun = Instant::now();
    let child = life.fork(ForkSource::Sandbox(it.id.clone())).await?;
    took("fork of the running one", begun, &child);
    life.run(&child.id, "cat /workspace/file /tmp/count /etc/machine-id /proc/sys/kernel/random/uuid").await?;
    life.run(&it.id, "cat /workspace/file /tmp/count /proc/sys/kernel/random/uuid").await?;

    let begun = Instant::now();
    let other = life.fork(ForkSource::Snapshot(snapshot.id.clone())).await?;
    took("fork of the snapshot", begun, &other);
    life.run(&other.id, "cat /workspace/file /tmp/count").await?;

    let begun = Instant::now();
    let back = engine.restore(&it.id, &snapshot.id).await?;
    took("restore in place", begun, &back);
    life.run(&it.id, "cat /workspace/file /tmp/count").await?;
    for sandbox in [&it, &child, &other] {
        let begun = Instant::now();
        took("destroy", begun, &engine.destroy(&sandbox.id).await?);
    }
    engine.delete_snapshot(&snapshot.id).await?;
    Ok(())
}

/// Pauses and resumes one sandbox over and over, with a command in between, and prints what the processes hold at the end.
/// With `snapshots` one is taken each time too, and at the end the sandbox is restored to some of them.
async fn cycles(life: &Life, times: usize, snapshots: bool) -> Result<()> {
    let mut taken = Vec::new();
    let it = life.create().await?;
    let (mut paused, mut resumed) = (Vec::new(), Vec::new());
    println!("before: {}", held());
    for turn in 0..times {
        let begun = Instant::now();
        life.engine.pause(&it.id).await?;
        paused.push(begun.elapsed());
        let begun = Instant::now();
        life.engine.resume(&it.id, BTreeMap::new()).await?;
        resumed.push(begun.elapsed());
        let said =
            life.run(&it.id, &format!("echo {turn} >> /tmp/turns; tail -n 1 /tmp/turns; wc -l < /tmp/turns")).await?;
        if said != format!("{turn}\n{}", turn + 1) {
            return Err(format!("turn {turn}: {said:?}").into());
        }
        if snapshots {
            let snapshot = life.engine.snapshot(&it.id, SnapshotSpec::default()).await?;
            println!("{:>8.1} ms  stood still for a snapshot", snapshot.paused_us.unwrap_or(0) as f64 / 1e3);
            taken.push((turn, snapshot.id));
        }
    }
    for (turn, snapshot) in taken.iter().step_by(3) {
        life.engine.restore(&it.id, snapshot).await?;
        let said = life.run(&it.id, "wc -l < /tmp/turns").await?;
        if said != (turn + 1).to_string() {
            return Err(format!("restored to turn {turn}: {said:?}").into());
        }
    }
    println!("after: {}", held());
    for (what, mut all) in [("pause", paused), ("resume", resumed)] {
        all.sort();
        let at = |part: usize| all[(all.len() - 1) * part / 100];
        println!("{what}: p50 {:?}, p95 {:?}, p99 {:?}", at(50), at(95), at(99));
    }
    Ok(())
}

/// Makes many sandboxes at once, forks the first as often at once, and prints when each was there.
async fn many(life: &Life, times: usize) -> Result<()> {
    let first = life.create().await?;
    let begun = Instant::now();
    let made = futures_util::future::join_all((0..times).map(|_| async {
        let made = life.create().await?;
        Ok::<_, Box<dyn Error>>((begun.elapsed(), made.boot_ms))
    }));
    for made in made.await {
        println!("create: {:?}", made?);
    }
    let snapshot = life.engine.snapshot(&first.id, SnapshotSpec::default()).await?;
    let begun = Instant::now();
    let made = futures_util::future::join_all((0..times).map(|_| async {
        let made = life.fork(ForkSource::Snapshot(snapshot.id.clone())).await?;
        Ok::<_, Box<dyn Error>>((begun.elapsed(), made.boot_ms))
    }));
    for made in made.await {
        println!("fork: {:?}", made?);
    }
    life.engine.delete_snapshot(&snapshot.id).await?;
    Ok(())
}

/// Fills the file system of `folder` and asks for what then has no room: the sandbox must run on each time.
async fn full(life: &Life, folder: &std::path::Path) -> Result<()> {
    let it = life.create().await?;
    life.run(&it.id, "echo before > /tmp/memory").await?;
    let filler = folder.join("filler");
    let mut file = std::fs::File::create(&filler)?;
    for piece in [1 << 20, 1 << 12] {
        while std::io::Write::write_all(&mut file, &vec![1; piece]).is_ok() {}
        let _full = file.sync_all();
    }
    let engine = &life.engine;
    let refused = [
        ("pause", engine.pause(&it.id).await.err()),
        ("snapshot", engine.snapshot(&it.id, SnapshotSpec::default()).await.err()),
        ("fork", engine.fork(&ForkSource::Sandbox(it.id.clone()), ForkSpec::default()).await.err()),
    ];
    for (what, error) in refused {
        println!("{what}: {error:?}");
    }
    println!("state {}", engine.get(it.id.as_str()).await?.state);
    life.run(&it.id, "cat /tmp/memory").await?;
    drop(file);
    std::fs::remove_file(&filler)?;
    let begun = Instant::now();
    took("pause", begun, &engine.pause(&it.id).await?);
    took("resume", begun, &engine.resume(&it.id, BTreeMap::new()).await?);
    life.run(&it.id, "cat /tmp/memory").await?;
    Ok(())
}

/// What an earlier run left: each sandbox is woken and looked into, each snapshot forked.
async fn check(life: &Life) -> Result<()> {
    for sandbox in life.engine.list(&SandboxFilter::default()).await? {
        println!("found {} {} {:?}", sandbox.id, sandbox.state, sandbox.last_error);
        let begun = Instant::now();
        took("resume", begun, &life.engine.resume(&sandbox.id, BTreeMap::new()).await?);
        life.run(&sandbox.id, "cat /workspace/file /tmp/count").await?;
    }
    for snapshot in life.engine.snapshots(&SnapshotFilter::default()).await? {
        let child = life.fork(ForkSource::Snapshot(snapshot.id.clone())).await?;
        life.run(&child.id, "cat /workspace/file /tmp/count").await?;
        life.engine.delete_snapshot(&snapshot.id).await?;
    }
    Ok(())
}

/// Descriptors, threads and memory of this process.
fn held() -> String {
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("Threads"));
    format!("{descriptors} descriptors, {}", lines.collect::<Vec<_>>().join(", "))
}

#[tokio::main]
async fn main() -> Result<()> {
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    }
    let (flags, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let flag = |name: &str| flags.iter().any(|flag| flag == name);
    let folder = PathBuf::from(
        words
            .first()
            .ok_or("usage: life [--cold] [--cycles [--snapshots] | --check | --full | --many] <folder> [<times>]")?,
    );
    let times: usize = words.get(1).map_or(Ok(1), |times| times.parse())?;
    let config = EngineConfig {
        data_dir: Some(folder.join("data")),
        runtime_dir: Some(folder.join("run")),
        ..EngineConfig::default()
    };
    let life = Life { engine: Engine::start(config).await? };
    let begun = Instant::now();
    let mut led = Ok(());
    if !flag("--cold") {
        let spec = SandboxSpec { size: Some(Size::Xs), ..SandboxSpec::default() };
        led = life.engine.prepare_template(spec).await.map_err(Into::into);
        println!("{:>8.1} ms  template prepared", begun.elapsed().as_secs_f64() * 1e3);
    }
    if led.is_ok() && flag("--check") {
        led = check(&life).await;
    } else if led.is_ok() && flag("--many") {
        led = many(&life, times).await;
    } else if led.is_ok() && flag("--full") {
        led = full(&life, &folder).await;
    } else if led.is_ok() && flag("--cycles") {
        led = cycles(&life, times, flag("--snapshots")).await;
    } else {
        for _ in 0..times {
            if led.is_ok() {
                led = lead(&life).await;
            }
        }
    }
    for sandbox in life.engine.list(&SandboxFilter::default()).await? {
        if led.is_ok() {
            life.engine.destroy(&sandbox.id).await?;
        }
    }
    life.engine.shutdown().await;
    led
}
