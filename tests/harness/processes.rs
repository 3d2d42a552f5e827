//! Processes of a test host: found by the host's directory on their command line, ended by their pids.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::until;

/// Directories of the hosts that are alive.
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A process that belongs to a host.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub command: String,
}

/// Every process with `directory` on its command line; zombies have none.
pub fn of(directory: &Path) -> Vec<Process> {
    with(directory, &["cmdline"])
}

/// As [`of`], and those with `directory` in their environment: what a desktop program starts names it nowhere else.
pub fn around(directory: &Path) -> Vec<Process> {
    with(directory, &["cmdline", "environ"])
}

fn with(directory: &Path, files: &[&str]) -> Vec<Process> {
    let needle = directory.to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
            let holds = |file: &&str| {
                fs::read(entry.path().join(file)).is_ok_and(|text| String::from_utf8_lossy(&text).contains(&needle))
            };
            (pid != std::process::id() && !command.is_empty() && files.iter().any(holds))
                .then_some(Process { pid, command })
        })
        .collect()
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("0 is no process")?;
    kill_process(pid, signal).with_context(|| format!("Cannot signal process {pid:?}"))
}

/// Waits until a process that is not our child is gone.
pub fn wait_gone(pid: u32) -> Result<Duration> {
    until(&format!("process {pid} is gone"), Duration::from_secs(5), || {
        Ok(!fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
    })
}

/// Ends what is left of a host.
pub fn kill_all(directory: &Path) {
    for process in around(directory) {
        // Gone in between is as good.
        let _ = signal(process.pid, Signal::KILL);
        let _ = wait_gone(process.pid);
    }
}

/// From now on an interrupt of the tests cleans this host up.
pub fn register(directory: &Path) {
    DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner).push(directory.to_path_buf());
}

/// The host cleaned up by itself.
pub fn unregister(directory: &Path) {
    DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known != directory);
}

/// Machines outlive their server, so a Ctrl-C must end them too.
pub fn clean_up_on_signals() {
    let wait = || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            Ok(())
        })
    };
    std::thread::spawn(move || {
        if wait().is_ok() {
            for directory in DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                kill_all(directory);
                let _ = fs::remove_dir_all(directory);
            }
            std::process::exit(130);
        }
    });
}
