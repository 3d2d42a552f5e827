//! The `vmm` process of a machine: started in a group of its own, recognised again after a restart of the server,
//! watched through its pidfd, and killed through it, so that never another process is hit.
//!
//! A process is *proven ours* by three things together: its pid, its start time, and a command line that names the
//! control socket of one of our sandboxes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, setpriority_pgrp};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::MachineError;
use crate::db::MachineRow;
use crate::host::Tools;

/// Words of the vmm's command line before the control socket.
const CONTROL_FLAG: &str = "--control";

/// Variables that a vmm may see of the server's environment.
const VARIABLES_PASSED: [&str; 3] = ["RUST_LOG", "RUST_BACKTRACE", "COVE_LOG"];

/// The nice value of a machine that nobody waits for (setpriority(2)): a tenth of what another process gets, where both
/// want the same processor. With less it would never be done on a busy host.
const YIELDING: i32 = 10;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessEnd {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It was not our child, so nobody tells.
    Unknown,
}

impl std::fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProcessEnd::Code(code) => write!(f, "the vmm process exited with code {code}"),
            ProcessEnd::Signal(signal) => write!(f, "the vmm process was killed by signal {signal}"),
            ProcessEnd::Unknown => write!(f, "the vmm process ended"),
        }
    }
}

/// A vmm process that is or was alive.
#[derive(Debug)]
pub(crate) struct Process {
    identity: MachineRow,
    pidfd: Arc<OwnedFd>,
    end: watch::Receiver<Option<ProcessEnd>>,
}

impl Process {
    /// Starts a vmm on the new socket `control`, which takes connections from now on; its output goes to `log`. Must be
    /// called inside the runtime.
    pub(crate) fn spawn(tools: &Tools, control: &Path, log: &Path) -> Result<Self, MachineError> {
        // Made here and handed over as standard input, so that nobody waits for the vmm to listen.
        let listener = listen(control).map_err(|source| MachineError::File { path: control.into(), source })?;
        let output = open_log(log).map_err(|source| MachineError::File { path: log.into(), source })?;
        let errors = output.try_clone().map_err(|source| MachineError::File { path: log.into(), source })?;
        let mut command = Command::new(&tools.vmm);
        command.arg(CONTROL_FLAG).arg(control).current_dir("/").env_clear();
        command.envs(VARIABLES_PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        if let Some(kvm) = &tools.kvm {
            command.env("COVE_KVM", kvm);
        }
        command.env("COVE_ASSIST", if tools.assist { "1" } else { "0" });
        // A group of its own: a Ctrl-C for the server is none for the machines, which outlive it.
        command.stdin(OwnedFd::from(listener)).stdout(output).stderr(errors).process_group(0);
        let spawned = |source| MachineError::Spawn { program: tools.vmm.clone(), source };
        let mut child = command.spawn().map_err(spawned)?;
        match identify_child(&child) {
            Ok((identity, pidfd)) => {
                let (sender, end) = watch::channel(None);
                tokio::spawn(async move { sender.send_replace(Some(wait_child(&mut child).await)) });
                Ok(Self { identity, pidfd: Arc::new(pidfd), end })
            }
            Err(source) => {
                // Not reaped yet, so the pid is still its own.
                let _ = child.start_kill();
                Err(spawned(source))
            }
        }
    }

    /// The process that an earlier server started for the machine on `control`, if it is alive. Must be called inside the
    /// runtime.
    pub(crate) fn attach(identity: MachineRow, control: &Path) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(identity.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        // The pidfd comes first: what is then read in /proc is of the process that it holds, or of none.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let ours = start_ticks(identity.pid) == Some(identity.start_ticks)
            && control_socket_of(identity.pid).is_some_and(|socket| socket == control);
        if !ours {
            return Ok(None);
        }
        let watched = super::readable(pidfd.try_clone()?)?;
        let (sender, end) = watch::channel(None);
        tokio::spawn(async move {
            // A pidfd is readable once its process ended (pidfd_open(2)).
            let _ = watched.readable().await;
            sender.send_replace(Some(ProcessEnd::Unknown));
        });
        Ok(Some(Self { identity, pidfd: Arc::new(pidfd), end }))
    }

    /// What to note in the database.
    pub(crate) fn identity(&self) -> MachineRow {
        self.identity
    }

    /// Returns when the process ended.
    pub(crate) async fn ended(&self) -> ProcessEnd {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(ProcessEnd::Unknown),
            // The watching task only goes away with the runtime.
            Err(_) => ProcessEnd::Unknown,
        }
    }

    /// It ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Lets the host's other processes go first, from now on and for good. Its group is its own, so this reaches all
    /// of its threads and nothing else.
    pub(crate) fn yield_to_others(&self) {
        // Without a number the kernel would take the caller's own group.
        let Some(group) = i32::try_from(self.identity.pid).ok().and_then(Pid::from_raw) else { return };
        if let Err(errno) = setpriority_pgrp(Some(group), YIELDING) {
            tracing::warn!(pid = self.identity.pid, %errno, "a vmm process keeps its priority");
        }
    }

    /// SIGKILL; nothing when it already ended.
    pub(crate) fn kill(&self) {
        if let Err(errno) = pidfd_send_signal(&self.pidfd, Signal::KILL)
            && errno != rustix::io::Errno::SRCH
        {
            tracing::error!(pid = self.identity.pid, %errno, "cannot kill a vmm process");
        }
    }
}

/// A control socket. One that a dead vmm left there is replaced.
fn listen(control: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(control) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(control),
    }
}

/// A log that starts anew, appended to by whoever writes, so that it can be cut while it is open.
fn open_log(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// Our own child cannot be reaped before we wait for it, so its pid is surely its own here.
fn identify_child(child: &Child) -> io::Result<(MachineRow, OwnedFd)> {
    let gone = || io::Error::other("the process was reaped before it was known");
    let pid = child.id().ok_or_else(gone)?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    let start_ticks = start_ticks(pid).ok_or_else(gone)?;
    Ok((MachineRow { pid, start_ticks }, pidfd))
}

async fn wait_child(child: &mut Child) -> ProcessEnd {
    match child.wait().await {
        Ok(status) => end_of(status),
        Err(_) => ProcessEnd::Unknown,
    }
}

fn end_of(status: ExitStatus) -> ProcessEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => ProcessEnd::Code(code),
        (None, Some(signal)) => ProcessEnd::Signal(signal),
        (None, None) => ProcessEnd::Unknown,
    }
}

/// When a process started, in ticks since the host's boot: field 22 of proc_pid_stat(5). `None` when it is gone or only
/// a zombie is left of it and it is not our child.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_ticks(&stat)
}

/// The name in field 2 may hold anything, also parentheses and spaces: fields count from its last `)`.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// The control socket on a process's command line; `None` when it is no vmm or a zombie, whose command line is empty.
fn control_socket_of(pid: u32) -> Option<PathBuf> {
    parse_control_socket(&fs::read(format!("/proc/{pid}/cmdline")).ok()?)
}

fn parse_control_socket(command_line: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let mut words = command_line.split(|byte| *byte == 0);
    words.by_ref().find(|word| *word == CONTROL_FLAG.as_bytes())?;
    words.next().map(|word| PathBuf::from(std::ffi::OsStr::from_bytes(word)))
}

/// Every process of this user whose command line names a control socket below `runtime`: the vmm processes of this data
/// directory, known to the database or not.
pub(crate) fn vmm_processes(runtime: &Path) -> io::Result<Vec<(MachineRow, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // The start time is read around the command line, so both are of one process.
        let Some(ticks) = start_ticks(pid) else { continue };
        let Some(control) = control_socket_of(pid).filter(|path| path.starts_with(runtime)) else { continue };
        if start_ticks(pid) == Some(ticks) {
            found.push((MachineRow { pid, start_ticks: ticks }, control));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GuestDir;

    /// A vmm that is a shell script; `$2` is its control socket.
    fn tools(folder: &Path, script: &str) -> Tools {
        use std::os::unix::fs::PermissionsExt;
        let vmm = folder.join("vmm");
        fs::write(&vmm, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
        let guest = GuestDir { kernel: "/k".into(), kernel_up: None, root: "/r".into() };
        Tools { vmm, guest, kvm: None, assist: false }
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_told_with_its_reason_and_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let control = folder.path().join("c");
        let process = Process::spawn(&tools(folder.path(), "echo out; echo err >&2; exit 3"), &control, &log).unwrap();
        assert_eq!(process.ended().await, ProcessEnd::Code(3));
        assert_eq!(fs::read_to_string(&log).unwrap(), "out\nerr\n");
        let process = Process::spawn(&tools(folder.path(), "kill -SEGV $$"), &control, &log).unwrap();
        assert_eq!(process.ended().await, ProcessEnd::Signal(11));
        process.kill();
    }

    #[tokio::test]
    async fn a_process_is_found_again_by_pid_start_time_and_socket_and_only_so() {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("c");
        let process =
            Process::spawn(&tools(folder.path(), "read line; exec sleep 100"), &control, &folder.path().join("log"))
                .unwrap();
        process.kill();
        process.ended().await;
        // `read` from the socket ends at once, so a script that stays itself is needed.
        let script = "trap 'exit 0' TERM; while true; do sleep 100 & wait $!; done";
        let process = Process::spawn(&tools(folder.path(), script), &control, &folder.path().join("log")).unwrap();
        let identity = process.identity();
        // A spawn returns a moment before the kernel has written the new program's command line down.
        let listed = async {
            while !vmm_processes(folder.path()).unwrap().contains(&(identity, control.clone())) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), listed).await.unwrap();
        assert!(Process::attach(identity, Path::new("/other/c")).unwrap().is_none());
        let elder = MachineRow { start_ticks: identity.start_ticks - 1, ..identity };
        assert!(Process::attach(elder, &control).unwrap().is_none());
        let again = Process::attach(identity, &control).unwrap().unwrap();
        rustix::process::kill_process_group(Pid::from_raw(identity.pid as i32).unwrap(), Signal::KILL).unwrap();
        assert_eq!(again.ended().await, ProcessEnd::Unknown);
        assert_eq!(process.ended().await, ProcessEnd::Signal(9));
        assert!(Process::attach(identity, &control).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_missing_vmm_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut tools = tools(folder.path(), "");
        tools.vmm = folder.path().join("missing");
        let error = Process::spawn(&tools, &folder.path().join("c"), &folder.path().join("log")).unwrap_err();
        assert!(error.to_string().ends_with("/missing"), "{error}");
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(parse_start_ticks(&format!("1 (a) b) {fields}")), Some(22));
        assert_eq!(parse_start_ticks("1 (a) S 1"), None);
        assert_eq!(parse_control_socket(b"/vmm\0--control\0/r/c\0"), Some("/r/c".into()));
        assert_eq!(parse_control_socket(b"/vmm\0probe\0"), None);
    }
}
