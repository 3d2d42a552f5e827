//! Disks: a chain of layers, the template's raw image below and one qcow2 file of the sandbox's own on top.
//!
//! The vmm makes and reads the layers; the engine says which files they are and in which order, and never follows a path
//! out of an image.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cove_protocol::vmm::{DiskSpec, LayerFormat, LayerSpec};
use tokio::process::Command;
use tokio::time::timeout;

/// How long it may take to make an empty layer.
const CREATE_DEADLINE: Duration = Duration::from_secs(20);

/// A layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The vmm cannot be run.
    #[error("Cannot run {program} to make the disk {path}")]
    Run {
        /// The vmm binary.
        program: PathBuf,
        /// The layer.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The vmm refused.
    #[error("The disk {path} of {bytes} bytes was not made: {message}")]
    Refused {
        /// The layer.
        path: PathBuf,
        /// The size that was asked for.
        bytes: u64,
        /// What the vmm said.
        message: String,
    },
    /// It took too long.
    #[error("The disk {path} was not made within {} s", CREATE_DEADLINE.as_secs())]
    Deadline {
        /// The layer.
        path: PathBuf,
    },
}

/// Makes the sandbox's own layer, `bytes` large, on a template's image.
pub(crate) async fn create_top(vmm: &Path, top: &Path, base: &Path, bytes: u64) -> Result<(), DiskError> {
    let mut command = Command::new(vmm);
    command.args(["disk", "create", "--size"]).arg(bytes.to_string());
    command.arg("--backing").arg(base).args(["--backing-format", "raw"]).arg(top);
    command.stdin(Stdio::null()).current_dir("/").kill_on_drop(true);
    match timeout(CREATE_DEADLINE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(DiskError::Refused { path: top.into(), bytes, message })
        }
        Ok(Err(source)) => Err(DiskError::Run { program: vmm.into(), path: top.into(), source }),
        Err(_) => Err(DiskError::Deadline { path: top.into() }),
    }
}

/// The chain for the machine: base first.
pub(crate) fn chain(base: &Path, top: &Path) -> DiskSpec {
    let layer = |path: &Path, format| LayerSpec { path: path.into(), format };
    DiskSpec { layers: vec![layer(base, LayerFormat::Raw), layer(top, LayerFormat::Qcow2)], read_only: false }
}
