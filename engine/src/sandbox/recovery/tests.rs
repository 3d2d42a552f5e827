//! What a start makes of every kind of half-done work. The machines here are processes that only look like a vmm; real
//! ones are found again in `engine/tests/real.rs`.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::config::Paths;
use crate::db::tests::{layer, sandbox};
use crate::db::{Db, OperationKind, TemplateVersion};
use crate::sandbox::SandboxSpec;
use crate::template::tests::template;
use crate::{Engine, EngineConfig};

const MINUTE: Duration = Duration::from_secs(60);

/// A data directory as an earlier server left it.
struct Left {
    folder: TempDir,
    paths: Paths,
    db: Db,
}

impl Left {
    async fn new() -> Left {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
        for dir in [&paths.templates(), &paths.sandboxes(), &paths.layers(), &paths.runtime] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::set_permissions(&paths.runtime, fs::Permissions::from_mode(0o700)).unwrap();
        let db = Db::open(&paths.database()).await.unwrap();
        db.insert_template(&TemplateVersion { template: template(), root_modified_us: 0 }).await.unwrap();
        Left { folder, paths, db }
    }

    /// A sandbox in `state`, with files and sockets.
    async fn sandbox(&self, state: SandboxState, change: impl FnOnce(&mut Sandbox)) -> Sandbox {
        let mut it = sandbox(SandboxSpec::default());
        let layer = layer(None);
        self.db.begin_create(&it, "v1", &layer, MINUTE).await.unwrap().unwrap();
        fs::write(self.paths.layer(&layer.id), "").unwrap();
        self.files(&it.id);
        change(&mut it);
        it.state = state;
        match state {
            SandboxState::Creating => {}
            SandboxState::Destroying => {
                self.db.begin_operation(&it, OperationKind::Destroy, MINUTE).await.map(|_| ()).unwrap();
            }
            _ => self.db.end_operations(&it, Outcome::Done).await.unwrap(),
        }
        it
    }

    fn files(&self, id: &SandboxId) {
        for dir in [self.paths.sandbox(id), self.paths.sockets(id)] {
            fs::create_dir_all(dir).unwrap();
        }
        for file in [self.paths.console_log(id), self.paths.control_socket(id)] {
            fs::write(file, "").unwrap();
        }
    }

    /// A process that looks like the vmm of `control`; noted in the database for `noted`.
    async fn process(&self, control: &Path, noted: Option<&SandboxId>) -> Child {
        // A shell that waits for a line: nothing is left of it when it is killed.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read line", "vmm", "--control"]).arg(control).stdin(Stdio::piped());
        let child = command.spawn().unwrap();
        let found = loop {
            let found = vmm_processes(&self.paths.runtime).unwrap();
            if let Some((identity, _)) = found.into_iter().find(|(identity, _)| identity.pid == child.id()) {
                break identity;
            }
        };
        if let Some(id) = noted {
            self.note(id, found).await;
        }
        child
    }

    /// Notes a sandbox's machine.
    async fn note(&self, id: &SandboxId, machine: MachineRow) {
        let (it, holding) = (self.db.sandbox(id).await.unwrap().unwrap(), self.db.holding(id).await.unwrap());
        let step = Step { machine: Some(MachineStep::Put(machine, &[])), ..Step::default() };
        self.db.step(Step { sandbox: Some((&it, &holding)), ..step }).await.unwrap();
    }

    /// Starts an engine on what was left. It finds no vmm, so it can make nothing new.
    async fn start(self) -> (TempDir, Engine) {
        self.db.close().await;
        let config = EngineConfig {
            data_dir: Some(self.paths.data.clone()),
            runtime_dir: Some(self.paths.runtime.clone()),
            guest_dir: Some("/nonexistent".into()),
            vmm: Some("/nonexistent/vmm".into()),
            ..EngineConfig::default()
        };
        let engine = Engine::start(config).await.unwrap();
        (self.folder, engine)
    }
}

/// Layers on the disk, patterns left out.
fn layers_left(paths: &Paths) -> usize {
    let names = fs::read_dir(paths.layers()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with("lay_")).count()
}

/// A killed child of ours stays a zombie until it is waited for.
fn assert_killed(child: &mut Child) {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[tokio::test]
async fn a_half_done_create_is_undone() {
    let left = Left::new().await;
    let (noted, unnoted) =
        (left.sandbox(SandboxState::Creating, |_| {}).await, left.sandbox(SandboxState::Creating, |_| {}).await);
    let mut first = left.process(&left.paths.control_socket(&noted.id), Some(&noted.id)).await;
    let mut second = left.process(&left.paths.control_socket(&unnoted.id), None).await;
    let paths = left.paths.clone();
    let (_folder, engine) = left.start().await;
    assert_killed(&mut first);
    assert_killed(&mut second);
    for it in [noted, unnoted] {
        let record = engine.get(it.id.as_str()).await.unwrap();
        assert_eq!(record.state, SandboxState::Error);
        assert_eq!(record.last_error.unwrap(), "the server ended while this sandbox was being created");
        assert!(!paths.sockets(&it.id).exists() && layers_left(&paths) == 0);
        assert_eq!(engine.destroy(&it.id).await.unwrap().state, SandboxState::Destroyed);
        assert!(!paths.sandbox(&it.id).exists());
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn a_half_done_destroy_is_finished() {
    let left = Left::new().await;
    let it = left.sandbox(SandboxState::Destroying, |_| {}).await;
    let mut child = left.process(&left.paths.control_socket(&it.id), Some(&it.id)).await;
    let paths = left.paths.clone();
    let (_folder, engine) = left.start().await;
    assert_killed(&mut child);
    let deadline = tokio::time::Instant::now() + MINUTE;
    let record = engine.wait_settled(&it.id, deadline).await.unwrap();
    assert_eq!(record.state, SandboxState::Destroyed);
    assert!(record.destroyed_at.is_some());
    assert!(!paths.sandbox(&it.id).exists() && !paths.sockets(&it.id).exists());
    engine.shutdown().await;
}

#[tokio::test]
async fn a_running_sandbox_without_its_machine_is_an_error_and_keeps_its_disk() {
    let left = Left::new().await;
    let it = left.sandbox(SandboxState::Running, |_| {}).await;
    left.note(&it.id, MachineRow { pid: 1, start_ticks: 0 }).await;
    let stranger = it.id.clone();
    let paths = left.paths.clone();
    let (_folder, engine) = left.start().await;
    let record = engine.get(stranger.as_str()).await.unwrap();
    assert_eq!(record.state, SandboxState::Error);
    assert_eq!(record.last_error.unwrap(), "its machine ended while no server watched it");
    assert!(layers_left(&paths) == 1 && !paths.sockets(&it.id).exists());
    engine.destroy(&it.id).await.unwrap();
    engine.shutdown().await;
}

#[tokio::test]
async fn a_machine_whose_sockets_are_dead_is_killed() {
    let left = Left::new().await;
    let it = left.sandbox(SandboxState::Running, |_| {}).await;
    let mut child = left.process(&left.paths.control_socket(&it.id), Some(&it.id)).await;
    let (_folder, engine) = left.start().await;
    assert_killed(&mut child);
    let record = engine.get(it.id.as_str()).await.unwrap();
    assert_eq!(record.state, SandboxState::Error);
    assert!(record.last_error.unwrap().starts_with("its machine was found again but not its agent"));
    engine.destroy(&it.id).await.unwrap();
    engine.shutdown().await;
}

#[tokio::test]
async fn what_belongs_to_no_sandbox_is_removed_and_what_is_not_ours_is_left_alone() {
    let left = Left::new().await;
    let orphan = SandboxId::generate();
    left.files(&orphan);
    let mut ours = left.process(&left.paths.control_socket(&orphan), None).await;
    let foreign = left.paths.runtime.join("something-else");
    fs::create_dir(&foreign).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut other = Command::new("/bin/sh")
        .args(["-c", "read line", "vmm", "--control"])
        .arg(elsewhere.path().join("control.sock"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let paths = left.paths.clone();
    let (_folder, engine) = left.start().await;
    assert_killed(&mut ours);
    assert!(!paths.sandbox(&orphan).exists() && !paths.sockets(&orphan).exists());
    assert!(foreign.exists());
    assert!(other.try_wait().unwrap().is_none(), "a process of another data directory was killed");
    other.kill().unwrap();
    other.wait().unwrap();
    engine.shutdown().await;
}

#[tokio::test]
async fn without_a_vmm_the_engine_starts_and_a_create_says_what_is_missing() {
    let left = Left::new().await;
    let (_folder, engine) = left.start().await;
    assert!(engine.host_problem().unwrap().contains("/nonexistent/vmm"));
    let error = engine.create(SandboxSpec::default()).await.unwrap_err();
    assert!(matches!(&error, Error::HostNotReady { problem } if problem.contains("COVE_VMM")), "{error}");
    assert!(matches!(engine.get("sbx_missing").await.unwrap_err(), Error::SandboxNotFound(_)));
    assert!(matches!(engine.get("../etc").await.unwrap_err(), Error::SandboxNotFound(_)));
    assert_eq!(engine.templates().await.unwrap().len(), 1);
    engine.shutdown().await;
    let error = engine.create(SandboxSpec::default()).await.unwrap_err();
    assert!(matches!(error, Error::ShuttingDown), "{error}");
}

/// A vmm that never listens, but keeps the command line that proves it ours: it waits to open a pipe that nobody opens.
const SILENT_VMM: &str = r#"mkfifo "$2.pipe"; exec /bin/sh -c 'read line <"$2.pipe"' vmm --control "$2""#;

/// An engine on a directory whose last one has ended. A program that another test starts at this moment has, from its
/// fork to its exec, the last engine's lock too.
pub(crate) async fn started(config: &EngineConfig) -> Engine {
    let mut again = tokio::time::interval(Duration::from_millis(10));
    let lock_is_free = async {
        loop {
            match Engine::start(config.clone()).await {
                Err(Error::DataDirLocked { .. }) => again.tick().await,
                started => return started.unwrap(),
            };
        }
    };
    tokio::time::timeout(MINUTE, lock_is_free).await.unwrap()
}

/// Creates and destroys, and ends without a word: what `kill -9` leaves, as far as one process can do it to itself.
fn broken_off(config: EngineConfig, after: Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = started(&config).await;
        let end = tokio::time::Instant::now() + after;
        let work = async {
            loop {
                let first = engine.create(SandboxSpec::default()).await.unwrap();
                engine.create(SandboxSpec::default()).await.unwrap();
                engine.destroy(&first.id).await.unwrap();
            }
        };
        let _: Result<(), _> = tokio::time::timeout_at(end, work).await;
    });
    // Drops every task where it waits.
    runtime.shutdown_timeout(MINUTE);
}

#[test]
fn whenever_a_server_ends_the_next_one_reaches_a_legal_state_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let config = driver::tests::scripted(folder.path(), "touch \"$5\"", SILENT_VMM);
    let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
    for after_ms in [0, 1, 3, 5, 8, 12, 17, 25, 40, 80] {
        broken_off(config.clone(), Duration::from_millis(after_ms));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = started(&config).await;
            for sandbox in engine.list(&SandboxFilter::default()).await.unwrap() {
                let settled = engine.wait_settled(&sandbox.id, tokio::time::Instant::now() + MINUTE).await.unwrap();
                let legal = [SandboxState::Error, SandboxState::Destroyed].contains(&settled.state);
                assert!(legal, "{settled:?} after {after_ms} ms");
                assert!(settled.state != SandboxState::Error || settled.last_error.is_some());
                assert_eq!(engine.destroy(&sandbox.id).await.unwrap().state, SandboxState::Destroyed);
            }
            assert_eq!(vmm_processes(&paths.runtime).unwrap(), [], "after {after_ms} ms");
            assert_eq!(layers_left(&paths), 0, "after {after_ms} ms");
            for dir in [&paths.sandboxes(), &paths.runtime, &paths.images()] {
                assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "{} after {after_ms} ms", dir.display());
            }
            engine.shutdown().await;
        });
    }
}
