//! Random bytes from the host's kernel: ids, machine ids, and entropy for guests.

use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut random = [0; N];
    let mut filled = 0;
    while filled < random.len() {
        // Without flags this only fails when a signal comes first, or before Linux 3.17.
        filled += getrandom(&mut random[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
    random
}

/// Letters and digits that need no escaping anywhere, five random bits each.
pub(crate) fn letters<const N: usize>() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    bytes::<N>().iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}

/// 32 hexadecimal digits (machine-id(5)).
pub(crate) fn machine_id() -> String {
    bytes::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}
