//! After all tests every disk is whole, as `qemu-img check` sees it.
//!
//! Not a test of the list: it ends the machines, so it comes after the last one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::harness::{TestHost, TestSandbox, all_files, until};

/// A guest's kernel may be slow to say goodbye.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// LINUX_REBOOT_CMD_RESTART, reboot(2): a reset ends a machine, and every kernel can do it.
const RESET: &str = "import ctypes, os; os.sync(); ctypes.CDLL(None).reboot(0x01234567)";

/// Ends every machine, then checks every disk of the host.
pub fn are_whole(host: &TestHost) -> Result<()> {
    for record in host.list()? {
        let id = record["id"].as_str().context("A record has no id")?;
        if record["state"] == "running" {
            let sandbox = TestSandbox::existing(host.api(), id);
            // The machine goes away under the command, so its answer says nothing.
            let _ = sandbox.exec(&json!({ "command": ["python3", "-c", RESET] }));
        }
    }
    until("every machine has ended", END_TIMEOUT, || Ok(host.machines().is_empty()))?;
    let checked = check_all(host)?;
    ensure!(checked > 0 || host.list()?.is_empty(), "No disk was found to check");
    eprintln!("{checked} disks are whole");
    Ok(())
}

/// Checks every layer of a host, none of which may be in use; says how many there are.
pub fn check_all(host: &TestHost) -> Result<usize> {
    let mut checked = 0;
    for disk in all_files(&host.data_dir())? {
        if disk.extension().is_some_and(|extension| extension == "qcow2") {
            let output = Command::new("qemu-img").arg("check").arg(&disk).output();
            let output = output.context("Cannot run qemu-img: apt-get install qemu-utils")?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stdout);
                bail!("{}: {said}{}", disk.display(), String::from_utf8_lossy(&output.stderr));
            }
            checked += 1;
        }
    }
    Ok(checked)
}

/// The layers that a vmm has open, the base first: it opens them in that order.
pub fn layers_of(vmm: u32) -> Result<Vec<PathBuf>> {
    let mut open: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir(format!("/proc/{vmm}/fd"))? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse()?;
        let Ok(path) = fs::read_link(entry.path()) else { continue };
        let layer = path.extension().is_some_and(|extension| extension == "qcow2" || extension == "ext4");
        if layer && !open.iter().any(|(_, known)| *known == path) {
            open.push((number, path));
        }
    }
    open.sort();
    Ok(open.into_iter().map(|(_, path)| path).collect())
}

/// Checks the file system that a chain of layers shows, as after a loss of power: its journal is replayed, and then
/// nothing may be wrong. Works on a copy in `folder`.
pub fn check_file_system(vmm: &Path, layers: &[PathBuf], folder: &Path) -> Result<()> {
    let (base, above) = layers.split_first().context("There are no layers")?;
    let (merged, raw) = (folder.join("check.qcow2"), folder.join("check.raw"));
    run(Command::new(vmm).args(["disk", "merge", "--out"]).arg(&merged).args(above))?;
    run(Command::new("qemu-img").args(["rebase", "-u", "-F", "raw", "-b"]).arg(base).arg(&merged))?;
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&merged).arg(&raw))?;
    let replayed = Command::new("e2fsck").args(["-p", "-E", "journal_only"]).arg(&raw).output();
    replayed.context("Cannot run e2fsck: apt-get install e2fsprogs")?;
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&raw).output()?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    let _ = fs::remove_file(merged);
    let _ = fs::remove_file(raw);
    ensure!(checked.status.success(), "The file system of {layers:?} is damaged: {said}");
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("Cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
