//! What sandboxes, snapshots and warm templates share on disk: layers and memory images, counted by who needs them.
//!
//! ```text
//!  sandbox ─ layer ─► layer ─► layer ─► template's base        snapshot ─ layer ─► ...
//!      └──── image ─► layer (its disk as of the capture)            └──── image
//! ```
//!
//! A layer is written by one machine until it is frozen, and never again. An image is never written after it was made.
//! Both are deleted when nothing in the database refers to them and nothing running uses them ([`Pins`]): the row first,
//! then the file; a file without a row is removed at the next start.

pub(crate) mod layers;

pub(crate) mod images;

pub mod share;

mod sizes;

pub mod disk_use;

pub(crate) mod capture;

pub(crate) mod flatten;

mod sweep;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

pub use share::Share;
pub(crate) use sizes::{allocated, sizes};
pub(crate) use sweep::{remove_orphans, sweep, sweep_logged};

use crate::id::text_id;

text_id! {
    /// One file of a disk's chain.
    pub(crate) LayerId, "lay_"
}

text_id! {
    /// A captured machine.
    pub(crate) ImageId, "img_"
}

/// A row of `layers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) id: LayerId,
    /// The layer below; without one it lies on the template's base layer.
    pub(crate) parent: Option<LayerId>,
    pub(crate) template_id: String,
    pub(crate) template_version: String,
    pub(crate) disk_bytes: u64,
    pub(crate) frozen: bool,
}

/// A row of `images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) id: ImageId,
    /// The disk's top as of the capture; frozen, or of a sandbox that is paused.
    pub(crate) layer: LayerId,
    pub(crate) fingerprint: String,
    pub(crate) vcpus: u8,
    pub(crate) memory_mb: u32,
    pub(crate) bytes: u64,
    pub(crate) created_at: OffsetDateTime,
}

/// What a sandbox holds of layers and images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    /// The disk's top. `None` before the first start and after the end.
    pub(crate) layer: Option<LayerId>,
    /// The machine as it was paused, if it can go on from there.
    pub(crate) image: Option<ImageId>,
}

/// Images that are in use without a row that says so: a machine is about to map one, or a fork to take one over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins {
    counts: Arc<Mutex<HashMap<ImageId, usize>>>,
    /// Held while a pinned image's row is looked up, and while rows are deleted.
    pub(crate) settle: Arc<tokio::sync::Mutex<()>>,
}

/// Keeps an image as long as it lives.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Pins,
    image: ImageId,
}

impl Pins {
    /// Keeps `image` from now on, if it still exists when it is looked up afterwards under [`Pins::settle`].
    pub(crate) fn pin(&self, image: &ImageId) -> Pin {
        *self.counts().entry(image.clone()).or_default() += 1;
        Pin { pins: self.clone(), image: image.clone() }
    }

    pub(crate) fn pinned(&self) -> Vec<ImageId> {
        self.counts().keys().cloned().collect()
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<ImageId, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        self.pins.pin(&self.image)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts();
        if let Some(count) = counts.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.image);
            }
        }
    }
}
