//! A server that dies at each fault point, alone, with its machine, or only the machine: the next one finds every sandbox
//! in a legal state, every acknowledged write on its disk, every snapshot whole or absent, and nothing left over.
//!
//! The doomed server is this test program, started again with `COVE_FAULT`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use super::*;
use crate::Engine;
use crate::machine::mock;
use crate::sandbox::driver::life_tests::Host;
use crate::sandbox::recovery::tests::started;
use crate::sandbox::{SandboxSpec, SandboxState};
use crate::snapshot::{ForkSource, ForkSpec, SnapshotFilter, SnapshotSpec};

/// Where the doomed server has its files.
const FOLDER: &str = "COVE_TEST_FOLDER";

const POINTS: [&str; 16] = [
    "pause.begun",
    "pause.captured",
    "pause.noted",
    "resume.restored",
    "resume.dropped",
    "restore.noted",
    "restore.ended",
    "snapshot.begun",
    "snapshot.captured",
    "snapshot.noted",
    "destroy.begun",
    "destroy.taken_down",
    "destroy.noted",
    "sweep.rows_deleted",
    "warm.captured",
    "warm.noted",
];

/// Notes each write that was acknowledged, as `<sandbox> <line>`.
struct Scenario<'a> {
    host: &'a Host,
    acknowledged: File,
}

impl Scenario<'_> {
    async fn write(&mut self, id: &SandboxId, line: &str) {
        self.host.run(id, &format!("write {line}")).await;
        writeln!(self.acknowledged, "{id} {line}").unwrap();
    }

    /// Something of everything; an error is the fault's doing.
    async fn play(&mut self) -> Result<(), Error> {
        let engine = &self.host.engine;
        engine.prepare_template(SandboxSpec::default()).await?;
        let it = self.host.create(SandboxSpec { name: Some("main".into()), ..SandboxSpec::default() }).await;
        self.write(&it.id, "created").await;
        engine.pause(&it.id).await?;
        engine.resume(&it.id, BTreeMap::new()).await?;
        self.write(&it.id, "resumed").await;
        let snapshot = engine.snapshot(&it.id, SnapshotSpec::default()).await?;
        self.write(&it.id, "snapshotted").await;
        let child = engine.fork(&ForkSource::Sandbox(it.id.clone()), ForkSpec::default()).await?;
        let child = self.host.settled(&child.id).await;
        self.write(&it.id, "forked").await;
        self.write(&child.id, "child").await;
        // What was written after the snapshot is given up from here on.
        let mark = format!("{} restore", it.id);
        writeln!(self.acknowledged, "{mark}").unwrap();
        engine.restore(&it.id, &snapshot.id).await?;
        self.write(&it.id, "restored").await;
        engine.destroy(&child.id).await?;
        Ok(())
    }
}

/// The process of a doomed server; does nothing as a test.
#[tokio::test]
#[ignore = "the process of a server that dies, not a test"]
async fn doomed_server() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let engine = Engine::start(mock::config(&folder)).await.unwrap();
    let host = Host::over(&folder, engine);
    let acknowledged = File::create(folder.join("acknowledged")).unwrap();
    let played = Scenario { host: &host, acknowledged }.play().await;
    // A fault that hit the machine only: the server lives on, and ends as it should.
    host.engine.shutdown().await;
    println!("{played:?}");
}

fn run_doomed(folder: &Path, fault: &str) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::recovery::fault_tests::doomed_server", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env("COVE_FAULT", fault)
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("stderr")).unwrap())
        .status()
        .unwrap();
    if !fault.ends_with(":kill-vmm") {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(
            status.signal(),
            Some(9),
            "{fault} was not reached: {}",
            fs::read_to_string(folder.join("stderr")).unwrap()
        );
    }
}

/// What each sandbox must have on its disk, and what it may have besides.
fn expected(folder: &Path) -> BTreeMap<String, Vec<Vec<String>>> {
    let mut all: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for line in fs::read_to_string(folder.join("acknowledged")).unwrap_or_default().lines() {
        let (id, what) = line.split_once(' ').unwrap();
        let histories = all.entry(id.to_owned()).or_insert_with(|| vec![vec![]]);
        if what == "restore" {
            // Before the restore took hold, or after.
            histories.push(histories[0].iter().take(2).cloned().collect());
        } else {
            match (what, histories.len()) {
                // Acknowledged after the restore: only the second history is left.
                ("restored", 2) => {
                    histories.remove(0);
                    histories[0].push(what.to_owned());
                }
                _ => histories[0].push(what.to_owned()),
            }
        }
    }
    all
}

async fn check(folder: &Path, fault: &str) {
    let engine = started(&mock::config(folder)).await;
    let host = Host::over(folder, engine);
    let expected = expected(folder);
    for sandbox in host.engine.list(&SandboxFilter::default()).await.unwrap() {
        let settled = host.settled(&sandbox.id).await;
        let record = match settled.state {
            SandboxState::Running | SandboxState::Destroyed => settled,
            // What failed is brought back too, if it has a disk.
            SandboxState::Paused | SandboxState::Error => {
                match host.engine.resume(&sandbox.id, BTreeMap::new()).await {
                    Ok(record) => record,
                    Err(Error::SandboxFailed { .. }) => settled,
                    Err(error) => panic!("{fault}: {error:?}"),
                }
            }
            state => panic!("{fault}: {state}"),
        };
        let histories = expected.get(sandbox.id.as_str()).filter(|histories| !histories[0].is_empty());
        if let Some(histories) = histories.filter(|_| record.state != SandboxState::Destroyed) {
            assert_eq!(record.state, SandboxState::Running, "{fault}: {record:?}");
            let disk = host.run(&sandbox.id, "disk").await;
            // A fork begins with its source's past.
            let lines: Vec<&str> = disk.lines().collect();
            let fits = |history: &Vec<String>| history.iter().all(|line| lines.contains(&line.as_str()));
            assert!(histories.iter().any(fits), "{fault}: {disk:?} lacks some of {histories:?}");
        }
    }
    for snapshot in host.engine.snapshots(&SnapshotFilter::default()).await.unwrap() {
        let child = host.engine.fork(&ForkSource::Snapshot(snapshot.id), ForkSpec::default()).await.unwrap();
        let child = host.settled(&child.id).await;
        assert_eq!(child.state, SandboxState::Running, "{fault}: {child:?}");
        let disk = host.run(&child.id, "disk").await;
        assert_eq!(disk, "root\ncreated\nresumed\n", "{fault}");
    }
    host.end().await;
}

async fn die_at_every_point(how: &str) {
    for point in POINTS {
        let fault = format!("{point}:{how}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let doomed = fault.clone();
        tokio::task::spawn_blocking(move || run_doomed(&path, &doomed)).await.unwrap();
        check(folder.path(), &fault).await;
    }
}

#[tokio::test]
async fn a_server_may_die_at_every_point() {
    die_at_every_point("kill").await;
}

#[tokio::test]
async fn a_server_may_die_with_its_machine_at_every_point() {
    die_at_every_point("kill-all").await;
}

#[tokio::test]
async fn a_machine_may_die_at_every_point() {
    die_at_every_point("kill-vmm").await;
}
