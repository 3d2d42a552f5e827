//! KVM: the device, what the vmm program can do with it, whether guests need the assist, how many vCPUs they get.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cove_protocol::vmm::HostProbe;
use tokio::process::Command;

use super::Check;

/// A probe that takes longer hangs.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// The checks of this module, in order. What cannot be told without KVM is left out.
pub async fn checks(device: Option<PathBuf>, vmm: Result<PathBuf, String>) -> Vec<Check> {
    let device = device.unwrap_or_else(|| PathBuf::from("/dev/kvm"));
    let device_check = device_file(&device);
    let vmm = match vmm {
        Ok(path) => path,
        Err(problem) => return vec![device_check, Check::error("vmm", problem, "or reinstall Cove")],
    };
    match probe(&vmm, &device).await {
        Ok(probe) => from_probe(device_check, &vmm, &probe),
        Err(problem) => {
            vec![
                device_check,
                Check::error("vmm", problem, "run `vmm probe` by hand; reinstall Cove if it cannot start"),
            ]
        }
    }
}

/// What can be told by looking at the device file.
fn device_file(device: &Path) -> Check {
    let shown = device.display();
    let missing = "switch on virtualization in the firmware (or nested virtualization in the cloud) and load the module: \
                   `modprobe kvm_intel` or `modprobe kvm_amd`";
    let opened = fs::OpenOptions::new().read(true).write(true).open(device);
    match (fs::metadata(device), opened) {
        (Err(error), _) if error.kind() == ErrorKind::NotFound => {
            Check::error("kvm_device", format!("{shown} does not exist"), missing)
        }
        (Err(error), _) => Check::error("kvm_device", format!("{shown}: {error}"), missing),
        (Ok(metadata), _) if !metadata.file_type().is_char_device() => Check::error(
            "kvm_device",
            format!("{shown} is not a device"),
            "point COVE_KVM at the KVM device, or unset it",
        ),
        (Ok(_), Err(error)) if error.kind() == ErrorKind::PermissionDenied => {
            let advice = "join the group that owns it and log in again: `sudo usermod -aG kvm $USER`";
            Check::error("kvm_device", format!("you may not open {shown}"), advice)
        }
        (Ok(_), Err(error)) => Check::error("kvm_device", format!("{shown} cannot be opened: {error}"), missing),
        (Ok(_), Ok(_)) => Check::ok("kvm_device", format!("{shown} can be opened")),
    }
}

async fn probe(vmm: &Path, device: &Path) -> Result<HostProbe, String> {
    let mut command = Command::new(vmm);
    command.arg("probe").env("COVE_KVM", device).stdin(Stdio::null()).kill_on_drop(true);
    let shown = vmm.display();
    let output = match tokio::time::timeout(PROBE_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{shown} cannot be started: {error}")),
        Err(_) => return Err(format!("{shown} probe did not end within {} s", PROBE_TIMEOUT.as_secs())),
    };
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("{shown} probe ended with {} and no answer ({error}): {}", output.status, said.trim())
    })
}

fn from_probe(device: Check, vmm: &Path, probe: &HostProbe) -> Vec<Check> {
    let vmm = Check::ok("vmm", vmm.display().to_string());
    let kvm = match &probe.problem {
        Some(problem) => {
            return vec![device, vmm, Check::error("kvm", problem, "see kvm_device; machines cannot run here")];
        }
        None => Check::ok("kvm", format!("{} on {}", probe.module, probe.cpu_model)),
    };
    let assist = if probe.assist {
        let detail = "needed: this host's KVM emulates the guest's kernel";
        Check::warning("assist", detail, "machines work but are slow: use a host with VT-x or AMD-V for speed")
    } else {
        Check::ok("assist", "not needed")
    };
    let host_cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let detail = format!("a machine gets at most {} vCPUs; this computer has {host_cpus}", probe.vcpus_max);
    let vcpus = if u32::from(probe.vcpus_max) < u32::from(*cove_protocol::vmm::VCPUS.end()) {
        Check::warning("vcpus", detail, "larger shapes run with fewer vCPUs; the record says how many in cpu_granted")
    } else {
        Check::ok("vcpus", detail)
    };
    vec![device, vmm, kvm, assist, vcpus]
}
