//! The manifest of a snapshot: what it is and where it fits, as JSON that people can read. It is written last, so a folder
//! with a manifest is whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::state::FORMAT;

/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// What a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`] of the vmm that made it.
    pub format: u32,
    /// The host that it was made on.
    pub host: HostRecord,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in bytes: the memory file's length.
    pub memory_bytes: u64,
    /// SHA-256 of the state file, as hexadecimal digits.
    pub state_sha256: String,
}

/// What of a host a snapshot depends on, and what helps to understand why it does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Decides whether a snapshot fits: [`crate::host::Host::fingerprint`].
    pub fingerprint: String,
    /// The CPU's name.
    pub cpu_model: String,
    /// The KVM module.
    pub module: String,
    /// The host's kernel. A snapshot may go on under another one.
    pub kernel: String,
    /// The host emulates the guest's kernel.
    pub assist: bool,
}

/// A snapshot cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No manifest: the capture did not come to its end.
    #[error("The snapshot {0} has no manifest, so it is not whole")]
    Missing(std::path::PathBuf),
    /// It cannot be read.
    #[error("Cannot read the snapshot's manifest")]
    Read(#[source] io::Error),
    /// It is not one.
    #[error("The snapshot's manifest makes no sense")]
    Parse(#[from] serde_json::Error),
    /// Another version's.
    #[error("The snapshot has format {0}; this version reads format {FORMAT}")]
    Format(u32),
    /// Made elsewhere.
    #[error("The snapshot was made on {made}, which this host, {here}, is not")]
    Host {
        /// There.
        made: String,
        /// Here.
        here: String,
    },
}

impl HostRecord {
    fn describe(&self) -> String {
        format!("{} with {} ({})", self.cpu_model, self.module, &self.fingerprint[..self.fingerprint.len().min(12)])
    }
}

impl Manifest {
    /// Writes it into `folder`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, folder: &Path) -> io::Result<File> {
        // Renamed into place: a manifest that is there is whole.
        let (partial, path) = (folder.join("manifest.json.partial"), folder.join(super::MANIFEST));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(partial, path)?;
        Ok(file)
    }

    /// Reads the manifest of `folder` and checks that it fits `here`.
    ///
    /// # Errors
    /// [`ManifestError`], which says what does not fit.
    pub fn read(folder: &Path, here: &HostRecord) -> Result<Self, ManifestError> {
        let file = match File::open(folder.join(super::MANIFEST)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ManifestError::Missing(folder.into())),
            Err(error) => return Err(ManifestError::Read(error)),
        };
        let mut text = Vec::new();
        file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(ManifestError::Read)?;
        let manifest: Self = serde_json::from_slice(&text)?;
        if manifest.format != FORMAT {
            return Err(ManifestError::Format(manifest.format));
        }
        if manifest.host.fingerprint != here.fingerprint {
            return Err(ManifestError::Host { made: manifest.host.describe(), here: here.describe() });
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(fingerprint: &str) -> HostRecord {
        HostRecord {
            fingerprint: fingerprint.into(),
            cpu_model: "A CPU".into(),
            module: "kvm_intel".into(),
            kernel: "6.12".into(),
            assist: false,
        }
    }

    #[test]
    fn a_manifest_fits_its_host_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Manifest::read(folder.path(), &host("ab")).unwrap_err().to_string();
        assert!(missing.ends_with("has no manifest, so it is not whole"), "{missing}");
        let manifest =
            Manifest { format: FORMAT, host: host("ab"), vcpus: 1, memory_bytes: 1 << 29, state_sha256: "00".into() };
        manifest.write(folder.path()).unwrap();
        let elsewhere = HostRecord { kernel: "6.18".into(), ..host("ab") };
        assert_eq!(Manifest::read(folder.path(), &elsewhere).unwrap(), manifest);
        assert_eq!(
            Manifest::read(folder.path(), &host("cd")).unwrap_err().to_string(),
            "The snapshot was made on A CPU with kvm_intel (ab), which this host, A CPU with kvm_intel (cd), is not"
        );
        std::fs::write(folder.path().join(super::super::MANIFEST), "{}").unwrap();
        assert!(matches!(Manifest::read(folder.path(), &host("ab")), Err(ManifestError::Parse(_))));
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let manifest =
            Manifest { format: 99, host: host("ab"), vcpus: 1, memory_bytes: 1 << 29, state_sha256: "00".into() };
        manifest.write(folder.path()).unwrap();
        assert!(matches!(Manifest::read(folder.path(), &host("ab")), Err(ManifestError::Format(99))));
    }
}
