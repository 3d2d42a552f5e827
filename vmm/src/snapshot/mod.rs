//! Snapshots: a machine at rest, captured into a folder from which any number of machines can go on.
//!
//! ```text
//!  folder/state          vCPUs, interrupt controllers, devices            state.rs
//!  folder/memory         guest memory, sparse                             memory.rs
//!  folder/manifest.json  what it is and where it fits; written last       manifest.rs
//! ```
//!
//! [`Capture`] writes a folder in the order that keeps the machine's pause short; [`Snapshot::open`] reads one. The machine
//! ([`crate::machine`]) says when it stands still, the builder ([`crate::builder`]) makes a machine of what was read.

pub mod manifest;
pub mod memory;
pub mod state;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::manifest::{HostRecord, Manifest, ManifestError};
use self::state::{FORMAT, MachineState, StateFileError};
use crate::devices::virtio::Memory;
use crate::memory::own;

/// The state file's name in a snapshot's folder.
pub const STATE: &str = "state";
/// The memory file's name.
pub const MEMORY: &str = "memory";
/// The manifest's name.
pub const MANIFEST: &str = "manifest.json";

/// A snapshot could not be written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write the snapshot {}", folder.display())]
pub struct WriteError {
    folder: PathBuf,
    #[source]
    source: io::Error,
}

impl WriteError {
    /// The file system is full, or the user's quota is.
    pub fn is_no_space(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// A snapshot cannot be used: it is damaged, not whole, or of another host.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its state.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// Manifest and state are of two snapshots.
    #[error("The snapshot's state is not the one that its manifest names")]
    Mixed,
    /// Its memory.
    #[error("Cannot open the snapshot's memory")]
    Memory(#[source] io::Error),
    /// Its memory is not as large as it should be.
    #[error("The snapshot's memory has {found} bytes instead of {expected}")]
    Length {
        /// Its length.
        found: u64,
        /// The guest's memory.
        expected: u64,
    },
}

/// A snapshot being written.
pub struct Capture {
    folder: PathBuf,
    memory: File,
}

impl Capture {
    /// Begins one in `folder` with all that can be done while the machine runs: a memory file of `bytes` that holds what
    /// `base` does.
    ///
    /// # Errors
    /// [`WriteError`]; files may be left in the folder, but no manifest.
    pub fn begin(folder: &Path, bytes: u64, base: Option<&File>) -> Result<Self, WriteError> {
        let memory = memory::create(&folder.join(MEMORY), bytes, base).map_err(failed(folder))?;
        Ok(Self { folder: folder.to_owned(), memory })
    }

    /// Writes what changed of `memory` since the base; says how many bytes that was. The machine stands still.
    ///
    /// # Errors
    /// As [`Capture::begin`].
    pub fn write_memory(&self, memory: &Memory) -> Result<u64, WriteError> {
        let written = own::ranges(memory).and_then(|ranges| memory::write(&self.memory, memory, &ranges));
        written.map_err(failed(&self.folder))
    }

    /// Writes `state` and, last, the manifest. The machine stands still.
    ///
    /// # Errors
    /// As [`Capture::begin`].
    pub fn finish(self, state: &MachineState, host: &HostRecord) -> Result<Written, WriteError> {
        let failed = failed(&self.folder);
        let written = || {
            let bytes = state::encode(state).map_err(io::Error::other)?;
            let state_file = state::write(&self.folder.join(STATE), &bytes)?;
            let manifest = Manifest {
                format: FORMAT,
                host: host.clone(),
                vcpus: state.vcpus.len() as u8,
                memory_bytes: state.memory_bytes,
                state_sha256: hex(&bytes),
            };
            Ok((state_file, manifest.write(&self.folder)?))
        };
        let (state, manifest) = written().map_err(failed)?;
        Ok(Written { folder: self.folder, memory: self.memory, others: [state, manifest] })
    }
}

/// A whole snapshot, just written.
pub struct Written {
    folder: PathBuf,
    memory: File,
    others: [File; 2],
}

impl Written {
    /// Bytes of the memory file that are not holes.
    ///
    /// # Errors
    /// What the system says.
    pub fn data_bytes(&self) -> Result<u64, WriteError> {
        memory::data_bytes(&self.memory).map_err(failed(&self.folder))
    }

    /// Waits until it survives a loss of power.
    ///
    /// # Errors
    /// What the system says; the snapshot is then nothing to rely on.
    pub fn make_durable(&self) -> Result<(), WriteError> {
        let folder = File::open(&self.folder).map_err(failed(&self.folder))?;
        let files = [&self.memory, &self.others[0], &self.others[1], &folder];
        files.into_iter().try_for_each(File::sync_all).map_err(failed(&self.folder))
    }

    /// Takes back what makes it whole.
    pub fn discard(self) {
        if let Err(error) = std::fs::remove_file(self.folder.join(MANIFEST)) {
            tracing::error!(%error, "A snapshot's manifest is left behind");
        }
    }
}

/// A snapshot that can be used on this host; its parts are still to be checked against the machine they go into.
pub struct Snapshot {
    /// The machine.
    pub state: MachineState,
    /// Its memory.
    pub memory: Arc<File>,
}

impl Snapshot {
    /// Opens the snapshot in `folder` on the host `here`.
    ///
    /// # Errors
    /// [`ReadError`] says why it cannot be used.
    pub fn open(folder: &Path, here: &HostRecord) -> Result<Self, ReadError> {
        let manifest = Manifest::read(folder, here)?;
        let (state, sha256) = state::read(&folder.join(STATE))?;
        if sha256 != manifest.state_sha256 || state.memory_bytes != manifest.memory_bytes {
            return Err(ReadError::Mixed);
        }
        let memory = File::open(folder.join(MEMORY)).map_err(ReadError::Memory)?;
        let found = memory.metadata().map_err(ReadError::Memory)?.len();
        if found != state.memory_bytes {
            return Err(ReadError::Length { found, expected: state.memory_bytes });
        }
        Ok(Self { state, memory: Arc::new(memory) })
    }
}

fn failed(folder: &Path) -> impl FnOnce(io::Error) -> WriteError + Copy {
    move |source| WriteError { folder: folder.to_owned(), source }
}

/// The SHA-256 of `bytes` as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
