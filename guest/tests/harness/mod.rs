//! An agent on a unix socket, and a client that speaks to it in blocking calls.
//!
//! Each test has an agent of its own, which adopts what its commands leave behind, as PID 1 would.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs,
    os::unix::net::UnixStream,
    process::{Child, Command as Process, Stdio},
    time::{Duration, Instant},
};

use cove_protocol::{
    frame,
    guest::{Command, Exec, Exit, ExitStatus, Input, Reply, Request, Stream},
};

/// Longer than anything here takes; a hang fails instead of blocking the suite.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent.
pub struct Agent {
    process: Child,
    /// A folder for the test's files.
    pub folder: tempfile::TempDir,
}

impl Agent {
    /// Starts one and waits until it listens.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one that has the fast shell, as in a machine.
    pub fn start_with_fast_shell() -> Self {
        Self::start_with(&["--shell", "shell"])
    }

    /// Starts one that takes a broken stream for a restore of its machine. A unix stream is broken by a peer that leaves
    /// bytes unread.
    pub fn start_with_resets() -> Self {
        Self::start_with(&["--resets"])
    }

    /// The test's folder is its working directory.
    fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::new(env!("CARGO_BIN_EXE_cove-agent"))
            .arg("--unix")
            .arg(folder.path().join("agent.sock"))
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut agent = Self { process, folder };
        agent.await_ready();
        agent
    }

    /// The agent says a line when it listens.
    fn await_ready(&mut self) {
        use std::io::BufRead as _;
        let mut line = String::new();
        std::io::BufReader::new(self.process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.folder.path().join("agent.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a shell line on a connection of its own.
    pub fn sh(&self, line: &str) -> Outcome {
        self.connect().run(&exec(line))
    }

    /// Memory the agent holds, in bytes, and the most it ever held.
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Processes that ended and were not taken away.
    pub fn zombies(&self) -> usize {
        self.children().iter().filter(|pid| state(**pid) == Some('Z')).count()
    }

    /// The agent's children, whichever thread started them.
    pub fn children(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let children = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
        children.flat_map(|pids| pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
    }

    /// Open descriptors of the agent.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for child in self.children() {
            let _ = Process::new("kill").args(["-9", &child.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The state letter of a process, `None` when it is gone.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Waits until `condition` holds, for what has no event a test could wait for.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        let _ = std::io::Read::read(&mut &ours, &mut [0]);
    }
}

/// A shell line with nothing special about it, run in `/`.
pub fn exec(line: &str) -> Exec {
    let command = Command::Shell(line.into());
    Exec { command, cwd: Some("/".into()), env: vec![], user: None, stdin: false, timeout_ms: None }
}

/// A program and its arguments, run in `/`.
pub fn argv(words: &[&str]) -> Exec {
    Exec { command: Command::Argv(words.iter().map(|word| word.to_string()).collect()), ..exec("") }
}

/// One connection.
pub struct Client {
    pub stream: UnixStream,
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub exit: Exit,
}

impl Outcome {
    pub fn code(&self) -> u8 {
        match self.exit.status {
            ExitStatus::Code(code) => code,
            other => panic!("ended by {other:?}: {self:?}"),
        }
    }
}

impl Client {
    pub fn send(&mut self, request: &Request) {
        frame::write(&mut self.stream, request).unwrap();
    }

    pub fn input(&mut self, input: &Input) {
        frame::write(&mut self.stream, input).unwrap();
    }

    pub fn data(&mut self, bytes: &[u8]) {
        self.input(&Input::Data(bytes.to_vec().into()));
    }

    /// The next reply; `None` when the agent closed.
    pub fn reply(&mut self) -> Option<Reply> {
        frame::read(&mut self.stream).unwrap()
    }

    /// Sends a request that has one reply.
    pub fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        self.reply().expect("a reply")
    }

    /// Starts a command and returns its process id.
    pub fn start(&mut self, exec: &Exec) -> u32 {
        match self.ask(&Request::Exec(Box::new(exec.clone()))) {
            Reply::Started { pid } => pid as u32,
            other => panic!("not started: {other:?}"),
        }
    }

    /// Output until the end.
    pub fn finish(&mut self) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.reply().expect("a reply before the end") {
                Reply::Output { stream: Stream::Stdout, data } => stdout.extend_from_slice(&data),
                Reply::Output { stream: Stream::Stderr, data } => stderr.extend_from_slice(&data),
                Reply::Exited(exit) => {
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    return Outcome { stdout: text(&stdout), stderr: text(&stderr), exit };
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub fn run(&mut self, exec: &Exec) -> Outcome {
        self.start(exec);
        self.finish()
    }

    /// Writes a file in chunks; the agent's answer.
    pub fn write_file(&mut self, path: &str, bytes: &[u8]) -> Reply {
        self.send(&Request::WriteFile { path: path.into(), mode: 0o644 });
        bytes.chunks(cove_protocol::guest::CHUNK_BYTES_MAX).for_each(|chunk| self.data(chunk));
        self.input(&Input::End);
        self.reply().expect("a reply")
    }

    /// Reads a file; the error instead of the bytes.
    pub fn read_file(&mut self, path: &str) -> Result<Vec<u8>, Reply> {
        let mut bytes = Vec::new();
        self.send(&Request::ReadFile { path: path.into() });
        loop {
            match self.reply().expect("a reply") {
                Reply::FileInfo(_) => {}
                Reply::Data(data) => bytes.extend_from_slice(&data),
                Reply::Done => return Ok(bytes),
                other => return Err(other),
            }
        }
    }

    /// Lists a directory; the error instead of the entries.
    pub fn list(&mut self, path: &str, depth: u32) -> Result<Vec<cove_protocol::guest::Entry>, Reply> {
        let mut all = Vec::new();
        self.send(&Request::List { path: path.into(), depth });
        loop {
            match self.reply().expect("a reply") {
                Reply::Entries(entries) => all.extend(entries),
                Reply::Done => return Ok(all),
                other => return Err(other),
            }
        }
    }
}
