//! The checked form of a [`MachineSpec`]: every field has been looked at, and a wrong one is named.
//!
//! Plain data: no descriptors, no KVM handles. What only the system can say (does the file exist, is it a kernel) is
//! found out by [`crate::builder`].

use std::path::PathBuf;

use cove_protocol::vmm::{ConsoleSpec, DiskSpec, LayerFormat, MEMORY_MIB, MachineSpec, VCPUS, VsockSpec};

/// Most disks of a machine.
pub const DISKS_MAX: usize = 8;
/// Most words that a spec may add to the command line.
pub const KERNEL_ARGS_MAX: usize = 64;
/// Most bytes of those words together, spaces between them included.
pub const KERNEL_ARGS_BYTES_MAX: usize = 1024;
/// Fewest and most bytes of a console log.
pub const CONSOLE_BYTES: std::ops::RangeInclusive<u64> = 4096..=256 << 20;
/// Longest id of a machine.
pub const ID_BYTES_MAX: usize = 128;
/// The guest's lowest context id (virtio 1.2, 5.10.4), and the highest: one below the "any" address.
const GUEST_CID: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;
/// A unix socket's longest path on Linux, less the `_4294967295` that a guest's call appends.
const SOCKET_PATH_BYTES_MAX: usize = 107 - 11;

/// A field of a [`MachineSpec`] is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The id is empty, too long, or not printable.
    #[error("id must be 1 to {ID_BYTES_MAX} printable ASCII characters, not {0:?}")]
    Id(String),
    /// Too few or too many vCPUs.
    #[error("vcpus must be {least} to {most}, not {0}", least = VCPUS.start(), most = VCPUS.end())]
    Vcpus(u8),
    /// Too little or too much memory.
    #[error("memory_mib must be {least} to {most}, not {0}", least = MEMORY_MIB.start(), most = MEMORY_MIB.end())]
    Memory(u32),
    /// No kernel.
    #[error("kernel must name a file")]
    Kernel,
    /// Too many words for the command line, or too long.
    #[error(
        "kernel_args may be {KERNEL_ARGS_MAX} words of {KERNEL_ARGS_BYTES_MAX} bytes together, not {words} of {bytes}"
    )]
    KernelArgsLong {
        /// How many.
        words: usize,
        /// Bytes with a space between each two.
        bytes: usize,
    },
    /// A word that would be several, or none.
    #[error("kernel_args[{index}] must be a word without spaces and control characters, not {word:?}")]
    KernelArg {
        /// Which.
        index: usize,
        /// What it is.
        word: String,
    },
    /// Too many disks.
    #[error("disks may be {DISKS_MAX} at most, not {0}")]
    Disks(usize),
    /// A disk without a layer.
    #[error("disks[{0}].layers must not be empty")]
    Layers(usize),
    /// A layer without a file.
    #[error("disks[{disk}].layers[{layer}].path must name a file")]
    LayerPath {
        /// Which disk.
        disk: usize,
        /// Which of its layers.
        layer: usize,
    },
    /// Plain bytes cannot leave holes for the layer below.
    #[error("disks[{disk}].layers[{layer}] is raw, which only a disk's base can be")]
    RawOnTop {
        /// Which disk.
        disk: usize,
        /// Which of its layers.
        layer: usize,
    },
    /// A reserved context id.
    #[error("vsock.guest_cid must be {least} to {most}, not {0}", least = GUEST_CID.start(), most = GUEST_CID.end())]
    GuestCid(u32),
    /// The socket's path is empty or too long for the system.
    #[error("vsock.socket must be a path of 1 to {SOCKET_PATH_BYTES_MAX} bytes, not of {0}")]
    VsockSocket(usize),
    /// No console log.
    #[error("console.log must name a file")]
    ConsoleLog,
    /// Too small or too large a console log.
    #[error("console.bytes_max must be {least} to {most}, not {0}", least = CONSOLE_BYTES.start(), most = CONSOLE_BYTES.end())]
    ConsoleBytes(u64),
}

/// What the guest will be given, already checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// The sandbox's id, for log lines.
    pub id: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory_bytes: u64,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// Words added to the guest's command line.
    pub kernel_args: Vec<String>,
    /// Disks in order; the first is the root.
    pub disks: Vec<DiskSpec>,
    /// The vsock device.
    pub vsock: VsockSpec,
    /// The serial console's log.
    pub console: ConsoleSpec,
}

impl TryFrom<MachineSpec> for MachineConfig {
    type Error = ConfigError;

    fn try_from(spec: MachineSpec) -> Result<Self, Self::Error> {
        let printable = spec.id.bytes().all(|byte| byte.is_ascii_graphic());
        if spec.id.is_empty() || spec.id.len() > ID_BYTES_MAX || !printable {
            return Err(ConfigError::Id(spec.id));
        }
        if !VCPUS.contains(&spec.vcpus) {
            return Err(ConfigError::Vcpus(spec.vcpus));
        }
        if !MEMORY_MIB.contains(&spec.memory_mib) {
            return Err(ConfigError::Memory(spec.memory_mib));
        }
        if spec.kernel.as_os_str().is_empty() {
            return Err(ConfigError::Kernel);
        }
        check_kernel_args(&spec.kernel_args)?;
        check_disks(&spec.disks)?;
        check_vsock(&spec.vsock)?;
        check_console(&spec.console)?;
        Ok(Self {
            id: spec.id,
            vcpus: spec.vcpus,
            memory_bytes: u64::from(spec.memory_mib) << 20,
            kernel: spec.kernel,
            kernel_args: spec.kernel_args,
            disks: spec.disks,
            vsock: spec.vsock,
            console: spec.console,
        })
    }
}

fn check_kernel_args(args: &[String]) -> Result<(), ConfigError> {
    let bytes = args.iter().map(|word| word.len() + 1).sum();
    if args.len() > KERNEL_ARGS_MAX || bytes > KERNEL_ARGS_BYTES_MAX {
        return Err(ConfigError::KernelArgsLong { words: args.len(), bytes });
    }
    // Quotes would let a word swallow the next ones.
    let wrong = |word: &String| word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    match args.iter().position(wrong) {
        Some(index) => Err(ConfigError::KernelArg { index, word: args[index].clone() }),
        None => Ok(()),
    }
}

fn check_disks(disks: &[DiskSpec]) -> Result<(), ConfigError> {
    if disks.len() > DISKS_MAX {
        return Err(ConfigError::Disks(disks.len()));
    }
    for (disk, spec) in disks.iter().enumerate() {
        if spec.layers.is_empty() {
            return Err(ConfigError::Layers(disk));
        }
        for (layer, spec) in spec.layers.iter().enumerate() {
            if spec.path.as_os_str().is_empty() {
                return Err(ConfigError::LayerPath { disk, layer });
            }
            if layer > 0 && spec.format == LayerFormat::Raw {
                return Err(ConfigError::RawOnTop { disk, layer });
            }
        }
    }
    Ok(())
}

fn check_vsock(vsock: &VsockSpec) -> Result<(), ConfigError> {
    if !GUEST_CID.contains(&vsock.guest_cid) {
        return Err(ConfigError::GuestCid(vsock.guest_cid));
    }
    match vsock.socket.as_os_str().len() {
        1..=SOCKET_PATH_BYTES_MAX => Ok(()),
        bytes => Err(ConfigError::VsockSocket(bytes)),
    }
}

fn check_console(console: &ConsoleSpec) -> Result<(), ConfigError> {
    if console.log.as_os_str().is_empty() {
        return Err(ConfigError::ConsoleLog);
    }
    if !CONSOLE_BYTES.contains(&console.bytes_max) {
        return Err(ConfigError::ConsoleBytes(console.bytes_max));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cove_protocol::vmm::LayerSpec;

    use super::*;

    fn layer(format: LayerFormat) -> LayerSpec {
        LayerSpec { path: "/disk".into(), format }
    }

    fn spec() -> MachineSpec {
        MachineSpec {
            id: "sbx_7".into(),
            vcpus: 2,
            memory_mib: 512,
            kernel: "/vmlinux".into(),
            kernel_args: vec!["quiet".into()],
            disks: vec![DiskSpec {
                layers: vec![layer(LayerFormat::Raw), layer(LayerFormat::Qcow2)],
                read_only: false,
            }],
            vsock: VsockSpec { guest_cid: 3, socket: "/run/vsock".into() },
            console: ConsoleSpec { log: "/log".into(), bytes_max: 1 << 20 },
        }
    }

    fn refused(change: impl FnOnce(&mut MachineSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        MachineConfig::try_from(spec).unwrap_err().to_string()
    }

    #[test]
    fn a_good_spec_is_taken_over() {
        let config = MachineConfig::try_from(spec()).unwrap();
        assert_eq!((config.vcpus, config.memory_bytes), (2, 512 << 20));
    }

    #[test]
    fn a_wrong_field_is_named_with_its_value() {
        assert_eq!(refused(|s| s.vcpus = 17), "vcpus must be 1 to 16, not 17");
        assert_eq!(refused(|s| s.memory_mib = 100), "memory_mib must be 512 to 32768, not 100");
        assert!(refused(|s| s.id = "a b".into()).starts_with("id must be"));
        assert!(refused(|s| s.kernel = "".into()).starts_with("kernel must"));
        assert!(refused(|s| s.kernel_args.push("a b".into())).starts_with("kernel_args[1] must be a word"));
        assert!(refused(|s| s.kernel_args.push("a\n".into())).starts_with("kernel_args[1] must be a word"));
        assert!(refused(|s| s.kernel_args.push("x".repeat(2000))).starts_with("kernel_args may be"));
        assert_eq!(refused(|s| s.disks[0].layers.clear()), "disks[0].layers must not be empty");
        assert!(refused(|s| s.disks[0].layers.push(layer(LayerFormat::Raw))).starts_with("disks[0].layers[2] is raw"));
        assert!(refused(|s| s.disks = vec![s.disks[0].clone(); 9]).starts_with("disks may be 8"));
        assert!(refused(|s| s.vsock.guest_cid = 2).starts_with("vsock.guest_cid must be 3"));
        assert!(refused(|s| s.vsock.socket = "/".repeat(200).into()).starts_with("vsock.socket must be"));
        assert!(refused(|s| s.console.bytes_max = 0).starts_with("console.bytes_max must be"));
    }
}
