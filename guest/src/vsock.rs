//! vsock sockets: the agent's listener and the call that says it is ready. rustix knows the address family but not its
//! addresses, so the two calls that take one go to libc.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket_with};

/// The host's context id (virtio 1.2, 5.10.4).
pub const HOST_CID: u32 = 2;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A listener on `port`, for any peer, that never blocks.
///
/// # Errors
/// When the kernel has no vsock, or the port is taken.
pub fn listener(port: u32) -> io::Result<OwnedFd> {
    let socket = stream(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let address = Address::new(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` is a whole sockaddr_vm of the length given, and bind only reads it.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), address.pointer(), Address::LENGTH) })?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A stream to `port` of `cid`. Waits for the peer's answer, at most the kernel's own two seconds.
///
/// # Errors
/// When nobody listens there.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = stream(SocketFlags::CLOEXEC)?;
    let address = Address::new(cid, port);
    // SAFETY: `address` is a whole sockaddr_vm of the length given, and connect only reads it.
    check(unsafe { libc::connect(socket.as_fd().as_raw_fd(), address.pointer(), Address::LENGTH) })?;
    Ok(socket)
}

fn stream(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?)
}

/// `struct sockaddr_vm` (vsock(7)).
struct Address(libc::sockaddr_vm);

impl Address {
    const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

    fn new(cid: u32, port: u32) -> Self {
        Self(libc::sockaddr_vm {
            svm_family: libc::AF_VSOCK as libc::sa_family_t,
            svm_reserved1: 0,
            svm_port: port,
            svm_cid: cid,
            svm_zero: [0; 4],
        })
    }

    fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.0).cast()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
