//! What a snapshot keeps of a block device: enough to refuse another disk. The disk's contents are its layers, and the
//! queues are the transport's (`mmio::state`).

use serde::{Deserialize, Serialize};

use super::LayerError;

/// The saved form. Untrusted: [`super::Block::restore`] compares it with the disk that it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The disk's size in sectors of 512 bytes.
    pub sectors: u64,
    /// The guest may not write.
    pub read_only: bool,
}

/// Why a block device was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A layer cannot be used.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The guest would find another disk under its running file system.
    #[error("The disk of {device} is {here:?}, but {saved:?} was saved")]
    Disk {
        /// The device.
        device: String,
        /// What was saved.
        saved: BlockState,
        /// What the layers are.
        here: BlockState,
    },
}
