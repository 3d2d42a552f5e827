//! Who listens on TCP ports in the guest, and which process it is.
//!
//! The kernel has no event for listen(2), so this is asked for: by the engine, when it has a reason (see
//! `engine/src/preview/watch.rs`). The listeners stand at the head of `/proc/net/tcp` (tcp_seq_start of Linux walks them
//! first), so the read ends with the first line of another state, however many connections there are. Finding the process
//! means reading the descriptors of all; it is done once for each new socket. Called by `workers`.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cove_protocol::guest::{LISTENER_COMMAND_CHARS_MAX, LISTENERS_MAX, Listener, Reply};

/// The state of a listening socket (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// Most bytes of a line of the tables; a longer one ends the read.
const LINE_BYTES_MAX: u64 = 512;

/// Descriptors that are looked at for the owners of new sockets; what lies behind them stays unknown.
const DESCRIPTORS_MAX: usize = 20_000;

/// Whose sockets those of the last answer were.
#[derive(Debug, Default)]
pub struct Owners {
    by_inode: HashMap<u64, Option<(i32, String)>>,
}

/// A line of a table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    address: IpAddr,
    port: u16,
    inode: u64,
}

impl Owners {
    /// The listening sockets of now.
    pub fn listeners(&mut self) -> Reply {
        let mut rows = Vec::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            // A kernel without IPv6 has no second table.
            if let Ok(file) = File::open(table) {
                read_table(BufReader::new(file), &mut rows);
            }
        }
        rows.sort_by_key(|row| (row.port, row.address));
        rows.truncate(LISTENERS_MAX);
        self.learn(&rows);
        let listener = |Row { address, port, inode }| {
            let owner = self.by_inode.get(&inode).cloned().flatten();
            let (pid, command) = owner.unzip();
            Listener { port, address, pid, command }
        };
        Reply::Listeners(rows.into_iter().map(listener).collect())
    }

    /// Finds the owners of sockets that are new, and forgets those that are gone.
    fn learn(&mut self, rows: &[Row]) {
        self.by_inode.retain(|inode, _| rows.iter().any(|row| row.inode == *inode));
        let mut missing = rows.iter().filter(|row| !self.by_inode.contains_key(&row.inode)).count();
        if missing == 0 {
            return;
        }
        for row in rows {
            self.by_inode.entry(row.inode).or_insert(None);
        }
        let mut left = DESCRIPTORS_MAX;
        for pid in processes() {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for descriptor in descriptors.flatten() {
                if missing == 0 || left == 0 {
                    return;
                }
                left -= 1;
                let Some(inode) = fs::read_link(descriptor.path()).ok().and_then(|link| socket_inode(link.to_str()?))
                else {
                    continue;
                };
                if let Some(owner @ None) = self.by_inode.get_mut(&inode) {
                    *owner = Some((pid, command_line(pid)));
                    missing -= 1;
                }
            }
        }
    }
}

/// Takes the listening sockets at the head of a table.
fn read_table(mut table: impl BufRead, rows: &mut Vec<Row>) {
    let mut line = String::new();
    let mut first = true;
    while rows.len() < 2 * LISTENERS_MAX {
        line.clear();
        match table.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
            Ok(1..) => {}
            _ => return,
        }
        if std::mem::take(&mut first) {
            continue;
        }
        match parse(&line) {
            Some(row) => rows.push(row),
            None => return,
        }
    }
}

/// `sl local_address rem_address st ... inode` (proc_net_tcp of Linux's documentation); `None` when it does not listen.
fn parse(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    words.next()?;
    if words.next()? != LISTEN {
        return None;
    }
    let inode = words.nth(5)?.parse().ok()?;
    Some(Row { address: parse_address(address)?, port: u16::from_str_radix(port, 16).ok()?, inode })
}

/// Each group of eight digits is one word of the address in the machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The inode in `socket:[1234]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The words of a process's command line.
fn command_line(pid: i32) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/cmdline")) {
        // What could be read is what is shown.
        let _ = file.take(4 * LISTENER_COMMAND_CHARS_MAX as u64).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.trim().chars().take(LISTENER_COMMAND_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0000 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0000 100 0 0 10 0
   2: 0100007F:0BB8 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 7 1 0000 100 0 0 10 0
   3: 00000000:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 98 1 0000 100 0 0 10 0
";

    #[test]
    fn the_head_of_the_table_is_read_and_no_more() {
        let mut rows = Vec::new();
        read_table(TABLE.as_bytes(), &mut rows);
        let expected = [
            Row { address: Ipv4Addr::LOCALHOST.into(), port: 3000, inode: 1234 },
            Row { address: Ipv4Addr::UNSPECIFIED.into(), port: 80, inode: 99 },
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn addresses_are_words_in_the_machines_order() {
        assert_eq!(parse_address("00000000000000000000000001000000"), Some(Ipv6Addr::LOCALHOST.into()));
        for wrong in ["", "0100007", "zz00007F", "0100007F0100007F"] {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn our_own_listener_is_found_with_its_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let Reply::Listeners(found) = Owners::default().listeners() else { panic!() };
        let ours = found.iter().find(|listener| listener.port == port).unwrap();
        assert_eq!(ours.pid, Some(i32::try_from(std::process::id()).unwrap()));
        assert!(ours.command.as_ref().is_some_and(|command| !command.is_empty()));
    }
}
