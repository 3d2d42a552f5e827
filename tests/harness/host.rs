//! A real `cove serve` with fresh directories, on a free port.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::processes::{self, Process};
use super::{Answer, Api, TestSandbox, until};

/// A start imports the template, which copies a file system image.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A graceful stop may take 10 s for open requests.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Lines of each log in the report of a failure.
const REPORT_LINES: usize = 80;

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    pub cove: PathBuf,
    pub vmm: PathBuf,
    pub guest_dir: PathBuf,
}

impl Programs {
    /// In `COVE_TEST_BIN_DIR`, or in cargo's target folder, where the newer of the release and debug builds wins.
    pub fn find() -> Result<Self> {
        let bin_dir = match std::env::var_os("COVE_TEST_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => newest_build()?,
        };
        let guest_dir = match std::env::var_os("COVE_GUEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => [bin_dir.join("guest"), bin_dir.join("../release/guest")]
                .into_iter()
                .find(|dir| dir.join("vmlinux").exists())
                .context("There is no guest image: `cargo xtask guest` builds it, COVE_GUEST_DIR names it")?,
        };
        let guest_dir = fs::canonicalize(&guest_dir).with_context(|| format!("No {}", guest_dir.display()))?;
        let programs = Self { cove: bin_dir.join("cove"), vmm: bin_dir.join("vmm"), guest_dir };
        for program in [&programs.cove, &programs.vmm] {
            ensure!(program.is_file(), "There is no {}: `cargo xtask test` builds it", program.display());
        }
        Ok(programs)
    }

    /// `cove`, free of what the caller's shell says about servers.
    pub fn cove(&self) -> Command {
        let mut command = Command::new(&self.cove);
        for variable in ["COVE_URL", "COVE_TOKEN", "COVE_PORT", "COVE_KVM", "MIOSA_BASE_URL", "MIOSA_API_KEY"] {
            command.env_remove(variable);
        }
        command.env("COVE_VMM", &self.vmm).env("COVE_GUEST_DIR", &self.guest_dir).stdin(Stdio::null());
        command
    }
}

/// Copies what is in a folder to a small file system, and runs a program that finds that in the folder's place.
const LIMITED: &str = r#"folder=$1; room=$2; shift 2
cp -a --sparse=always "$folder" "$folder.all" && mount -t tmpfs -o "size=$room" tmpfs "$folder" \
    && cp -a --sparse=always "$folder.all/." "$folder" && rm -r "$folder.all" && exec "$@""#;

/// `command` in a mount namespace of its own, which needs no rights beyond the caller's.
fn limited(command: &Command, folder: &Path, room: &str) -> Command {
    let mut limited = Command::new("unshare");
    limited.args(["--map-root-user", "--mount", "sh", "-c", LIMITED, "sh"]).arg(folder).arg(room);
    limited.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// Cargo's target folder, in which this program lies.
pub fn target_dir() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("The test program lies in no target folder")?;
    Ok(target.to_path_buf())
}

fn newest_build() -> Result<PathBuf> {
    let target = target_dir()?;
    let built = |profile: &str| {
        Some((fs::metadata(target.join(profile).join("cove")).ok()?.modified().ok()?, target.join(profile)))
    };
    let newest = ["release", "debug"].into_iter().filter_map(built).max();
    newest.map(|(_, dir)| dir).with_context(|| format!("No cove in {}: `cargo xtask test` builds it", target.display()))
}

/// A server and its directories. Dropping it ends everything and removes them.
pub struct TestHost {
    pub programs: Programs,
    dir: TempDir,
    env: Mutex<Vec<(String, String)>>,
    /// A folder of the data directory and the room that it has from the next start on, as a size of mount(8).
    room: Mutex<Option<(&'static str, &'static str)>>,
    server: Mutex<Option<Child>>,
    api: Mutex<Option<Api>>,
    history: Arc<Mutex<Vec<String>>>,
}

impl TestHost {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// Starts a server with more in its environment.
    pub fn start_with(env: &[(&str, &str)]) -> Result<Self> {
        Self::start_from(None, env)
    }

    /// Starts a server on a copy of a data directory that no server uses.
    pub fn start_from(data: Option<&Path>, env: &[(&str, &str)]) -> Result<Self> {
        let programs = Programs::find()?;
        // Removed by `end`, when the processes are gone.
        let dir = tempfile::Builder::new().prefix("cove-e2e-").disable_cleanup(true).tempdir()?;
        processes::register(dir.path());
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect::<Vec<_>>().into();
        if let Some(data) = data {
            // Holes stay holes, and what the file system can share is shared.
            let copied =
                Command::new("cp").args(["-a", "--reflink=auto"]).arg(data).arg(dir.path().join("data")).status()?;
            ensure!(copied.success(), "Cannot copy {}: {copied}", data.display());
        }
        let (room, server, api, history) = Default::default();
        let host = Self { programs, dir, env, room, server, api, history };
        host.launch()?;
        Ok(host)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// A client of the running server.
    pub fn api(&self) -> Api {
        let api = self.api.lock().unwrap_or_else(PoisonError::into_inner);
        api.clone().expect("the server was started")
    }

    /// A `cove` subcommand that talks to this server.
    pub fn cove(&self, words: &[&str]) -> Command {
        let mut command = self.programs.cove();
        command.env("COVE_RUNTIME_DIR", self.runtime_dir()).arg("--data-dir").arg(self.data_dir()).args(words);
        command
    }

    /// Runs a `cove` subcommand to its end.
    pub fn run_cove(&self, words: &[&str]) -> Result<Output> {
        self.cove(words).output().with_context(|| format!("Cannot run cove {words:?}"))
    }

    /// Starts the server (again), and waits until it is ready.
    pub fn launch(&self) -> Result<()> {
        let log = OpenOptions::new().append(true).create(true).open(self.dir().join("server.log"))?;
        let mut command = self.cove(&["serve", "--port", "0"]);
        if let Some((folder, room)) = *self.room.lock().unwrap_or_else(PoisonError::into_inner) {
            command = limited(&command, &self.data_dir().join(folder), room);
        }
        command
            .envs(self.env.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .env("COVE_LOG", "info,cove_engine=debug,cove_api=debug");
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().context("Cannot start cove serve")?;
        let output = child.stdout.take().context("The server has no output")?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let port = wait_ready(output).with_context(|| format!("The server did not start:\n{}", self.report()))?;
        let token = fs::read_to_string(self.data_dir().join("token")).context("There is no token")?;
        let api = Api::new(port, token.trim().to_owned(), Arc::clone(&self.history))?;
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(api);
        Ok(())
    }

    /// From the next start on a folder of the data directory lies on a file system of its own with `room` bytes, which is
    /// seen from the server's processes only.
    pub fn limit(&self, folder: &'static str, room: &'static str) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Some((folder, room));
    }

    /// The next start is one without what was added to the environment.
    pub fn forget_environment(&self) {
        self.env.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits until the server died by itself.
    pub fn wait_server_gone(&self) -> Result<()> {
        let mut child = self.take_server()?;
        let gone = until("the server is gone", STOP_TIMEOUT, || Ok(child.try_wait()?.is_some()));
        if gone.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        gone.map(drop)
    }

    /// The server's process.
    pub fn server_pid(&self) -> Result<u32> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().map(Child::id).context("No server runs")
    }

    /// `kill -9` of the server; machines stay.
    pub fn kill_server(&self) -> Result<()> {
        let mut child = self.take_server()?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and the server must end well.
    pub fn stop_server(&self) -> Result<()> {
        let mut child = self.take_server()?;
        processes::signal(child.id(), Signal::TERM)?;
        let mut status = None;
        until("the server has stopped", STOP_TIMEOUT, || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })
        .inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let status = status.context("The server has no exit status")?;
        ensure!(status.success(), "The server ended with {status}");
        Ok(())
    }

    fn take_server(&self) -> Result<Child> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).take().context("No server runs")
    }

    /// The vmm of a sandbox.
    pub fn vmm_pid(&self, id: &str) -> Result<u32> {
        let socket = self.runtime_dir().join(id);
        let mut vmms = processes::of(&socket);
        ensure!(vmms.len() == 1, "Sandbox {id} has {} processes: {vmms:?}", vmms.len());
        Ok(vmms.remove(0).pid)
    }

    /// The vmm processes of this host.
    pub fn machines(&self) -> Vec<Process> {
        let all = processes::of(&self.runtime_dir());
        all.into_iter().filter(|process| process.command.contains("--control")).collect()
    }

    /// Makes a sandbox and waits until it is command-ready.
    pub fn sandbox(&self, wanted: &Value) -> Result<TestSandbox> {
        TestSandbox::create(self.api(), wanted)
    }

    /// The live sandboxes' records.
    pub fn list(&self) -> Result<Vec<Value>> {
        let data = self.api().get("/sandboxes")?.data()?;
        data.as_array().cloned().context("The list is no list")
    }

    /// Destroys a sandbox.
    pub fn destroy(&self, id: &str) -> Result<Answer> {
        self.api().delete(&format!("/sandboxes/{id}"))
    }

    /// Destroys every sandbox, stops the server, and makes sure that nothing is left.
    pub fn finish(&self) -> Result<()> {
        for sandbox in self.list()? {
            let id = sandbox["id"].as_str().context("A record has no id")?;
            self.destroy(id)?.data()?;
        }
        self.stop_server()?;
        self.nothing_is_left()
    }

    /// No process, no socket, no file of a sandbox.
    pub fn nothing_is_left(&self) -> Result<()> {
        let left = processes::around(self.dir());
        ensure!(left.is_empty(), "Processes are left: {left:?}");
        for dir in [self.runtime_dir(), self.data_dir().join("sandboxes")] {
            let files = all_files(&dir)?;
            ensure!(files.is_empty(), "Files are left in {}: {files:?}", dir.display());
        }
        Ok(())
    }

    /// Ends every process of this host, and removes its directories unless they are to be kept.
    pub fn end(&self) {
        if let Ok(mut child) = self.take_server() {
            let _ = child.kill();
            let _ = child.wait();
        }
        processes::kill_all(self.dir());
        processes::unregister(self.dir());
        if std::env::var_os("COVE_TEST_KEEP").is_some() {
            eprintln!("kept {}", self.dir().display());
        } else {
            let _ = fs::remove_dir_all(self.dir());
        }
    }

    /// Runs a test on this host, destroys everything, and makes sure that nothing is left. An error carries the report.
    pub fn test(&self, body: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        body(self).and_then(|()| self.finish()).map_err(|error| anyhow!("{error:#}\n{}", self.report()))
    }

    /// What one needs to see after a failure.
    pub fn report(&self) -> String {
        let mut report = String::new();
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = &history[history.len().saturating_sub(REPORT_LINES)..];
        report.push_str(&format!("\n--- requests\n{}\n", recent.join("\n")));
        drop(history);
        let mut logs = ["server.log", "window.log"].map(|name| self.dir().join(name)).to_vec();
        logs.extend(all_files(&self.data_dir().join("sandboxes")).unwrap_or_default());
        for log in logs.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(REPORT_LINES)..].join("\n");
            let name = log.strip_prefix(self.dir()).unwrap_or(log);
            report.push_str(&format!("--- {}\n{tail}\n", name.display()));
        }
        report
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads the server's first lines up to `Ready` and gives its port. The rest is read away, so that the pipe never fills.
fn wait_ready(output: impl std::io::Read + Send + 'static) -> Result<u16> {
    let (lines, received) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let deadline = Instant::now() + START_TIMEOUT;
    let mut port = None;
    loop {
        let line = match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("It is not ready after {} s", START_TIMEOUT.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("It ended"),
        };
        if let Some(url) = line.strip_prefix("MIOSA_BASE_URL=http://127.0.0.1:") {
            port = url.split('/').next().and_then(|port| port.parse().ok());
        }
        if line == "Ready" {
            return port.context("It said no MIOSA_BASE_URL");
        }
    }
}

/// Every file, socket and empty directory below `dir`.
pub fn all_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let entry = entry?;
            found.push(entry.path());
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// The bytes of a process's mappings that are in memory, and those of its largest mapping (a machine's guest memory).
pub fn resident_kib(pid: u32) -> Result<(u64, u64)> {
    let smaps = File::open(format!("/proc/{pid}/smaps"))?;
    let mut sizes = Vec::new();
    for line in BufReader::new(smaps).lines() {
        if let Some(rest) = line?.strip_prefix("Rss:") {
            sizes.push(rest.trim().trim_end_matches(" kB").parse::<u64>()?);
        }
    }
    Ok((sizes.iter().sum(), sizes.iter().copied().max().unwrap_or(0)))
}
