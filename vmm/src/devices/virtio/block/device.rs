//! The block device's queue: takes chains, answers each on the worker's thread.
//!
//! A write that finds no room on the host's file system is not failed: the guest's file system would take its disk for
//! broken and stop. The request stays in the queue, and with it all later ones, and is tried again once a second until
//! there is room (as QEMU does with `werror=enospc`). A snapshot taken meanwhile has the request in its queue.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use cove_protocol::vmm::{DeviceStats, DiskSpec};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, Permissions};
use vmm_sys_util::timerfd::TimerFd;

use super::format::CLUSTER_BITS;
use super::request::{self, Limits, Parts, RANGE_SECTORS_MAX, RANGES_MAX, Range, Request, RequestError, Segment};
use super::state::{BlockState, RestoreError};
use super::{Disk, LayerError, SECTOR_BYTES};
use crate::devices::virtio::{Chain, Context, DeviceState, Memory, Readiness, Source, VirtioDevice};

/// Block device (virtio 1.2, section 5).
const DEVICE_ID: u32 = 2;

/// One queue; 128 entries keep a machine's block layer busy.
const QUEUE_SIZES: &[u16] = &[128];

/// Most data segments of a request and most bytes of a segment; their product stays below
/// [`request::DATA_BYTES_MAX`].
const SEGMENTS_MAX: u32 = 126;
const SEGMENT_BYTES_MAX: u32 = 256 << 10;

/// Physical block as a power of two of sectors: 4 KiB, a page.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

const CONFIG_BYTES: usize = 60;

/// How often a write is tried again that found no room on the host.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// The block device.
#[derive(Debug)]
pub struct Block {
    name: String,
    disk: Disk,
    /// The driver sends no flushes, so each write must be durable when it is answered (5.2.6.2).
    write_through: bool,
    /// A write waits for room on the host.
    held: Option<Held>,
    /// Tells one timer's events from another's.
    holds: u64,
    stats: DeviceStats,
}

/// A request that waits for room; it lies in the queue.
#[derive(Debug)]
struct Held {
    since: Instant,
    again: TimerFd,
}

impl Held {
    fn new() -> io::Result<Self> {
        let mut again = TimerFd::new()?;
        again.reset(ROOM_RETRY, Some(ROOM_RETRY))?;
        Ok(Self { since: Instant::now(), again })
    }
}

impl Block {
    /// The disk number `index` of a machine (`block0` is `/dev/vda`), its layers opened.
    ///
    /// # Errors
    /// [`LayerError`] naming the layer that cannot be used.
    pub fn open(index: usize, spec: &DiskSpec) -> Result<Self, LayerError> {
        let name = format!("block{index}");
        let disk = Disk::open(spec)?;
        Ok(Self { name, disk, write_through: true, held: None, holds: 0, stats: DeviceStats::default() })
    }

    /// The disk of a restored machine: its layers opened, and checked to be the disk that `state` was saved of.
    ///
    /// # Errors
    /// [`RestoreError`] when a layer cannot be used or the disk is another one.
    pub fn restore(index: usize, spec: &DiskSpec, state: &BlockState) -> Result<Self, RestoreError> {
        let block = Self::open(index, spec)?;
        let here = block.disk_state();
        if here == *state { Ok(block) } else { Err(RestoreError::Disk { device: block.name, saved: *state, here }) }
    }

    /// The disk, for a change of its layers.
    pub fn disk(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// What identifies the disk to a restored guest.
    pub fn disk_state(&self) -> BlockState {
        BlockState { sectors: self.disk.sectors(), read_only: self.disk.read_only() }
    }

    fn limits(&self) -> Limits {
        Limits { sectors: self.disk.sectors(), read_only: self.disk.read_only() }
    }

    /// The configuration space (5.2.4).
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let cluster_sectors = (1u32 << CLUSTER_BITS) / SECTOR_BYTES as u32;
        let mut config = [0; CONFIG_BYTES];
        let mut set = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &self.disk.sectors().to_le_bytes());
        set(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        set(12, &SEGMENTS_MAX.to_le_bytes());
        set(20, &(SECTOR_BYTES as u32).to_le_bytes());
        set(24, &[PHYSICAL_BLOCK_EXPONENT]);
        // Best transfer size, in sectors.
        set(28, &cluster_sectors.to_le_bytes());
        set(34, &1u16.to_le_bytes());
        set(36, &RANGE_SECTORS_MAX.to_le_bytes());
        set(40, &(RANGES_MAX as u32).to_le_bytes());
        set(44, &cluster_sectors.to_le_bytes());
        set(48, &RANGE_SECTORS_MAX.to_le_bytes());
        set(52, &(RANGES_MAX as u32).to_le_bytes());
        set(56, &[1]);
        config
    }

    /// Answers one chain; returns the bytes written into it, or `None` when it has to wait for room on the host.
    fn answer(&mut self, memory: &Memory, chain: Chain) -> Option<u32> {
        let Ok(parts) = Parts::new(chain) else {
            // Without a status byte there is nowhere to say so.
            self.stats.requests += 1;
            self.stats.errors += 1;
            return Some(0);
        };
        let status_address = parts.status;
        let outcome = parts.request(memory, self.limits()).map_err(Failure::from);
        let outcome = outcome.and_then(|request| self.execute_durably(memory, request));
        if let Err(Failure::Host(error)) = &outcome
            && is_no_room(error)
            && self.hold(error)
        {
            return None;
        }
        self.release();
        self.stats.requests += 1;
        let (status, bytes) = match outcome {
            Ok(bytes) => (VIRTIO_BLK_S_OK, bytes),
            Err(failure) => {
                self.count_failure(&failure);
                (failure.status(), 0)
            }
        };
        match memory.write_obj(status as u8, status_address) {
            Ok(()) => Some(bytes + 1),
            Err(_) => {
                self.stats.errors += 1;
                Some(0)
            }
        }
    }

    /// Remembers that the queue's next request waits for room; false where the host has no timer to wake us.
    fn hold(&mut self, error: &io::Error) -> bool {
        if self.held.is_some() {
            return true;
        }
        match Held::new() {
            Ok(held) => {
                tracing::warn!(device = self.name, %error, "A disk has no room on the host; its writes wait");
                self.held = Some(held);
                self.holds += 1;
                true
            }
            Err(error) => {
                tracing::error!(device = self.name, %error, "Cannot wait for room on the host");
                false
            }
        }
    }

    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            let seconds = held.since.elapsed().as_secs();
            tracing::info!(device = self.name, seconds, "A disk that had no room on the host goes on");
        }
    }

    /// Does what is asked, and makes it durable where the driver will not ask for that.
    fn execute_durably(&mut self, memory: &Memory, request: Request) -> Result<u32, Failure> {
        let writes = !matches!(request, Request::Read { .. } | Request::GetId { .. } | Request::Flush);
        let bytes = self.execute(memory, request)?;
        if writes && self.write_through {
            self.flush()?;
        }
        Ok(bytes)
    }

    /// Makes finished writes durable. What the host could not write out is lost to it, so that trying again would only
    /// seem to succeed.
    fn flush(&mut self) -> Result<(), Failure> {
        self.disk.flush().map_err(Failure::Durability)
    }

    /// Does what is asked; returns the data bytes written to the guest.
    fn execute(&mut self, memory: &Memory, request: Request) -> Result<u32, Failure> {
        match request {
            Request::Read { offset, data } => {
                let slices = request::slices(memory, &data, Permissions::Write).ok_or(Failure::Memory)?;
                self.disk.read(&slices, offset)?;
                let bytes = request::total(&data);
                self.stats.read_bytes += bytes;
                // Bounded by DATA_BYTES_MAX.
                Ok(bytes as u32)
            }
            Request::Write { offset, data } => {
                let slices = request::slices(memory, &data, Permissions::Read).ok_or(Failure::Memory)?;
                self.disk.write(&slices, offset)?;
                self.stats.write_bytes += request::total(&data);
                Ok(0)
            }
            Request::Flush => self.flush().map(|()| 0),
            Request::GetId { data } => self.write_id(memory, &data),
            Request::Discard(ranges) => each(&ranges, |range| self.disk.discard(range.offset, range.bytes)),
            Request::WriteZeroes(ranges) => {
                each(&ranges, |range| self.disk.write_zeroes(range.offset, range.bytes, range.unmap))
            }
        }
    }

    /// The name as the driver's serial number: 20 bytes, padded with zeroes.
    fn write_id(&self, memory: &Memory, data: &[Segment]) -> Result<u32, Failure> {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let mut room = &mut id[..];
        // A name longer than the field is cut, which is all that can be done with it.
        let _cut = room.write(self.name.as_bytes());
        let mut rest = &id[..];
        for segment in data {
            let (now, later) = rest.split_at(rest.len().min(segment.bytes as usize));
            memory.write_slice(now, segment.address).map_err(|_| Failure::Memory)?;
            rest = later;
        }
        Ok((id.len() - rest.len()) as u32)
    }

    fn count_failure(&mut self, failure: &Failure) {
        self.stats.errors += 1;
        match failure {
            // A failing host fails every request; the log needs a few of them.
            Failure::Host(error) | Failure::Durability(error) if self.stats.errors.is_power_of_two() => {
                tracing::warn!(device = self.name, %error, errors = self.stats.errors, "Disk access failed");
            }
            Failure::Request(error) => tracing::debug!(device = self.name, %error, "A block request was refused"),
            _ => {}
        }
    }
}

/// Why a request got no OK.
#[derive(Debug)]
enum Failure {
    Request(RequestError),
    Memory,
    Host(io::Error),
    /// Of finished writes.
    Durability(io::Error),
}

impl Failure {
    fn status(&self) -> u32 {
        match self {
            Self::Request(error) if error.is_unsupported() => VIRTIO_BLK_S_UNSUPP,
            Self::Host(error) if error.kind() == io::ErrorKind::Unsupported => VIRTIO_BLK_S_UNSUPP,
            _ => VIRTIO_BLK_S_IOERR,
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// The host's file system, or the user's share of it, is full.
fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn each(ranges: &[Range], mut act: impl FnMut(&Range) -> io::Result<()>) -> Result<u32, Failure> {
    ranges.iter().try_for_each(&mut act)?;
    Ok(0)
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        features |= match self.disk.read_only() {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let known = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
        let bytes = known.len().min(data.len());
        data[..bytes].copy_from_slice(&known[..bytes]);
        data[bytes..].fill(0);
    }

    fn activate(&mut self, features: u64) {
        self.write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
    }

    fn reset(&mut self) {
        self.held = None;
    }

    fn sources(&self) -> Vec<Source> {
        let timer =
            |held: &Held| Source { fd: held.again.as_raw_fd(), token: self.holds, readable: true, writable: false };
        self.held.iter().map(timer).collect()
    }

    fn handle_queue(&mut self, index: usize, context: &mut Context) {
        let memory = context.memory.clone();
        context.drain(index, |chain| self.answer(&memory, chain));
    }

    fn handle_source(&mut self, token: u64, _readiness: Readiness, context: &mut Context) {
        let Some(held) = self.held.as_mut().filter(|_| token == self.holds) else { return };
        // Readable, since its event came; a timer that cannot be read would bring it again at once.
        if let Err(error) = held.again.wait() {
            tracing::error!(device = self.name, %error, "Cannot read the timer of a disk that waits for room");
        }
        if context.is_live(0) {
            self.handle_queue(0, context);
        }
    }

    fn come_to_rest(&mut self, _context: &mut Context) {
        if let Err(error) = self.disk.flush() {
            self.stats.errors += 1;
            tracing::error!(device = self.name, %error, "Cannot flush a disk that comes to rest");
        }
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats { held: self.held.is_some(), ..self.stats }
    }

    fn state(&self) -> DeviceState {
        DeviceState::Block(self.disk_state())
    }

    fn as_block(&mut self) -> Option<&mut Block> {
        Some(self)
    }
}
