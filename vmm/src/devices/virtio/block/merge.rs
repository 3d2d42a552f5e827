//! Several frozen layers made into one: what each cluster shows through all of them, and nothing of what lies below.
//!
//! Each layer is opened alone, so that "nothing here" and "zeroes here" can be told apart: the first lets the layer below
//! through, the second must stay.

use std::io;
use std::path::{Path, PathBuf};

use cove_protocol::vmm::{LayerFormat, LayerSpec};
use imago::format::access::Mapping;

use super::format::{self, CreateError};
use super::layers::{Image, LayerError, open_layer};

/// Bytes that are copied at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Why layers were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Nothing to merge.
    #[error("There are no layers to merge")]
    Nothing,
    /// A layer cannot be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// They are not of one disk.
    #[error("Layer {path:?} is of a disk of {size_bytes} bytes, and the others are of one of {others}")]
    Size {
        /// Which.
        path: PathBuf,
        /// Its disk's size.
        size_bytes: u64,
        /// The others'.
        others: u64,
    },
    /// The new layer cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Reading or writing failed.
    #[error("Cannot copy layers into {path:?}")]
    Copy {
        /// The new layer.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Makes the qcow2 layer `path` of `layers`, the lowest first: a chain with it in their place shows the same. It is durable
/// when this returns; after a failure it is gone again.
///
/// # Errors
/// See [`MergeError`].
pub fn merge(path: &Path, layers: &[PathBuf]) -> Result<(), MergeError> {
    let spec = |path: &Path| LayerSpec { path: path.to_owned(), format: LayerFormat::Qcow2 };
    // The top first: that is the order in which they are asked.
    let images = layers.iter().rev().map(|path| open_layer(&spec(path), None, false)).collect::<Result<Vec<_>, _>>()?;
    let size_bytes = images.first().ok_or(MergeError::Nothing)?.size();
    if let Some((image, path)) = images.iter().zip(layers.iter().rev()).find(|(image, _)| image.size() != size_bytes) {
        return Err(MergeError::Size { path: path.clone(), size_bytes: image.size(), others: size_bytes });
    }
    format::create(path, size_bytes, None)?;
    let copied = open_layer(&spec(path), None, true).map_err(MergeError::Layer).and_then(|merged| {
        let failed = |source| MergeError::Copy { path: path.to_owned(), source };
        copy(&images, &merged).map_err(failed)
    });
    if copied.is_err() {
        // Half a layer is worse than none; if it cannot be removed either, the first error says more.
        let _removed = std::fs::remove_file(path);
    }
    copied
}

fn copy(images: &[Image], merged: &Image) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < merged.size() {
        let (shown, bytes) = shown_at(images, at, (merged.size() - at).min(CHUNK_BYTES))?;
        match shown {
            Shown::Below => {}
            Shown::Zeroes => merged.write_zeroes(at, bytes)?,
            Shown::Data(image) => {
                let buffer = &mut buffer[..bytes as usize];
                image.read(&mut *buffer, at)?;
                merged.write(&*buffer, at)?;
            }
        }
        at += bytes;
    }
    merged.flush()?;
    merged.sync()
}

/// What the layers show together.
enum Shown<'a> {
    /// Nothing of their own.
    Below,
    /// Zeroes, whatever is below.
    Zeroes,
    /// What this one holds.
    Data(&'a Image),
}

/// What is shown from `at` on, and for how many bytes, `bytes` at most.
fn shown_at(images: &[Image], at: u64, mut bytes: u64) -> io::Result<(Shown<'_>, u64)> {
    for image in images {
        let (mapping, length) = image.get_mapping(at, bytes)?;
        bytes = bytes.min(length);
        match mapping {
            Mapping::Zero { explicit: false, .. } => {}
            Mapping::Zero { explicit: true, .. } => return Ok((Shown::Zeroes, bytes)),
            Mapping::Raw { .. } | Mapping::Special { .. } => return Ok((Shown::Data(image), bytes)),
            Mapping::Eof { .. } => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => return Err(io::Error::other("a layer holds something unknown")),
        }
        if bytes == 0 {
            return Err(io::Error::other("a layer says nothing about a part of the disk"));
        }
    }
    Ok((Shown::Below, bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::super::Disk;
    use super::*;
    use cove_protocol::vmm::DiskSpec;

    const DISK_BYTES: u64 = 1 << 20;

    fn disk(base: &Path, layers: &[PathBuf]) -> Disk {
        let mut chain = vec![LayerSpec { path: base.to_owned(), format: LayerFormat::Raw }];
        chain.extend(layers.iter().map(|path| LayerSpec { path: path.clone(), format: LayerFormat::Qcow2 }));
        let spec = DiskSpec { layers: chain, read_only: false };
        unlocked(|| Disk::open(&spec), |error| matches!(error, LayerError::Locked(_)))
    }

    /// Tries again while a layer is locked: a test on another thread that starts a process holds our descriptors, and with
    /// them their locks, until its exec.
    fn unlocked<T, E: std::fmt::Debug>(mut open: impl FnMut() -> Result<T, E>, locked: impl Fn(&E) -> bool) -> T {
        loop {
            match open() {
                Err(error) if locked(&error) => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    fn content(disk: &Disk) -> Vec<u8> {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), DISK_BYTES as usize)]).unwrap();
        let slice = memory.get_slice(GuestAddress(0), DISK_BYTES as usize).unwrap();
        disk.read(&[slice], 0).unwrap();
        let mut bytes = vec![0; DISK_BYTES as usize];
        slice.copy_to(&mut bytes[..]);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_merged_layer_shows_what_the_layers_did(
            rounds in proptest::collection::vec(
                proptest::collection::vec((0u8..3, 0..DISK_BYTES / 512 - 64, 1u64..64, any::<u8>()), 0..8), 1..5),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let base = folder.path().join("base");
            std::fs::write(&base, vec![0xee; DISK_BYTES as usize]).unwrap();
            let mut layers = Vec::new();
            for (number, writes) in rounds.iter().enumerate() {
                let path = folder.path().join(format!("layer{number}"));
                format::create(&path, DISK_BYTES, None).unwrap();
                layers.push(path);
                let mut disk = disk(&base, &layers);
                for (kind, sector, sectors, byte) in writes {
                    let (offset, bytes) = (sector * 512, sectors * 512);
                    match kind {
                        0 => {
                            let memory: GuestMemoryMmap =
                                GuestMemoryMmap::from_ranges(&[(GuestAddress(0), DISK_BYTES as usize)]).unwrap();
                            let slice = memory.get_slice(GuestAddress(0), bytes as usize).unwrap();
                            slice.copy_from(&vec![*byte; bytes as usize][..]);
                            disk.write(&[slice], offset).unwrap();
                        }
                        1 => disk.write_zeroes(offset, bytes, false).unwrap(),
                        _ => disk.write_zeroes(offset, bytes, true).unwrap(),
                    }
                }
            }
            let expected = content(&disk(&base, &layers));
            let merged = folder.path().join("merged");
            let locked = |error: &MergeError| matches!(error, MergeError::Layer(LayerError::Locked(_)));
            unlocked(|| merge(&merged, &layers), locked);
            prop_assert!(content(&disk(&base, &[merged])) == expected);
        }
    }

    #[test]
    fn layers_of_two_disks_are_refused_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other, out) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("out"));
        format::create(&one, DISK_BYTES, None).unwrap();
        format::create(&other, 2 * DISK_BYTES, None).unwrap();
        assert!(matches!(merge(&out, &[one.clone(), other]), Err(MergeError::Size { .. })));
        assert!(matches!(merge(&out, &[]), Err(MergeError::Nothing)));
        assert!(!out.exists());
        merge(&out, std::slice::from_ref(&one)).unwrap();
        assert!(matches!(merge(&out, &[one]), Err(MergeError::Create(_))), "it exists");
    }
}
