//! Boots a machine by hand and shows what it does: console, the agent's first word, commands, figures, and with
//! `--profile` where the guest's kernel spends its time. For people who work on the vmm, the kernel or the agent.
//!
//! ```text
//! cargo run -p cove-vmm --example boot -- --kernel vmlinux --root root.ext4 [--memory-mib 512] [--vcpus 1]
//!     [--arg WORD]... [--timeout-s 60] [--profile System.map] [--exec 'COMMAND LINE']... [--idle-s 10]
//!     [--restore N] [--prepare]
//! ```
//!
//! `--restore N` captures the machine after its commands and restores it N times, one after the other, each time with the
//! commands again; `--prepare` has the agent prepare for that first.
//!
//! The root image is not written: it gets a throw-away layer on top.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cove_protocol::vmm::{
    AGENT_PORT, ConsoleSpec, DiskSpec, LayerFormat, LayerSpec, MachineSpec, READY_PORT, SnapshotSpec, VsockSpec,
};
use cove_protocol::{frame, guest};
use cove_vmm::builder;
use cove_vmm::config::MachineConfig;
use cove_vmm::devices::virtio::block::format::{Backing, create};
use cove_vmm::machine::Machine;
use cove_vmm::vcpu::Sample;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Options {
    kernel: PathBuf,
    root: Option<PathBuf>,
    memory_mib: u32,
    vcpus: u8,
    args: Vec<String>,
    timeout: Duration,
    symbols: Option<PathBuf>,
    commands: Vec<String>,
    idle: Duration,
    restores: u32,
    prepare: bool,
}

/// What the main thread waits for.
enum Event {
    Hello(guest::Reply, Instant),
    Ended,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let options = parse()?;
    let folder = tempfile::tempdir()?;
    let config = MachineConfig::try_from(spec(&options, folder.path())?)?;
    let (events, incoming) = mpsc::channel();
    listen_for_hello(&config.vsock.socket, events.clone())?;
    let building = Instant::now();
    let mut machine = builder::build(&config)?;
    println!("built in {:?}, {} vCPUs, assist {}", building.elapsed(), machine.vcpus(), machine.assist());
    let started = Instant::now();
    machine.start();
    watch_end(&machine, events);
    let sampler = Sampler::new(options.symbols.as_deref())?;
    let mut deadline = started + options.timeout;
    let mut ready = false;
    while let Some(event) = wait(&incoming, deadline, &sampler, &machine) {
        match event {
            Event::Hello(reply, at) => {
                ready = true;
                println!("ready after {:.3} s: {reply:?}", (at - started).as_secs_f64());
                show_cpu_time()?;
                sampler.report("boot", &machine);
                for command in &options.commands {
                    run_command(&config.vsock.socket, command, &sampler, &machine)?;
                }
                show_cpu_time()?;
                deadline = Instant::now() + options.idle;
            }
            Event::Ended => break,
        }
    }
    sampler.report("the rest", &machine);
    show_cpu_time()?;
    println!("--- console\n{}---", String::from_utf8_lossy(&machine.console_tail(64 << 10)?));
    println!("ended: {:?}; figures: {:#?}", machine.ending().reason(), machine.stats());
    show_memory(&machine)?;
    if options.root.is_some() && !ready {
        bail!("the agent did not get ready within {:?}", options.timeout)
    }
    if options.restores == 0 {
        machine.end();
        return Ok(());
    }
    if options.prepare {
        let begin = Instant::now();
        ask(&config.vsock.socket, &guest::Request::Prepare)?;
        println!("prepared in {:?}", begin.elapsed());
        show_cpu_time()?;
    }
    let snapshot = capture(&mut machine, folder.path())?;
    machine.end();
    (0..options.restores).try_for_each(|round| restore(&options, &config, &snapshot, &sampler, round))
}

/// Captures `machine` into a folder in `folder`, and says what that took.
fn capture(machine: &mut Machine, folder: &Path) -> anyhow::Result<PathBuf> {
    let snapshot = folder.join("snapshot");
    std::fs::create_dir(&snapshot)?;
    let figures = machine.snapshot(&SnapshotSpec {
        folder: snapshot.clone(),
        disks: Vec::new(),
        resume: false,
        durable: false,
    })?;
    println!("captured: {figures:?}");
    Ok(snapshot)
}

/// Restores the machine of `config` from `snapshot` on a top layer of its own, and runs the commands in it.
fn restore(
    options: &Options,
    config: &MachineConfig,
    snapshot: &Path,
    sampler: &Sampler,
    round: u32,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut config = config.clone();
    config.vsock.socket = folder.path().join("vsock");
    config.console.log = folder.path().join("console.log");
    for disk in &mut config.disks {
        let top = folder.path().join("top.qcow2");
        let Some(below) = disk.layers.last() else { continue };
        let size = std::fs::metadata(options.root.as_deref().context("a disk without a root")?)?.len();
        create(&top, size, Some(&Backing { path: below.path.clone(), format: below.format }))?;
        disk.layers.push(LayerSpec { path: top, format: LayerFormat::Qcow2 });
    }
    let begin = Instant::now();
    let mut machine = builder::restore(&config, snapshot)?;
    let built = begin.elapsed();
    machine.start();
    println!("--- restore {round}: built in {built:?}, running after {:?}", begin.elapsed());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    ask(
        &config.vsock.socket,
        &guest::Request::Configure(guest::Configure {
            hostname: "restored".into(),
            clock_us: now.as_micros() as u64,
            entropy: vec![round as u8; 64].into(),
            machine_id: format!("{round:032x}"),
            generation: u64::from(round) + 1,
            ..Default::default()
        }),
    )?;
    println!("configured after {:?}", begin.elapsed());
    sampler.report("configure", &machine);
    show_cpu_time()?;
    for command in &options.commands {
        run_command(&config.vsock.socket, command, sampler, &machine)?;
    }
    show_cpu_time()?;
    show_memory(&machine)?;
    let tail = machine.console_tail(64 << 10)?;
    println!("--- console\n{}---", String::from_utf8_lossy(&tail));
    println!("ended: {:?}", machine.ending().reason());
    machine.end();
    Ok(())
}

/// Waits for an event, taking samples meanwhile if they are wanted.
fn wait(incoming: &mpsc::Receiver<Event>, deadline: Instant, sampler: &Sampler, machine: &Machine) -> Option<Event> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match incoming.recv_timeout(if sampler.on() { left.min(SAMPLE_INTERVAL) } else { left }) {
            Ok(event) => return Some(event),
            Err(_) if left.is_zero() => return None,
            Err(_) => sampler.take(machine),
        }
    }
}

fn run_command(socket: &Path, line: &str, sampler: &Sampler, machine: &Machine) -> anyhow::Result<()> {
    let (socket, line, done) = (socket.to_owned(), line.to_owned(), Arc::new(AtomicBool::new(false)));
    let finished = Arc::clone(&done);
    let begin = Instant::now();
    let label = line.clone();
    let (ended, waiting) = mpsc::channel::<()>();
    let client = std::thread::spawn(move || {
        let result = exec(&socket, &line);
        finished.store(true, Ordering::Relaxed);
        drop(ended);
        result
    });
    while sampler.on() && waiting.recv_timeout(SAMPLE_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
        sampler.take(machine);
    }
    let replies = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    println!("`{label}` took {:?}: {replies:?}", begin.elapsed());
    sampler.report(&label, machine);
    Ok(())
}

fn exec(socket: &Path, line: &str) -> anyhow::Result<Vec<guest::Reply>> {
    let request = guest::Request::Exec(Box::new(guest::Exec {
        command: guest::Command::Shell(line.to_owned()),
        cwd: Some("/".into()),
        env: Vec::new(),
        user: None,
        stdin: false,
        timeout_ms: None,
    }));
    ask(socket, &request)
}

/// Asks the agent and collects its replies.
fn ask(socket: &Path, request: &guest::Request) -> anyhow::Result<Vec<guest::Reply>> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "CONNECT {AGENT_PORT}")?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("no OK from the vsock device")?;
        answer.push(byte[0]);
    }
    frame::write(&mut stream, request)?;
    let mut replies = Vec::new();
    while let Some(reply) = frame::read::<guest::Reply>(&mut stream)? {
        let last = reply.is_final(request);
        replies.push(reply);
        if last {
            return Ok(replies);
        }
    }
    bail!("the agent closed the connection after {replies:?}")
}

fn listen_for_hello(vsock: &Path, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let listener = UnixListener::bind(format!("{}_{READY_PORT}", vsock.display()))?;
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        match frame::read::<guest::Reply>(&mut stream) {
            Ok(Some(reply)) => drop(events.send(Event::Hello(reply, Instant::now()))),
            other => println!("no hello: {other:?}"),
        }
    });
    Ok(())
}

fn watch_end(machine: &Machine, events: mpsc::Sender<Event>) {
    let ending = machine.ending().clone();
    std::thread::spawn(move || {
        ending.wait();
        let _ = events.send(Event::Ended);
    });
}

/// What each thread has cost the host's CPU: what a boot takes on a host that does nothing else.
fn show_cpu_time() -> anyhow::Result<()> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let name = std::fs::read_to_string(task.join("comm"))?;
        let times = std::fs::read_to_string(task.join("schedstat"))?;
        let run_ns: u64 = times.split_whitespace().next().context("no schedstat")?.parse()?;
        println!("  thread {:16} {:.3} s of CPU", name.trim(), run_ns as f64 / 1e9);
    }
    Ok(())
}

fn show_memory(machine: &Machine) -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rss_kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss_kib: u64 = rss_kib.and_then(|rest| rest.split_whitespace().next()).context("no VmRSS")?.parse()?;
    let guest_kib = machine.stats().memory_resident_bytes.unwrap_or(0) / 1024;
    println!("resident: {rss_kib} KiB, of it guest memory {guest_kib} KiB, the rest {} KiB", rss_kib - guest_kib);
    Ok(())
}

fn spec(options: &Options, folder: &Path) -> anyhow::Result<MachineSpec> {
    let mut disks = Vec::new();
    if let Some(root) = &options.root {
        let (top, size) = (folder.join("top.qcow2"), std::fs::metadata(root)?.len());
        create(&top, size, Some(&Backing { path: root.clone(), format: LayerFormat::Raw }))?;
        let base = LayerSpec { path: root.clone(), format: LayerFormat::Raw };
        disks.push(DiskSpec {
            layers: vec![base, LayerSpec { path: top, format: LayerFormat::Qcow2 }],
            read_only: false,
        });
    }
    Ok(MachineSpec {
        id: "boot-example".into(),
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        kernel: options.kernel.clone(),
        kernel_args: options.args.clone(),
        disks,
        vsock: VsockSpec { guest_cid: 3, socket: folder.join("vsock") },
        console: ConsoleSpec { log: folder.join("console.log"), bytes_max: 1 << 20 },
    })
}

fn parse() -> anyhow::Result<Options> {
    let mut options = Options { memory_mib: 512, vcpus: 1, timeout: Duration::from_secs(60), ..Default::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--prepare" {
            options.prepare = true;
            continue;
        }
        let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--kernel" => options.kernel = value.into(),
            "--root" => options.root = Some(value.into()),
            "--memory-mib" => options.memory_mib = value.parse()?,
            "--vcpus" => options.vcpus = value.parse()?,
            "--arg" => options.args.push(value),
            "--timeout-s" => options.timeout = Duration::from_secs(value.parse()?),
            "--profile" => options.symbols = Some(value.into()),
            "--idle-s" => options.idle = Duration::from_secs(value.parse()?),
            "--restore" => options.restores = value.parse()?,
            "--exec" => options.commands.push(value),
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(options)
}

/// Guest addresses by symbol.
struct Sampler {
    symbols: BTreeMap<u64, String>,
}

impl Sampler {
    fn new(map: Option<&Path>) -> anyhow::Result<Self> {
        let mut symbols = BTreeMap::new();
        for line in map.map(std::fs::read_to_string).transpose()?.unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            if let (Some(address), Some("T" | "t" | "W" | "w"), Some(name)) = (words.next(), words.next(), words.next())
            {
                symbols.insert(u64::from_str_radix(address, 16)?, name.to_owned());
            }
        }
        Ok(Self { symbols })
    }

    fn on(&self) -> bool {
        !self.symbols.is_empty()
    }

    fn take(&self, machine: &Machine) {
        machine.vcpu_handles().iter().for_each(|vcpu| vcpu.sample());
    }

    fn name(&self, sample: &Sample) -> &str {
        match sample.level {
            0 => self.symbols.range(..=sample.rip).next_back().map_or("?", |(_, name)| name),
            _ => "(program)",
        }
    }

    /// The most frequent places since the last report.
    fn report(&self, label: &str, machine: &Machine) {
        let samples: Vec<_> = machine.vcpu_handles().iter().flat_map(|vcpu| vcpu.take_samples()).collect();
        if !self.on() || samples.is_empty() {
            return;
        }
        let mut counts = BTreeMap::<&str, usize>::new();
        for sample in &samples {
            *counts.entry(self.name(sample)).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        println!("--- {label}: {} samples", samples.len());
        for (name, count) in counts.iter().take(45) {
            println!("{:5.1} % {name}", *count as f64 * 100.0 / samples.len() as f64);
        }
    }
}
