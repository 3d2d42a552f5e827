//! What this host can do for machines: asked of `vmm probe` once, at start.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use cove_protocol::vmm::HostProbe;
use tokio::process::Command;

use crate::config::{Config, GuestDir};

/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// What a machine is made with, or why none can be made.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) probe: HostProbe,
    /// What machines are made with, or a sentence about what is missing and what to do.
    pub(crate) ready: Result<Tools, String>,
}

/// What every start of a machine needs.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) vmm: PathBuf,
    pub(crate) guest: GuestDir,
    pub(crate) kvm: Option<PathBuf>,
    /// What the probe said: a machine's vmm need not find it out again.
    pub(crate) assist: bool,
}

impl Host {
    /// Asks. A host without KVM, vmm or image is no error here: creates will say so.
    pub(crate) async fn probe(config: &Config) -> Self {
        let asked = match &config.vmm {
            Ok(vmm) => run_probe(vmm, config.kvm.as_deref()).await,
            Err(problem) => Err(problem.clone()),
        };
        let probe = asked.unwrap_or_else(|problem| HostProbe {
            kvm: config.kvm.clone().unwrap_or_else(|| PathBuf::from("/dev/kvm")),
            problem: Some(problem),
            assist: false,
            vcpus_max: 1,
            cpu_model: String::new(),
            module: "unknown".into(),
            fingerprint: String::new(),
        });
        let ready = match (&probe.problem, &config.vmm, &config.guest) {
            (None, Ok(vmm), Ok(guest)) => {
                let (vmm, guest, kvm) = (vmm.clone(), guest.clone(), config.kvm.clone());
                Ok(Tools { vmm, guest, kvm, assist: probe.assist })
            }
            (Some(problem), _, _) | (None, Err(problem), _) | (None, Ok(_), Err(problem)) => Err(problem.clone()),
        };
        if let Err(problem) = &ready {
            tracing::warn!(problem, "no sandbox can be made on this host");
        }
        Self { probe, ready }
    }
}

impl Tools {
    /// The kernel for a machine that gets `vcpus`. Where KVM emulates the guest's kernel, the uniprocessor kernel is a
    /// third faster.
    pub(crate) fn kernel(&self, probe: &HostProbe, vcpus: u8) -> PathBuf {
        match &self.guest.kernel_up {
            Some(kernel_up) if probe.assist && vcpus == 1 => kernel_up.clone(),
            _ => self.guest.kernel.clone(),
        }
    }

    /// Words for that kernel's command line. Where KVM emulates the guest's kernel, each page it is given at boot costs
    /// 30 us: it gets one block of memory, and the agent adds the rest while the sandbox already runs.
    pub(crate) fn kernel_args(&self, probe: &HostProbe) -> Vec<String> {
        if probe.assist { vec!["mem=128M".into()] } else { Vec::new() }
    }
}

async fn run_probe(vmm: &std::path::Path, kvm: Option<&std::path::Path>) -> Result<HostProbe, String> {
    let mut command = Command::new(vmm);
    command.arg("probe").stdin(Stdio::null()).kill_on_drop(true);
    if let Some(kvm) = kvm {
        command.env("COVE_KVM", kvm);
    }
    let output = match tokio::time::timeout(PROBE_DEADLINE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{} cannot be run: {error}", vmm.display())),
        Err(_) => return Err(format!("`{} probe` did not end within {PROBE_DEADLINE:?}", vmm.display())),
    };
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let words = String::from_utf8_lossy(&output.stderr);
        format!("`{} probe` ended with {} and said: {}", vmm.display(), output.status, words.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(kernel_up: bool) -> Tools {
        let kernel_up = kernel_up.then(|| PathBuf::from("/g/vmlinux-up"));
        let guest = GuestDir { kernel: "/g/vmlinux".into(), kernel_up, root: "/g/root.ext4".into() };
        Tools { vmm: "/vmm".into(), guest, kvm: None, assist: false }
    }

    fn probe(assist: bool) -> HostProbe {
        HostProbe {
            kvm: "/dev/kvm".into(),
            problem: None,
            assist,
            vcpus_max: 16,
            cpu_model: String::new(),
            module: "kvm_pvm".into(),
            fingerprint: "f0".into(),
        }
    }

    #[test]
    fn the_uniprocessor_kernel_is_for_one_vcpu_on_hosts_that_emulate() {
        let kernel = |up, assist, vcpus| tools(up).kernel(&probe(assist), vcpus);
        assert!(kernel(true, true, 1).ends_with("vmlinux-up"));
        assert!(kernel(true, true, 2).ends_with("vmlinux"));
        assert!(kernel(true, false, 1).ends_with("vmlinux"));
        assert!(kernel(false, true, 1).ends_with("vmlinux"));
    }
}
