//! How our qcow2 layers are laid out, and the making of a new one (qcow2 specification: QEMU's `docs/interop/qcow2.rst`).
//!
//! A layer gets all its metadata clusters when it is made: `header | refcount table | refcount blocks | L1 | L2 tables`.
//! Those that hold only zeroes, nearly all, are holes and take no room. So while a machine runs nothing but an L2 entry
//! and its refcount ever changes, and the order "refcount first" makes a kill at any moment leak clusters at worst.
//! Tables that are made on demand would be entered into L1 before their own refcount is written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cove_protocol::vmm::LayerFormat;

use super::SECTOR_BYTES;

/// log2 of a new layer's cluster size: 16 KiB. A first write to a cluster copies it from the layers below, so small
/// clusters make small writes cheap; metadata and its caches stay in proportion.
pub const CLUSTER_BITS: u32 = 14;

/// Largest disk, in bytes: 2 TiB.
pub const DISK_BYTES_MAX: u64 = 2 << 40;

/// Longest backing path in bytes (the format's own limit).
pub const BACKING_BYTES_MAX: usize = 1023;

/// First word of a qcow2 file, "QFI\xfb".
pub const MAGIC: u32 = 0x5146_49fb;
/// The version we write.
pub const VERSION: u32 = 3;
/// log2 of the refcount width in bits: 16 bits, the format's default.
pub const REFCOUNT_ORDER: u32 = 4;
/// Bytes of the header of version 3 without the compression type.
pub const HEADER_BYTES: u32 = 104;
/// L1 and L2 entries: the cluster's refcount is exactly one.
pub const COPIED: u64 = 1 << 63;

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a new layer lies on. Recorded in the file for people and tools; the machine's own list of layers decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The layer below.
    pub path: PathBuf,
    /// Its format.
    pub format: LayerFormat,
}

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The size is no disk size.
    #[error("A disk of {0} bytes is not possible: the size is a multiple of 512, from 512 to {DISK_BYTES_MAX}")]
    Size(u64),
    /// The backing path does not fit into the header.
    #[error("The backing path {0:?} is empty, longer than {BACKING_BYTES_MAX} bytes, or not UTF-8")]
    Backing(PathBuf),
    /// The file exists, or the host refused.
    #[error("Cannot make the layer {path:?}")]
    Write {
        /// The new file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Makes the layer file `path`, an empty disk of `size_bytes` that shows `backing` where nothing was written. The file
/// must not exist; it is gone again after a failure.
///
/// # Errors
/// [`CreateError`] for a size or path that cannot be, or when the host cannot write the file.
pub fn create(path: &Path, size_bytes: u64, backing: Option<&Backing>) -> Result<(), CreateError> {
    if size_bytes == 0 || size_bytes > DISK_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(CreateError::Size(size_bytes));
    }
    let layout = Layout::of(size_bytes);
    let header = layout.header(backing)?;
    let write = |source| CreateError::Write { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(write)?;
    layout.write(&file, &header).map_err(|error| {
        // Half a layer is worse than none; if it cannot be removed either, the first error says more.
        let _removed = std::fs::remove_file(path);
        write(error)
    })
}

/// Where everything lies in a new layer, in clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    size_bytes: u64,
    refcount_table: Run,
    refcount_blocks: Run,
    l1: Run,
    l2: Run,
}

/// Consecutive clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    count: u64,
}

impl Run {
    fn end(self) -> u64 {
        self.first + self.count
    }

    fn offset(self) -> u64 {
        self.first << CLUSTER_BITS
    }

    /// Offsets of the clusters as big-endian table entries, each with `flags`.
    fn entries(self, flags: u64) -> Vec<u8> {
        (self.first..self.end()).flat_map(|cluster| (cluster << CLUSTER_BITS | flags).to_be_bytes()).collect()
    }
}

impl Layout {
    fn of(size_bytes: u64) -> Self {
        let cluster = 1u64 << CLUSTER_BITS;
        let data = size_bytes.div_ceil(cluster);
        let l2 = data.div_ceil(cluster / 8);
        let l1 = (l2 * 8).div_ceil(cluster);
        // The blocks count themselves too, so the number that covers the whole file is found by trying.
        let (mut table, mut blocks) = (1, 1);
        loop {
            let file = 1 + table + blocks + l1 + l2 + data;
            let wanted = file.div_ceil(cluster / 2);
            let wanted_table = (wanted * 8).div_ceil(cluster);
            if (wanted, wanted_table) == (blocks, table) {
                break;
            }
            (blocks, table) = (wanted.max(blocks), wanted_table.max(table));
        }
        let refcount_table = Run { first: 1, count: table };
        let refcount_blocks = Run { first: refcount_table.end(), count: blocks };
        let l1 = Run { first: refcount_blocks.end(), count: l1 };
        Self { size_bytes, refcount_table, refcount_blocks, l1, l2: Run { first: l1.end(), count: l2 } }
    }

    /// The header cluster's bytes.
    fn header(&self, backing: Option<&Backing>) -> Result<Vec<u8>, CreateError> {
        let mut extensions = Vec::new();
        let mut path = "";
        if let Some(backing) = backing {
            let text = backing.path.to_str().filter(|text| (1..=BACKING_BYTES_MAX).contains(&text.len()));
            path = text.ok_or_else(|| CreateError::Backing(backing.path.clone()))?;
            let name: &[u8] = match backing.format {
                LayerFormat::Raw => b"raw",
                LayerFormat::Qcow2 => b"qcow2",
            };
            extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
            extensions.extend((name.len() as u32).to_be_bytes());
            extensions.extend(name);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);

        let path_offset = if path.is_empty() { 0 } else { u64::from(HEADER_BYTES) + extensions.len() as u64 };
        let mut bytes = Vec::with_capacity(4096);
        let mut word = |value: u32| bytes.extend(value.to_be_bytes());
        word(MAGIC);
        word(VERSION);
        word((path_offset >> 32) as u32);
        word(path_offset as u32);
        word(path.len() as u32);
        word(CLUSTER_BITS);
        let mut long = |value: u64| {
            word((value >> 32) as u32);
            word(value as u32);
        };
        long(self.size_bytes);
        // No encryption, and the number of L1 entries.
        long(self.l2.count);
        long(self.l1.offset());
        long(self.refcount_table.offset());
        // Clusters of the refcount table, and no snapshots.
        long(self.refcount_table.count << 32);
        // No snapshot table; no incompatible, compatible or autoclear features.
        (0..4).for_each(|_| long(0));
        long(u64::from(REFCOUNT_ORDER) << 32 | u64::from(HEADER_BYTES));
        bytes.extend(extensions);
        bytes.extend(path.as_bytes());
        Ok(bytes)
    }

    /// Writes all that is not zero.
    fn write(&self, file: &File, header: &[u8]) -> io::Result<()> {
        file.set_len(self.l2.end() << CLUSTER_BITS)?;
        file.write_all_at(header, 0)?;
        file.write_all_at(&self.refcount_blocks.entries(0), self.refcount_table.offset())?;
        file.write_all_at(&self.l2.entries(COPIED), self.l1.offset())?;
        // Each metadata cluster is in use once. They are the file's first, so the counts are consecutive.
        let counts: Vec<u8> = (0..self.l2.end()).flat_map(|_| 1u16.to_be_bytes()).collect();
        file.write_all_at(&counts, self.refcount_blocks.offset())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refcount_blocks_cover_the_whole_file_and_themselves() {
        for size_bytes in [512, 1 << 20, 4 << 30, 32 << 30, DISK_BYTES_MAX] {
            let layout = Layout::of(size_bytes);
            let file = layout.l2.end() + size_bytes.div_ceil(1 << CLUSTER_BITS);
            assert!(layout.refcount_blocks.count << (CLUSTER_BITS - 1) >= file, "{layout:?}");
            assert!(layout.refcount_table.count << (CLUSTER_BITS - 3) >= layout.refcount_blocks.count, "{layout:?}");
            assert!(layout.l2.count << (CLUSTER_BITS - 3) << CLUSTER_BITS >= size_bytes, "{layout:?}");
        }
    }

    #[test]
    fn a_size_that_cannot_be_is_refused_before_a_file_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer");
        for size_bytes in [0, 511, 513, DISK_BYTES_MAX + 512, u64::MAX] {
            assert!(matches!(create(&path, size_bytes, None), Err(CreateError::Size(_))));
        }
        assert!(!path.exists());
    }
}
