//! After all tests every disk is whole, as `qemu-img check` sees it.
//!
//! Not a test of the list: it ends the machines, so it comes after the last one.

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
    ensure!(checked > 0 || host.list()?.is_empty(), "No disk was found to check");
    eprintln!("{checked} disks are whole");
    Ok(())
}
