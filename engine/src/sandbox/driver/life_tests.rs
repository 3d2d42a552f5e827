//! Whole lives with mock machines ([`crate::machine::mock`]): what is in memory and on the disk after each turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cove_protocol::guest::{Command, Exec};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::config::Paths;
use crate::error::Error;
use crate::events::EventKind;
use crate::machine::mock;
use crate::machine::process::vmm_processes;
use crate::sandbox::recovery::tests::started;
use crate::sandbox::{BootPath, Sandbox, SandboxId, SandboxSpec, SandboxState, SandboxUpdate};
use crate::snapshot::{ForkSource, ForkSpec, SnapshotFilter, SnapshotSpec, SnapshotUpdate};
use crate::{Engine, ExecEvent, Share};

const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Host {
    /// Removed with it, unless someone else does that.
    pub(crate) folder: Option<tempfile::TempDir>,
    pub(crate) paths: Paths,
    pub(crate) engine: Engine,
}

impl Host {
    pub(crate) async fn start() -> Host {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::start(mock::config(folder.path())).await.unwrap();
        let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
        Host { folder: Some(folder), paths, engine }
    }

    /// An engine whose folder is someone else's.
    pub(crate) fn over(folder: &Path, engine: Engine) -> Host {
        let paths = Paths { data: folder.join("data"), runtime: folder.join("run") };
        Host { folder: None, paths, engine }
    }

    /// The same data under a new server.
    pub(crate) async fn restart(self) -> Host {
        let Host { folder, paths, engine } = self;
        engine.shutdown().await;
        // It holds the lock.
        drop(engine);
        let path = folder.as_ref().unwrap().path();
        let engine = started(&mock::config(path)).await;
        Host { folder, paths, engine }
    }

    pub(crate) async fn create(&self, spec: SandboxSpec) -> Sandbox {
        let sandbox = self.engine.create(spec).await.unwrap();
        self.settled(&sandbox.id).await
    }

    pub(crate) async fn settled(&self, id: &SandboxId) -> Sandbox {
        self.engine.wait_settled(id, Instant::now() + SOON).await.unwrap()
    }

    async fn fork(&self, source: ForkSource) -> Sandbox {
        let child = self.engine.fork(&source, ForkSpec::default()).await.unwrap();
        let child = self.settled(&child.id).await;
        assert_eq!((child.state, child.boot_path), (SandboxState::Running, Some(BootPath::Snapshot)), "{child:?}");
        child
    }

    /// What a command of the mock prints.
    pub(crate) async fn run(&self, id: &SandboxId, line: &str) -> String {
        self.try_run(id, line).await.unwrap()
    }

    async fn try_run(&self, id: &SandboxId, line: &str) -> Result<String, Error> {
        let command = Command::Shell(line.into());
        let exec = Exec { command, cwd: None, env: vec![], user: None, stdin: true, timeout_ms: None };
        let mut execution = self.engine.exec(id, exec).await?;
        let mut output = Vec::new();
        while let Some(event) = execution.output.next().await {
            if let ExecEvent::Output { data, .. } = event? {
                output.extend(data);
            }
        }
        Ok(String::from_utf8(output).unwrap())
    }

    fn count(&self, folder: &Path, prefix: &str) -> usize {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with(prefix)).count()
    }

    /// Layers and images on the disk.
    pub(crate) fn files(&self) -> (usize, usize) {
        (self.count(&self.paths.layers(), "lay_"), self.count(&self.paths.images(), "img_"))
    }

    /// Waits until the default kind is warm and prepared.
    async fn warm(&self) {
        self.engine.prepare_template(SandboxSpec::default()).await.unwrap();
    }

    /// Destroys everything; nothing may be left but what is warm.
    pub(crate) async fn end(self) {
        for snapshot in self.engine.snapshots(&SnapshotFilter::default()).await.unwrap() {
            let update = SnapshotUpdate { name: Some(None), ..SnapshotUpdate::default() };
            self.engine.update_snapshot(&snapshot.id, update).await.unwrap();
            self.engine.delete_snapshot(&snapshot.id).await.unwrap();
        }
        for sandbox in self.engine.list(&crate::SandboxFilter::default()).await.unwrap() {
            self.engine.destroy(&sandbox.id).await.unwrap();
        }
        // What a scratch machine left when it was cut short goes at the next start.
        let folder = self.paths.data.parent().unwrap().to_owned();
        let Host { folder: _kept, paths, engine } = self;
        engine.shutdown().await;
        drop(engine);
        let engine = started(&mock::config(&folder)).await;
        engine.shutdown().await;
        let this = Host { folder: None, paths, engine };
        assert_eq!(vmm_processes(&this.paths.runtime).unwrap(), []);
        assert_eq!(this.count(&this.paths.sandboxes(), "sbx_"), 0);
        assert!(!this.paths.runtime.exists());
        let (layers, images) = this.files();
        assert!(layers <= 3 && images <= 2, "{layers} layers, {images} images");
    }
}

fn named(name: &str) -> SnapshotSpec {
    SnapshotSpec { name: Some(name.into()), ..SnapshotSpec::default() }
}

#[tokio::test]
async fn the_first_of_a_kind_boots_and_the_next_go_on_from_it() {
    let host = Host::start().await;
    let first = host.create(SandboxSpec::default()).await;
    assert_eq!(first.boot_path, Some(BootPath::Cold));
    assert_eq!(host.run(&first.id, "memory").await, "booted g0 fresh");
    host.warm().await;
    let (one, two) = tokio::join!(host.create(SandboxSpec::default()), host.create(SandboxSpec::default()));
    for sandbox in [&one, &two] {
        assert_eq!((sandbox.boot_path, sandbox.state), (Some(BootPath::Warm), SandboxState::Running), "{sandbox:?}");
        assert_eq!(host.run(&sandbox.id, "memory").await, "booted prepared g0 fresh");
        host.run(&sandbox.id, &format!("write {}", sandbox.id)).await;
    }
    assert_eq!(host.run(&two.id, "disk").await, format!("root\n{}\n", two.id));
    assert_eq!(host.files().1, 1, "the basic image is replaced by the prepared one");
    let host = host.restart().await;
    assert_eq!(host.create(SandboxSpec::default()).await.boot_path, Some(BootPath::Warm));
    host.end().await;
}

#[tokio::test]
async fn a_kind_is_prepared_before_anyone_asks_for_it() {
    let host = Host::start().await;
    tokio::join!(host.warm(), host.warm());
    assert_eq!(host.create(SandboxSpec::default()).await.boot_path, Some(BootPath::Warm));
    let other = host.create(SandboxSpec { memory_mb: Some(512), ..SandboxSpec::default() }).await;
    assert_eq!(other.boot_path, Some(BootPath::Cold));
    host.end().await;
}

#[tokio::test]
async fn machines_that_wait_are_used_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let config = crate::EngineConfig { warm_pool: 2, ..mock::config(folder.path()) };
    let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
    let host = Host { engine: Engine::start(config).await.unwrap(), folder: Some(folder), paths };
    let runtime = host.paths.runtime.clone();
    let waiting = async |count| {
        let full = async {
            while vmm_processes(&runtime).unwrap().len() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, full).await.unwrap();
    };
    waiting(2).await;
    let first = host.create(SandboxSpec::default()).await;
    assert_eq!((first.state, first.boot_path), (SandboxState::Running, Some(BootPath::Warm)), "{first:?}");
    assert_eq!(host.run(&first.id, "memory").await, "booted prepared g0 fresh");
    waiting(3).await;
    host.run(&first.id, "write mine").await;
    let second = host.create(SandboxSpec::default()).await;
    assert_eq!(host.run(&second.id, "disk").await, "root\n");
    // Another kind is wanted: those that wait make room for it.
    let other = host.create(SandboxSpec { memory_mb: Some(512), ..SandboxSpec::default() }).await;
    assert_eq!(other.boot_path, Some(BootPath::Cold));
    let fork = host.fork(ForkSource::Sandbox(first.id.clone())).await;
    assert_eq!(host.run(&fork.id, "disk").await, "root\nmine\n");
    waiting(6).await;
    let host = host.restart().await;
    waiting(4).await;
    host.end().await;
}

#[tokio::test]
async fn a_paused_sandbox_goes_on_where_it_was() {
    let host = Host::start().await;
    let it = host.create(SandboxSpec::default()).await;
    host.run(&it.id, "remember me").await;
    host.run(&it.id, "write me").await;
    let paused = host.engine.pause(&it.id).await.unwrap();
    assert_eq!(paused.state, SandboxState::Paused);
    assert!(paused.paused_at.is_some() && host.engine.pause(&it.id).await.is_ok());
    assert!(!host.paths.sockets(&it.id).exists());
    let host = host.restart().await;
    let resumed = host.engine.resume(&it.id, BTreeMap::from([("A".into(), "b".into())])).await.unwrap();
    assert_eq!((resumed.boot_path, resumed.env["A"].as_str()), (Some(BootPath::Snapshot), "b"));
    assert_eq!(host.run(&it.id, "memory").await, "booted g0 fresh me g1");
    assert_eq!(host.run(&it.id, "disk").await, "root\nme\n");
    // Ten callers find it paused: it is resumed once.
    host.engine.stop(&it.id).await.unwrap();
    let outputs = join_all((0..10).map(|_| host.run(&it.id, "memory"))).await;
    assert!(outputs.iter().all(|output| output == "booted g0 fresh me g1 g2"), "{outputs:?}");
    host.end().await;
}

#[tokio::test]
async fn a_command_that_a_pause_cuts_off_is_told_so() {
    let host = Host::start().await;
    let it = host.create(SandboxSpec::default()).await;
    let mut events = host.engine.events();
    let (cut, _) = tokio::join!(host.try_run(&it.id, "wait"), async {
        while !matches!(events.recv().await.unwrap().kind, EventKind::ExecStarted { .. }) {}
        host.engine.pause(&it.id).await.unwrap()
    });
    assert!(matches!(cut, Err(Error::Interrupted { by: "paused", .. })), "{cut:?}");
    host.end().await;
}

#[tokio::test]
async fn a_restore_brings_back_disk_and_memory() {
    let host = Host::start().await;
    let it = host.create(SandboxSpec::default()).await;
    host.run(&it.id, "remember first").await;
    host.run(&it.id, "write first").await;
    let snapshot = host.engine.snapshot(&it.id, named("before")).await.unwrap();
    assert!(snapshot.has_memory && snapshot.paused_us.is_some());
    let error = host.engine.snapshot(&it.id, named("before")).await.unwrap_err();
    assert!(matches!(error, Error::SnapshotNameTaken { .. }), "{error}");
    host.run(&it.id, "remember second").await;
    host.run(&it.id, "write second").await;
    let later = host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap();
    assert_eq!(later.parent_id, Some(snapshot.id.clone()));
    assert_eq!(host.run(&it.id, "disk").await, "root\nfirst\nsecond\n");
    for _ in 0..2 {
        let back = host.engine.restore(&it.id, &snapshot.id).await.unwrap();
        assert_eq!((back.state, back.snapshot_id), (SandboxState::Running, Some(snapshot.id.clone())));
        let memory = host.run(&it.id, "memory").await;
        assert!(memory.starts_with("booted g0 fresh first g"), "{memory}");
        assert_eq!(host.run(&it.id, "disk").await, "root\nfirst\n");
        host.run(&it.id, "write third").await;
        host.run(&it.id, "remember third").await;
    }
    // Also from a pause, and the other way.
    host.engine.pause(&it.id).await.unwrap();
    host.engine.restore(&it.id, &later.id).await.unwrap();
    assert!(host.run(&it.id, "memory").await.starts_with("booted g0 fresh first second g"));
    let of_paused = {
        host.engine.pause(&it.id).await.unwrap();
        host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap()
    };
    assert!(of_paused.has_memory && of_paused.paused_us.is_none());
    assert!(host.run(&it.id, "memory").await.starts_with("booted g0 fresh first second g"));
    let error = host.engine.delete_snapshot(&snapshot.id).await.unwrap_err();
    assert!(matches!(error, Error::SnapshotInUse { .. }), "{error}");
    // Looked into without anyone noticing.
    let mut events = host.engine.events();
    for _ in 0..2 {
        assert_eq!(host.engine.snapshot_list_dir(&later.id, "/", 1).await.unwrap()[0].path, "/");
    }
    assert_eq!(host.engine.list(&crate::SandboxFilter::default()).await.unwrap().len(), 1);
    assert!(events.try_recv().is_err());
    host.end().await;
}

#[tokio::test]
async fn a_fork_shares_the_past_and_nothing_later() {
    let host = Host::start().await;
    let source = host.create(SandboxSpec { name: Some("source".into()), ..SandboxSpec::default() }).await;
    host.run(&source.id, "remember past").await;
    host.run(&source.id, "write past").await;
    let (one, two) = tokio::join!(
        host.fork(ForkSource::Sandbox(source.id.clone())),
        host.fork(ForkSource::Sandbox(source.id.clone()))
    );
    assert_eq!((one.forked_from.as_ref(), one.name.as_ref()), (Some(&source.id), None));
    for it in [&source, &one, &two] {
        host.run(&it.id, &format!("write {}", it.id)).await;
        host.run(&it.id, &format!("remember {}", it.id)).await;
    }
    for it in [&source, &one, &two] {
        assert_eq!(host.run(&it.id, "disk").await, format!("root\npast\n{}\n", it.id));
        let memory = host.run(&it.id, "memory").await;
        assert!(memory.contains("past") && memory.ends_with(it.id.as_str()) && memory.matches("sbx_").count() == 1);
    }
    assert!(host.run(&one.id, "memory").await.contains("past g1 fresh"));

    // Of a paused one, many times over: it stays as it is, and its chain does not grow.
    host.engine.pause(&source.id).await.unwrap();
    let before = host.files();
    let children = join_all((0..5).map(|_| host.fork(ForkSource::Sandbox(source.id.clone())))).await;
    assert_eq!(host.files(), (before.0 + 5, before.1));
    assert_eq!(host.engine.get(source.id.as_str()).await.unwrap().state, SandboxState::Paused);
    host.engine.destroy(&source.id).await.unwrap();
    assert_eq!(host.run(&children[4].id, "disk").await, format!("root\npast\n{}\n", source.id));

    // Of a snapshot, whose sandbox is gone.
    let snapshot = host.engine.snapshot(&one.id, SnapshotSpec::default()).await.unwrap();
    host.engine.destroy(&one.id).await.unwrap();
    let child = host.fork(ForkSource::Snapshot(snapshot.id.clone())).await;
    assert_eq!(host.run(&child.id, "disk").await, format!("root\npast\n{}\n", one.id));
    assert_eq!(host.engine.dependents(&snapshot.id).await.unwrap().len(), 1);
    assert_eq!(host.engine.delete_snapshot(&snapshot.id).await.unwrap().id, snapshot.id);
    assert_eq!(host.run(&child.id, "disk").await, format!("root\npast\n{}\n", one.id));
    host.end().await;
}

#[tokio::test]
async fn sizes_say_what_is_shared() {
    let host = Host::start().await;
    let it = host.create(SandboxSpec::default()).await;
    host.run(&it.id, &format!("write {}", "x".repeat(10_000))).await;
    let snapshot = host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap();
    let alone = snapshot.share;
    assert!(alone.exclusive_bytes > 0 && alone.shared_bytes >= 10_000, "{alone:?}");
    host.engine.destroy(&it.id).await.unwrap();
    let share = host.engine.find_snapshot(snapshot.id.as_str()).await.unwrap().share;
    assert!(share.exclusive_bytes > alone.exclusive_bytes + 10_000, "{share:?}");
    host.engine.delete_snapshot(&snapshot.id).await.unwrap();
    assert_eq!(host.engine.share(&it.id).await.unwrap(), Share::default());
    host.end().await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_sandbox_runs_on() {
    let host = Host::start().await;
    // The files are counted, and those of a template that is being prepared come and go.
    host.warm().await;
    let it = host.create(SandboxSpec::default()).await;
    let before = host.files();
    fs::write(host.paths.data.join(mock::FULL), "").unwrap();
    let errors = [
        host.engine.pause(&it.id).await.unwrap_err(),
        host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap_err(),
        host.engine.fork(&ForkSource::Sandbox(it.id.clone()), ForkSpec::default()).await.unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, Error::NoSpace { .. })), "{errors:?}");
    assert_eq!(host.engine.get(it.id.as_str()).await.unwrap().state, SandboxState::Running);
    assert_eq!(host.files(), before);
    host.run(&it.id, "write on").await;
    fs::remove_file(host.paths.data.join(mock::FULL)).unwrap();
    let snapshot = host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap();
    host.run(&it.id, "write later").await;
    host.engine.restore(&it.id, &snapshot.id).await.unwrap();
    assert_eq!(host.run(&it.id, "disk").await, "root\non\n");
    host.end().await;
}

#[tokio::test]
async fn a_capture_that_does_not_fit_this_host_is_booted_from_its_disk() {
    let host = Host::start().await;
    let it = host.create(SandboxSpec::default()).await;
    host.run(&it.id, "remember me").await;
    host.run(&it.id, "write me").await;
    let snapshot = host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap();
    host.engine.pause(&it.id).await.unwrap();
    fs::write(host.paths.data.join(mock::UNFIT), "").unwrap();
    let mut events = host.engine.events();
    let resumed = host.engine.resume(&it.id, BTreeMap::new()).await.unwrap();
    assert_eq!(resumed.boot_path, Some(BootPath::Cold));
    let mut told = false;
    while let Ok(event) = events.try_recv() {
        told |= matches!(event.kind, EventKind::ColdBoot { reason } if reason.contains("another host"));
    }
    assert!(told);
    assert_eq!(host.run(&it.id, "disk").await, "root\nme\n");
    assert_eq!(host.run(&it.id, "memory").await, "booted g1");
    let child = host.engine.fork(&ForkSource::Snapshot(snapshot.id), ForkSpec::default()).await.unwrap();
    let child = host.settled(&child.id).await;
    assert_eq!((child.state, child.boot_path), (SandboxState::Running, Some(BootPath::Cold)));
    assert_eq!(host.run(&child.id, "disk").await, "root\nme\n");
    host.end().await;
}

#[tokio::test]
async fn sessions_end_by_their_clocks() {
    let host = Host::start().await;
    host.warm().await;
    let spec =
        |persistent| SandboxSpec { timeout_sec: Some(1), persistent: Some(persistent), ..SandboxSpec::default() };
    let (kept, gone) = (host.create(spec(true)).await, host.create(spec(false)).await);
    let idle = host.create(SandboxSpec { idle_timeout_sec: Some(1), ..SandboxSpec::default() }).await;
    let busy = host.engine.activity(&idle.id).await.unwrap().begin();
    let until = async |id: &SandboxId, state| {
        let mut record = host.engine.watch(id).await.unwrap();
        tokio::time::timeout(SOON, record.wait_for(|it| it.state == state)).await.unwrap().unwrap().clone()
    };
    let always = SandboxUpdate { always_on: Some(true), ..SandboxUpdate::default() };
    let on = host.create(spec(true)).await;
    assert_eq!(host.engine.update(&on.id, always).await.unwrap().timeout_remaining_ms(on.created_at), None);
    until(&kept.id, SandboxState::Paused).await;
    until(&gone.id, SandboxState::Destroyed).await;
    assert_eq!(host.engine.get(idle.id.as_str()).await.unwrap().state, SandboxState::Running);
    drop(busy);
    until(&idle.id, SandboxState::Paused).await;
    assert_eq!(host.engine.get(on.id.as_str()).await.unwrap().state, SandboxState::Running);
    // A resumed one has a session of its own, which can be extended.
    host.engine.extend(&kept.id, Some(100)).await.unwrap();
    let resumed = host.engine.resume(&kept.id, BTreeMap::new()).await.unwrap();
    assert!(resumed.timeout_remaining_ms(time::OffsetDateTime::now_utc()).unwrap() > 90_000);
    assert!(resumed.ran_ms > 0);
    host.end().await;
}

#[tokio::test]
async fn too_many_snapshots_and_old_ones_go_by_themselves() {
    let host = Host::start().await;
    let metadata = [("keep_last_snapshots".to_owned(), 2.into())].into_iter().collect();
    let it = host.create(SandboxSpec { metadata, ..SandboxSpec::default() }).await;
    host.engine.snapshot(&it.id, named("kept")).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap().id);
    }
    let left = host.engine.snapshots(&SnapshotFilter::default()).await.unwrap();
    let left: Vec<_> = left.iter().skip(1).map(|snapshot| snapshot.id.clone()).collect();
    assert_eq!(left, ids[2..]);
    let spec = SnapshotSpec { expiration_sec: Some(1), ..SnapshotSpec::default() };
    let old = host.engine.snapshot(&it.id, spec).await.unwrap();
    tokio::time::sleep_until(Instant::now() + Duration::from_millis(1100)).await;
    crate::snapshot::delete_expired(&host.engine.shared).await.unwrap();
    assert!(matches!(host.engine.find_snapshot(old.id.as_str()).await.unwrap_err(), Error::SnapshotNotFound(_)));
    host.end().await;
}

#[tokio::test]
async fn a_long_chain_becomes_a_short_one() {
    let host = Host::start().await;
    host.warm().await;
    let it = host.create(SandboxSpec::default()).await;
    let mut snapshots = Vec::new();
    let mut disk = "root\n".to_owned();
    for turn in 0..12 {
        host.run(&it.id, &format!("write {turn}")).await;
        disk.push_str(&format!("{turn}\n"));
        snapshots.push((host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap().id, disk.clone()));
    }
    let chain = async || {
        let holding = host.engine.shared.db.holding(&it.id).await.unwrap();
        host.engine.shared.db.chain(&holding.layer.unwrap()).await.unwrap().len()
    };
    let short = async {
        while chain().await > 8 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, short).await.unwrap();
    // The machine goes on with the files that it has, and can still be captured.
    snapshots.push((host.engine.snapshot(&it.id, SnapshotSpec::default()).await.unwrap().id, disk.clone()));
    assert_eq!(host.run(&it.id, "disk").await, disk);
    for (snapshot, disk) in &snapshots {
        let child = host.fork(ForkSource::Snapshot(snapshot.clone())).await;
        assert_eq!(host.run(&child.id, "disk").await, *disk);
        host.engine.destroy(&child.id).await.unwrap();
    }
    host.engine.pause(&it.id).await.unwrap();
    let host = host.restart().await;
    host.engine.resume(&it.id, BTreeMap::new()).await.unwrap();
    assert_eq!(host.run(&it.id, "disk").await, disk);
    host.end().await;
}

#[tokio::test]
#[ignore = "prints how long the engine's own part of a create takes"]
async fn timings() {
    let host = Host::start().await;
    host.warm().await;
    for _ in 0..10 {
        let begun = Instant::now();
        let sandbox = host.engine.create(SandboxSpec::default()).await.unwrap();
        let returned = begun.elapsed();
        let mut live = host.engine.shared.find(&sandbox.id).unwrap().live;
        live.wait_for(|live| live.progress >= crate::sandbox::driver::Progress::DiskMade).await.unwrap();
        let disk = begun.elapsed();
        live.wait_for(|live| live.progress >= crate::sandbox::driver::Progress::AgentAnswered).await.unwrap();
        let restored = begun.elapsed();
        host.settled(&sandbox.id).await;
        println!("create returned {returned:?}, disk {disk:?}, restored {restored:?}, ready {:?}", begun.elapsed());
    }
    host.end().await;
}
