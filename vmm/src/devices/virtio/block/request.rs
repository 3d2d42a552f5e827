//! Guest bytes to a checked request (virtio 1.2, 5.2.6). Pure but for reading guest memory; property-tested.
//!
//! ```text
//!   device-readable: header (16 bytes: type, reserved, sector), data or ranges
//!   device-writable: data, status (the last byte)
//! ```
//!
//! The driver may cut this into descriptors as it likes (2.7.4.1), so all parts are found by byte, not by descriptor.
//! A chain without a status byte cannot be answered; any other nonsense gets an error status.

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::SECTOR_BYTES;
use crate::devices::virtio::Memory;

/// Most descriptors of one request. More than the data segments that the device offers, and well below the number of
/// buffers that the host takes in one call (1024).
pub const DESCRIPTORS_MAX: usize = 256;

/// Most data bytes of one request: what the offered number and size of segments come to.
pub const DATA_BYTES_MAX: u64 = 32 << 20;

/// Most ranges of one discard or write-zeroes.
pub const RANGES_MAX: usize = 32;

/// Most sectors of one range: 1 GiB.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// A stretch of guest memory; not known to exist until it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts.
    pub address: GuestAddress,
    /// How long it is.
    pub bytes: u32,
}

/// Part of the disk, within its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The clusters may be given back (write-zeroes).
    pub unmap: bool,
}

/// What the driver asks for, checked against the disk's size and the device's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill `data` from byte `offset` on.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Guest memory to fill.
        data: Vec<Segment>,
    },
    /// Write `data` at byte `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Guest memory to take.
        data: Vec<Segment>,
    },
    /// Make finished writes durable.
    Flush,
    /// Put the device's name into `data`.
    GetId {
        /// Guest memory to fill.
        data: Vec<Segment>,
    },
    /// These ranges are no longer needed.
    Discard(Vec<Range>),
    /// Make these ranges zero.
    WriteZeroes(Vec<Range>),
}

/// Why a chain is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The chain ends before it should, is too long, or has a readable descriptor after a writable one.
    #[error("The descriptor chain is cut short, loops, is longer than {DESCRIPTORS_MAX} or is out of order")]
    Chain,
    /// There is no room for the status.
    #[error("The chain has no device-writable byte for the status")]
    NoStatus,
    /// The chain is shorter than a header, or its memory does not exist.
    #[error("The request's header or ranges cannot be read")]
    Unreadable,
    /// The type is not offered.
    #[error("Request type {0} is not offered")]
    Type(u32),
    /// A flag is not offered.
    #[error("Flags {0:#x} are not offered")]
    Flags(u32),
    /// Data of a wrong length, or in the wrong direction.
    #[error("{0} data bytes are not a number of bytes that this request takes")]
    Length(u64),
    /// The range is not within the disk.
    #[error("{sectors} sectors from {sector} on are not within the disk")]
    Range {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u64,
    },
    /// A write to a disk that takes none.
    #[error("The disk is read-only")]
    ReadOnly,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The disk's size in sectors.
    pub sectors: u64,
    /// The disk takes no writes.
    pub read_only: bool,
}

/// A chain's parts: header and data to read, data to write, and where the status goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// Address of the status byte.
    pub status: GuestAddress,
}

impl Parts {
    /// Sorts the chain's descriptors.
    ///
    /// # Errors
    /// [`RequestError::Chain`] and [`RequestError::NoStatus`]: such a chain cannot be answered.
    pub fn new(chain: impl Iterator<Item = Descriptor>) -> Result<Self, RequestError> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut ended = false;
        for (count, descriptor) in chain.enumerate() {
            let segment = Segment { address: descriptor.addr(), bytes: descriptor.len() };
            match descriptor.is_write_only() {
                _ if count >= DESCRIPTORS_MAX => return Err(RequestError::Chain),
                true => writable.push(segment),
                false if writable.is_empty() => readable.push(segment),
                false => return Err(RequestError::Chain),
            }
            ended = !descriptor.has_next();
        }
        // The iterator also stops at a descriptor that does not exist, and after a loop's every descriptor.
        if !ended {
            return Err(RequestError::Chain);
        }
        while writable.last().is_some_and(|segment| segment.bytes == 0) {
            writable.pop();
        }
        let last = writable.last_mut().ok_or(RequestError::NoStatus)?;
        last.bytes -= 1;
        let status = last.address.0.checked_add(last.bytes.into()).map(GuestAddress);
        let status = status.ok_or(RequestError::NoStatus)?;
        Ok(Self { readable, writable, status })
    }

    /// What the driver asks for.
    ///
    /// # Errors
    /// [`RequestError`], to be answered with [`RequestError::status`].
    pub fn request(mut self, memory: &Memory, limits: Limits) -> Result<Request, RequestError> {
        let mut header = [0; HEADER_BYTES];
        take(memory, &mut self.readable, &mut header)?;
        let (kind, _reserved, sector) = split_header(header);
        let written = total(&self.readable);
        let read = total(&self.writable);
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = data_offset(sector, read, limits)?;
                Ok(Request::Read { offset, data: self.writable })
            }
            VIRTIO_BLK_T_OUT if limits.read_only => Err(RequestError::ReadOnly),
            VIRTIO_BLK_T_OUT => {
                let offset = data_offset(sector, written, limits)?;
                Ok(Request::Write { offset, data: self.readable })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId { data: self.writable }),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => Err(RequestError::ReadOnly),
            VIRTIO_BLK_T_DISCARD => self.ranges(memory, 0, limits).map(Request::Discard),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                self.ranges(memory, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, limits).map(Request::WriteZeroes)
            }
            _ => Err(RequestError::Type(kind)),
        }
    }

    /// The ranges after the header; `flags` are those that they may have.
    fn ranges(mut self, memory: &Memory, flags: u32, limits: Limits) -> Result<Vec<Range>, RequestError> {
        let bytes = total(&self.readable);
        let whole = bytes > 0 && bytes.is_multiple_of(RANGE_BYTES as u64);
        if !whole || bytes > (RANGES_MAX * RANGE_BYTES) as u64 {
            return Err(RequestError::Length(bytes));
        }
        let mut ranges = Vec::new();
        for _ in 0..bytes / RANGE_BYTES as u64 {
            let mut range = [0; RANGE_BYTES];
            take(memory, &mut self.readable, &mut range)?;
            ranges.push(decode_range(range, flags, limits)?);
        }
        Ok(ranges)
    }
}

fn split_header(header: [u8; HEADER_BYTES]) -> (u32, u32, u64) {
    let [a, b, c, d, e, f, g, h, sector @ ..] = header;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), u64::from_le_bytes(sector))
}

/// One range of a discard or write-zeroes (5.2.6: sector, number of sectors, flags).
fn decode_range(bytes: [u8; RANGE_BYTES], flags_offered: u32, limits: Limits) -> Result<Range, RequestError> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    if flags & !flags_offered != 0 {
        return Err(RequestError::Flags(flags));
    }
    if sectors > RANGE_SECTORS_MAX {
        return Err(RequestError::Range { sector, sectors: sectors.into() });
    }
    let offset = disk_offset(sector, sectors.into(), limits)?;
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    Ok(Range { offset, bytes: u64::from(sectors) * SECTOR_BYTES, unmap })
}

/// The disk offset of a read or write of `bytes` bytes.
fn data_offset(sector: u64, bytes: u64, limits: Limits) -> Result<u64, RequestError> {
    if bytes > DATA_BYTES_MAX || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(RequestError::Length(bytes));
    }
    disk_offset(sector, bytes / SECTOR_BYTES, limits)
}

fn disk_offset(sector: u64, sectors: u64, limits: Limits) -> Result<u64, RequestError> {
    let end = sector.checked_add(sectors).filter(|&end| end <= limits.sectors);
    end.map(|_| sector * SECTOR_BYTES).ok_or(RequestError::Range { sector, sectors })
}

impl RequestError {
    /// Nothing like this is offered, as opposed to a request that went wrong.
    pub fn is_unsupported(self) -> bool {
        matches!(self, Self::Type(_) | Self::Flags(_))
    }
}

/// Bytes of all segments; a chain has less than 4 GiB.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.bytes)).sum()
}

/// Takes the first `bytes.len()` bytes off `segments`.
fn take(memory: &Memory, segments: &mut Vec<Segment>, bytes: &mut [u8]) -> Result<(), RequestError> {
    let mut rest = bytes;
    let mut emptied = 0;
    for segment in segments.iter_mut() {
        let count = rest.len().min(segment.bytes as usize);
        let (now, later) = rest.split_at_mut(count);
        memory.read_slice(now, segment.address).map_err(|_| RequestError::Unreadable)?;
        rest = later;
        segment.bytes -= count as u32;
        segment.address = GuestAddress(segment.address.0.saturating_add(count as u64));
        if segment.bytes > 0 {
            break;
        }
        emptied += 1;
    }
    segments.drain(..emptied);
    if rest.is_empty() { Ok(()) } else { Err(RequestError::Unreadable) }
}

/// The host's view of `segments`, or `None` when one is not wholly in guest memory.
pub fn slices<'a>(memory: &'a Memory, segments: &[Segment], access: Permissions) -> Option<Vec<VolatileSlice<'a>>> {
    let mut slices = Vec::with_capacity(segments.len());
    for segment in segments.iter().filter(|segment| segment.bytes > 0) {
        for slice in memory.get_slices(segment.address, segment.bytes as usize, access).ok()? {
            slices.push(slice.ok()?);
        }
    }
    Some(slices)
}
