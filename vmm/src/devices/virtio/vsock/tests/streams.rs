//! Streams as their users see them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use super::driver::{Driver, RX};
use super::guest::{GUEST_BUFFER, Guest};
use super::{Machine, noise, read_line, spec};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::vsock::packet::Op;
use crate::devices::virtio::vsock::{BUFFER_BYTES, ListenError, Vsock, VsockError};

const PORT: u32 = 1024;

#[test]
fn bytes_go_both_ways() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    client.write_all(b"hello").unwrap();
    machine.guest.run_until("hello", |guest| guest.only().read == b"hello");
    machine.guest.only().to_send.extend(b"world");
    machine.guest.settle();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"world");
}

#[test]
fn ten_megabytes_each_way_at_once_arrive_whole() {
    let mut machine = Machine::new();
    let client = machine.stream(PORT);
    let (up, down) = (noise(1, 10 << 20), noise(2, 10 << 20));
    machine.guest.only().to_send.extend(&up);
    machine.guest.only().shut_send();
    let reader = reader(client.try_clone().unwrap());
    let writer = writer(client, down.clone());
    machine.guest.run_until("the end", |guest| guest.only().reset && guest.driver.device.streams() == 0);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == up);
    assert!(machine.guest.only().read == down);
    // Full packets: 10 MiB in buffers of 4 KiB, and a few short ones where the credit or the socket ran out.
    let least = (10 << 20) / (4096 - 44);
    let packets = machine.guest.only().packets;
    assert!(packets < least + least / 4, "{packets} packets, at least {least} are needed");
}

#[test]
fn many_streams_share_the_queues() {
    let mut machine = Machine::new();
    let count = 40_u64;
    let mut readers = Vec::new();
    for n in 0..count {
        let client = machine.stream(PORT + n as u32);
        let key = *machine.guest.sockets.keys().find(|key| key.guest_port == PORT + n as u32).unwrap();
        let socket = machine.guest.sockets.get_mut(&key).unwrap();
        socket.to_send.extend(noise(n, 300 << 10));
        socket.shut_send();
        readers.push((reader(client.try_clone().unwrap()), writer(client, noise(n + 1000, 200 << 10))));
    }
    machine.guest.run_until("all ends", |guest| guest.driver.device.streams() == 0);
    machine.guest.settle();
    assert!(machine.guest.sockets.values().all(|socket| socket.reset));
    for (n, (reader, writer)) in readers.into_iter().enumerate() {
        writer.join().unwrap();
        assert!(reader.join().unwrap() == noise(n as u64, 300 << 10));
        let port = PORT + n as u32;
        let (_, socket) = machine.guest.sockets.iter().find(|(key, _)| key.guest_port == port).unwrap();
        assert!(socket.read == noise(n as u64 + 1000, 200 << 10));
    }
}

#[test]
fn a_slow_guest_reader_does_not_hold_up_the_others() {
    let mut machine = Machine::new();
    machine.guest.readers = false;
    let slow = machine.stream(PORT);
    let slow_writer = writer(slow.try_clone().unwrap(), noise(3, 2 << 20));
    machine.guest.run_until("a full guest buffer", |guest| guest.only().unread.len() == GUEST_BUFFER as usize);
    machine.guest.settle();
    machine.guest.readers = true;
    let fast = machine.stream(PORT + 1);
    let fast_writer = writer(fast, noise(4, 2 << 20));
    machine.guest.run_until("the fast stream", |guest| guest.sockets.values().any(|s| s.read.len() == 2 << 20));
    fast_writer.join().unwrap();
    machine.guest.sockets.values_mut().for_each(|socket| socket.reads = true);
    machine.guest.run_until("the slow stream", |guest| guest.sockets.values().all(|s| s.read.len() == 2 << 20));
    slow_writer.join().unwrap();
    assert!(machine.guest.sockets.values().any(|socket| socket.read == noise(3, 2 << 20)));
    drop(slow);
}

#[test]
fn a_slow_host_reader_stops_the_guest_at_the_promised_buffer() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    machine.guest.only().to_send.extend(noise(5, 4 << 20));
    machine.guest.only().shut_send();
    machine.guest.settle();
    let left = machine.guest.only().to_send.len();
    assert!(left > 0, "the guest was never stopped");
    let mut first = vec![0; (4 << 20) - left - BUFFER_BYTES as usize];
    client.read_exact(&mut first).unwrap();
    let reader = reader(client);
    machine.guest.run_until("all bytes", |guest| guest.only().to_send.is_empty());
    machine.guest.only().close();
    machine.guest.run_until("the end", |guest| guest.only().reset && guest.driver.device.streams() == 0);
    first.extend(reader.join().unwrap());
    assert!(first == noise(5, 4 << 20));
}

#[test]
fn the_guest_may_end_first_and_still_read() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    machine.guest.only().to_send.extend(b"last words");
    machine.guest.only().shut_send();
    machine.guest.settle();
    let mut words = Vec::new();
    client.read_to_end(&mut words).unwrap();
    assert_eq!(words, b"last words");
    client.write_all(b"answer").unwrap();
    machine.guest.run_until("the answer", |guest| guest.only().read == b"answer");
    drop(client);
    machine.guest.run_until("the end", |guest| guest.only().reset);
    assert_eq!(machine.guest.driver.device.streams(), 0);
}

#[test]
fn the_host_may_end_first_and_still_read() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    machine.guest.run_until("the question", |guest| guest.only().at_end());
    assert!(!machine.guest.only().reset);
    machine.guest.only().to_send.extend(b"answer");
    machine.guest.only().close();
    machine.guest.settle();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    assert!(machine.guest.only().reset);
    assert_eq!(machine.guest.driver.device.streams(), 0);
}

#[test]
fn a_client_that_ended_and_then_goes_away_is_noticed_at_once() {
    let mut machine = Machine::new();
    let client = machine.stream(PORT);
    client.shutdown(Shutdown::Write).unwrap();
    machine.guest.run_until("the end", |guest| guest.only().at_end());
    machine.guest.settle();
    assert!(!machine.guest.only().reset);
    drop(client);
    machine.guest.run_until("both ends", |guest| guest.only().reset);
    machine.guest.settle();
    assert_eq!(machine.guest.driver.device.streams(), 0);
}

#[test]
fn a_closed_client_ends_the_guest_after_its_last_byte() {
    let mut machine = Machine::new();
    machine.guest.readers = false;
    let mut client = machine.stream(PORT);
    // More than the guest has room for, less than socket and guest together.
    let bytes = noise(6, (GUEST_BUFFER as usize) + (64 << 10));
    let sent = bytes.clone();
    let writer = thread::spawn(move || client.write_all(&sent).unwrap());
    machine.guest.run_until("a full guest", |guest| guest.only().unread.len() == GUEST_BUFFER as usize);
    writer.join().unwrap();
    machine.guest.settle();
    assert_eq!(machine.guest.only().host_shutdown, 1, "nobody reads any more, though bytes are still to come");
    machine.guest.only().reads = true;
    machine.guest.run_until("the end", |guest| guest.only().reset);
    assert!(machine.guest.only().read == bytes);
}

#[test]
fn a_closed_guest_leaves_its_last_bytes_to_a_slow_client() {
    let mut machine = Machine::new();
    let client = machine.stream(PORT);
    let bytes = noise(7, BUFFER_BYTES as usize);
    machine.guest.only().to_send.extend(&bytes);
    machine.guest.only().close();
    machine.guest.settle();
    assert!(machine.guest.only().to_send.is_empty(), "does not fit into socket and buffer");
    assert!(machine.guest.only().reset, "the guest's port must be free at once");
    let reader = reader(client);
    machine.guest.run_until("all bytes", |guest| guest.driver.device.streams() == 0);
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn a_reset_by_the_guest_closes_the_client() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    let key = *machine.guest.sockets.keys().next().unwrap();
    machine.guest.say(key, Op::Reset);
    machine.guest.sockets.clear();
    machine.guest.settle();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(client.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(machine.guest.driver.device.streams(), 0);
}

#[test]
fn a_client_that_reads_no_more_is_told_to_the_guest() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    client.shutdown(Shutdown::Read).unwrap();
    machine.guest.only().to_send.extend(noise(8, 1 << 20));
    machine.guest.settle();
    assert_eq!(machine.guest.only().host_shutdown, 1, "the host receives no more");
    client.write_all(b"still here").unwrap();
    machine.guest.run_until("the other way", |guest| guest.only().read == b"still here");
}

#[test]
fn a_guest_that_reads_no_more_breaks_the_clients_pipe() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    machine.guest.only().shutdown_after = 1;
    machine.guest.settle();
    assert_eq!(client.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    machine.guest.only().to_send.extend(b"still here");
    machine.guest.settle();
    let mut word = [0; 10];
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"still here");
}

#[test]
fn a_client_that_goes_away_from_a_deaf_guest_is_noticed_at_once() {
    let mut machine = Machine::new();
    let client = machine.stream(PORT);
    machine.guest.only().shutdown_after = 1;
    machine.guest.settle();
    drop(client);
    machine.guest.settle();
    assert!(machine.guest.only().reset);
    assert_eq!(machine.guest.driver.device.streams(), 0);
}

#[test]
fn a_port_without_a_listener_closes_the_client() {
    let mut machine = Machine::new();
    let mut client = machine.client(99);
    machine.guest.run_until("the refusal", |guest| guest.log.iter().any(|header| header.op == Op::Request as u16));
    machine.guest.settle();
    assert_eq!(read_line(&mut client), "");
    assert_eq!(machine.guest.driver.device.streams(), 0);
}

#[test]
fn nonsense_instead_of_connect_closes_the_client() {
    let machine = Machine::new();
    let mut guest = machine.guest;
    for line in ["HELLO\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT 1 2\n", &"C".repeat(100)] {
        let mut client = UnixStream::connect(machine.folder.path().join("vsock")).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        guest.settle();
        // A close with bytes unread may be told as a reset.
        assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)), "{line:?}");
    }
    assert!(guest.log.is_empty());
}

#[test]
fn the_connect_line_may_come_in_pieces_and_data_right_behind_it() {
    let mut machine = Machine::new();
    machine.guest.listens.insert(PORT);
    let mut client = UnixStream::connect(machine.socket()).unwrap();
    for piece in ["CON", "NECT 10", "24", "\nearly"] {
        assert!(machine.guest.sockets.is_empty());
        client.write_all(piece.as_bytes()).unwrap();
        machine.guest.settle();
    }
    machine.guest.run_until("the data", |guest| guest.only().read == b"early");
    assert!(read_line(&mut client).starts_with("OK 10737418"));
}

#[test]
fn a_client_waits_for_the_driver() {
    let folder = tempfile::TempDir::new().unwrap();
    let device = Vsock::new(&spec(&folder)).unwrap();
    let mut client = UnixStream::connect(folder.path().join("vsock")).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let mut guest = Guest::new(Driver::new(device));
    guest.listens.insert(PORT);
    guest.run_until("the call", |guest| !guest.sockets.is_empty());
    guest.settle();
    assert!(read_line(&mut client).starts_with("OK "));
}

#[test]
fn a_new_driver_gets_the_unanswered_calls_and_none_of_the_old_streams() {
    let mut machine = Machine::new();
    let mut old = machine.stream(PORT);
    // Nobody answers, nobody refuses: the request is lost with the driver.
    machine.guest.driver.starve_rx = true;
    let mut waiting = machine.client(PORT);
    while machine.guest.driver.wait_sources(Duration::ZERO) {}
    assert_eq!(machine.guest.driver.received().len(), 1);
    let Machine { guest, folder } = machine;
    let mut device = guest.driver.device;
    device.reset();
    assert_eq!(old.read(&mut [0; 1]).unwrap(), 0);
    let mut guest = Guest::new(Driver::new(device));
    guest.listens.insert(PORT);
    guest.run_until("the call", |guest| !guest.sockets.is_empty());
    guest.settle();
    assert!(read_line(&mut waiting).starts_with("OK "));
    drop(folder);
}

#[test]
fn a_client_that_gives_up_while_it_waits_is_forgotten() {
    let mut machine = Machine::new();
    machine.guest.driver.starve_rx = true;
    let client = machine.client(PORT);
    while machine.guest.driver.wait_sources(Duration::ZERO) {}
    assert_eq!(machine.guest.driver.device.streams(), 1);
    drop(client);
    while machine.guest.driver.wait_sources(Duration::ZERO) {}
    assert_eq!(machine.guest.driver.device.streams(), 0);
    let ops: Vec<u16> = machine.guest.driver.received().iter().map(|(header, _)| header.op).collect();
    assert_eq!(ops, [Op::Request as u16, Op::Reset as u16]);
}

#[test]
fn the_guest_calls_a_listener_on_the_host() {
    let mut machine = Machine::new();
    let listener = UnixListener::bind(machine.folder.path().join("vsock_1025")).unwrap();
    let key = machine.guest.call(5000, 1025);
    machine.guest.sockets.get_mut(&key).unwrap().to_send.extend(b"ready");
    machine.guest.sockets.get_mut(&key).unwrap().close();
    machine.guest.settle();
    let mut words = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut words).unwrap();
    assert_eq!(words, b"ready");
    assert!(machine.guest.only().reset);
}

#[test]
fn the_guests_call_to_nobody_is_reset() {
    let mut machine = Machine::new();
    machine.guest.call(5000, 1025);
    machine.guest.settle();
    assert!(machine.guest.only().reset);
    assert!(!machine.guest.only().open);
}

#[test]
fn without_receive_buffers_nothing_is_lost() {
    let mut machine = Machine::new();
    let client = machine.stream(PORT);
    machine.guest.driver.starve_rx = true;
    let bytes = noise(9, 1 << 20);
    let writer = writer(client, bytes.clone());
    let kicks = machine.guest.driver.kicks[RX];
    machine.guest.run_until("starvation", |guest| guest.only().packets >= 64);
    machine.guest.settle();
    assert_eq!(machine.guest.only().packets, 64, "one packet in each buffer");
    assert_eq!(machine.guest.driver.kicks[RX], kicks);
    machine.guest.driver.feed_rx();
    machine.guest.run_until("all bytes", |guest| guest.only().read.len() == bytes.len());
    writer.join().unwrap();
    assert!(machine.guest.only().read == bytes);
}

#[test]
fn transmit_buffers_come_back_with_the_next_packet_or_before_they_run_out() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    let before = machine.guest.driver.interrupts;
    for n in 1..=3 {
        machine.guest.only().to_send.extend(b"x");
        machine.guest.settle();
        assert!(machine.guest.driver.tx_held() >= n, "given back without need");
    }
    assert_eq!(machine.guest.driver.interrupts, before);
    client.write_all(b"y").unwrap();
    machine.guest.run_until("y", |guest| guest.only().read == b"y");
    for _ in 0..100 {
        machine.guest.only().to_send.extend(b"x");
        machine.guest.settle();
    }
    let interrupts = machine.guest.driver.interrupts - before;
    assert!(interrupts < 20, "{interrupts} interrupts for 103 packets out and one in");
    let held = machine.guest.driver.tx_held();
    assert!(held < 16);
    machine.guest.driver.device.come_to_rest(&mut machine.guest.driver.context);
    assert_eq!(machine.guest.driver.tx_held(), 0, "a device at rest owes the queues nothing");
}

/// Linux does not wake a sender whose packets are charged to its socket still, though it has credit again.
#[test]
fn large_transmit_buffers_come_back_though_nothing_else_is_due() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    machine.guest.settle();
    let bytes = noise(3, 40 << 10);
    machine.guest.only().to_send.extend(&bytes);
    machine.guest.settle();
    let mut got = vec![0; bytes.len()];
    client.read_exact(&mut got).unwrap();
    assert!(got == bytes);
    assert_eq!(machine.guest.driver.tx_held(), 0);
}

#[test]
fn a_pause_keeps_the_streams() {
    let mut machine = Machine::new();
    let mut client = machine.stream(PORT);
    machine.guest.driver.device.come_to_rest(&mut machine.guest.driver.context);
    client.write_all(b"while at rest").unwrap();
    machine.guest.driver.start();
    machine.guest.run_until("the bytes", |guest| guest.only().read == b"while at rest");
    machine.guest.only().to_send.extend(b"after");
    machine.guest.settle();
    let mut word = [0; 5];
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"after");
}

#[test]
fn fifty_pauses_under_traffic_lose_nothing() {
    let mut machine = Machine::new();
    let client = machine.stream(PORT);
    let (up, down) = (noise(10, 4 << 20), noise(11, 4 << 20));
    machine.guest.only().to_send.extend(&up);
    machine.guest.only().shut_send();
    let (reader, writer) = (reader(client.try_clone().unwrap()), writer(client, down.clone()));
    let mut pauses = 0;
    machine.guest.run_until("the end", |guest| {
        pauses += 1;
        guest.driver.pause_and_resume();
        guest.only().reset && guest.driver.device.streams() == 0
    });
    writer.join().unwrap();
    assert!(pauses >= 50, "only {pauses} pauses");
    assert!(reader.join().unwrap() == up && machine.guest.only().read == down);
}

#[test]
fn fifty_restores_under_traffic_each_give_a_guest_that_can_be_called() {
    let Machine { mut guest, mut folder } = Machine::new();
    for cycle in 0..50 {
        let mut machine = Machine { guest, folder };
        let mut client = machine.stream(PORT);
        machine.guest.only().to_send.extend(noise(cycle, 1 << 20));
        client.set_nonblocking(true).unwrap();
        let _some = client.write(&noise(cycle, 100_000)).unwrap();
        // Packets are under way both ways in the queues.
        for _ in 0..cycle % 5 {
            machine.guest.step();
        }
        let Machine { guest: old, folder: kept } = machine;
        let driver = old.driver.restore(|device| {
            let state = device.vsock_state().try_into().unwrap();
            drop(device);
            Vsock::restore(&spec(&kept), &state).unwrap()
        });
        (guest, folder) = (Guest { driver, ..old }, kept);
        guest.settle();
        assert_eq!(guest.driver.events(), [0]);
        // Linux resets its connected sockets.
        guest.sockets.clear();
    }
}

#[test]
fn after_a_restore_the_guest_forgets_its_streams_before_the_host_calls() {
    let mut machine = Machine::new();
    let _old = machine.stream(PORT);
    let state = machine.guest.driver.device.vsock_state();
    let Machine { guest, folder } = machine;
    drop(guest);
    let device = Vsock::restore(&spec(&folder), &state.clone().try_into().unwrap()).unwrap();
    let mut client = UnixStream::connect(folder.path().join("vsock")).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let mut guest = Guest::new(Driver::new(device));
    guest.listens.insert(PORT);
    guest.settle();
    assert!(guest.sockets.is_empty(), "the call came before the guest knew");
    assert_eq!(guest.driver.events(), [0], "one transport reset");
    guest.run_until("the call", |guest| !guest.sockets.is_empty());
    guest.settle();
    assert!(read_line(&mut client).starts_with(&format!("OK {}", state.next_port)));
    assert!(guest.driver.events().is_empty());
}

#[test]
fn the_socket_is_private_and_gone_with_the_device() {
    let folder = tempfile::TempDir::new().unwrap();
    let spec = spec(&folder);
    let device = Vsock::new(&spec).unwrap();
    let meta = std::fs::metadata(&spec.socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert!(matches!(Vsock::new(&spec), Err(VsockError::Listen(ListenError::InUse(_)))));
    drop(device);
    assert!(!spec.socket.exists());
    // A socket that a killed process left behind.
    drop(UnixListener::bind(&spec.socket).unwrap());
    drop(Vsock::new(&spec).unwrap());
    std::fs::write(&spec.socket, "precious").unwrap();
    assert!(Vsock::new(&spec).is_err());
    assert_eq!(std::fs::read(&spec.socket).unwrap(), b"precious");
}

#[test]
fn a_spec_that_makes_no_sense_is_refused_by_field() {
    let folder = tempfile::TempDir::new().unwrap();
    for guest_cid in [0, 1, 2, u32::MAX] {
        let error = Vsock::new(&cove_protocol::vmm::VsockSpec { guest_cid, ..spec(&folder) }).unwrap_err();
        assert!(error.to_string().contains("vsock.guest_cid"), "{error}");
    }
    let socket = folder.path().join("x".repeat(100));
    let error = Vsock::new(&cove_protocol::vmm::VsockSpec { socket, ..spec(&folder) }).unwrap_err();
    assert!(error.to_string().contains("vsock.socket"), "{error}");
}

fn reader(mut client: UnixStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn writer(mut client: UnixStream, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        client.write_all(&bytes).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    })
}
