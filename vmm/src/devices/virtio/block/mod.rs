//! The block device (virtio 1.2, section 5.2) over a chain of layer files.
//!
//! ```text
//!   device ── chain of guest buffers ──► request (checked) ──► layers (imago: read, write, flush, discard)
//!                                                                │
//!                          format: how our layers are laid out ──┴── refcounts: made right when one is opened
//! ```

pub mod device;
pub mod format;
pub mod layers;
pub mod merge;
pub mod refcounts;
pub mod request;
pub mod state;
#[cfg(test)]
mod tests;

pub use device::Block;
pub use layers::{Disk, LayerError};

/// Bytes of a sector, the unit of the protocol (5.2.6).
pub const SECTOR_BYTES: u64 = 512;
