//! The state file of a snapshot: all of a machine but its memory and its disks.
//!
//! ```text
//! magic (8 bytes) │ format, u32 │ SHA-256 of the rest (32 bytes) │ MachineState as postcard
//! ```
//!
//! What is read is untrusted until each part has checked it against the machine it is put into.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::arch::x86_64::state::{VcpuState, VmState};
use crate::devices::serial::SerialState;
use crate::devices::virtio::DeviceState;
use crate::devices::virtio::mmio::state::TransportState;

const MAGIC: &[u8; 8] = b"COVESNAP";

/// Changes with [`MachineState`] and all that is in it, and with what any of it means.
pub const FORMAT: u32 = 1;

const HEADER_BYTES: usize = MAGIC.len() + size_of::<u32>() + 32;

/// Largest state file that is read. A vCPU needs some 10 KiB.
const STATE_BYTES_MAX: u64 = 4 << 20;

/// A machine at rest.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Guest memory.
    pub memory_bytes: u64,
    /// Interrupt controllers, timer and clock.
    pub vm: VmState,
    /// The vCPUs in order.
    pub vcpus: Vec<VcpuState>,
    /// The virtio devices in order.
    pub devices: Vec<(DeviceState, TransportState)>,
    /// The console's registers.
    pub serial: SerialState,
}

/// A state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The file cannot be read.
    #[error("Cannot read the snapshot's state")]
    Read(#[from] io::Error),
    /// Not a state file at all.
    #[error("The snapshot's state is of {0} bytes and does not begin as one does")]
    Magic(u64),
    /// Another version's.
    #[error("The snapshot's state has format {0}; this version reads format {FORMAT}")]
    Format(u32),
    /// Damaged.
    #[error("The snapshot's state is damaged: its checksum does not fit")]
    Checksum,
    /// It has the right checksum and still makes no sense.
    #[error("The snapshot's state does not decode")]
    Decode(#[from] postcard::Error),
}

/// `state` as the bytes of a state file.
///
/// # Errors
/// Never in practice: memory is the only thing that encoding needs.
pub fn encode(state: &MachineState) -> Result<Vec<u8>, postcard::Error> {
    let payload = postcard::to_stdvec(state)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(Sha256::digest(&payload));
    bytes.extend(payload);
    Ok(bytes)
}

/// The state in the bytes of a state file.
///
/// # Errors
/// [`StateFileError`] when they are not of this format, or damaged.
pub fn decode(bytes: &[u8]) -> Result<MachineState, StateFileError> {
    let header = bytes.split_at_checked(HEADER_BYTES).filter(|(header, _)| header.starts_with(MAGIC));
    let (header, payload) = header.ok_or(StateFileError::Magic(bytes.len() as u64))?;
    let (format, checksum) = header[MAGIC.len()..].split_at(size_of::<u32>());
    let format = format.iter().rev().fold(0, |format, byte| format << 8 | u32::from(*byte));
    if format != FORMAT {
        return Err(StateFileError::Format(format));
    }
    if Sha256::digest(payload)[..] != *checksum {
        return Err(StateFileError::Checksum);
    }
    Ok(postcard::from_bytes(payload)?)
}

/// Writes a new state file at `path`.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Reads the state file at `path`; also gives the file's SHA-256, as hexadecimal digits.
///
/// # Errors
/// See [`StateFileError`].
pub fn read(path: &Path) -> Result<(MachineState, String), StateFileError> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    file.take(STATE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok((decode(&bytes)?, super::hex(&bytes)))
}
