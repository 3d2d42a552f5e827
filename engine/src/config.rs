//! Where the engine keeps and finds things, and its limits. Checked once, at start.

use std::path::PathBuf;

/// The configuration is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither an argument, nor `COVE_DATA_DIR`, nor the XDG variables nor HOME say where data goes.
    #[error("No data directory: give one, or set COVE_DATA_DIR, XDG_DATA_HOME or HOME")]
    NoDataDir,
    /// A directory must be absolute.
    #[error("{what} must be an absolute path, not '{path}'")]
    Relative {
        /// Which setting.
        what: &'static str,
        /// What it was.
        path: PathBuf,
    },
    /// The runtime directory cannot hold sockets.
    #[error("{path} is too long for a runtime directory: it has {bytes} bytes, and sockets in it allow {bytes_max}")]
    RuntimeDirTooLong {
        /// The directory.
        path: PathBuf,
        /// Its length in bytes.
        bytes: usize,
        /// Longest that is possible.
        bytes_max: usize,
    },
    /// A directory belongs to someone else or is open to others.
    #[error("{path} must belong to user {uid} and have mode 0700 ({found})")]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Who we are.
        uid: u32,
        /// What was found.
        found: String,
    },
}

/// What a caller may set; everything else is found or has a default.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Database, templates and disks. Else `COVE_DATA_DIR`, else `$XDG_DATA_HOME/cove`, else `~/.local/share/cove`.
    pub data_dir: Option<PathBuf>,
    /// Sockets. Else `COVE_RUNTIME_DIR`, else a directory of the user's own for this data directory.
    pub runtime_dir: Option<PathBuf>,
    /// Kernel and root image. Else `COVE_GUEST_DIR`, else what the file `guest` beside the executable names, else a
    /// directory `guest` beside it, else `cove/guest` in the XDG data directories.
    pub guest_dir: Option<PathBuf>,
    /// The `vmm` binary. Else `COVE_VMM`, else beside the executable.
    pub vmm: Option<PathBuf>,
    /// The KVM device. Else `COVE_KVM`, else `/dev/kvm`.
    pub kvm: Option<PathBuf>,
    /// Bounds; every field has a default.
    pub limits: EngineLimits,
}

/// Bounds of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most sandboxes that are not destroyed.
    pub sandboxes_max: u64,
    /// Memory of the host that is never given away, in MiB.
    pub memory_reserve_mib: u64,
    /// Disk of the data directory's file system that is never given away, in MiB.
    pub disk_reserve_mib: u64,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { sandboxes_max: 256, memory_reserve_mib: 512, disk_reserve_mib: 1024 }
    }
}
