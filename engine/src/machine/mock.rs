//! A vmm for tests: this test program itself, started again as the process of one machine, which speaks both protocols but
//! runs no guest. Its memory is a text, its disk the lines of its layers' files, so a test sees what a fork, a resume or a
//! restore really got. Files beside the data tell it to fail ([`FULL`], [`UNFIT`]).

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cove_protocol::frame;
use cove_protocol::guest::{self, Command, Exit, ExitStatus, Input};
use cove_protocol::vmm::{
    DiskSpec, ErrorKind, Event, ExitReason, MachineSpec, READY_PORT, Reply, Request, SnapshotFigures, Stats,
};
use rustix::fs::{FlockOperation, flock};

use crate::{EngineConfig, EngineLimits};

/// In the data directory: captures find no room.
pub(crate) const FULL: &str = "mock-full";

/// In the data directory: no capture can be restored.
pub(crate) const UNFIT: &str = "mock-unfit";

/// What a healthy host says.
pub(crate) const PROBE: &str = r#"{"kvm":"/dev/kvm","problem":null,"assist":false,"vcpus_max":16,"cpu_model":"","module":"kvm_intel","fingerprint":"f0"}"#;

/// A configuration below `folder` whose machines are mocks.
pub(crate) fn config(folder: &Path) -> EngineConfig {
    let (guest, vmm) = (folder.join("guest"), folder.join("vmm"));
    if !vmm.exists() {
        // Once: files written anew would be another image, and another host.
        make(&guest, &vmm);
    }
    below(folder)
}

/// A configuration that has everything below `folder`.
pub(crate) fn below(folder: &Path) -> EngineConfig {
    EngineConfig {
        data_dir: Some(folder.join("data")),
        runtime_dir: Some(folder.join("run")),
        guest_dir: Some(folder.join("guest")),
        vmm: Some(folder.join("vmm")),
        kvm: None,
        warm_pool: 0,
        limits: EngineLimits::default(),
    }
}

fn make(guest: &Path, vmm: &Path) {
    fs::create_dir(guest).unwrap();
    fs::write(guest.join("vmlinux"), "kernel").unwrap();
    fs::write(guest.join("root.ext4"), "root\n").unwrap();
    // The harness takes `--control` as the value of its own option: so the command line names the socket, as a vmm's does.
    let script = format!(
        "#!/bin/sh\ncase $1 in\nprobe) echo '{PROBE}';;\ndisk) case $2 in create) : > \"$5\";; \
         merge) out=$4; shift 4; cat \"$@\" > \"$out\";; esac;;\n--control) COVE_MOCK=1 exec '{}' --exact \
         machine::mock::machine --ignored --nocapture --skip \"$@\";;\nesac\n",
        std::env::current_exe().unwrap().display()
    );
    fs::write(vmm, script).unwrap();
    fs::set_permissions(vmm, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What runs.
#[derive(Debug, Default)]
struct Guest {
    memory: String,
    disk: Vec<PathBuf>,
    /// Held as a vmm holds it: two machines never write one layer.
    top: Option<File>,
    vcpus: u8,
    paused: bool,
    listens: bool,
    booted: u64,
}

type Shared = Arc<Mutex<Guest>>;

/// The machine process; does nothing as a test.
#[test]
#[ignore = "the process of a mock machine, not a test"]
fn machine() {
    if std::env::var_os("COVE_MOCK").is_none() {
        return;
    }
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let guest = Shared::default();
    for stream in listener.incoming() {
        let (stream, guest) = (stream.unwrap(), Arc::clone(&guest));
        std::thread::spawn(move || serve(stream, &guest));
    }
}

fn serve(mut stream: UnixStream, guest: &Shared) {
    while let Ok(Some(request)) = frame::read::<Request>(&mut stream) {
        let stop = matches!(request, Request::Stop);
        let subscribe = matches!(request, Request::Subscribe);
        let reply = match answer(request, guest) {
            Ok(reply) => reply,
            Err((kind, message)) => Reply::Error { kind, message },
        };
        if frame::write(&mut stream, &reply).is_err() {
            return;
        }
        if stop {
            std::process::exit(0);
        }
        if subscribe {
            // Keeps the connection until the process ends.
            let _ = frame::read::<Request>(&mut stream);
            let _ = frame::write(&mut stream, &Event::Exited(ExitReason::Stopped));
        }
    }
}

fn answer(request: Request, guest: &Shared) -> Result<Reply, (ErrorKind, String)> {
    let started = |vcpus| Ok(Reply::Started { version: cove_protocol::VERSION, vcpus, assist: false });
    match request {
        Request::Start(spec) => {
            build(&spec, guest, "booted".to_owned())?;
            report(&spec);
            started(spec.vcpus)
        }
        Request::Restore(spec) => {
            let data = spec.snapshot.parent().and_then(Path::parent).unwrap();
            if data.join(UNFIT).exists() || !spec.snapshot.join("manifest.json").exists() {
                return Err((ErrorKind::Snapshot, "it was captured on another host".into()));
            }
            let memory = fs::read_to_string(spec.snapshot.join("memory")).unwrap();
            build(&spec.machine, guest, memory)?;
            guest.lock().unwrap().paused = !spec.resume;
            started(spec.machine.vcpus)
        }
        Request::Snapshot(spec) => {
            let mut guest = guest.lock().unwrap();
            let data = spec.folder.parent().and_then(Path::parent).unwrap();
            fs::write(spec.folder.join("memory"), &guest.memory).unwrap();
            if data.join(FULL).exists() {
                return Err((ErrorKind::NoSpace, "no room".into()));
            }
            if let [disk] = &spec.disks[..] {
                let paths: Vec<PathBuf> = disk.layers.iter().map(|layer| layer.path.clone()).collect();
                if paths[..paths.len() - 1] != guest.disk[..] {
                    return Err((ErrorKind::Invalid, format!("{paths:?} does not lie on {:?}", guest.disk)));
                }
                open(&mut guest, disk)?;
            }
            fs::write(spec.folder.join("manifest.json"), "{}").unwrap();
            guest.paused = !spec.resume;
            Ok(Reply::Snapshot(SnapshotFigures { paused_us: 1, total_us: 2, written_bytes: 3, data_bytes: 4 }))
        }
        Request::Pause | Request::Resume => {
            guest.lock().unwrap().paused = request == Request::Pause;
            Ok(Reply::Done)
        }
        Request::Stop | Request::Subscribe => Ok(Reply::Done),
        Request::Stats => {
            let tops = guest.lock().unwrap().disk.last().cloned().into_iter().collect();
            Ok(Reply::Stats(Box::new(Stats { tops, ..Stats::default() })))
        }
        Request::ConsoleTail { .. } => Ok(Reply::Console(b"console".to_vec())),
    }
}

fn build(spec: &MachineSpec, shared: &Shared, memory: String) -> Result<(), (ErrorKind, String)> {
    let mut guest = shared.lock().unwrap();
    open(&mut guest, &spec.disks[0])?;
    (guest.memory, guest.vcpus, guest.booted) = (memory, spec.vcpus, guest.booted + 1);
    if !guest.listens {
        guest.listens = true;
        let listener = UnixListener::bind(&spec.vsock.socket).unwrap();
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || agent(stream, &shared));
            }
        });
    }
    Ok(())
}

/// Opens a chain as a vmm does: the top locked for writing, those below shared.
fn open(guest: &mut Guest, disk: &DiskSpec) -> Result<(), (ErrorKind, String)> {
    let failed = |what: String| (ErrorKind::Host, what);
    guest.top = None;
    let (top, below) = disk.layers.split_last().unwrap();
    for layer in below {
        let file = File::open(&layer.path).map_err(|error| failed(format!("{:?}: {error}", layer.path)))?;
        let free = flock(&file, FlockOperation::NonBlockingLockShared);
        free.map_err(|_| failed(format!("{:?} is being written", layer.path)))?;
    }
    let file = OpenOptions::new().append(true).open(&top.path);
    let file = file.map_err(|error| failed(format!("{:?}: {error}", top.path)))?;
    let free = flock(&file, FlockOperation::NonBlockingLockExclusive);
    free.map_err(|_| failed(format!("{:?} is in use", top.path)))?;
    guest.top = Some(file);
    guest.disk = disk.layers.iter().map(|layer| layer.path.clone()).collect();
    Ok(())
}

/// Says that the agent is ready.
fn report(spec: &MachineSpec) {
    let mut path = spec.vsock.socket.clone().into_os_string();
    path.push(format!("_{READY_PORT}"));
    std::thread::spawn(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        frame::write(&mut stream, &hello()).unwrap();
    });
}

fn hello() -> guest::Reply {
    guest::Reply::Hello { version: cove_protocol::VERSION, boot_us: 1, kernel: "mock".into() }
}

fn agent(stream: UnixStream, shared: &Shared) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    reader.read_line(&mut line).unwrap();
    let mut writer = stream;
    writer.write_all(b"OK 1\n").unwrap();
    while let Ok(Some(request)) = frame::read::<guest::Request>(&mut reader) {
        let reply = match request {
            guest::Request::Hello => hello(),
            guest::Request::Configure(configure) => {
                let mut guest = shared.lock().unwrap();
                let fresh = if configure.machine_id.is_empty() { "" } else { " fresh" };
                guest.memory.push_str(&format!(" g{}{fresh}", configure.generation));
                guest::Reply::Done
            }
            guest::Request::Prepare => {
                shared.lock().unwrap().memory.push_str(" prepared");
                guest::Reply::Done
            }
            guest::Request::SetClock { clock_us } => {
                assert!(clock_us > 0);
                shared.lock().unwrap().memory.push_str(" clock");
                guest::Reply::Done
            }
            guest::Request::Exec(exec) => {
                let Command::Shell(line) = exec.command else { panic!("{:?}", exec.command) };
                frame::write(&mut writer, &guest::Reply::Started { pid: 7 }).unwrap();
                let output = run(&line, shared, &mut reader);
                let data = output.into_bytes().into();
                frame::write(&mut writer, &guest::Reply::Output { stream: guest::Stream::Stdout, data }).unwrap();
                guest::Reply::Exited(Exit { status: ExitStatus::Code(0), duration_us: 1 })
            }
            guest::Request::List { path, .. } => {
                let kind = guest::EntryKind::Directory;
                let entry = guest::Entry { path, kind, size: 1, mode: 0o755, modified_us: 1 };
                frame::write(&mut writer, &guest::Reply::Entries(vec![entry])).unwrap();
                guest::Reply::Done
            }
            _ => guest::Reply::Done,
        };
        if frame::write(&mut writer, &reply).is_err() {
            return;
        }
    }
}

/// `remember X` and `memory`; `write X` and `disk`; `wait` until standard input ends.
fn run(line: &str, shared: &Shared, reader: &mut BufReader<UnixStream>) -> String {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    if word == "wait" {
        while !matches!(frame::read::<Input>(reader), Ok(Some(Input::End) | None) | Err(_)) {}
        return "waited".into();
    }
    let mut guest = shared.lock().unwrap();
    match word {
        "remember" => guest.memory.push_str(&format!(" {rest}")),
        "write" => guest.top.as_mut().unwrap().write_all(format!("{rest}\n").as_bytes()).unwrap(),
        "memory" => return guest.memory.clone(),
        "disk" => return guest.disk.iter().map(|path| fs::read_to_string(path).unwrap()).collect(),
        "stats" => return format!("{:?}", Stats::default()),
        other => panic!("{other}"),
    }
    String::new()
}
