//! The driver's side of a virtio device, for tests: lays queues in guest memory and drives the registers as a real
//! driver does, or as a hostile one would.
//!
//! Every wait has a deadline ([`DEADLINE`]); a device that does not answer fails the test with its state.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cove_protocol::vmm::DeviceStats;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::state::{StateError, TransportState};
use super::mmio::{QUEUE_NOTIFY, Transport};
use super::{Memory, VirtioDevice};
use crate::devices::BusDevice;

/// How long a device may take to answer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Guest memory of the mock: two regions that touch, then nothing.
pub const REGION_BYTES: usize = 8 << 20;
/// First address after the mock's memory.
pub const MEMORY_END: u64 = 2 * REGION_BYTES as u64;

/// Descriptor flags (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
/// The device may write.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

const QUEUES: u64 = 0x1_0000;
const QUEUE_BYTES: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0xc000;
const DATA: u64 = 0x10_0000;

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

/// A driver with its machine around it.
pub struct MockDriver {
    /// The device behind its registers.
    pub transport: Transport,
    /// The guest's memory.
    pub memory: Memory,
    /// What the fault handler was told.
    pub faults: Arc<Mutex<Vec<String>>>,
    queues: Vec<MockQueue>,
    irq: EventFd,
    irq_events: Epoll,
    event_idx: bool,
    next_data: u64,
}

/// The driver's view of one queue.
#[derive(Clone, Copy, Debug, Default)]
struct MockQueue {
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// The device writes it.
    pub writable: bool,
}

fn plug_in(
    device: Box<dyn VirtioDevice>,
    memory: &Memory,
    irq: &EventFd,
    faults: &Arc<Mutex<Vec<String>>>,
) -> Transport {
    let told = Arc::clone(faults);
    let on_fault = Arc::new(move |fault: super::worker::WorkerError| told.lock().unwrap().push(fault.to_string()));
    Transport::new(Arc::clone(memory), device, irq.try_clone().unwrap(), on_fault).unwrap()
}

impl MockDriver {
    /// A device that was just plugged in.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let second = GuestAddress(REGION_BYTES as u64);
        let ranges = [(GuestAddress(0), REGION_BYTES), (second, REGION_BYTES)];
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let irq_events = Epoll::new().unwrap();
        let input = EpollEvent::new(EventSet::IN, 0);
        irq_events.ctl(ControlOperation::Add, irq.as_raw_fd(), input).unwrap();
        let queues = device.queue_sizes().iter().map(|&size| MockQueue { size, ..MockQueue::default() }).collect();
        let faults = Arc::new(Mutex::new(Vec::new()));
        let transport = plug_in(device, &memory, &irq, &faults);
        Self { transport, memory, faults, queues, irq, irq_events, event_idx: false, next_data: DATA }
    }

    /// The same guest with another device at the same place, as after a restore: it goes on where `state` was.
    ///
    /// # Errors
    /// When the transport refuses the state; the new device is then without a driver.
    pub fn move_to(&mut self, device: Box<dyn VirtioDevice>, state: &TransportState) -> Result<(), StateError> {
        self.transport = plug_in(device, &self.memory, &self.irq, &self.faults);
        self.transport.restore(state)?;
        self.transport.resume();
        Ok(())
    }

    /// A device whose driver is up, with every offered feature.
    pub fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::new(device);
        let features = driver.offered();
        driver.start(features);
        driver
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// The status register.
    pub fn status(&mut self) -> u32 {
        self.read(0x70)
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        u64::from(self.read(0x10)) << 32 | u64::from(low)
    }

    /// The whole start of a driver (3.1.1), with `features`.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        assert_eq!(self.status(), 11, "the device refused features {features:#x}");
        for index in 0..self.queues.len() {
            self.set_up_queue(index);
        }
        self.write(0x70, 15);
        assert_eq!(self.status(), 15, "the device did not start");
    }

    /// Resets the device and brings it to FEATURES_OK, if it accepts `features`.
    pub fn negotiate(&mut self, features: u64) {
        self.write(0x70, 0);
        assert_eq!(self.status(), 0);
        for queue in &mut self.queues {
            *queue = MockQueue { size: queue.size, ..MockQueue::default() };
        }
        self.next_data = DATA;
        self.event_idx = features & EVENT_IDX != 0;
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.write(0x24, 0);
        self.write(0x20, features as u32);
        self.write(0x24, 1);
        self.write(0x20, (features >> 32) as u32);
        self.write(0x70, 11);
    }

    /// Features with nothing but what every driver must accept.
    pub fn plain_features() -> u64 {
        VERSION_1
    }

    /// Gives queue `index` its size and rings, and makes it ready.
    pub fn set_up_queue(&mut self, index: usize) {
        let base = Self::queue_base(index);
        self.place_queue(index, self.queues[index].size.into(), [base, base + AVAILABLE, base + USED]);
        assert_eq!(self.read(0x44), 1, "queue {index} was refused");
    }

    /// Writes the queue's registers, right or wrong: descriptor table, driver ring, device ring.
    pub fn place_queue(&mut self, index: usize, size: u32, rings: [u64; 3]) {
        for ring in rings {
            // What a ring had before a reset must not be seen again.
            let _outside = self.memory.write_slice(&[0; 0x4000], GuestAddress(ring));
        }
        self.write(0x30, index as u32);
        self.write(0x38, size);
        for (register, ring) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.write(register, ring as u32);
            self.write(register + 4, (ring >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    fn queue_base(index: usize) -> u64 {
        QUEUES + index as u64 * QUEUE_BYTES
    }

    /// Fresh guest memory for data.
    pub fn allocate(&mut self, bytes: u32) -> u64 {
        let address = self.next_data;
        self.next_data += u64::from(bytes).next_multiple_of(16);
        assert!(self.next_data <= MEMORY_END, "the mock's memory is used up");
        address
    }

    /// Forgets all data memory given so far.
    pub fn free_all(&mut self) {
        self.next_data = DATA;
    }

    /// A device-readable buffer with `bytes`.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let address = self.allocate(bytes.len() as u32);
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
        Buffer { address, bytes: bytes.len() as u32, writable: false }
    }

    /// A device-writable buffer, filled with a pattern that no device writes by chance.
    pub fn writable(&mut self, bytes: u32) -> Buffer {
        let address = self.allocate(bytes);
        self.memory.write_slice(&vec![0xa5; bytes as usize], GuestAddress(address)).unwrap();
        Buffer { address, bytes, writable: true }
    }

    /// What a buffer holds now; zeroes where there is no memory.
    pub fn contents(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.bytes as usize];
        let _outside = self.memory.read_slice(&mut bytes, GuestAddress(buffer.address));
        bytes
    }

    /// Writes one descriptor of queue `index`'s own table.
    pub fn descriptor(&mut self, index: usize, number: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let table = Self::queue_base(index);
        self.descriptor_at(table + u64::from(number) * 16, address, bytes, flags, next);
    }

    /// Writes one descriptor anywhere.
    pub fn descriptor_at(&mut self, place: u64, address: u64, bytes: u32, flags: u16, next: u16) {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&address.to_le_bytes());
        entry[8..12].copy_from_slice(&bytes.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&entry, GuestAddress(place)).unwrap();
    }

    /// Makes the chain that starts at descriptor `head` available, without a kick.
    pub fn offer(&mut self, index: usize, head: u16) {
        let MockQueue { size, available, .. } = self.queues[index];
        let ring = Self::queue_base(index) + AVAILABLE;
        let slot = GuestAddress(ring + 4 + u64::from(available % size) * 2);
        self.memory.write_obj(head.to_le(), slot).unwrap();
        self.set_available(index, available.wrapping_add(1));
    }

    /// Sets the available index, right or wrong.
    pub fn set_available(&mut self, index: usize, value: u16) {
        self.queues[index].available = value;
        let place = GuestAddress(Self::queue_base(index) + AVAILABLE + 2);
        self.memory.store(value.to_le(), place, Ordering::SeqCst).unwrap();
    }

    /// Lays `buffers` as a chain of direct descriptors and offers it. Returns the head.
    pub fn submit(&mut self, index: usize, buffers: &[Buffer]) -> u16 {
        let head = self.queues[index].next_descriptor;
        let size = self.queues[index].size;
        for (at, buffer) in buffers.iter().enumerate() {
            let number = (head + at as u16) % size;
            let next = if at + 1 < buffers.len() { NEXT } else { 0 };
            let write = if buffer.writable { WRITE } else { 0 };
            self.descriptor(index, number, buffer.address, buffer.bytes, next | write, (number + 1) % size);
        }
        self.queues[index].next_descriptor = (head + buffers.len() as u16) % size;
        self.offer(index, head);
        head
    }

    /// Lays `buffers` as an indirect table behind one descriptor and offers it. Returns the head.
    pub fn submit_indirect(&mut self, index: usize, buffers: &[Buffer]) -> u16 {
        let table = self.allocate(buffers.len() as u32 * 16);
        for (at, buffer) in buffers.iter().enumerate() {
            let next = if at + 1 < buffers.len() { NEXT } else { 0 };
            let write = if buffer.writable { WRITE } else { 0 };
            let place = table + at as u64 * 16;
            self.descriptor_at(place, buffer.address, buffer.bytes, next | write, at as u16 + 1);
        }
        let head = self.queues[index].next_descriptor;
        self.descriptor(index, head, table, buffers.len() as u32 * 16, INDIRECT, 0);
        self.queues[index].next_descriptor = (head + 1) % self.queues[index].size;
        self.offer(index, head);
        head
    }

    /// Kicks through the ioeventfd, as KVM does.
    pub fn kick(&self, index: usize) {
        self.transport.kick_fds()[index].write(1).unwrap();
    }

    /// Kicks through the register, as where there is no ioeventfd.
    pub fn notify(&mut self, index: u32) {
        self.write(QUEUE_NOTIFY, index);
    }

    /// Waits for the next used chain: its head and the bytes that the device says it wrote.
    pub fn used(&mut self, index: usize) -> (u32, u32) {
        let ring = Self::queue_base(index) + USED;
        let MockQueue { size, used, .. } = self.queues[index];
        self.wait_until(&format!("chain {used} of queue {index}"), |driver| {
            driver.ask_for_interrupt(index, used);
            driver.used_index(index) != used
        });
        let entry = GuestAddress(ring + 4 + u64::from(used % size) * 8);
        let [head, bytes] = self.memory.read_obj::<[u32; 2]>(entry).unwrap();
        self.queues[index].used = used.wrapping_add(1);
        (head, bytes)
    }

    /// The used index that the device published.
    pub fn used_index(&self, index: usize) -> u16 {
        let place = GuestAddress(Self::queue_base(index) + USED + 2);
        self.memory.load::<u16>(place, Ordering::SeqCst).unwrap()
    }

    /// Submits a chain, kicks and waits for its end. Returns the bytes that the device says it wrote.
    pub fn run(&mut self, index: usize, buffers: &[Buffer]) -> u32 {
        let head = self.submit(index, buffers);
        self.kick(index);
        let (used, bytes) = self.used(index);
        assert_eq!(used, u32::from(head));
        bytes
    }

    /// The device's figures, exact: while it runs, those of its last event may be missing.
    pub fn stats_at_rest(&mut self) -> DeviceStats {
        self.transport.pause();
        let stats = self.transport.stats();
        self.transport.resume();
        stats
    }

    /// Waits until the device asks for a reset.
    pub fn wait_for_broken(&mut self) {
        self.wait_until("DEVICE_NEEDS_RESET", |driver| driver.status() & 64 != 0);
    }

    /// Waits until `done`, looked at after each interrupt.
    pub fn wait_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let stats = self.transport.stats();
            assert!(!left.is_zero(), "no {what}; status {}, {stats:?}, {:?}", self.status(), self.faults);
            self.irq_events.wait(left.as_millis() as i32, &mut [EpollEvent::default()]).unwrap();
            // Not raised when the deadline passed, which the next turn finds.
            let _raised = self.irq.read();
            let pending = self.read(0x60);
            self.write(0x64, pending);
        }
    }

    /// `used_event`: an interrupt at the next used chain (2.7.7).
    fn ask_for_interrupt(&self, index: usize, used: u16) {
        if self.event_idx {
            let ring = Self::queue_base(index) + AVAILABLE;
            let place = GuestAddress(ring + 4 + u64::from(self.queues[index].size) * 2);
            self.memory.store(used.to_le(), place, Ordering::SeqCst).unwrap();
        }
    }
}
