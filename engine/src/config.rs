//! Where the engine keeps and finds things, and its limits. Looked up once, at start.
//!
//! What a caller gives wins over `COVE_*` variables, those over what lies beside the executable, that over the XDG
//! directories. A missing vmm or guest image is no reason not to start: every create then says what is missing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::sandbox::SandboxId;
use crate::storage::{ImageId, LayerId};

/// Longest path of a unix socket, in bytes, with its closing zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 108;

/// Longest name of a socket below the runtime directory: `/<sandbox id>/vsock.sock_1025` and the closing zero.
const SOCKET_NAME_BYTES: usize = 1 + 24 + 1 + 15 + 1;

/// The configuration is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither an argument, nor `COVE_DATA_DIR`, nor the XDG variables nor HOME say where data goes.
    #[error("There is no data directory: give one, or set COVE_DATA_DIR, XDG_DATA_HOME or HOME")]
    NoDataDir,
    /// The runtime directory cannot hold sockets.
    #[error("{path} has {bytes} bytes, too long for a runtime directory: the sockets in it allow {bytes_max}")]
    RuntimeDirTooLong {
        /// The directory.
        path: PathBuf,
        /// Its length in bytes.
        bytes: usize,
        /// Longest that is possible.
        bytes_max: usize,
    },
    /// A directory belongs to someone else or is open to others.
    #[error("{path} must be a directory of user {uid} with mode 0700, not {found}")]
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
    /// Machines of the default template and size that wait, restored and paused, for a create; each takes some memory.
    pub warm_pool: usize,
    /// Bounds; every field has a default.
    pub limits: EngineLimits,
}

/// Where a server with some configuration has everything; for those who look without starting one.
#[derive(Clone, Debug)]
pub struct Places {
    /// Database, templates and disks.
    pub data_dir: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
    /// Kernels and root image, or what is missing and what to do.
    pub guest_dir: Result<PathBuf, String>,
    /// The `vmm` binary, or what is missing and what to do.
    pub vmm: Result<PathBuf, String>,
    /// The KVM device, when it is not the usual one.
    pub kvm: Option<PathBuf>,
}

impl EngineConfig {
    /// Where a server with this configuration would have everything. Nothing is made.
    ///
    /// # Errors
    /// When nothing says where data goes, or the runtime directory cannot hold sockets.
    pub fn places(self) -> Result<Places, ConfigError> {
        Ok(Config::find(self)?.into())
    }
}

impl From<Config> for Places {
    fn from(Config { paths, guest, vmm, kvm, .. }: Config) -> Self {
        let dir_of = |guest: GuestDir| guest.kernel.parent().map(Path::to_path_buf).unwrap_or_default();
        Self { data_dir: paths.data, runtime_dir: paths.runtime, guest_dir: guest.map(dir_of), vmm, kvm }
    }
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
    /// Memory that a fresh machine really takes, in MiB.
    pub machine_memory_mib: u64,
    /// Disk that a fresh sandbox really takes, in MiB.
    pub machine_disk_mib: u64,
    /// Disk that the prepared machines of templates may take together, in MiB; the least recently used go first.
    pub warm_disk_mib: u64,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            sandboxes_max: 256,
            memory_reserve_mib: 512,
            disk_reserve_mib: 1024,
            machine_memory_mib: 256,
            machine_disk_mib: 256,
            warm_disk_mib: 8 << 10,
        }
    }
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) paths: Paths,
    /// The kernels and the root image, or what is missing and what to do.
    pub(crate) guest: Result<GuestDir, String>,
    /// The vmm binary, or what is missing and what to do.
    pub(crate) vmm: Result<PathBuf, String>,
    pub(crate) kvm: Option<PathBuf>,
    pub(crate) warm_pool: usize,
    pub(crate) limits: EngineLimits,
}

/// What `cargo xtask guest` made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestDir {
    pub(crate) kernel: PathBuf,
    /// The uniprocessor kernel, where there is one.
    pub(crate) kernel_up: Option<PathBuf>,
    pub(crate) root: PathBuf,
}

/// The files of one data directory.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) data: PathBuf,
    pub(crate) runtime: PathBuf,
}

impl Paths {
    pub(crate) fn lock(&self) -> PathBuf {
        self.data.join("lock")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.data.join("cove.db")
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }

    /// Disk and logs of a sandbox.
    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    /// Sockets of a sandbox.
    pub(crate) fn sockets(&self, id: &SandboxId) -> PathBuf {
        self.runtime.join(id.as_str())
    }

    pub(crate) fn control_socket(&self, id: &SandboxId) -> PathBuf {
        self.sockets(id).join("control.sock")
    }

    pub(crate) fn vsock_socket(&self, id: &SandboxId) -> PathBuf {
        self.sockets(id).join("vsock.sock")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.data.join("layers")
    }

    pub(crate) fn layer(&self, id: &LayerId) -> PathBuf {
        self.layers().join(format!("{id}.qcow2"))
    }

    /// The empty layer of a disk size, which new layers are copies of.
    pub(crate) fn empty_layer(&self, disk_bytes: u64) -> PathBuf {
        self.layers().join(format!("empty-{disk_bytes}.qcow2"))
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// The folder of a captured machine.
    pub(crate) fn image(&self, id: &ImageId) -> PathBuf {
        self.images().join(id.as_str())
    }

    /// The same while it is being captured.
    pub(crate) fn image_part(&self, id: &ImageId) -> PathBuf {
        self.images().join(format!("{id}.part"))
    }

    pub(crate) fn console_log(&self, id: &SandboxId) -> PathBuf {
        self.sandbox(id).join("console.log")
    }

    pub(crate) fn vmm_log(&self, id: &SandboxId) -> PathBuf {
        self.sandbox(id).join("vmm.log")
    }
}

/// What the process was started with; a value of its own so that tests need not change theirs.
pub(crate) struct Surroundings<'a> {
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The directory of the executable.
    pub(crate) beside: Option<PathBuf>,
    pub(crate) uid: u32,
}

impl Config {
    /// Finds everything for the process that we are.
    pub(crate) fn find(given: EngineConfig) -> Result<Self, ConfigError> {
        let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
        let variable = |name: &str| std::env::var_os(name);
        Self::find_in(given, &Surroundings { variable: &variable, beside, uid: rustix::process::getuid().as_raw() })
    }

    pub(crate) fn find_in(given: EngineConfig, around: &Surroundings<'_>) -> Result<Self, ConfigError> {
        let data = given.data_dir.or_else(|| around.path("COVE_DATA_DIR")).or_else(|| around.data_home());
        let data = absolute(data.ok_or(ConfigError::NoDataDir)?);
        let runtime = match given.runtime_dir.or_else(|| around.path("COVE_RUNTIME_DIR")) {
            Some(path) => fitting(absolute(path))?,
            None => around.runtime_dir(&data),
        };
        let guest_dir = given.guest_dir.or_else(|| around.path("COVE_GUEST_DIR")).or_else(|| around.guest_dir());
        Ok(Self {
            paths: Paths { data, runtime },
            guest: check_guest_dir(guest_dir),
            vmm: check_vmm(given.vmm.or_else(|| around.path("COVE_VMM")).or_else(|| around.vmm())),
            kvm: given.kvm.or_else(|| around.path("COVE_KVM")),
            warm_pool: given.warm_pool,
            limits: given.limits,
        })
    }
}

impl Surroundings<'_> {
    fn path(&self, variable: &str) -> Option<PathBuf> {
        (self.variable)(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    fn data_home(&self) -> Option<PathBuf> {
        // A relative value is to be ignored (XDG Base Directory Specification).
        let home = self.path("XDG_DATA_HOME").filter(|path| path.is_absolute());
        home.or_else(|| self.path("HOME").map(|home| home.join(".local/share"))).map(|home| home.join("cove"))
    }

    fn runtime_dir(&self, data: &Path) -> PathBuf {
        let name = format!("{:08x}", path_hash(data));
        let own = self.path("XDG_RUNTIME_DIR").filter(|path| path.is_absolute() && path.is_dir());
        own.map(|path| path.join("cove").join(&name))
            .and_then(|path| fitting(path).ok())
            .unwrap_or_else(|| PathBuf::from(format!("/tmp/cove-{}-{name}", self.uid)))
    }

    fn guest_dir(&self) -> Option<PathBuf> {
        let beside = self.beside.as_ref().map(|folder| folder.join("guest"));
        if let Some(path) = beside {
            if path.is_dir() {
                return Some(path);
            }
            if let Ok(text) = fs::read_to_string(&path) {
                return Some(PathBuf::from(text.trim_end_matches('\n')));
            }
        }
        let shared = self.path("XDG_DATA_DIRS").unwrap_or_else(|| PathBuf::from("/usr/local/share:/usr/share"));
        let shared: Vec<PathBuf> = std::env::split_paths(&shared).map(|path| path.join("cove")).collect();
        self.data_home().into_iter().chain(shared).map(|path| path.join("guest")).find(|path| path.is_dir())
    }

    fn vmm(&self) -> Option<PathBuf> {
        // A test binary lies one level below the binaries it belongs to.
        let beside = self.beside.as_ref()?;
        [Some(beside.as_path()), beside.parent()].into_iter().flatten().map(|dir| dir.join("vmm")).find(|p| p.is_file())
    }
}

fn check_guest_dir(dir: Option<PathBuf>) -> Result<GuestDir, String> {
    let Some(dir) = dir.map(absolute) else {
        return Err(
            "There is no guest image: build it with `cargo xtask guest`, or name its directory in COVE_GUEST_DIR"
                .into(),
        );
    };
    let kernel = dir.join("vmlinux");
    let root = dir.join("root.ext4");
    if let Some(missing) = [&kernel, &root].into_iter().find(|path| !path.is_file()) {
        return Err(format!(
            "The guest image is incomplete, {} is missing: build it with `cargo xtask guest`, or name another directory in \
             COVE_GUEST_DIR",
            missing.display()
        ));
    }
    let kernel_up = Some(dir.join("vmlinux-up")).filter(|path| path.is_file());
    Ok(GuestDir { kernel, kernel_up, root })
}

fn check_vmm(path: Option<PathBuf>) -> Result<PathBuf, String> {
    match path.map(absolute) {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(format!("The vmm binary {} does not exist: name the right one in COVE_VMM", path.display())),
        None => Err("There is no vmm binary beside this program: build it with `cargo build -p cove-vmm`, or name it in COVE_VMM".into()),
    }
}

/// `path` from the current directory, without reading the file system.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// `path` if its sockets' paths are short enough.
fn fitting(path: PathBuf) -> Result<PathBuf, ConfigError> {
    let (bytes, bytes_max) = (path.as_os_str().len(), SOCKET_PATH_BYTES_MAX - SOCKET_NAME_BYTES);
    if bytes > bytes_max { Err(ConfigError::RuntimeDirTooLong { path, bytes, bytes_max }) } else { Ok(path) }
}

/// FNV-1a: stable for ever, which the standard hasher does not promise.
pub(crate) fn text_hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The hash of a path, folded to 32 bits.
fn path_hash(path: &Path) -> u32 {
    let hash = text_hash(path.as_os_str().as_encoded_bytes());
    (hash >> 32) as u32 ^ hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(given: EngineConfig, variables: &[(&str, &str)], beside: Option<&Path>) -> Result<Config, ConfigError> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        let beside = beside.map(Path::to_path_buf);
        Config::find_in(given, &Surroundings { variable: &variable, beside, uid: 1000 })
    }

    #[test]
    fn an_argument_wins_over_a_variable_and_that_over_home() {
        let all = [("COVE_DATA_DIR", "/b"), ("XDG_DATA_HOME", "/c"), ("HOME", "/d")];
        let given = EngineConfig { data_dir: Some("/a".into()), ..EngineConfig::default() };
        assert_eq!(find(given, &all, None).unwrap().paths.data, Path::new("/a"));
        let data = |variables| find(EngineConfig::default(), variables, None).map(|config| config.paths.data);
        assert_eq!(data(&all).unwrap(), Path::new("/b"));
        assert_eq!(data(&all[1..]).unwrap(), Path::new("/c/cove"));
        assert_eq!(data(&all[2..]).unwrap(), Path::new("/d/.local/share/cove"));
        assert!(matches!(data(&[]), Err(ConfigError::NoDataDir)));
    }

    #[test]
    fn sockets_always_fit() {
        let long = format!("/{}", "x".repeat(90));
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().to_str().unwrap();
        let config = find(EngineConfig::default(), &[("HOME", &long), ("XDG_RUNTIME_DIR", own)], None).unwrap();
        assert!(config.paths.runtime.starts_with(own));
        let id = SandboxId::generate();
        assert!(config.paths.vsock_socket(&id).as_os_str().len() + "_1025".len() < SOCKET_PATH_BYTES_MAX);
        let error = find(EngineConfig::default(), &[("HOME", "/h"), ("COVE_RUNTIME_DIR", &long)], None).unwrap_err();
        assert!(matches!(error, ConfigError::RuntimeDirTooLong { bytes: 91, .. }), "{error}");
    }

    #[test]
    fn the_guest_directory_is_named_by_a_file_beside_the_executable() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::create_dir(&image).unwrap();
        fs::write(folder.path().join("guest"), format!("{}\n", image.display())).unwrap();
        let config = find(EngineConfig::default(), &[("HOME", "/h")], Some(folder.path())).unwrap();
        let problem = config.guest.unwrap_err();
        assert!(problem.contains("vmlinux is missing") && problem.contains("cargo xtask guest"), "{problem}");
        for name in ["vmlinux", "vmlinux-up", "root.ext4"] {
            fs::write(image.join(name), "").unwrap();
        }
        let guest = find(EngineConfig::default(), &[("HOME", "/h")], Some(folder.path())).unwrap().guest.unwrap();
        assert_eq!(guest.kernel_up, Some(image.join("vmlinux-up")));
    }

    #[test]
    fn a_missing_vmm_says_what_to_do() {
        let given = EngineConfig { vmm: Some("/nonexistent/vmm".into()), ..EngineConfig::default() };
        let config = find(given, &[("HOME", "/h")], None).unwrap();
        assert!(config.vmm.unwrap_err().contains("/nonexistent/vmm does not exist"));
        assert!(find(EngineConfig::default(), &[("HOME", "/h")], None).unwrap().vmm.unwrap_err().contains("COVE_VMM"));
    }
}
