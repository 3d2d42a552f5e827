//! The server, a machine, or both die at each journalled step of an operation; and the disk is full. Afterwards every
//! sandbox is in a legal state with every acknowledged byte, every snapshot is whole or absent, and every disk is whole.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::disks;
use crate::harness::{Shared, TestHost, TestSandbox, full, parallel, small, until};

/// Patience for a sandbox to be settled after a new start: it may boot.
const SETTLED_MAX: Duration = Duration::from_secs(180);

/// Layers after which a chain is flattened, and one more.
const LAYERS: usize = 10;

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        parallel(shared, "faults::pause", |shared| all(shared, Operation::Pause)),
        parallel(shared, "faults::resume", |shared| all(shared, Operation::Resume)),
        parallel(shared, "faults::snapshot", |shared| all(shared, Operation::Snapshot)),
        parallel(shared, "faults::fork", |shared| all(shared, Operation::Fork)),
        parallel(shared, "faults::restore", |shared| all(shared, Operation::Restore)),
        parallel(shared, "faults::destroy", |shared| all(shared, Operation::Destroy)),
        parallel(shared, "faults::flatten", |shared| all(shared, Operation::Flatten)),
        parallel(shared, "faults::a_full_disk_fails_a_pause_and_a_snapshot_and_nothing_else", full_disk),
        parallel(shared, "faults::a_full_disk_holds_the_writes_of_a_guest_until_there_is_room", full_layers),
    ]
}

/// What is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Pause,
    Resume,
    Snapshot,
    Fork,
    Restore,
    Destroy,
    Flatten,
}

impl Operation {
    /// The steps at which something may die.
    fn points(self) -> &'static [&'static str] {
        match self {
            Self::Pause => &["pause.begun", "pause.captured", "pause.noted"],
            Self::Resume => &["resume.restored", "resume.dropped"],
            Self::Snapshot | Self::Fork => &["snapshot.begun", "snapshot.captured", "snapshot.noted"],
            Self::Restore => &["restore.noted", "restore.ended"],
            Self::Destroy => &["destroy.begun", "destroy.taken_down", "destroy.noted"],
            Self::Flatten => &["flatten.merged", "flatten.noted"],
        }
    }

    /// Does it; whatever it answers, or that it does not.
    fn run(self, host: &TestHost, sandbox: &TestSandbox, snapshot: &str) {
        let post = |route: &str, body: Value| drop(host.api().post(&sandbox.path(route), &body));
        match self {
            Self::Pause => post("/pause", json!({})),
            Self::Resume => post("/resume", json!({})),
            Self::Snapshot => post("/snapshots", json!({})),
            Self::Fork => post("/fork", json!({})),
            Self::Restore => post(&format!("/restore/{snapshot}"), json!({})),
            Self::Destroy => drop(host.api().delete(&sandbox.path(""))),
            Self::Flatten => (0..LAYERS).for_each(|_| post("/snapshots", json!({}))),
        }
    }
}

/// Each point with each victim; in the short run the server alone, and both together at the middle one.
fn all(shared: &Shared, operation: Operation) -> Result<()> {
    for (number, point) in operation.points().iter().enumerate() {
        for victim in full(&["kill", "kill-vmm", "kill-all"][..], if number == 1 { &["kill-all"] } else { &["kill"] }) {
            let fault = format!("{point}:{victim}");
            let host = shared.own_host_with(&[("COVE_FAULT", &fault)])?;
            host.test(|host| cut_off(host, operation, victim)).with_context(|| fault)?;
        }
    }
    Ok(())
}

fn cut_off(host: &TestHost, operation: Operation, victim: &str) -> Result<()> {
    let sandbox = host.sandbox(&small())?;
    sandbox.write_file("/workspace/kept", "first")?;
    let mut snapshot = String::new();
    match operation {
        Operation::Resume => drop(sandbox.post("/pause", &json!({}))?),
        Operation::Restore => {
            let made = sandbox.post("/snapshots", &json!({}))?;
            snapshot = made["id"].as_str().context("no id")?.to_owned();
        }
        _ => {}
    }
    operation.run(host, &sandbox, &snapshot);
    if victim != "kill-vmm" {
        host.wait_server_gone()?;
        host.forget_environment();
        host.launch()?;
    }
    check(host, &sandbox.id, operation)
}

/// What must hold after anything.
fn check(host: &TestHost, id: &str, operation: Operation) -> Result<()> {
    let sandbox = TestSandbox::existing(host.api(), id);
    until("every sandbox is settled", SETTLED_MAX, || {
        let settled = |record: &Value| ["running", "paused", "error"].iter().any(|state| record["state"] == *state);
        let record = sandbox.record()?;
        // The server hears of a machine's end a moment after it.
        let runs = record["state"] == "running";
        let alive = !runs || sandbox.read_file("/workspace/kept")?.status == 200;
        Ok(host.list()?.iter().all(settled) && alive && (record["state"] == "destroyed" || settled(&record)))
    })?;
    let state = sandbox.record()?["state"].as_str().unwrap_or_default().to_owned();
    if operation == Operation::Destroy && state == "destroyed" {
        ensure!(host.list()?.is_empty() && host.machines().is_empty(), "something is left: {:?}", host.machines());
        return Ok(());
    }
    // Error is legal where its machine was killed; its disk then brings it back.
    if state != "running" {
        sandbox.post("/resume", &json!({})).with_context(|| format!("from {state}"))?;
    }
    ensure!(sandbox.read_file("/workspace/kept")?.body == b"first", "an acknowledged file is lost (it was {state})");
    sandbox.write_file("/workspace/later", "second")?;
    let snapshots = host.api().get(&sandbox.path("/snapshots"))?.data()?;
    for snapshot in snapshots.as_array().context("the snapshots are no list")?.iter().rev().take(full(3, 1)) {
        let child = sandbox.fork(&json!({ "snapshot_id": snapshot["id"] }))?;
        ensure!(child.read_file("/workspace/kept")?.body == b"first", "{snapshot} is not whole");
        child.destroy()?;
    }
    // A fork that was made though its source died is whole as well.
    for record in host.list()?.iter().filter(|record| record["id"] != id) {
        let child = TestSandbox::existing(host.api(), record["id"].as_str().context("no id")?);
        ensure!(record["state"] != "running" || child.read_file("/workspace/kept")?.body == b"first", "{record}");
        child.destroy()?;
    }
    let layers = disks::layers_of(host.vmm_pid(id)?)?;
    sandbox.post("/pause", &json!({}))?;
    until("no machine uses a disk", SETTLED_MAX, || Ok(host.machines().is_empty()))?;
    disks::check_file_system(&host.programs.vmm, &layers, host.dir())?;
    disks::check_all(host)?;
    sandbox.destroy()
}

/// A file system with room for a template's image and for all that its machine may read of the holes in that (a page of a
/// hole takes room on a tmpfs once it is read).
const IMAGES_ROOM: &str = "640M";

/// What is left of it: too little for another image, which has 30 MB and more.
const IMAGES_LEFT_BYTES: u64 = 16 << 20;

/// A file system with room for a template's layers and a sandbox's, and what is left of it for the guest.
const LAYERS_ROOM: &str = "160M";
const LAYERS_LEFT_BYTES: u64 = 8 << 20;

/// Fills a folder of the data directory, as the server sees it, but for `left` bytes, and gives the file that does.
fn fill(host: &TestHost, folder: &str, left: u64) -> Result<PathBuf> {
    let path = format!("/proc/{}/root{}/filler", host.server_pid()?, host.data_dir().join(folder).display());
    let mut file = File::create(&path)?;
    let chunk = vec![0x5a; 1 << 20];
    let mut length = 0;
    while file.write_all(&chunk).is_ok() {
        length += chunk.len() as u64;
    }
    file.set_len(length.saturating_sub(left))?;
    Ok(path.into())
}

/// Of 24 MiB of the letter x.
const LARGE_SHA256: &str = "f2deb61684a0aa6f0fb8d808348b5ec16d3f209e80619a72a40be9465bbd61d5";

/// The sandbox's disk waits for room.
fn is_held(sandbox: &TestSandbox, host: &TestHost) -> Result<bool> {
    Ok(host.api().get(&sandbox.path("/stats"))?.data()?["devices"]["block0"]["held"] == true)
}

fn full_layers(shared: &Shared) -> Result<()> {
    shared.own_host()?.test(|host| {
        host.stop_server()?;
        host.limit("layers", LAYERS_ROOM);
        host.launch()?;
        let sandbox = host.sandbox(&small())?;
        let filler = fill(host, "layers", LAYERS_LEFT_BYTES)?;
        // A third of it has room; the command waits for the rest, as does whatever needs the disk, and nothing else.
        let write = "head -c 24M /dev/zero | tr '\\0' x > /workspace/large && sync && sha256sum < /workspace/large";
        let started = format!("({write}) > /tmp/written 2>&1 & echo started");
        ensure!(sandbox.run(&started)?.stdout == "started\n");
        until("the disk waits for room", SETTLED_MAX, || is_held(&sandbox, host))?;
        ensure!(sandbox.run("echo alive")?.stdout == "alive\n", "a command that needs no disk");
        fs::remove_file(filler)?;
        let done = || Ok(!sandbox.run("cat /tmp/written")?.stdout.is_empty());
        until("the command ends", SETTLED_MAX, done)?;
        let written = sandbox.run("cat /tmp/written")?.stdout;
        ensure!(written == format!("{LARGE_SHA256}  -\n"), "{written:?}");
        ensure!(!is_held(&sandbox, host)?, "it still waits");
        ensure!(sandbox.run("touch /workspace/more")?.exit_code == 0, "the file system stopped");
        sandbox.destroy()
    })
}

fn full_disk(shared: &Shared) -> Result<()> {
    shared.own_host()?.test(|host| {
        host.stop_server()?;
        host.limit("images", IMAGES_ROOM);
        host.launch()?;
        let sandbox = host.sandbox(&small())?;
        sandbox.write_file("/workspace/kept", "kept")?;
        let filler = fill(host, "images", IMAGES_LEFT_BYTES)?;
        for route in ["/pause", "/snapshots"] {
            let answer = host.api().post(&sandbox.path(route), &json!({}))?;
            ensure!(answer.status == 507, "{route}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
            let (code, message) = answer.error()?;
            ensure!(code == "DISK_FULL" && message.contains("space"), "{route}: {code}: {message}");
            ensure!(sandbox.record()?["state"] == "running", "{route}: {}", sandbox.record()?);
            ensure!(sandbox.run("echo alive")?.stdout == "alive\n", "after {route}");
        }
        ensure!(host.api().get(&sandbox.path("/snapshots"))?.data()? == json!([]), "half a snapshot is listed");
        // With room again it is paused, and nothing was lost.
        fs::remove_file(filler)?;
        ensure!(sandbox.post("/pause", &json!({}))?["state"] == "paused");
        ensure!(sandbox.read_file("/workspace/kept")?.body == b"kept");
        sandbox.destroy()?;
        match host.machines() {
            left if left.is_empty() => Ok(()),
            left => bail!("{left:?}"),
        }
    })
}
