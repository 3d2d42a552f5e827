//! The device from both ends: a mock driver with guest sockets, and real unix sockets.

mod driver;
mod guest;
mod hostile;
mod pure;
mod streams;
mod worker;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use cove_protocol::vmm::VsockSpec;
use tempfile::TempDir;

use super::Vsock;
use driver::Driver;
use guest::{GUEST_CID, Guest};

/// A guest with its device in a folder of its own.
struct Machine {
    guest: Guest,
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let device = Vsock::new(&spec(&folder)).unwrap();
        Self { guest: Guest::new(Driver::new(device)), folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    /// A client that has written its line.
    fn client(&self, port: u32) -> UnixStream {
        use std::io::Write;
        let mut client = UnixStream::connect(self.socket()).unwrap();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        client
    }

    /// A client with a stream to the guest's port.
    fn stream(&mut self, port: u32) -> UnixStream {
        self.guest.listens.insert(port);
        let before = self.guest.sockets.len();
        let mut client = self.client(port);
        self.guest.run_until("a stream", |guest| guest.sockets.len() > before);
        self.guest.settle();
        assert!(read_line(&mut client).starts_with("OK "));
        client
    }
}

fn spec(folder: &TempDir) -> VsockSpec {
    VsockSpec { guest_cid: GUEST_CID, socket: folder.path().join("vsock") }
}

/// A line, byte for byte; "" at the end.
fn read_line(client: &mut UnixStream) -> String {
    use std::io::Read;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && client.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Bytes that differ at every place and from seed to seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
