//! Empty layers, made by the vmm: the engine links no disk code and never looks into an image.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How long it may take to make an empty layer.
const CREATE_DEADLINE: Duration = Duration::from_secs(20);

/// How long it may take to merge layers.
const MERGE_DEADLINE: Duration = Duration::from_secs(1800);

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
    #[error("The disk {path} was not made within {seconds} s")]
    Deadline {
        /// The layer.
        path: PathBuf,
        /// How long the engine waited.
        seconds: u64,
    },
    /// Layers could not be merged.
    #[error("{count} layers were not merged into {path}: {message}")]
    NotMerged {
        /// The new layer.
        path: PathBuf,
        /// How many.
        count: usize,
        /// What the vmm said.
        message: String,
    },
    /// The copy of an empty layer failed.
    #[error("The disk {path} was not made")]
    Copy {
        /// The layer.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<crate::error::Error>,
    },
    /// A file cannot be put into its place.
    #[error("Cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Makes an empty layer for a disk of `bytes`. What it lies on is not recorded in it: the chain that a machine is given
/// decides.
pub(crate) async fn create(vmm: &Path, path: &Path, bytes: u64) -> Result<(), DiskError> {
    let mut command = Command::new(vmm);
    command.args(["disk", "create", "--size"]).arg(bytes.to_string()).arg(path);
    match run(vmm, path, command, CREATE_DEADLINE).await? {
        Ok(()) => Ok(()),
        Err(message) => Err(DiskError::Refused { path: path.into(), bytes, message }),
    }
}

/// Makes one layer that holds what `layers`, lowest first, hold together.
pub(crate) async fn merge(vmm: &Path, path: &Path, layers: &[PathBuf]) -> Result<(), DiskError> {
    let mut command = Command::new(vmm);
    command.args(["disk", "merge", "--out"]).arg(path).args(layers);
    match run(vmm, path, command, MERGE_DEADLINE).await? {
        Ok(()) => Ok(()),
        Err(message) => Err(DiskError::NotMerged { path: path.into(), count: layers.len(), message }),
    }
}

/// Runs the vmm; the inner error is what it said.
async fn run(vmm: &Path, path: &Path, mut command: Command, within: Duration) -> Result<Result<(), String>, DiskError> {
    command.stdin(Stdio::null()).current_dir("/").kill_on_drop(true);
    match timeout(within, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(Ok(())),
        Ok(Ok(output)) => Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Ok(Err(source)) => Err(DiskError::Run { program: vmm.into(), path: path.into(), source }),
        Err(_) => Err(DiskError::Deadline { path: path.into(), seconds: within.as_secs() }),
    }
}
