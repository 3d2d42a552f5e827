//! What this host can do for a machine: opens KVM, checks what is needed of it, and says what to do when it is missing.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use cove_protocol::vmm::{HostProbe, VCPUS};
use kvm_ioctls::{Cap, Kvm};
use sha2::{Digest, Sha256};

use crate::arch::x86_64::{assist, cpuid};
use crate::snapshot::manifest::HostRecord;
use crate::snapshot::state;

/// Environment variable that names another KVM device.
pub const KVM_VARIABLE: &str = "COVE_KVM";
/// Environment variable that says what an earlier `vmm probe` found on this host: the assist is needed (1) or not (0).
pub const ASSIST_VARIABLE: &str = "COVE_ASSIST";
const KVM_DEFAULT: &str = "/dev/kvm";
const KVM_API_VERSION: i32 = 12;

/// What every machine needs of KVM, with the names that its documentation uses.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// Why this host cannot run machines.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No such device.
    #[error(
        "There is no {}: this host offers no KVM. Enable virtualization in the firmware, load the kvm_intel or kvm_amd \
         module, or, in a virtual machine, enable nested virtualization",
        path.display()
    )]
    Missing {
        /// The device that was looked for.
        path: PathBuf,
    },
    /// Not allowed.
    #[error(
        "This user may not open {}: add it to the device's group (usermod -aG kvm USER, then log in again)",
        path.display()
    )]
    Denied {
        /// The device.
        path: PathBuf,
    },
    /// Another failure, such as a file that is no KVM device.
    #[error("Cannot open {} as a KVM device", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A very old KVM, or not one at all.
    #[error("{} is not a KVM device of API version {KVM_API_VERSION} (it says {found})", path.display())]
    Version {
        /// The device.
        path: PathBuf,
        /// What it says.
        found: i32,
    },
    /// A capability is missing.
    #[error("This host's KVM lacks {capability}: a newer Linux kernel is needed")]
    Capability {
        /// Its name in KVM's documentation.
        capability: &'static str,
    },
    /// The probe failed.
    #[error("Cannot find out whether this host needs the assist")]
    Probe(#[from] assist::probe::ProbeError),
    /// KVM does not say what it supports.
    #[error("KVM does not say what CPU features it supports")]
    Cpuid(#[source] kvm_ioctls::Error),
}

/// The KVM device to use.
pub fn kvm_path() -> PathBuf {
    std::env::var_os(KVM_VARIABLE).map_or_else(|| KVM_DEFAULT.into(), PathBuf::from)
}

/// Opens KVM and checks that it has what a machine needs.
///
/// # Errors
/// A [`HostError`] that says what to do.
pub fn open_kvm() -> Result<Kvm, HostError> {
    open_kvm_at(&kvm_path())
}

fn open_kvm_at(path: &Path) -> Result<Kvm, HostError> {
    let missing = || HostError::Missing { path: path.into() };
    let name = CString::new(path.to_path_buf().into_os_string().into_vec()).map_err(|_| missing())?;
    let kvm = Kvm::new_with_path(name).map_err(|source| match source.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => missing(),
        libc::EACCES | libc::EPERM => HostError::Denied { path: path.into() },
        _ => HostError::Open { path: path.into(), source },
    })?;
    let found = kvm.get_api_version();
    if found != KVM_API_VERSION {
        return Err(HostError::Version { path: path.into(), found });
    }
    match NEEDED.into_iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, capability)) => Err(HostError::Capability { capability }),
        None => Ok(kvm),
    }
}

/// What a host is, once it is known to be usable.
pub struct Host {
    /// The open device.
    pub kvm: Kvm,
    /// It emulates the guest's kernel.
    pub assist: bool,
    /// What it supports of CPUID.
    pub cpuid: kvm_bindings::CpuId,
    /// What a snapshot made here depends on.
    pub record: HostRecord,
}

impl Host {
    /// Opens KVM; believes what [`ASSIST_VARIABLE`] says of this host, and else finds it out, which takes some milliseconds.
    ///
    /// # Errors
    /// A [`HostError`] that says what to do.
    pub fn open() -> Result<Self, HostError> {
        Self::open_as(match std::env::var(ASSIST_VARIABLE).as_deref() {
            Ok("1") => Some(true),
            Ok("0") => Some(false),
            _ => None,
        })
    }

    fn open_as(told: Option<bool>) -> Result<Self, HostError> {
        let kvm = open_kvm()?;
        let assist = told.map_or_else(|| assist::probe::assist_needed(&kvm), Ok)?;
        let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(HostError::Cpuid)?;
        let record = HostRecord {
            fingerprint: fingerprint(&kvm, &cpuid, assist),
            cpu_model: cpuid::brand(&cpuid).or_else(cpu_model).unwrap_or_default(),
            module: module().to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            assist,
        };
        Ok(Self { kvm, assist, cpuid, record })
    }

    /// Most vCPUs that a machine can be granted here.
    pub fn vcpus_max(&self) -> u8 {
        let mut most = self.kvm.get_max_vcpus();
        if self.assist {
            // A vCPU that waits for a lock is interpreted too, and without hypercalls it cannot yield to the one that
            // holds it: more of them than the host has CPUs only take time from each other.
            most = most.min(std::thread::available_parallelism().map_or(1, usize::from));
        }
        most.clamp(1, usize::from(*VCPUS.end())) as u8
    }
}

/// The answer of `vmm probe`.
pub fn probe() -> HostProbe {
    let mut probe = HostProbe {
        kvm: kvm_path(),
        problem: None,
        assist: false,
        vcpus_max: 0,
        cpu_model: String::new(),
        module: module().to_owned(),
        fingerprint: String::new(),
    };
    match Host::open_as(None) {
        Ok(host) => {
            probe.assist = host.assist;
            probe.vcpus_max = host.vcpus_max();
            probe.fingerprint = host.record.fingerprint;
            probe.cpu_model = host.record.cpu_model;
        }
        Err(error) => probe.problem = Some(chain(&error)),
    }
    probe
}

/// Names all of the host that a snapshot depends on, as hexadecimal digits: the CPU and what KVM passes on of it, the kind
/// of KVM, the MSRs that it saves, and the format. The host's kernel is not among it: KVM's interface is stable, and a
/// paused sandbox should outlive a kernel's update; what a new kernel does refuse is found when the state is set.
fn fingerprint(kvm: &Kvm, cpuid: &kvm_bindings::CpuId, assist: bool) -> String {
    let mut hash = Sha256::new();
    hash.update(state::FORMAT.to_le_bytes());
    hash.update([u8::from(assist)]);
    hash.update(module());
    for part in cpuid::identity(cpuid) {
        hash.update(part.to_le_bytes());
    }
    let mut msrs = kvm.get_msr_index_list().map(|list| list.as_slice().to_vec()).unwrap_or_default();
    msrs.sort_unstable();
    msrs.iter().for_each(|index| hash.update(index.to_le_bytes()));
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The processor's name as the host's kernel gives it, where KVM does not pass its brand string on.
fn cpu_model() -> Option<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpus.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The KVM module, by name. `kvm_pvm` first: where it is loaded, it is the one in use.
fn module() -> &'static str {
    let modules = ["kvm_pvm", "kvm_intel", "kvm_amd"];
    modules.into_iter().find(|module| Path::new("/sys/module").join(module).exists()).unwrap_or("unknown")
}

/// An error and its causes as one sentence.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_says_what_to_do() {
        let error = open_kvm_at(Path::new("/nonexistent")).err().unwrap();
        assert!(error.to_string().starts_with("There is no /nonexistent: this host offers no KVM. Enable"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_kvm_device_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(open_kvm_at(file.path()), Err(HostError::Version { .. } | HostError::Open { .. })));
    }
}
