//! The driver with a vmm that is a script: what happens when each step of a start fails. Starts that succeed need a real
//! machine and are in `engine/tests/real.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::Paths;
use crate::events::Event;
use crate::machine::mock::{PROBE, below};
use crate::sandbox::SandboxSpec;
use crate::{Engine, EngineConfig, EngineLimits};

/// How long these failures may take.
const SOON: Duration = Duration::from_secs(60);

struct Host {
    _folder: tempfile::TempDir,
    paths: Paths,
    engine: Engine,
}

impl Host {
    /// An engine whose vmm answers a probe, and does `disk` and `machine` for the rest.
    async fn start(disk: &str, machine: &str) -> Host {
        Self::start_within(disk, machine, EngineLimits::default()).await
    }

    async fn start_within(disk: &str, machine: &str, limits: EngineLimits) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let config = EngineConfig { limits, ..scripted(folder.path(), disk, machine) };
        let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
        let engine = Engine::start(config).await.unwrap();
        assert_eq!(engine.host_problem(), None);
        Host { _folder: folder, paths, engine }
    }

    async fn create(&self) -> Sandbox {
        let sandbox = self.engine.create(SandboxSpec::default()).await.unwrap();
        assert_eq!(sandbox.state, SandboxState::Creating);
        sandbox
    }

    /// A create that fails, and why.
    async fn failed_create(&self) -> (SandboxId, String) {
        let id = self.create().await.id;
        let sandbox = self.engine.wait_settled(&id, Instant::now() + SOON).await.unwrap();
        assert_eq!(sandbox.state, SandboxState::Error);
        (id, sandbox.last_error.unwrap())
    }

    async fn destroy(&self, id: &SandboxId) {
        let record = self.engine.destroy(id).await.unwrap();
        assert_eq!(record.state, SandboxState::Destroyed);
        assert!(!self.paths.sandbox(id).exists() && !self.paths.sockets(id).exists());
    }
}

/// A configuration below `folder` whose vmm is a script: it answers a probe, and does `disk` and `machine` for the rest.
pub(crate) fn scripted(folder: &Path, disk: &str, machine: &str) -> EngineConfig {
    let guest = folder.join("guest");
    fs::create_dir(&guest).unwrap();
    for file in ["vmlinux", "root.ext4"] {
        fs::write(guest.join(file), "image").unwrap();
    }
    let vmm = folder.join("vmm");
    let script =
        format!("#!/bin/sh\ncase $1 in\nprobe) echo '{PROBE}';;\ndisk) {disk};;\n--control) {machine};;\nesac\n");
    fs::write(&vmm, script).unwrap();
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
    below(folder)
}

#[tokio::test]
async fn a_disk_that_cannot_be_made_is_the_reason() {
    let host = Host::start("echo no room >&2; exit 1", "exit 0").await;
    let mut events = host.engine.events();
    let (id, reason) = host.failed_create().await;
    assert!(reason.starts_with("the disk could not be made: The disk ") && reason.ends_with(": no room"), "{reason}");
    assert!(!host.paths.sockets(&id).exists());
    assert_eq!(fs::read_dir(host.paths.layers()).unwrap().count(), 0);
    let error = host.engine.exec(&id, crate::agent::tests::exec()).await.unwrap_err();
    assert!(matches!(error, Error::SandboxFailed { .. }), "{error}");
    host.destroy(&id).await;
    let mut names = Vec::new();
    while let Ok(Event { kind, .. }) = events.try_recv() {
        names.push(kind.name());
    }
    assert_eq!(names, ["sandbox.created", "sandbox.error", "sandbox.destroyed"]);
    host.engine.shutdown().await;
}

#[tokio::test]
async fn a_vmm_that_ends_at_once_is_the_reason_with_its_last_words() {
    let host = Host::start(r#": > "$5""#, "echo cannot open the gate >&2; exit 7").await;
    let (id, reason) = host.failed_create().await;
    let expected =
        "the machine did not start: the vmm process exited with code 7; the end of its vmm log: cannot open the gate";
    assert_eq!(reason, expected);
    assert!(fs::read_to_string(host.paths.vmm_log(&id)).unwrap().contains("gate"), "the log is kept");
    host.destroy(&id).await;
    host.engine.shutdown().await;
}

#[tokio::test]
async fn a_create_is_taken_back_by_a_destroy_and_by_the_end_of_the_server() {
    // This vmm never listens.
    let host = Host::start(r#": > "$5""#, "exec sleep 1000").await;
    let mut live = host.create().await;
    let both = tokio::join!(host.engine.destroy(&live.id), host.engine.destroy(&live.id));
    assert_eq!(both.0.unwrap().state, SandboxState::Destroyed);
    assert_eq!(both.1.unwrap().state, SandboxState::Destroyed);
    host.destroy(&live.id).await;

    live = host.create().await;
    host.engine.shutdown().await;
    let db = crate::db::Db::open(&host.paths.database()).await.unwrap();
    let record = db.sandbox(&live.id).await.unwrap().unwrap();
    assert_eq!(record.state, SandboxState::Error);
    assert_eq!(record.last_error.unwrap(), "the server was stopped while this sandbox was being created");
    assert!(db.open_operations().await.unwrap().is_empty());
    assert!(!host.paths.runtime.exists());
}

#[tokio::test]
async fn names_are_unique_and_free_again_after_a_destroy() {
    let host = Host::start("exit 1", "exit 1").await;
    let spec = || SandboxSpec { name: Some("web".into()), ..SandboxSpec::default() };
    let first = host.engine.create(spec()).await.unwrap();
    let error = host.engine.create(spec()).await.unwrap_err();
    assert!(matches!(&error, Error::NameTaken { holder, .. } if *holder == first.id), "{error}");
    host.destroy(&first.id).await;
    assert!(matches!(host.engine.by_name("web").await.unwrap_err(), Error::SandboxNotFound(_)));
    let second = host.engine.create(spec()).await.unwrap();
    assert_eq!(host.engine.by_name("web").await.unwrap().id, second.id);
    host.engine.shutdown().await;
}

#[tokio::test]
async fn a_host_without_room_refuses_before_anything_is_made() {
    let limits = EngineLimits { sandboxes_max: 1, ..EngineLimits::default() };
    let host = Host::start_within("exit 1", "exit 1", limits).await;
    let (id, _) = host.failed_create().await;
    let error = host.engine.create(SandboxSpec::default()).await.unwrap_err();
    assert!(matches!(error, Error::Admission(_)), "{error}");
    assert_eq!(host.engine.list(&crate::SandboxFilter::default()).await.unwrap().len(), 1);
    host.destroy(&id).await;
    host.failed_create().await;
    host.engine.shutdown().await;
}

#[tokio::test]
async fn an_unknown_template_and_a_wrong_field_are_refused() {
    let host = Host::start("exit 1", "exit 1").await;
    let spec = SandboxSpec { template: Some("python-3.12".into()), ..SandboxSpec::default() };
    let error = host.engine.create(spec).await.unwrap_err();
    assert!(matches!(&error, Error::TemplateNotFound(name) if name == "python-3.12"), "{error}");
    let spec = SandboxSpec { cpu_count: Some(99), ..SandboxSpec::default() };
    assert_eq!(host.engine.create(spec).await.unwrap_err().field(), Some("cpu_count"));
    assert!(host.engine.list(&crate::SandboxFilter::default()).await.unwrap().is_empty());
    host.engine.shutdown().await;
}
