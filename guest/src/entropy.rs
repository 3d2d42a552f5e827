//! Fresh random bytes for the kernel's generator (random(4)).
//!
//! Two machines restored from one snapshot hold the same generator, which would give both the same numbers. The host's
//! bytes go into the pool with credit, and then the generator is made anew from the pool: both are done when the call
//! returns, and each later read, the C library's too, sees the new generation. Called by `machine`.

use std::{fs::File, io, os::fd::AsRawFd};

/// Most bytes taken at once; the pool itself holds 32.
pub const ENTROPY_BYTES_MAX: usize = 256;

/// What it is given through.
pub const DEVICE: &str = "/dev/urandom";

/// `_IOW('R', 0x03, int[2])`: add bytes and count them as random.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;

/// `_IO('R', 0x07)`: make the generator's key anew.
const RESEED: libc::Ioctl = 0x5207;

/// `struct rand_pool_info` with its bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY_BYTES_MAX],
}

/// Adds `bytes` through the opened device and reseeds.
///
/// # Errors
/// More bytes than [`ENTROPY_BYTES_MAX`], too few of them for a generator that never had any, or no rights.
pub fn add(device: &File, bytes: &[u8]) -> io::Result<()> {
    let mut pool = PoolInfo {
        entropy_bits: (bytes.len() * 8) as libc::c_int,
        bytes: bytes.len() as libc::c_int,
        buffer: [0; ENTROPY_BYTES_MAX],
    };
    let room = pool.buffer.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(bytes);
    // SAFETY: ADD_ENTROPY reads a `rand_pool_info`: two integers and as many bytes as the second says, which `buffer`
    // holds, checked above. RESEED takes no argument. Neither keeps a pointer or writes to our memory.
    let result = unsafe {
        match libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool) {
            0 => libc::ioctl(device.as_raw_fd(), RESEED),
            failed => failed,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
