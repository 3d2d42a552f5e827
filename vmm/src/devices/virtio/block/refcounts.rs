//! Makes a layer's refcounts agree with its tables when it is opened for writing.
//!
//! A killed vmm leaves leaked clusters at worst (see [`super::format`]). A host that lost power may have written tables
//! and refcounts in any order, and then a cluster in use may look free: handed out again, it would be overwritten. So
//! each writable layer is walked once at its opening: the tables are the truth, the refcounts are set after them.
//! A cluster that two entries claim cannot be set right and is refused.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::format::{COPIED, DISK_BYTES_MAX, HEADER_BYTES, MAGIC, REFCOUNT_ORDER, VERSION};

/// Bits of a table entry that hold an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// L2 entry: compressed cluster.
const COMPRESSED: u64 = 1 << 62;

/// What was set right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Clusters that nothing refers to, now free again.
    pub leaked: u64,
    /// Clusters in use that looked free.
    pub missing: u64,
}

/// Why a layer cannot be used for writing.
#[derive(Debug, thiserror::Error)]
pub enum RefcountError {
    /// The file cannot be read or written.
    #[error("Cannot read or repair the layer's tables")]
    File(#[from] io::Error),
    /// The file is not one of ours.
    #[error("The layer is no qcow2 file of the kind that can be written: {0} is {1}")]
    Kind(&'static str, u64),
    /// An entry leads outside of what the refcounts cover.
    #[error("The layer is damaged: {table} entry {entry:#x} leads outside of the file")]
    Outside {
        /// Which table.
        table: &'static str,
        /// The entry.
        entry: u64,
    },
    /// Two entries lead to one cluster.
    #[error("The layer is damaged: cluster {0:#x} is referred to twice")]
    Twice(u64),
}

/// Compares refcounts and tables of the layer `file` and writes the refcounts that differ.
///
/// # Errors
/// [`RefcountError`] when the file is no layer of ours or damaged beyond its refcounts. The file is then unchanged.
pub fn repair(file: &File) -> Result<Repair, RefcountError> {
    let header = Header::read(file)?;
    let cluster_bytes = 1usize << header.cluster_bits;
    let mut blocks = read_table(file, header.refcount_table, header.refcount_table_bytes(), &header)?;
    blocks.truncate(blocks.iter().rposition(|&block| block != 0).map_or(0, |last| last + 1));
    let mut used = Used::new(&header, blocks.len() << (header.cluster_bits - 1));
    used.mark("header", 0)?;
    used.mark_run("refcount table", header.refcount_table, header.refcount_table_bytes())?;
    for &block in blocks.iter().filter(|&&block| block != 0) {
        used.mark("refcount table", block)?;
    }
    used.mark_run("L1 table", header.l1, header.l1_entries * 8)?;
    let mut holes = Holes::default();
    for l2 in read_table(file, header.l1, header.l1_entries * 8, &header)? {
        if l2 & OFFSET != 0 {
            used.mark("L1 table", l2 & OFFSET)?;
            if !holes.contain(file, l2 & OFFSET, 1 << header.cluster_bits)? {
                mark_data(file, l2 & OFFSET, &header, &mut used)?;
            }
        }
    }
    let mut repair = Repair::default();
    let mut changed = Vec::new();
    for (index, &block) in blocks.iter().enumerate() {
        let first = index * cluster_bytes / 2;
        let wanted = used.range(first, cluster_bytes / 2);
        if block == 0 {
            if wanted.contains(&true) {
                return Err(RefcountError::Outside { table: "refcount", entry: index as u64 });
            }
            continue;
        }
        if !wanted.contains(&true) && holes.contain(file, block, 1 << header.cluster_bits)? {
            continue;
        }
        let mut bytes = vec![0; cluster_bytes];
        read_padded(file, &mut bytes, block)?;
        if set_counts(&mut bytes, wanted, &mut repair) {
            changed.push((block, bytes));
        }
    }
    for (offset, bytes) in changed {
        file.write_all_at(&bytes, offset)?;
    }
    Ok(repair)
}

/// Marks the data clusters of the L2 table at `offset`.
fn mark_data(file: &File, offset: u64, header: &Header, used: &mut Used) -> Result<(), RefcountError> {
    for entry in read_table(file, offset, 1 << header.cluster_bits, header)? {
        if entry & COMPRESSED != 0 {
            return Err(RefcountError::Kind("a compressed cluster's entry", entry));
        }
        if entry & OFFSET != 0 {
            used.mark("L2 table", entry & OFFSET)?;
            if entry & COPIED == 0 {
                return Err(RefcountError::Kind("a shared cluster's entry", entry));
            }
        }
    }
    Ok(())
}

/// Sets the 16-bit counts of one block to one or zero; says whether any changed.
fn set_counts(bytes: &mut [u8], wanted: &[bool], repair: &mut Repair) -> bool {
    let mut changed = false;
    for (count, &wanted) in bytes.chunks_exact_mut(2).zip(wanted) {
        let right = u16::from(wanted).to_be_bytes();
        if *count != right {
            repair.missing += u64::from(wanted);
            repair.leaked += u64::from(!wanted);
            count.copy_from_slice(&right);
            changed = true;
        }
    }
    changed
}

/// The header's fields that matter here, checked.
struct Header {
    cluster_bits: u32,
    l1_entries: u64,
    l1: u64,
    refcount_table: u64,
    refcount_table_clusters: u64,
}

impl Header {
    fn read(file: &File) -> Result<Self, RefcountError> {
        let mut bytes = [0; HEADER_BYTES as usize];
        read_padded(file, &mut bytes, 0)?;
        let word = |at: usize| u64::from(u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        let long = |at: usize| word(at) << 32 | word(at + 4);
        let must =
            |name, value: u64, holds: bool| if holds { Ok(value) } else { Err(RefcountError::Kind(name, value)) };
        must("magic number", word(0), word(0) == u64::from(MAGIC))?;
        must("version", word(4), word(4) == u64::from(VERSION))?;
        let cluster_bits = must("log2 of the cluster size", word(20), (9..=21).contains(&word(20)))? as u32;
        let size = must("disk size", long(24), long(24) <= DISK_BYTES_MAX)?;
        must("encryption method", word(32), word(32) == 0)?;
        let l1_span = 1u64 << (2 * cluster_bits - 3);
        let l1_entries = must("number of L1 entries", word(36), word(36) <= size.div_ceil(l1_span) + 1)?;
        let table_max = (DISK_BYTES_MAX >> (3 * cluster_bits - 4)) + 1;
        let refcount_table_clusters = must("refcount table's size", word(56), word(56) <= table_max + 1)?;
        must("number of snapshots", word(60), word(60) == 0)?;
        must("set of incompatible features", long(72), long(72) == 0)?;
        must("refcount order", word(96), word(96) == u64::from(REFCOUNT_ORDER))?;
        Ok(Self { cluster_bits, l1_entries, l1: long(40), refcount_table: long(48), refcount_table_clusters })
    }

    fn refcount_table_bytes(&self) -> u64 {
        self.refcount_table_clusters << self.cluster_bits
    }
}

/// Which clusters something refers to.
struct Used {
    cluster_bits: u32,
    clusters: Vec<bool>,
}

impl Used {
    /// `clusters` is what the refcount blocks can count; more than the largest disk needs is never looked at.
    fn new(header: &Header, clusters: usize) -> Self {
        let most = (DISK_BYTES_MAX >> header.cluster_bits) as usize * 2;
        Self { cluster_bits: header.cluster_bits, clusters: vec![false; clusters.min(most)] }
    }

    fn mark(&mut self, table: &'static str, offset: u64) -> Result<(), RefcountError> {
        let aligned = offset.is_multiple_of(1 << self.cluster_bits);
        let cluster = self.clusters.get_mut((offset >> self.cluster_bits) as usize).filter(|_| aligned);
        let cluster = cluster.ok_or(RefcountError::Outside { table, entry: offset })?;
        if std::mem::replace(cluster, true) { Err(RefcountError::Twice(offset)) } else { Ok(()) }
    }

    fn mark_run(&mut self, table: &'static str, offset: u64, bytes: u64) -> Result<(), RefcountError> {
        let cluster_bytes = 1 << self.cluster_bits;
        (0..bytes.div_ceil(cluster_bytes))
            .try_for_each(|index| self.mark(table, offset.saturating_add(index * cluster_bytes)))
    }

    fn range(&self, first: usize, count: usize) -> &[bool] {
        let end = (first + count).min(self.clusters.len());
        self.clusters.get(first..end).unwrap_or_default()
    }
}

/// Where the file has no blocks, and so only zeroes. Most tables of a new layer are there and need not be read.
#[derive(Default)]
struct Holes {
    /// The last hole that was found.
    hole: Range<u64>,
}

impl Holes {
    /// Whether the `bytes` bytes from `offset` on are in a hole. Where that cannot be told, they are not.
    fn contain(&mut self, file: &File, offset: u64, bytes: u64) -> io::Result<bool> {
        if !self.hole.contains(&offset) {
            let next = match seek(file, SeekFrom::Data(offset)) {
                Ok(next) => next,
                // No data from here to the end.
                Err(Errno::NXIO) => u64::MAX,
                Err(Errno::INVAL) => offset,
                Err(error) => return Err(error.into()),
            };
            self.hole = offset..next;
        }
        Ok(offset.checked_add(bytes).is_some_and(|end| end <= self.hole.end))
    }
}

/// Reads a table of big-endian 64-bit entries.
fn read_table(file: &File, offset: u64, bytes: u64, header: &Header) -> Result<Vec<u64>, RefcountError> {
    if !offset.is_multiple_of(1 << header.cluster_bits) {
        return Err(RefcountError::Outside { table: "header", entry: offset });
    }
    let mut table = vec![0; bytes as usize];
    read_padded(file, &mut table, offset)?;
    Ok(table.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// Reads `bytes.len()` bytes; what lies past the file's end is zero, as for any reader of the format.
fn read_padded(file: &File, bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match file.read_at(rest, offset) {
            Ok(0) => {
                rest.fill(0);
                break;
            }
            Ok(count) => {
                offset += count as u64;
                rest = &mut rest[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
