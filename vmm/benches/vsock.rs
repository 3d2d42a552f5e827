//! `cargo bench -p cove-vmm --bench vsock --features test-utils`: what the vsock device costs on the host, without a
//! guest's own work: the device on its worker, a mock driver with receive buffers of 4 KiB. Prints one line a figure.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use cove_protocol::vmm::VsockSpec;
use cove_vmm::devices::virtio::mock::{Buffer, MockDriver};
use cove_vmm::devices::virtio::vsock::Vsock;
use vm_memory::{Bytes, GuestAddress};

const GUEST_CID: u64 = 3;
const PORT: u32 = 1024;
const RX: usize = 0;
const TX: usize = 1;
const HEADER_BYTES: usize = 44;
const PACKET_BYTES: usize = 64 << 10;
const RECEIVE_BYTES: u32 = 4096;
const STREAM_BYTES: usize = 256 << 20;
const GUEST_BUFFER_BYTES: u32 = 1 << 20;

/// Operations (virtio 1.2, 5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const READ_WRITE: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

fn main() {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let socket = folder.path().join("vsock");
    let spec = VsockSpec { guest_cid: GUEST_CID as u32, socket: socket.clone() };
    let device = Vsock::new(&spec).expect("a vsock device");
    let mut guest = Guest::new(MockDriver::started(Box::new(device)));
    let mut client = guest.accept(&socket);
    timed("a byte to the guest and one back", 10_000, || echo(&mut guest, &mut client, 10_000));

    let mut writer = client.try_clone().expect("a second descriptor");
    let sending = std::thread::spawn(move || {
        let bytes = vec![7; 1 << 20];
        (0..STREAM_BYTES >> 20).for_each(|_| writer.write_all(&bytes).expect("write"));
    });
    timed("host to guest, MiB", STREAM_BYTES >> 20, || guest.read(STREAM_BYTES));
    sending.join().expect("the writer");

    let receiving = std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        (0..STREAM_BYTES >> 20).for_each(|_| client.read_exact(&mut bytes).expect("read"));
    });
    timed("guest to host, MiB", STREAM_BYTES >> 20, || guest.write(STREAM_BYTES));
    receiving.join().expect("the reader");
}

fn timed<T>(what: &str, count: usize, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what:40} {:>10.2} µs each", start.elapsed().as_secs_f64() * 1e6 / count as f64);
    result
}

fn echo(guest: &mut Guest, client: &mut UnixStream, count: usize) {
    for _ in 0..count {
        client.write_all(b"x").expect("write");
        guest.read(1);
        guest.write(1);
        client.read_exact(&mut [0]).expect("read");
    }
}

/// The guest's end of one stream.
struct Guest {
    driver: MockDriver,
    receive: Vec<Buffer>,
    transmit: Vec<Buffer>,
    /// Packets that were sent, and of these those whose buffers came back.
    packets_sent: usize,
    packets_back: usize,
    host_port: u32,
    /// Credit: bytes read and told, bytes sent, and what the host said of its end.
    read: u32,
    told_read: u32,
    sent: u32,
    host_read: u32,
    host_buffer: u32,
}

impl Guest {
    fn new(mut driver: MockDriver) -> Self {
        let receive: Vec<Buffer> = (0..64).map(|_| driver.writable(RECEIVE_BYTES)).collect();
        let transmit = (0..32).map(|_| driver.readable(&[9; HEADER_BYTES + PACKET_BYTES])).collect();
        for buffer in &receive {
            driver.submit(RX, &[*buffer]);
        }
        driver.kick(RX);
        let (packets_sent, packets_back, host_port) = (0, 0, 0);
        let (read, told_read, sent, host_read, host_buffer) = (0, 0, 0, 0, 0);
        Self {
            driver,
            receive,
            transmit,
            packets_sent,
            packets_back,
            host_port,
            read,
            told_read,
            sent,
            host_read,
            host_buffer,
        }
    }

    fn accept(&mut self, socket: &Path) -> UnixStream {
        let mut client = UnixStream::connect(socket).expect("connect");
        writeln!(client, "CONNECT {PORT}").expect("write");
        assert_eq!(self.receive_packet(), (REQUEST, 0));
        self.send(RESPONSE, 0);
        client.read_exact(&mut [0; "OK 1073741824\n".len()]).expect("an answer");
        client
    }

    fn read(&mut self, bytes: usize) {
        let end = self.read.wrapping_add(bytes as u32);
        while self.read != end {
            let (_, bytes) = self.receive_packet();
            self.read = self.read.wrapping_add(bytes);
            if self.read.wrapping_sub(self.told_read) >= GUEST_BUFFER_BYTES / 2 {
                self.send(CREDIT_UPDATE, 0);
            }
        }
    }

    fn write(&mut self, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let bytes = left.min(PACKET_BYTES);
            while self.host_buffer - self.sent.wrapping_sub(self.host_read) < bytes as u32 {
                self.receive_packet();
            }
            self.send(READ_WRITE, bytes);
            self.sent = self.sent.wrapping_add(bytes as u32);
            left -= bytes;
        }
    }

    /// The next packet's operation and length. Buffers are used, and given back, in order.
    fn receive_packet(&mut self) -> (u16, u32) {
        let (head, _) = self.driver.used(RX);
        let buffer = self.receive[head as usize];
        let header = self.driver.contents(Buffer { bytes: HEADER_BYTES as u32, ..buffer });
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        self.host_port = word(16);
        (self.host_buffer, self.host_read) = (word(36), word(40));
        self.driver.submit(RX, &[buffer]);
        // Linux refills its queue at half.
        if (head as usize).is_multiple_of(self.receive.len() / 2) {
            self.driver.kick(RX);
        }
        ((word(28) >> 16) as u16, word(24))
    }

    fn send(&mut self, op: u16, bytes: usize) {
        if self.packets_sent - self.packets_back == self.transmit.len() {
            self.driver.used(TX);
            self.packets_back += 1;
        }
        let buffer = self.transmit[self.packets_sent % self.transmit.len()];
        self.packets_sent += 1;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(GUEST_CID.to_le_bytes());
        header.extend(2_u64.to_le_bytes());
        [PORT, self.host_port, bytes as u32].iter().for_each(|word| header.extend(word.to_le_bytes()));
        [1, op].iter().for_each(|half| header.extend(half.to_le_bytes()));
        [0, GUEST_BUFFER_BYTES, self.read].iter().for_each(|word| header.extend(word.to_le_bytes()));
        self.told_read = self.read;
        self.driver.memory.write_slice(&header, GuestAddress(buffer.address)).expect("memory");
        self.driver.submit(TX, &[Buffer { bytes: (HEADER_BYTES + bytes) as u32, ..buffer }]);
        self.driver.kick(TX);
    }
}
