//! Packets and queues that no honest driver makes.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::Machine;
use super::driver::{EVENT, F_INDIRECT, F_NEXT, F_WRITE, RX, TX};
use super::guest::{GUEST_BUFFER, header};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Key, Op};
use crate::devices::virtio::vsock::{BUFFER_BYTES, CONNECTIONS_MAX};

const PORT: u32 = 1024;
const NOBODY: Key = Key { host_port: 77, guest_port: 88 };

/// What the device answers to one packet, resets as `(src_port, dst_port)`.
fn answers(machine: &mut Machine, packet: &Header) -> Vec<(u16, u32, u32)> {
    machine.guest.driver.send(packet, &[]);
    let received = machine.guest.driver.received();
    received.iter().map(|(header, _)| (header.op, header.src_port, header.dst_port)).collect()
}

#[test]
fn packets_of_unknown_connections_are_reset_and_resets_are_not_answered() {
    let mut machine = Machine::new();
    let reset = vec![(Op::Reset as u16, NOBODY.host_port, NOBODY.guest_port)];
    for op in [Op::Response, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest] {
        assert_eq!(answers(&mut machine, &header(NOBODY, op, 0)), reset, "{op:?}");
    }
    assert_eq!(answers(&mut machine, &header(NOBODY, Op::Reset, 0)), []);
    let unknown = Header { op: 99, ..header(NOBODY, Op::Request, 0) };
    assert_eq!(answers(&mut machine, &unknown), reset);
    let datagram = Header { socket_type: 3, ..header(NOBODY, Op::Request, 0) };
    assert_eq!(answers(&mut machine, &datagram), reset);
    let elsewhere = Header { dst_cid: 9, ..header(NOBODY, Op::Request, 0) };
    assert_eq!(answers(&mut machine, &elsewhere), reset);
    let forged = Header { src_cid: HOST_CID, ..header(NOBODY, Op::Request, 0) };
    assert_eq!(answers(&mut machine, &forged), []);
    assert_eq!(machine.guest.driver.device.stats().errors, 9);
}

/// A stream, the guest's packet about it, and what comes of it.
fn breaks_the_stream(spoil: impl FnOnce(&mut Header) -> Vec<u8>) {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    let key = *machine.guest.sockets.keys().next().unwrap();
    let mut packet = header(key, Op::ReadWrite, 0);
    let payload = spoil(&mut packet);
    packet.len = payload.len() as u32;
    machine.guest.driver.send(&packet, &payload);
    machine.guest.settle();
    assert!(machine.guest.only().reset);
    assert!(matches!(client.read(&mut [0; 1]), Ok(0)));
    assert_eq!(machine.guest.driver.device.streams(), 0);
}

#[test]
fn a_stream_whose_guest_lies_is_reset() {
    breaks_the_stream(|packet| {
        packet.op = Op::Request as u16;
        Vec::new()
    });
    breaks_the_stream(|packet| {
        packet.op = Op::Response as u16;
        Vec::new()
    });
    // Bytes taken that were never sent.
    breaks_the_stream(|packet| {
        packet.fwd_cnt = 1;
        Vec::new()
    });
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    let key = *machine.guest.sockets.keys().next().unwrap();
    let payload = vec![1; 64 << 10];
    let mut sent = 0;
    while !machine.guest.only().reset {
        assert!(sent < 4 * BUFFER_BYTES as usize, "nothing stops the guest");
        machine.guest.driver.send(&header(key, Op::ReadWrite, payload.len()), &payload);
        machine.guest.settle();
        sent += payload.len();
    }
    let mut bytes = vec![0; sent - payload.len()];
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    while machine.guest.driver.device.streams() > 0 {
        let room = bytes.len().min(4096);
        let _taken = client.read(&mut bytes[..room]).unwrap();
        machine.guest.settle();
    }
}

#[test]
fn data_after_the_end_is_refused() {
    let mut machine = Machine::new();
    let _client = machine.stream(PORT);
    let key = *machine.guest.sockets.keys().next().unwrap();
    machine.guest.only().shut_send();
    machine.guest.settle();
    machine.guest.driver.send(&header(key, Op::ReadWrite, 1), b"x");
    machine.guest.settle();
    assert!(machine.guest.only().reset);
}

#[test]
fn an_old_credit_is_passed_over() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    let bytes = super::noise(1, 100_000);
    std::io::Write::write_all(&mut client, &bytes).unwrap();
    machine.guest.run_until("the bytes", |guest| guest.only().read.len() == bytes.len());
    let key = *machine.guest.sockets.keys().next().unwrap();
    let old = Header { buf_alloc: 0, ..header(key, Op::CreditUpdate, 0) };
    machine.guest.driver.send(&old, &[]);
    std::io::Write::write_all(&mut client, &bytes).unwrap();
    machine.guest.run_until("more bytes", |guest| guest.only().read.len() == 2 * bytes.len());
}

#[test]
fn a_flood_of_nonsense_is_answered_within_bounds_and_streams_go_on() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    machine.guest.driver.starve_rx = true;
    let mut taken = 0;
    // Until the device takes no more, since its answers find no buffer.
    for port in 0..2000 {
        let packet = header(Key { host_port: 9, guest_port: port }, Op::CreditUpdate, 0);
        if !machine.guest.driver.try_send(&packet) {
            break;
        }
        machine.guest.driver.received();
        taken += 1;
    }
    assert!((256..600).contains(&taken), "{taken} packets were taken");
    std::io::Write::write_all(&mut client, b"through").unwrap();
    machine.guest.driver.feed_rx();
    machine.guest.run_until("the stream", |guest| guest.only().read == b"through");
    machine.guest.settle();
    let resets = machine.guest.log.iter().filter(|header| header.op == Op::Reset as u16).count();
    assert!(resets > 0 && machine.guest.driver.tx_held() < 20);
}

#[test]
fn connections_are_bounded() {
    let mut machine = Machine::new();
    let listener = UnixListener::bind(machine.folder.path().join("vsock_5")).unwrap();
    let mut held = Vec::new();
    let mut ports = 0..CONNECTIONS_MAX as u32 + 10;
    loop {
        let calls: Vec<Key> = ports.by_ref().take(40).map(|port| machine.guest.call(port, 5)).collect();
        if calls.is_empty() {
            break;
        }
        machine.guest.settle();
        let accepted = calls.iter().filter(|key| !machine.guest.sockets[*key].reset).count();
        held.extend((0..accepted).map(|_| listener.accept().unwrap().0));
    }
    let refused = machine.guest.sockets.values().filter(|socket| socket.reset).count();
    assert_eq!((held.len(), refused), (CONNECTIONS_MAX, 10));
    // Streams that only wait for the guest to agree give way.
    machine.guest.readers = false;
    machine.guest.sockets.clear();
    drop(held.split_off(CONNECTIONS_MAX - 3));
    while machine.guest.driver.wait_sources(Duration::ZERO) {}
    let lingering = machine.guest.driver.received();
    assert_eq!(lingering.iter().filter(|(header, _)| header.op == Op::Shutdown as u16).count(), 3);
    let key = machine.guest.call(90_000, 5);
    machine.guest.settle();
    assert!(machine.guest.sockets[&key].open && !machine.guest.sockets[&key].reset);
}

#[test]
fn short_and_crooked_transmit_chains_are_given_back_unanswered() {
    let mut machine = Machine::new();
    let driver = &mut machine.guest.driver;
    let packet = header(NOBODY, Op::ReadWrite, 1000);
    driver.context.memory.write_slice(&packet.to_bytes(), GuestAddress(0x50_0000)).unwrap();
    let ring = &mut driver.rings[TX];
    let header_bytes = HEADER_BYTES as u32;
    // Each is head, and its descriptors (address, len, flags, next).
    let chains = [
        (40, vec![(0x50_0000, header_bytes - 1, 0, 0)]),
        (41, vec![(0x50_0000, 0, 0, 0)]),
        (42, vec![(0x50_0000, header_bytes, F_WRITE, 0)]),
        // The payload is shorter than its header says.
        (43, vec![(0x50_0000, header_bytes + 999, 0, 0)]),
        // Past the memory's end, and past all addresses.
        (44, vec![(0x4000_0000, header_bytes, 0, 0)]),
        (45, vec![(u64::MAX - 10, 44, 0, 0)]),
        (46, vec![(0x50_0000, u32::MAX, 0, 0)]),
        // A loop, and a next beyond the table.
        (47, vec![(0x50_0000, 1, F_NEXT, 47)]),
        (48, vec![(0x50_0000, 1, F_NEXT, 5000)]),
        // An indirect table that names itself, and one of a crooked length.
        (49, vec![(0x60_0000, 16, F_INDIRECT, 0)]),
        (50, vec![(0x60_0000, 17, F_INDIRECT, 0)]),
        (51, vec![(0x60_0000, 16, F_INDIRECT | F_NEXT, 49)]),
    ];
    ring.write(0x60_0000_u64, 0x60_0000);
    ring.write(16_u32, 0x60_0008);
    ring.write(F_INDIRECT, 0x60_000c);
    for (head, descriptors) in &chains {
        for (at, &(address, len, flags, next)) in descriptors.iter().enumerate() {
            ring.describe(head + at as u16, address, len, flags, next);
        }
        ring.publish(*head);
    }
    driver.device.handle_queue(TX, &mut driver.context);
    driver.device.come_to_rest(&mut driver.context);
    let used: Vec<u16> = std::iter::from_fn(|| driver.rings[TX].take_used()).map(|(head, _)| head).collect();
    assert_eq!(used, chains.iter().map(|(head, _)| *head).collect::<Vec<_>>());
    assert!(driver.received().is_empty());
    assert_eq!(driver.device.stats().errors, chains.len() as u64);
    assert!(!driver.context.interrupt.needs_reset());
    let _client = machine.stream(PORT);
}

#[test]
fn receive_buffers_of_no_use_are_given_back_empty() {
    let mut machine = Machine::new();
    let driver = &mut machine.guest.driver;
    // All good ones are taken out first.
    driver.starve_rx = true;
    for port in 0..64 {
        driver.send(&header(Key { host_port: 9, guest_port: port }, Op::CreditUpdate, 0), &[]);
    }
    assert_eq!(driver.received().len(), 64);
    let ring = &mut driver.rings[RX];
    ring.describe(0, 0x50_0000, HEADER_BYTES as u32, F_WRITE, 0);
    ring.describe(1, 0x50_0000, 4096, 0, 0);
    ring.describe(2, u64::MAX - 4000, 4096, F_WRITE, 0);
    ring.describe(3, 0x50_0000, 4096, F_WRITE, 0);
    (0..4).for_each(|head| ring.publish(head));
    driver.send(&header(NOBODY, Op::CreditUpdate, 0), &[]);
    let used: Vec<(u16, u32)> = std::iter::from_fn(|| driver.rings[RX].take_used()).collect();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (3, HEADER_BYTES as u32)]);
}

#[test]
fn an_index_that_jumps_breaks_the_device_and_nothing_else() {
    for queue in [RX, TX, EVENT] {
        let mut machine = Machine::new();
        let _client = machine.stream(PORT);
        machine.guest.driver.rings[queue].set_avail_index(40_000);
        let client = machine.client(PORT);
        let driver = &mut machine.guest.driver;
        driver.device.handle_queue(queue, &mut driver.context);
        driver.wait_sources(Duration::ZERO);
        driver.wait_sources(Duration::ZERO);
        // The event queue is not looked at unless an event is due.
        assert_eq!(driver.context.interrupt.needs_reset(), queue != EVENT, "queue {queue}");
        driver.device.come_to_rest(&mut driver.context);
        driver.device.reset();
        drop(client);
    }
}

fn any_header() -> impl Strategy<Value = Header> {
    let cid = prop_oneof![8 => Just(0_u64), 1 => any::<u64>()];
    let key = (prop_oneof![Just(5_u32), Just(6), Just((1 << 30) + 1), any::<u32>()], prop_oneof![0..4_u32, Just(PORT)]);
    let op = prop_oneof![8 => 1..8_u16, 1 => any::<u16>()];
    let socket_type = prop_oneof![12 => Just(1_u16), 1 => any::<u16>()];
    let len = prop_oneof![4 => 0..3000_u32, 2 => Just(65_536), 1 => any::<u32>()];
    let count = || prop_oneof![4 => 0..4096_u32, 1 => Just(GUEST_BUFFER), 1 => any::<u32>()];
    (cid, key, op, socket_type, len, 0..5_u32, count(), count()).prop_map(
        |(cid, (host_port, guest_port), op, socket_type, len, flags, buf_alloc, fwd_cnt)| {
            let honest = header(Key { host_port, guest_port }, Op::Request, 0);
            Header {
                src_cid: honest.src_cid ^ cid,
                socket_type,
                op,
                len,
                flags,
                buf_alloc,
                // Mostly a count that is believed.
                fwd_cnt: if fwd_cnt < 3500 { 0 } else { fwd_cnt },
                ..honest
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the guest says, the device stays within its bounds, comes to rest, and serves the next stream.
    #[test]
    fn no_sequence_of_packets_harms_the_device(packets in prop::collection::vec((any_header(), 0..70_000_usize), 1..60)) {
        let mut machine = Machine::new();
        let listener = UnixListener::bind(machine.folder.path().join("vsock_5")).unwrap();
        let _clients = [machine.client(PORT), machine.client(2)];
        for (packet, payload) in &packets {
            let payload = vec![7; (*payload).min(packet.len as usize)];
            machine.guest.driver.try_send_with(packet, &payload);
            machine.guest.driver.wait_sources(Duration::ZERO);
            machine.guest.driver.received();
            prop_assert!(!machine.guest.driver.context.interrupt.needs_reset());
            prop_assert!(machine.guest.driver.device.streams() <= packets.len() + 2);
        }
        drop(listener);
        machine.guest.sockets.clear();
        let _stream = machine.stream(3);
    }
}
