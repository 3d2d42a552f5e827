//! The device behind its registers, on a worker's thread of its own.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tempfile::TempDir;

use super::guest::{GUEST_CID, header};
use super::{read_line, spec};
use crate::devices::virtio::mock::{Buffer, MockDriver};
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, Header, Key, Op};

const RX: usize = 0;
const TX: usize = 1;
const PORT: u32 = 1024;

/// A driver that is up, with receive buffers of 4 KiB.
struct Machine {
    driver: MockDriver,
    buffers: Vec<(u32, Buffer)>,
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let driver = MockDriver::started(Box::new(Vsock::new(&spec(&folder)).unwrap()));
        let mut machine = Self { driver, buffers: Vec::new(), folder };
        for _ in 0..32 {
            let buffer = machine.driver.writable(4096);
            let head = machine.driver.submit(RX, &[buffer]);
            machine.buffers.push((head.into(), buffer));
        }
        machine.driver.kick(RX);
        machine
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, bytes) = self.driver.used(RX);
        let (_, buffer) = self.buffers.iter().find(|(number, _)| *number == head).unwrap();
        let mut contents = self.driver.contents(*buffer);
        contents.truncate(bytes as usize);
        let payload = contents.split_off(HEADER_BYTES);
        (Header::from_bytes(contents[..].try_into().unwrap()), payload)
    }

    fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        let (header, payload) = self.receive();
        assert_eq!(header.op, op as u16, "{header:?}");
        (header, payload)
    }

    fn send(&mut self, key: Key, op: Op, payload: &[u8]) {
        let bytes = header(key, op, payload.len()).to_bytes();
        let buffers = [self.driver.readable(&bytes), self.driver.readable(payload)];
        self.driver.submit(TX, &buffers[..if payload.is_empty() { 1 } else { 2 }]);
        self.driver.kick(TX);
    }

    /// A client with a stream.
    fn stream(&mut self) -> (UnixStream, Key) {
        let mut client = UnixStream::connect(self.folder.path().join("vsock")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(b"CONNECT 1024\n").unwrap();
        let (request, _) = self.expect(Op::Request);
        assert_eq!((request.dst_cid, request.dst_port), (GUEST_CID.into(), PORT));
        let key = Key { host_port: request.src_port, guest_port: PORT };
        self.send(key, Op::Response, &[]);
        assert_eq!(read_line(&mut client), format!("OK {}\n", key.host_port));
        (client, key)
    }
}

#[test]
fn a_stream_lives_on_through_a_pause() {
    let mut machine = Machine::new();
    let (mut client, key) = machine.stream();
    client.write_all(b"one").unwrap();
    assert_eq!(machine.expect(Op::ReadWrite).1, b"one");
    machine.driver.transport.pause();
    client.write_all(b"two").unwrap();
    let late = UnixStream::connect(machine.folder.path().join("vsock")).unwrap();
    machine.driver.transport.resume();
    assert_eq!(machine.expect(Op::ReadWrite).1, b"two");
    machine.send(key, Op::ReadWrite, b"three");
    let mut word = [0; 5];
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"three");
    drop(late);
}

#[test]
fn a_client_that_ended_and_then_goes_away_is_noticed_by_the_worker() {
    let mut machine = Machine::new();
    let (client, key) = machine.stream();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(machine.expect(Op::Shutdown).0.flags, 2);
    drop(client);
    assert_eq!(machine.expect(Op::Shutdown).0.flags, 3);
    machine.send(key, Op::Reset, &[]);
    let _next = machine.stream();
}

#[test]
fn a_stopped_device_leaves_no_socket_and_no_open_client() {
    let mut machine = Machine::new();
    let (mut client, _) = machine.stream();
    let Machine { driver, folder, .. } = machine;
    drop(driver);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
