//! The transport and the worker under a right and a wrong driver, with the entropy device and a small one of our own.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use cove_protocol::vmm::DeviceStats;
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::state::{StateError, TransportState};
use super::mock::{Buffer, DEADLINE, INDIRECT, MEMORY_END, MockDriver, NEXT, WRITE};
use super::rng::Rng;
use super::{Context, DeviceState, Readiness, Source, VirtioDevice};
use crate::devices::BusDevice;

fn rng() -> MockDriver {
    MockDriver::started(Box::new(Rng::new()))
}

/// The device answers a right request, so it still works after whatever came before.
fn assert_alive(driver: &mut MockDriver) {
    let buffer = driver.writable(64);
    assert_eq!(driver.run(0, &[buffer]), 64);
    assert_ne!(driver.contents(buffer), [0xa5; 64]);
}

/// The device asks for a reset, and works after one.
fn assert_broken_until_reset(driver: &mut MockDriver) {
    driver.wait_for_broken();
    let used = driver.used_index(0);
    driver.kick(0);
    let features = driver.offered();
    assert_eq!(driver.used_index(0), used);
    driver.start(features);
    assert_alive(driver);
    assert!(driver.faults.lock().unwrap().is_empty());
}

#[test]
fn identification_registers_say_what_the_device_is() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    assert_eq!(driver.read(0x00), u32::from_le_bytes(*b"virt"));
    assert_eq!([driver.read(0x04), driver.read(0x08), driver.read(0x34), driver.read(0x44)], [2, 4, 16, 0]);
    assert_eq!([driver.read(0xb0), driver.read(0xb4), driver.read(0xfc)], [u32::MAX, u32::MAX, 0]);
    driver.write(0x30, 7);
    assert_eq!(driver.read(0x34), 0, "a queue that does not exist has no size");
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0);
}

#[test]
fn entropy_fills_the_buffers() {
    let mut driver = rng();
    for _ in 0..100 {
        driver.free_all();
        assert_alive(&mut driver);
    }
    let parts = [driver.writable(10), driver.writable(0), driver.writable(20)];
    let head = driver.submit_indirect(0, &parts);
    driver.kick(0);
    assert_eq!(driver.used(0), (head.into(), 30));
    assert_ne!(driver.contents(parts[2]), [0xa5; 20]);
    let stats = driver.stats_at_rest();
    assert_eq!((stats.requests, stats.read_bytes, stats.errors), (101, 6430, 0));
}

#[test]
fn entropy_is_bounded_per_request_and_wants_something_to_fill() {
    let mut driver = rng();
    let large = driver.writable(1 << 20);
    assert_eq!(driver.run(0, &[large]), 4096);
    let wrong_way = driver.readable(&[1, 2, 3]);
    assert_eq!(driver.run(0, &[wrong_way]), 0);
    assert_eq!(driver.stats_at_rest().errors, 1);
    assert_alive(&mut driver);
}

#[test]
fn features_are_those_offered_and_version_1() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    for wrong in [0, MockDriver::plain_features() | 1 << 5, 1 << 29] {
        driver.negotiate(wrong);
        assert_eq!(driver.status(), 3, "features {wrong:#x} were taken");
        driver.write(0x70, 15);
        assert_eq!(driver.status(), 3);
    }
    driver.start(MockDriver::plain_features());
    assert_alive(&mut driver);
}

#[test]
fn status_bits_come_in_order_and_stay() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    for early in [2, 4, 8, 12, 15, 64, 16] {
        driver.write(0x70, early);
        let expected = if early == 15 { 3 } else { 0 };
        assert_eq!(driver.status(), expected, "status {early}");
        driver.write(0x70, 0);
    }
    let mut driver = rng();
    for fewer in [1, 3, 11] {
        driver.write(0x70, fewer);
        assert_eq!(driver.status(), 15);
    }
    driver.write(0x70, 15 | 128);
    assert_eq!(driver.status(), 143);
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let base = 0x2_0000;
    let good = [base, base + 0x8000, base + 0xc000];
    let cases = [
        ("size 0", 0, good),
        ("size not a power of two", 3, good),
        ("size too large", 32, good),
        ("size of 32 bits", 0x1_0010, good),
        ("table not aligned", 16, [base + 8, good[1], good[2]]),
        ("driver ring not aligned", 16, [good[0], good[1] + 1, good[2]]),
        ("device ring not aligned", 16, [good[0], good[1], good[2] + 2]),
        ("table outside", 16, [MEMORY_END, good[1], good[2]]),
        ("driver ring across the end", 16, [good[0], MEMORY_END - 8, good[2]]),
        ("device ring outside", 16, [good[0], good[1], MEMORY_END - 4]),
        ("device ring at the end of all addresses", 16, [good[0], good[1], u64::MAX - 3]),
        ("driver ring at zero", 16, [good[0], 0, good[2]]),
    ];
    for (name, size, rings) in cases {
        let mut driver = MockDriver::new(Box::new(Rng::new()));
        driver.negotiate(MockDriver::plain_features());
        driver.place_queue(0, size, rings);
        assert_eq!(driver.read(0x44), 0, "{name}");
        assert_eq!(driver.status(), 11 | 64, "{name}");
        driver.write(0x70, 15);
        driver.kick(0);
        let features = driver.offered();
        driver.start(features);
        assert_alive(&mut driver);
    }
}

#[test]
fn registers_do_not_change_under_a_running_device() {
    let mut driver = rng();
    driver.write(0x30, 0);
    for (register, value) in [(0x38, 4), (0x80, 0x5000), (0x84, 1), (0x90, 0), (0xa0, 0x10), (0xa4, 9), (0x44, 0)] {
        driver.write(register, value);
    }
    driver.write(0x24, 0);
    driver.write(0x20, 0);
    assert_eq!(driver.read(0x44), 1);
    assert_eq!(driver.transport.stats().errors, 8);
    assert_alive(&mut driver);
}

#[test]
fn queue_registers_wait_for_the_features() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    driver.place_queue(0, 16, [0x2_0000, 0x2_8000, 0x2_c000]);
    assert_eq!(driver.read(0x44), 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_device_without_a_ready_queue_rests() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    driver.negotiate(MockDriver::plain_features());
    driver.write(0x70, 15);
    driver.kick(0);
    assert_eq!(driver.status(), 15);
    driver.start(MockDriver::plain_features());
    assert_alive(&mut driver);
}

#[test]
fn a_kick_before_the_start_or_for_no_queue_does_nothing() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    driver.notify(0);
    driver.notify(9);
    assert_eq!(driver.transport.stats().errors, 2);
    driver.start(MockDriver::plain_features());
    driver.notify(u32::MAX);
    let buffer = driver.writable(8);
    driver.submit(0, &[buffer]);
    driver.notify(0);
    assert_eq!(driver.used(0).1, 8);
}

#[test]
fn what_was_offered_before_the_start_is_handled() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    driver.negotiate(MockDriver::plain_features());
    driver.set_up_queue(0);
    let buffer = driver.writable(8);
    driver.submit(0, &[buffer]);
    driver.write(0x70, 15);
    assert_eq!(driver.used(0).1, 8);
}

#[test]
fn accesses_of_another_width_or_place_are_refused() {
    let mut driver = rng();
    for (offset, bytes) in [(0, 1), (0, 8), (2, 4), (0x6e, 4), (0x70, 2), (0x70, 0)] {
        let mut data = vec![0xff; bytes];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; bytes]);
        driver.transport.write(offset, &data);
    }
    for offset in [0x100, 0x1ff, 0xfff, u64::MAX] {
        let mut data = [0xff; 8];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, [0; 8]);
        driver.transport.write(offset, &data);
    }
    assert_eq!(driver.status(), 15);
    assert_alive(&mut driver);
}

#[test]
fn an_available_index_that_jumps_breaks_the_queue() {
    for jump in [17, 0x8000, 0xffff] {
        let mut driver = rng();
        assert_alive(&mut driver);
        driver.set_available(0, 1u16.wrapping_add(jump));
        driver.kick(0);
        assert_broken_until_reset(&mut driver);
    }
}

#[test]
fn a_head_outside_of_the_table_breaks_the_queue() {
    for head in [16, 0xffff] {
        let mut driver = rng();
        driver.offer(0, head);
        driver.kick(0);
        assert_broken_until_reset(&mut driver);
    }
}

/// Chains that make no sense end unanswered or with nothing written, and the queue goes on.
#[test]
fn malformed_chains_end_and_the_queue_goes_on() {
    let mut driver = rng();
    let table = driver.allocate(256);
    let buffer = driver.writable(16).address;
    type Lay = Box<dyn Fn(&mut MockDriver)>;
    let mut malformed: Vec<(&str, Lay)> = Vec::new();
    let mut case = |name, lay: Lay| malformed.push((name, lay));
    case("loop of one", Box::new(move |d| d.descriptor(0, 0, buffer, 16, NEXT | WRITE, 0)));
    case("next outside", Box::new(move |d| d.descriptor(0, 0, buffer, 16, NEXT | WRITE, 99)));
    case("address outside", Box::new(|d| d.descriptor(0, 0, MEMORY_END, 16, WRITE, 0)));
    case("across the end", Box::new(|d| d.descriptor(0, 0, MEMORY_END - 8, 16, WRITE, 0)));
    case("address wraps", Box::new(|d| d.descriptor(0, 0, u64::MAX - 4, 16, WRITE, 0)));
    case("4 GiB", Box::new(move |d| d.descriptor(0, 0, buffer, u32::MAX, WRITE, 0)));
    case("empty", Box::new(move |d| d.descriptor(0, 0, buffer, 0, WRITE, 0)));
    case(
        "indirect loop",
        Box::new(move |d| {
            d.descriptor_at(table, buffer, 16, NEXT | WRITE, 0);
            d.descriptor(0, 0, table, 256, INDIRECT, 0);
        }),
    );
    case(
        "indirect in indirect",
        Box::new(move |d| {
            d.descriptor_at(table, table, 256, INDIRECT, 0);
            d.descriptor(0, 0, table, 256, INDIRECT, 0);
        }),
    );
    case("indirect of odd length", Box::new(move |d| d.descriptor(0, 0, table, 17, INDIRECT, 0)));
    case("indirect of no length", Box::new(move |d| d.descriptor(0, 0, table, 0, INDIRECT, 0)));
    case("indirect outside", Box::new(|d| d.descriptor(0, 0, MEMORY_END, 256, INDIRECT, 0)));
    case("indirect of 4 GiB", Box::new(move |d| d.descriptor(0, 0, table, u32::MAX - 15, INDIRECT, 0)));
    for (name, lay) in malformed {
        lay(&mut driver);
        driver.offer(0, 0);
        driver.kick(0);
        let (head, bytes) = driver.used(0);
        assert_eq!(head, 0, "{name}");
        assert!(bytes <= 16 * 16, "{name}");
    }
    assert_eq!(driver.status(), 15);
    let buffer = Buffer { address: buffer, bytes: 16, writable: true };
    assert_eq!(driver.run(0, &[buffer]), 16);
}

#[test]
fn a_reset_in_the_middle_loses_nothing_but_the_session() {
    let mut driver = rng();
    for _ in 0..50 {
        for _ in 0..8 {
            let buffer = driver.writable(64);
            driver.submit(0, &[buffer]);
        }
        driver.kick(0);
        let features = driver.offered();
        driver.start(features);
    }
    assert_alive(&mut driver);
}

#[test]
fn pause_and_resume_keep_the_queues() {
    let mut driver = rng();
    assert_alive(&mut driver);
    for _ in 0..10 {
        driver.transport.pause();
        driver.transport.pause();
        let buffer = driver.writable(32);
        driver.submit(0, &[buffer]);
        driver.kick(0);
        driver.transport.resume();
        driver.transport.resume();
        assert_eq!(driver.used(0).1, 32);
    }
    driver.transport.pause();
    driver.transport.reset();
    driver.start(MockDriver::plain_features());
    assert_alive(&mut driver);
}

/// A running driver, saved at rest.
fn saved() -> (MockDriver, TransportState) {
    let mut driver = rng();
    assert_alive(&mut driver);
    driver.transport.pause();
    let (_, state) = driver.transport.save().unwrap();
    (driver, state)
}

#[test]
fn a_restored_device_goes_on_where_the_saved_one_was() {
    let (mut driver, state) = saved();
    let text = serde_json::to_string(&state).unwrap();
    // Offered while nobody looks: the restored device must find it.
    let buffer = driver.writable(32);
    driver.submit(0, &[buffer]);
    driver.move_to(Box::new(Rng::new()), &serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(driver.used(0).1, 32);
    assert_eq!(driver.status(), 15);
    assert_alive(&mut driver);
}

#[test]
fn a_device_without_a_driver_is_saved_too() {
    let mut driver = MockDriver::new(Box::new(Rng::new()));
    driver.negotiate(MockDriver::plain_features());
    let (_, state) = driver.transport.save().unwrap();
    driver.move_to(Box::new(Rng::new()), &state).unwrap();
    assert_eq!(driver.status(), 11);
    driver.set_up_queue(0);
    driver.write(0x70, 15);
    assert_alive(&mut driver);
}

#[test]
fn a_broken_device_stays_broken_over_a_restore() {
    let mut driver = rng();
    driver.offer(0, 99);
    driver.kick(0);
    driver.wait_for_broken();
    driver.transport.pause();
    let (_, state) = driver.transport.save().unwrap();
    driver.move_to(Box::new(Rng::new()), &state).unwrap();
    assert_broken_until_reset(&mut driver);
}

#[test]
fn a_device_at_work_is_neither_saved_nor_restored() {
    let (mut driver, state) = saved();
    driver.transport.resume();
    let not_at_rest = StateError::NotAtRest("rng".to_owned());
    assert_eq!(driver.transport.save(), Err(not_at_rest.clone()));
    assert_eq!(driver.transport.restore(&state), Err(not_at_rest));
    assert_alive(&mut driver);
}

#[test]
fn saved_states_that_cannot_be_are_refused() {
    let (mut driver, state) = saved();
    let mut refused = |change: &dyn Fn(&mut TransportState)| {
        let mut wrong = state.clone();
        change(&mut wrong);
        let error = driver.move_to(Box::new(Rng::new()), &wrong).unwrap_err();
        assert_eq!(driver.status(), 0);
        driver.start(MockDriver::plain_features());
        assert_alive(&mut driver);
        error
    };
    assert!(matches!(refused(&|s| s.device_id = 2), StateError::Device { saved: 2, .. }));
    assert!(matches!(refused(&|s| s.queues.clear()), StateError::Device { queues: 0, .. }));
    for status in [4, 13, 15 | 64, 15 | 16, u32::MAX] {
        assert!(matches!(refused(&|s| s.status = status), StateError::Registers(_)));
    }
    assert!(matches!(refused(&|s| s.driver_features = 0), StateError::Registers(_)));
    assert!(matches!(refused(&|s| s.driver_features |= 1 << 60), StateError::Registers(_)));
    assert!(matches!(refused(&|s| s.queues[0].size = 3), StateError::Queue { queue: 0, .. }));
    assert!(matches!(refused(&|s| s.queues[0].device_ring = MEMORY_END), StateError::Queue { queue: 0, .. }));
    assert!(matches!(refused(&|s| s.queues[0].next_available += 17), StateError::Queue { queue: 0, .. }));
}

#[test]
fn the_index_wraps() {
    let mut driver = rng();
    let buffer = driver.writable(1);
    for _ in 0..70_000 {
        driver.submit(0, &[buffer]);
        driver.kick(0);
        driver.used(0);
    }
    assert_alive(&mut driver);
}

/// A device that watches an eventfd, reports what it sees, and panics on the word. It leaves the chains of queue 0 where
/// they are until it reads a 5.
struct Watcher {
    event: EventFd,
    writable: bool,
    closed: bool,
    kicked: bool,
    told: Sender<(u64, Readiness)>,
    panics: bool,
}

fn watcher(panics: bool) -> (Watcher, EventFd, Receiver<(u64, Readiness)>) {
    let (told, heard) = channel();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let writer = event.try_clone().unwrap();
    (Watcher { event, writable: false, closed: false, kicked: false, told, panics }, writer, heard)
}

impl VirtioDevice for Watcher {
    fn device_id(&self) -> u32 {
        42
    }

    fn name(&self) -> &str {
        "watcher"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }

    fn features(&self) -> u64 {
        1 << 32
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(7);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
        self.writable = false;
    }

    fn sources(&self) -> Vec<Source> {
        if self.closed {
            return Vec::new();
        }
        let fd: RawFd = self.event.as_raw_fd();
        vec![Source { fd, token: 9, readable: true, writable: self.writable }]
    }

    fn handle_queue(&mut self, index: usize, context: &mut Context) {
        match index {
            0 => context.drain(0, |_chain| self.closed.then_some(0)),
            1 if self.panics => panic!("asked to"),
            1 if self.kicked => self.writable = true,
            _ => self.kicked = true,
        }
    }

    fn handle_source(&mut self, token: u64, readiness: Readiness, context: &mut Context) {
        if readiness.readable && self.event.read().unwrap() == 5 {
            self.closed = true;
        }
        self.writable = false;
        if context.is_live(0) {
            self.handle_queue(0, context);
        }
        self.told.send((token, readiness)).unwrap();
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats { requests: 1, ..DeviceStats::default() }
    }

    fn state(&self) -> DeviceState {
        DeviceState::Rng
    }
}

#[test]
fn a_source_is_watched_for_what_the_device_asks() {
    let (device, event, heard) = watcher(false);
    let mut driver = MockDriver::started(Box::new(device));
    // An eventfd is writable at once, but nobody asked for that yet.
    event.write(1).unwrap();
    let readable = Readiness { readable: true, ..Readiness::default() };
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), (9, readable));
    driver.kick(1);
    let writable = Readiness { writable: true, ..Readiness::default() };
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), (9, writable));
    // After a pause the sources are watched again; after 5 the device wants none.
    driver.transport.pause();
    event.write(1).unwrap();
    driver.transport.resume();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap().0, 9);
    event.write(5).unwrap();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap().0, 9);
    event.write(1).unwrap();
    driver.transport.pause();
    assert!(heard.try_recv().is_err());
    assert!(driver.faults.lock().unwrap().is_empty());
}

#[test]
fn a_chain_that_is_left_in_its_queue_is_taken_later_and_survives_a_pause() {
    let (device, event, heard) = watcher(false);
    let mut driver = MockDriver::started(Box::new(device));
    let heads: Vec<_> = (0..2)
        .map(|_| {
            let buffer = driver.readable(&[1]);
            driver.submit(0, &[buffer])
        })
        .collect();
    driver.kick(0);
    event.write(1).unwrap();
    heard.recv_timeout(DEADLINE).unwrap();
    driver.transport.pause();
    assert_eq!(driver.used_index(0), 0);
    assert_eq!(driver.transport.save().unwrap().1.queues[0].next_available, 0);
    driver.transport.resume();
    event.write(5).unwrap();
    for head in heads {
        assert_eq!(driver.used(0).0, u32::from(head));
    }
}

#[test]
fn a_panic_in_a_worker_is_told_and_does_not_hang_the_rest() {
    let (device, _event, _heard) = watcher(true);
    let mut driver = MockDriver::new(Box::new(device));
    let (told, heard) = channel();
    let faults = std::sync::Arc::clone(&driver.faults);
    driver.negotiate(MockDriver::plain_features());
    driver.set_up_queue(0);
    driver.set_up_queue(1);
    // Starting handles each ready queue once, so the panic is on its way.
    driver.write(0x70, 15);
    std::thread::spawn(move || {
        while faults.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        told.send(()).unwrap();
    });
    heard.recv_timeout(DEADLINE).unwrap();
    assert_eq!(*driver.faults.lock().unwrap(), ["The worker of watcher panicked: asked to"]);
    let mut config = [0; 4];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config, [7; 4]);
    driver.transport.pause();
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 64);
    driver.write(0x70, 1);
    driver.transport.resume();
    assert_eq!(driver.transport.stats().requests, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any sequence of register accesses leaves a transport that a reset brings back.
    #[test]
    fn no_sequence_of_accesses_wedges_the_transport(
        accesses in prop::collection::vec((0u64..0x140, prop::sample::select(vec![1usize, 2, 4, 8]), any::<u64>(), any::<bool>()), 0..60),
        statuses in prop::collection::vec(0u32..256, 0..8),
    ) {
        let mut driver = MockDriver::new(Box::new(Rng::new()));
        for (step, (offset, bytes, value, write)) in accesses.into_iter().enumerate() {
            let mut data = value.to_le_bytes()[..bytes].to_vec();
            match write {
                true => driver.transport.write(offset, &data),
                false => driver.transport.read(offset, &mut data),
            }
            if let Some(status) = statuses.get(step / 4) {
                driver.write(0x70, *status);
            }
        }
        driver.start(MockDriver::plain_features());
        let buffer = driver.writable(8);
        prop_assert_eq!(driver.run(0, &[buffer]), 8);
    }

    /// Any bytes as descriptors: each chain ends, or the queue asks for a reset.
    #[test]
    fn any_descriptors_end(
        descriptors in prop::collection::vec((0u64..MEMORY_END + 4096, prop::sample::select(vec![0u32, 1, 15, 16, 64, 4096, u32::MAX]), 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..18, 1..16),
    ) {
        let mut driver = rng();
        for (number, (address, bytes, flags, next)) in descriptors.into_iter().enumerate() {
            driver.descriptor(0, number as u16, address, bytes, flags, next);
        }
        for head in &heads {
            driver.offer(0, *head);
        }
        driver.kick(0);
        let all = heads.len() as u16;
        driver.wait_until("end of all chains", |d| d.used_index(0) == all || d.status() & 64 != 0);
        prop_assert!(driver.faults.lock().unwrap().is_empty());
        let features = driver.offered();
        driver.start(features);
        assert_alive(&mut driver);
    }
}
