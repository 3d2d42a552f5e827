//! The engine with real machines: what needs KVM, the vmm binary and the guest image. Without them the tests say so and
//! pass: the whole product is tested in `tests/`, which does not let them be missing.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cove_engine::protocol::guest::{Command, Exec, Exit, ExitStatus, Stream};
use cove_engine::{Engine, EngineConfig, Error, ExecEvent, Sandbox, SandboxId, SandboxSpec, SandboxState};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::time::Instant;

/// One machine at a time: several cold boots on a small emulating host take minutes.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// How long a boot may take in these tests.
const BOOT: Duration = Duration::from_secs(240);

struct Folder(TempDir);

impl Folder {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

struct Host {
    folder: Folder,
    engine: Engine,
}

impl Host {
    /// A fresh engine, or `None` where no machine can run.
    async fn start() -> Option<Host> {
        let folder = Folder(tempfile::tempdir().unwrap());
        let engine = Engine::start(config(folder.path())).await.unwrap();
        if let Some(problem) = engine.host_problem() {
            eprintln!("skipped: {problem}");
            return None;
        }
        Some(Host { folder, engine })
    }

    /// A running sandbox of the smallest shape.
    async fn sandbox(&self, change: impl FnOnce(&mut SandboxSpec)) -> Sandbox {
        let mut spec = SandboxSpec {
            cpu_count: Some(1),
            memory_mb: Some(512),
            disk_size_mb: Some(2048),
            ..SandboxSpec::default()
        };
        change(&mut spec);
        let sandbox = self.engine.create(spec).await.unwrap();
        assert_eq!(sandbox.state, SandboxState::Creating);
        let sandbox = self.engine.wait_settled(&sandbox.id, Instant::now() + BOOT).await.unwrap();
        assert_eq!(sandbox.state, SandboxState::Running, "{:?}", sandbox.last_error);
        sandbox
    }

    /// Nothing is left of any sandbox.
    async fn end(self) {
        self.engine.shutdown().await;
        let left: Vec<_> = std::fs::read_dir(self.folder.path().join("data/sandboxes")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.folder.path().join("run").exists());
    }
}

fn config(folder: &Path) -> EngineConfig {
    EngineConfig {
        data_dir: Some(folder.join("data")),
        runtime_dir: Some(folder.join("run")),
        ..EngineConfig::default()
    }
}

fn shell(line: &str) -> Exec {
    Exec { command: Command::Shell(line.into()), cwd: None, env: vec![], user: None, stdin: false, timeout_ms: None }
}

async fn run(engine: &Engine, id: &SandboxId, exec: Exec) -> Result<(String, String, Exit), Error> {
    let mut execution = engine.exec(id, exec).await?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(event) = execution.output.next().await {
        match event? {
            ExecEvent::Output { stream: Stream::Stdout, data } => stdout.extend_from_slice(&data),
            ExecEvent::Output { stream: Stream::Stderr, data } => stderr.extend_from_slice(&data),
            ExecEvent::Exited(exit) => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return Ok((text(stdout), text(stderr), exit));
            }
        }
    }
    panic!("the stream of a command ended without its exit");
}

/// A failed test leaves no machine behind.
impl Drop for Folder {
    fn drop(&mut self) {
        vmm_pids(self.0.path()).into_iter().for_each(kill);
    }
}

/// The pids of the machines below `folder`.
fn vmm_pids(folder: &Path) -> Vec<i32> {
    let control = folder.join("run");
    let found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        line.contains(&format!("--control\0{}", control.display())).then_some(pid)
    });
    found.collect()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn a_sandbox_runs_commands_and_keeps_files_until_it_is_destroyed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(host) = Host::start().await else { return };
    let engine = &host.engine;
    let begun = Instant::now();
    let sandbox = host.sandbox(|spec| _ = spec.env.insert("COLOUR".into(), "blue".into())).await;
    eprintln!("ready after {:?}, boot_ms {:?}, granted {:?}", begun.elapsed(), sandbox.boot_ms, sandbox.cpu_granted);
    let id = &sandbox.id;

    let (stdout, stderr, exit) =
        run(engine, id, shell("echo $COLOUR; pwd; hostname; echo oops >&2; exit 3")).await.unwrap();
    let expected = format!("blue\n/workspace\n{}\n", id.as_str().replace('_', "-"));
    assert_eq!(stdout, expected, "{stderr:?} {exit:?}");
    assert_eq!((stderr.as_str(), exit.status), ("oops\n", ExitStatus::Code(3)));

    let content = vec![7_u8; 300_000];
    let pieces = content.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>();
    let written = engine.write_file(id, "/workspace/a b/é#", 0o644, futures_util::stream::iter(pieces)).await.unwrap();
    assert_eq!(written, 300_000);
    let (entry, mut stream) = engine.read_file(id, "/workspace/a b/é#").await.unwrap();
    let mut back = Vec::new();
    while let Some(chunk) = stream.next().await {
        back.extend_from_slice(&chunk.unwrap());
    }
    assert!(entry.size == 300_000 && back == content);
    let listed = engine.list_dir(id, "/workspace", 2).await.unwrap();
    assert!(listed.iter().any(|entry| entry.path == "/workspace/a b/é#"), "{listed:?}");
    let error = engine.stat(id, "/missing").await.unwrap_err();
    assert!(matches!(error, Error::Guest { .. }), "{error}");

    let times: Vec<_> = {
        let mut times = Vec::new();
        for _ in 0..10 {
            let begun = Instant::now();
            let true_ = Exec { command: Command::Argv(vec!["/bin/true".into()]), ..shell("") };
            run(engine, id, true_).await.unwrap();
            times.push(begun.elapsed());
        }
        times
    };
    eprintln!("true: {times:?}");
    let stats = engine.stats(id).await.unwrap();
    eprintln!("resident: {:?}", stats.memory_resident_bytes);
    assert!(!engine.logs(id, 1000).await.unwrap().is_empty());

    let began = Instant::now();
    let both = tokio::join!(engine.destroy(id), engine.destroy(id));
    eprintln!("destroyed in {:?}", began.elapsed());
    assert_eq!(both.0.unwrap().state, SandboxState::Destroyed);
    assert_eq!(both.1.unwrap().state, SandboxState::Destroyed);
    let error = engine.exec(id, shell("true")).await.unwrap_err();
    assert!(matches!(error, Error::SandboxDestroyed(_)), "{error}");
    assert_eq!(engine.destroy(id).await.unwrap().state, SandboxState::Destroyed);
    host.end().await;
}

#[tokio::test]
async fn a_killed_machine_is_an_error_with_a_reason_within_a_second_and_a_restart_finds_the_living() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(host) = Host::start().await else { return };
    let sandbox = host.sandbox(|spec| spec.name = Some("kept".into())).await;
    let id = &sandbox.id;
    run(&host.engine, id, shell("echo here > /tmp/note")).await.unwrap();
    host.engine.shutdown().await;
    let Host { folder, engine } = host;
    drop(engine);

    let engine = Engine::start(config(folder.path())).await.unwrap();
    assert_eq!(engine.by_name("kept").await.unwrap().state, SandboxState::Running);
    let (stdout, stderr, exit) = run(&engine, id, shell("cat /tmp/note")).await.unwrap();
    assert_eq!(stdout, "here\n", "{stderr:?} {exit:?}");

    let mut execution = engine.exec(id, shell("sleep 1000")).await.unwrap();
    vmm_pids(folder.path()).into_iter().for_each(kill);
    let settled = tokio::time::timeout(Duration::from_secs(1), async {
        let mut watch = engine.watch(id).await.unwrap();
        watch.wait_for(|sandbox| sandbox.state == SandboxState::Error).await.unwrap().clone()
    });
    let failed = settled.await.expect("no error within a second");
    eprintln!("last_error: {:?}", failed.last_error);
    let error = loop {
        match execution.output.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the stream of a command ended without a word"),
        }
    };
    assert!(matches!(error, Error::SandboxFailed { .. }), "{error}");
    engine.destroy(id).await.unwrap();
    Host { folder, engine }.end().await;
}

#[tokio::test]
async fn a_sandbox_can_be_destroyed_while_it_is_being_created() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(host) = Host::start().await else { return };
    let spec = SandboxSpec { cpu_count: Some(1), memory_mb: Some(512), ..SandboxSpec::default() };
    let sandbox = host.engine.create(spec).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        // Destroyed as soon as its machine runs.
        while !host.engine.readiness(&sandbox.id).await.unwrap().components.contains(&("resource_contract", true)) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the machine did not start");
    assert_eq!(host.engine.destroy(&sandbox.id).await.unwrap().state, SandboxState::Destroyed);
    host.end().await;
}

#[tokio::test]
async fn a_sandbox_that_is_not_persistent_goes_when_its_time_is_over() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(host) = Host::start().await else { return };
    // The time counts from when it is command-ready.
    let spec = SandboxSpec {
        cpu_count: Some(1),
        memory_mb: Some(512),
        persistent: Some(false),
        timeout_sec: Some(1),
        ..SandboxSpec::default()
    };
    let id = host.engine.create(spec).await.unwrap().id;
    let gone = tokio::time::timeout(BOOT, async {
        let mut watch = host.engine.watch(&id).await.unwrap();
        watch.wait_for(|sandbox| sandbox.state == SandboxState::Destroyed).await.unwrap().clone()
    });
    let record = gone.await.expect("it was not destroyed");
    assert!(record.ready_at.is_some() && record.destroyed_at.is_some());
    host.end().await;
}
