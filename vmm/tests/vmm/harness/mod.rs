//! Runs the real `vmm` with small guests: assembles them, speaks to the control socket, and leaves nothing behind.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use cove_protocol::frame;
use cove_protocol::vmm::{ConsoleSpec, Event, ExitReason, MachineSpec, Reply, Request, Stats, VsockSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// How long anything may take before a test fails instead of hanging. Far above what it takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A `vmm` process with a folder of its own.
pub struct Vmm {
    folder: tempfile::TempDir,
    process: Child,
}

impl Vmm {
    /// Starts `vmm` and waits until its control socket is there.
    pub fn spawn() -> Self {
        Self::spawn_with(&[])
    }

    /// As [`Vmm::spawn`], with more environment.
    pub fn spawn_with(environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, folder.path(), inotify::WatchFlags::MOVED_TO).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_vmm"))
            .arg("--control")
            .arg(folder.path().join("control"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let patience = Timespec::try_from(PATIENCE).unwrap();
        let ready = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ready, 1, "no control socket within {PATIENCE:?}");
        Self { folder, process }
    }

    /// Starts `vmm` on a control socket that listens already, as the engine does.
    pub fn spawn_on_socket() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control");
        let listener = UnixListener::bind(&control).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_vmm"))
            .arg("--control")
            .arg(control)
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap();
        Self { folder, process }
    }

    /// A new control connection.
    pub fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.folder.path().join("control")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { stream }
    }

    /// A machine of the least size with `kernel` and no disk.
    pub fn spec(&self, kernel: &Path) -> MachineSpec {
        MachineSpec {
            id: "test".into(),
            vcpus: 1,
            memory_mib: 512,
            kernel: kernel.into(),
            kernel_args: Vec::new(),
            disks: Vec::new(),
            vsock: VsockSpec { guest_cid: 3, socket: self.folder.path().join("vsock") },
            console: ConsoleSpec { log: self.folder.path().join("console.log"), bytes_max: 64 << 10 },
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The folder with the sockets and the log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the guest wrote, once the machine ended.
    pub fn console(&self) -> String {
        String::from_utf8(std::fs::read(self.folder.path().join("console.log")).unwrap()).unwrap()
    }

    /// Waits for the process's end and checks that it took its sockets along.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.process.wait().unwrap();
        for socket in ["control", "vsock"] {
            assert!(!self.folder.path().join(socket).exists(), "{socket} was left behind");
        }
        status
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Already gone in a test that went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A control connection.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Sends `request` and waits for its reply.
    pub fn ask(&mut self, request: &Request) -> Reply {
        frame::write(&mut self.stream, request).unwrap();
        frame::read(&mut self.stream).unwrap().expect("the vmm closed the connection")
    }

    /// As [`Connection::ask`]; `None` when the machine ended and the connection with it.
    pub fn try_ask(&mut self, request: &Request) -> Option<Reply> {
        frame::write(&mut self.stream, request).ok()?;
        frame::read(&mut self.stream).ok()?
    }

    /// Starts a machine.
    pub fn start(&mut self, spec: MachineSpec) {
        match self.ask(&Request::Start(Box::new(spec))) {
            Reply::Started { .. } => {}
            reply => panic!("the machine does not start, which takes a host with KVM: {reply:?}"),
        }
    }

    /// Asks for what is answered by [`Reply::Done`].
    pub fn done(&mut self, request: &Request) {
        assert_eq!(self.ask(request), Reply::Done, "{request:?}");
    }

    /// The machine's figures.
    pub fn stats(&mut self) -> Stats {
        match self.ask(&Request::Stats) {
            Reply::Stats(stats) => *stats,
            reply => panic!("{reply:?}"),
        }
    }

    /// Turns the connection into a stream of events, and gives it back.
    pub fn subscribe(mut self) -> Self {
        self.done(&Request::Subscribe);
        self
    }

    /// Waits for the machine's end.
    pub fn ended(&mut self) -> ExitReason {
        match frame::read(&mut self.stream).unwrap() {
            Some(Event::Exited(reason)) => reason,
            None => panic!("the vmm closed the connection without an event"),
        }
    }
}

/// A guest assembled from `tests/guests/<name>.S`, as an ELF file.
pub struct Guest {
    _folder: tempfile::TempDir,
    /// The ELF file.
    pub path: PathBuf,
}

impl Guest {
    /// Assembles the guest with `defines`, by the C compiler that Rust links with.
    pub fn new(name: &str, defines: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests").join(name).with_extension("S");
        let sections = ["-Ttext=0x100000", "--section-start=.user=0x200000", "--section-start=.userdata=0x210000"];
        let status = Command::new("cc")
            .args(["-nostdlib", "-static", "-no-pie", "-Wl,-N", "-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments"])
            .args(sections.map(|section| format!("-Wl,{section}")))
            .args(defines.iter().map(|define| format!("-D{define}")))
            .arg("-o")
            .args([&path, &source])
            .status()
            .expect("this test needs a C compiler");
        assert!(status.success(), "{} does not assemble", source.display());
        Self { _folder: folder, path }
    }
}
