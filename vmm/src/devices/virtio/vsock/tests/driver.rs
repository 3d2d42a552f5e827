//! The driver's side of the three queues, as Linux does it: 4 KiB receive buffers in one descriptor, header and payload
//! of a sent packet in two, and an event queue that is always full.

use std::collections::BTreeMap;
use std::num::Wrapping;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, Header};
use crate::devices::virtio::{Context, Interrupt, Memory, Readiness, Source, VirtioDevice};

pub const RX: usize = 0;
pub const TX: usize = 1;
pub const EVENT: usize = 2;

const QUEUE_SIZE: u16 = 64;
const MEMORY_BYTES: usize = 32 << 20;
/// Linux: `VIRTIO_VSOCK_DEFAULT_RX_BUF_SIZE`.
pub const RX_BUFFER_BYTES: u32 = 4096;
const TX_SLOT_BYTES: u64 = (64 << 10) + 4096;

pub const F_WRITE: u16 = 2;
pub const F_NEXT: u16 = 1;
pub const F_INDIRECT: u16 = 4;

/// One split ring in guest memory, driver's side.
pub struct Ring {
    memory: Memory,
    base: u64,
    next_avail: Wrapping<u16>,
    seen_used: Wrapping<u16>,
}

impl Ring {
    fn new(memory: Memory, base: u64) -> Self {
        Self { memory, base, next_avail: Wrapping(0), seen_used: Wrapping(0) }
    }

    fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    fn used(&self) -> u64 {
        self.base + 0x2000
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.set_size(QUEUE_SIZE);
        queue.try_set_desc_table_address(GuestAddress(self.base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used())).unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    }

    pub fn write<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn read<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + u64::from(index) * 16;
        self.write(address, at);
        self.write(len, at + 8);
        self.write(flags, at + 12);
        self.write(next, at + 14);
    }

    /// Makes a chain available, and asks for an interrupt at the next used one.
    pub fn publish(&mut self, head: u16) {
        self.write(head, self.avail() + 4 + u64::from(self.next_avail.0 % QUEUE_SIZE) * 2);
        self.next_avail += 1;
        self.set_avail_index(self.next_avail.0);
    }

    pub fn set_avail_index(&self, index: u16) {
        self.write(index, self.avail() + 2);
    }

    /// Whether the device asked for a kick when the ring went from `old` to now (`vring_need_event`).
    fn wants_kick(&self, old: Wrapping<u16>) -> bool {
        let event = Wrapping(self.read::<u16>(self.used() + 4 + 8 * u64::from(QUEUE_SIZE)));
        self.next_avail - event - Wrapping(1) < self.next_avail - old
    }

    /// The next used chain: its head and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if Wrapping(self.read::<u16>(self.used() + 2)) == self.seen_used {
            return None;
        }
        let at = self.used() + 4 + u64::from(self.seen_used.0 % QUEUE_SIZE) * 8;
        self.seen_used += 1;
        // `used_event`: an interrupt is wanted for the next one.
        self.write(self.seen_used.0, self.avail() + 4 + 2 * u64::from(QUEUE_SIZE));
        Some((self.read::<u32>(at) as u16, self.read(at + 4)))
    }
}

/// A driver with its device, all on the test's thread.
pub struct Driver {
    pub device: Vsock,
    pub context: Context,
    pub rings: [Ring; 3],
    line: EventFd,
    tx_free: Vec<u16>,
    /// Interrupts since the start.
    pub interrupts: u64,
    /// Kicks that the device asked for, per queue.
    pub kicks: [u64; 3],
    /// While set, used receive buffers are not given back.
    pub starve_rx: bool,
    starved: Vec<u16>,
}

impl Driver {
    /// A driver that has just set DRIVER_OK.
    pub fn new(mut device: Vsock) -> Self {
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap());
        let rings = [0, 1, 2].map(|n| Ring::new(memory.clone(), 0x10000 * (n + 1)));
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(line.try_clone().unwrap());
        let queues = rings.iter().map(Ring::queue).collect();
        device.activate(0);
        let mut driver = Self {
            device,
            context: Context::new(memory, queues, interrupt),
            rings,
            line,
            tx_free: (0..QUEUE_SIZE / 2).map(|n| n * 2).collect(),
            interrupts: 0,
            kicks: [0; 3],
            starve_rx: false,
            starved: Vec::new(),
        };
        (0..QUEUE_SIZE).for_each(|head| driver.offer_rx(head));
        (0..8).for_each(|head| driver.offer_event(head));
        driver.start();
        driver
    }

    /// A pause and what follows it, with the queues as they are.
    pub fn pause_and_resume(&mut self) {
        self.device.come_to_rest(&mut self.context);
        self.start();
        self.drain_again();
        self.count_interrupts();
    }

    /// A snapshot and its restore into a new device, which `make` makes of the old one, with memory and queues as
    /// they are.
    pub fn restore(mut self, make: impl FnOnce(Vsock) -> Vsock) -> Self {
        self.device.come_to_rest(&mut self.context);
        self.device = make(self.device);
        self.start();
        self.drain_again();
        self.count_interrupts();
        self
    }

    /// What the worker does first.
    pub fn start(&mut self) {
        (0..3).for_each(|queue| self.device.handle_queue(queue, &mut self.context));
    }

    fn rx_address(head: u16) -> u64 {
        (1 << 20) + u64::from(head) * u64::from(RX_BUFFER_BYTES)
    }

    fn tx_address(head: u16) -> u64 {
        (4 << 20) + u64::from(head / 2) * TX_SLOT_BYTES
    }

    fn event_address(head: u16) -> u64 {
        (2 << 20) + u64::from(head) * 4
    }

    fn offer_rx(&mut self, head: u16) {
        self.rings[RX].describe(head, Self::rx_address(head), RX_BUFFER_BYTES, F_WRITE, 0);
        self.rings[RX].publish(head);
    }

    fn offer_event(&mut self, head: u16) {
        self.rings[EVENT].describe(head, Self::event_address(head), 4, F_WRITE, 0);
        self.rings[EVENT].publish(head);
    }

    /// Puts a packet into the transmit queue without a kick. `false` when the queue is full.
    pub fn queue_packet(&mut self, header: &Header, payload: &[u8]) -> bool {
        self.reap_tx();
        let Some(head) = self.tx_free.pop() else { return false };
        let address = Self::tx_address(head);
        self.context.memory.write_slice(&header.to_bytes(), GuestAddress(address)).unwrap();
        self.context.memory.write_slice(payload, GuestAddress(address + HEADER_BYTES as u64)).unwrap();
        let (flags, next) = if payload.is_empty() { (0, 0) } else { (F_NEXT, head + 1) };
        self.rings[TX].describe(head, address, HEADER_BYTES as u32, flags, next);
        self.rings[TX].describe(head + 1, address + HEADER_BYTES as u64, payload.len() as u32, 0, 0);
        self.rings[TX].publish(head);
        true
    }

    fn reap_tx(&mut self) {
        while let Some((head, _)) = self.rings[TX].take_used() {
            self.tx_free.push(head);
        }
    }

    /// Transmit buffers that the device has not given back.
    pub fn tx_held(&mut self) -> usize {
        self.reap_tx();
        usize::from(QUEUE_SIZE / 2) - self.tx_free.len()
    }

    /// Kicks a queue if the device asked for it since the ring was at `old`.
    fn kick(&mut self, queue: usize, old: Wrapping<u16>) {
        if self.rings[queue].wants_kick(old) {
            self.kicks[queue] += 1;
            self.device.handle_queue(queue, &mut self.context);
            self.drain_again();
        }
    }

    fn drain_again(&mut self) {
        while self.context.has_more() {
            for queue in self.context.take_more() {
                self.device.handle_queue(queue, &mut self.context);
            }
        }
    }

    /// Sends packets in one batch with one kick.
    pub fn send_all(&mut self, packets: &[(Header, &[u8])]) {
        let old = self.rings[TX].next_avail;
        for (header, payload) in packets {
            assert!(self.queue_packet(header, payload), "the device keeps too many transmit buffers");
        }
        self.kick(TX, old);
        self.count_interrupts();
    }

    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        self.send_all(&[(*header, payload)]);
    }

    /// Sends a packet without payload if the queue has room for it.
    pub fn try_send(&mut self, header: &Header) -> bool {
        self.try_send_with(header, &[])
    }

    /// Sends a packet if the queue has room for it.
    pub fn try_send_with(&mut self, header: &Header, payload: &[u8]) -> bool {
        let old = self.rings[TX].next_avail;
        let queued = self.queue_packet(header, payload);
        self.kick(TX, old);
        self.count_interrupts();
        queued
    }

    /// Packets that arrived; their buffers go back to the device.
    pub fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        let old = self.rings[RX].next_avail;
        while let Some((head, bytes)) = self.rings[RX].take_used() {
            let mut buffer = vec![0; bytes as usize];
            self.context.memory.read_slice(&mut buffer, GuestAddress(Self::rx_address(head))).unwrap();
            let header = Header::from_bytes(buffer[..HEADER_BYTES].try_into().unwrap());
            assert_eq!(buffer.len(), HEADER_BYTES + header.len as usize);
            packets.push((header, buffer.split_off(HEADER_BYTES)));
            if self.starve_rx {
                self.starved.push(head);
            } else {
                self.offer_rx(head);
            }
        }
        self.kick(RX, old);
        self.count_interrupts();
        packets
    }

    /// Gives the device its receive buffers back.
    pub fn feed_rx(&mut self) {
        self.starve_rx = false;
        let old = self.rings[RX].next_avail;
        for head in std::mem::take(&mut self.starved) {
            self.offer_rx(head);
        }
        self.kick(RX, old);
        self.count_interrupts();
    }

    /// Events that arrived; their buffers go back to the device, as Linux does after it acted on them.
    pub fn events(&mut self) -> Vec<u32> {
        let mut events = Vec::new();
        let old = self.rings[EVENT].next_avail;
        while let Some((head, bytes)) = self.rings[EVENT].take_used() {
            assert_eq!(bytes, 4);
            events.push(self.context.memory.read_obj(GuestAddress(Self::event_address(head))).unwrap());
            self.offer_event(head);
        }
        self.kick(EVENT, old);
        events
    }

    fn count_interrupts(&mut self) {
        self.interrupts += self.line.read().unwrap_or(0);
    }

    /// Handles what the host's sockets have to say, and waits for it if need be. Says whether there was anything.
    pub fn wait_sources(&mut self, wait: Duration) -> bool {
        let sources = self.device.sources();
        let by_fd: BTreeMap<RawFd, _> = sources.iter().map(|source| (source.fd, source)).collect();
        assert_eq!(by_fd.len(), sources.len(), "a descriptor is named twice");
        let ready = ready(&sources, wait);
        let any = !ready.is_empty();
        for (token, readiness) in ready {
            self.device.handle_source(token, readiness, &mut self.context);
        }
        self.drain_again();
        self.count_interrupts();
        any
    }
}

/// What the worker's epoll would say.
fn ready(sources: &[Source], wait: Duration) -> Vec<(u64, Readiness)> {
    let epoll = Epoll::new().unwrap();
    for source in sources {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN | EventSet::READ_HANG_UP, source.readable);
        interest.set(EventSet::OUT, source.writable);
        epoll.ctl(ControlOperation::Add, source.fd, EpollEvent::new(interest, source.token)).unwrap();
    }
    let mut events = vec![EpollEvent::default(); sources.len().max(1)];
    let count = epoll.wait(wait.as_millis() as i32, &mut events).unwrap();
    events[..count].iter().map(|event| (event.data(), readiness(event.event_set()))).collect()
}

fn readiness(events: EventSet) -> Readiness {
    Readiness {
        readable: events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR),
        writable: events.intersects(EventSet::OUT | EventSet::ERROR),
        closed: events.intersects(EventSet::HANG_UP | EventSet::ERROR),
    }
}
