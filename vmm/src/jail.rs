//! What the process gives up before it touches anything a guest could reach.
//!
//! Now: descriptors it did not ask for, new privileges, core dumps, a limit of descriptors, others' access to its files.
//! [`enter`] is also where namespaces will come, since they need a process of one thread; seccomp and Landlock belong after the
//! machine was built, when its files are open.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit, umask};

/// Most descriptors at once: two a vsock stream, a few a vCPU and a device.
const DESCRIPTORS_MAX: u64 = 4096;
/// The first descriptor that is not standard input, output or error.
const FIRST_EXTRA: libc::c_uint = 3;

/// Gives up what is not needed. Called first in `main`, while the process has one thread and no descriptors of its own.
///
/// # Errors
/// When the system refuses; the process must not go on then.
pub fn enter() -> io::Result<()> {
    close_inherited()?;
    rustix::thread::set_no_new_privs(true)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(DESCRIPTORS_MAX);
    let limit = Some(DESCRIPTORS_MAX.min(hard));
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    // Sockets and logs are for this user alone.
    umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    Ok(())
}

/// Closes what the parent left open: a descriptor of the engine's database must not be within reach of a guest.
fn close_inherited() -> io::Result<()> {
    // SAFETY: called before anything of this process opened a descriptor (see `enter`), so none that some object owns is
    // closed under it. The worst a wrong call could do is an EBADF later.
    let result = unsafe { libc::close_range(FIRST_EXTRA, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
