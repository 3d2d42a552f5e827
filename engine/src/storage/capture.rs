//! Capturing a machine into an image: the one way, for pauses, snapshots, forks and warm templates.

use cove_protocol::vmm::{DiskSpec, ErrorKind, SnapshotFigures, SnapshotSpec};
use time::OffsetDateTime;

use super::{Image, ImageId, LayerId, images};
use crate::error::Error;
use crate::machine::{Machine, MachineError};
use crate::shared::Shared;
use crate::template::store::blocking;

/// Least room on the disk with which a capture is begun. With less, not even the guest's dirty pages may find room, and a
/// guest whose writes fail gives its file system up.
const ROOM_BYTES_MIN: u64 = 64 << 20;

/// What is captured, and how the machine goes on.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    pub(crate) image: ImageId,
    /// The disk's top as of the capture.
    pub(crate) layer: LayerId,
    pub(crate) vcpus: u8,
    pub(crate) memory_mb: u32,
    /// The chain on which the machine goes on; `None` when it does not change.
    pub(crate) disk: Option<DiskSpec>,
    /// Go on afterwards.
    pub(crate) resume: bool,
    /// It must survive a loss of power.
    pub(crate) durable: bool,
}

/// Why nothing was captured; the machine is as it was, if it still lives, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error("the machine could not be captured")]
    Machine(#[source] MachineError),
    #[error("there is no folder for the captured machine")]
    Begin(#[source] Error),
    /// The machine already goes on with its new chain.
    #[error("the captured machine could not be kept")]
    Keep(#[source] Error),
}

impl CaptureError {
    /// The host's disk is full.
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            CaptureError::Machine(error) => error.kind() == Some(ErrorKind::NoSpace),
            CaptureError::Begin(error) | CaptureError::Keep(error) => error.is_no_space(),
        }
    }
}

/// Looks whether there is room enough to begin with a capture at all.
pub(crate) fn check_room(shared: &Shared) -> Result<(), Error> {
    let data = &shared.config.paths.data;
    let found = rustix::fs::statvfs(data).map_err(|errno| Error::file("look at", data)(errno.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= ROOM_BYTES_MIN {
        return Ok(());
    }
    let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
    Err(Error::file("capture a machine into", data)(source))
}

/// Captures. After a failure nothing of it is left on the disk.
pub(crate) async fn capture(
    shared: &Shared,
    machine: &Machine,
    capture: Capture,
) -> Result<(Image, SnapshotFigures), CaptureError> {
    match try_capture(shared, machine, &capture).await {
        Ok(figures) => {
            tracing::info!(
                image = %capture.image,
                paused_us = figures.paused_us,
                total_us = figures.total_us,
                written_bytes = figures.written_bytes,
                data_bytes = figures.data_bytes,
                "machine captured"
            );
            let image = Image {
                id: capture.image,
                layer: capture.layer,
                fingerprint: shared.host.probe.fingerprint.clone(),
                vcpus: capture.vcpus,
                memory_mb: capture.memory_mb,
                bytes: figures.data_bytes,
                created_at: OffsetDateTime::now_utc(),
            };
            Ok((image, figures))
        }
        Err(error) => {
            discard(shared, &capture.image).await;
            Err(error)
        }
    }
}

async fn try_capture(shared: &Shared, machine: &Machine, capture: &Capture) -> Result<SnapshotFigures, CaptureError> {
    let folder = images::begin(&shared.config.paths, &capture.image).map_err(CaptureError::Begin)?;
    let spec = SnapshotSpec {
        folder,
        disks: capture.disk.iter().cloned().collect(),
        resume: capture.resume,
        durable: capture.durable,
    };
    let figures = machine.snapshot(spec).await.map_err(CaptureError::Machine)?;
    let (paths, id) = (shared.config.paths.clone(), capture.image.clone());
    blocking(move || images::keep(&paths, &id)).await.map_err(CaptureError::Keep)?;
    Ok(figures)
}

/// Removes an image that no row names. What cannot be removed goes at the next start.
pub(crate) async fn discard(shared: &Shared, image: &ImageId) {
    let (paths, id) = (shared.config.paths.clone(), image.clone());
    if let Err(error) = blocking(move || images::remove(&paths, &id)).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "a half-made image is left");
    }
}
