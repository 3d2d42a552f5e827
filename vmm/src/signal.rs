//! Signals: the one that takes a vCPU out of `KVM_RUN`, and the ones that ask the process to end.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

thread_local! {
    /// The shared page of the vCPU that this thread runs, for the signal handler. Null on every other thread.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(null_mut()) };
}

/// The signal that takes a vCPU's thread out of `KVM_RUN`.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler of [`kick_signal`], once for the process.
///
/// # Errors
/// What `sigaction` says.
pub fn install_kick_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| register_signal_handler(kick_signal(), kicked).map_err(|e| e.errno()));
    installed.map_err(io::Error::from_raw_os_error)
}

/// Sets `immediate_exit`, so that a kick that arrives between the vCPU thread's last look at its orders and `KVM_RUN` is
/// not lost: `KVM_RUN` then returns EINTR at once.
extern "C" fn kicked(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `run` was set by `KickTarget::new` on this very thread (a signal handler sees its thread's locals) and
        // is cleared before the vCPU is dropped, so the mapping is live. An atomic byte store is async-signal-safe, and
        // `immediate_exit` is a byte that only the kernel reads meanwhile.
        unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) }.store(1, Ordering::Relaxed);
    }
}

/// While this lives, [`kick_signal`] on the current thread makes this vCPU's next `KVM_RUN` return at once. It holds the
/// vCPU, so the page cannot go before it.
pub struct KickTarget {
    vcpu: VcpuFd,
}

impl KickTarget {
    /// Makes `vcpu` the current thread's.
    pub fn new(mut vcpu: VcpuFd) -> Self {
        // Whoever started the process may have blocked it.
        if let Err(error) = unblock_signal(kick_signal()) {
            tracing::warn!(?error, "Cannot unblock the signal that stops a vCPU");
        }
        RUN.set(vcpu.get_kvm_run());
        Self { vcpu }
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Forgets kicks so far: the thread is about to look at its orders.
    pub fn clear(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        RUN.set(null_mut());
    }
}

/// SIGTERM and SIGINT as a descriptor: readable when one came.
pub struct Termination(OwnedFd);

impl Termination {
    /// Blocks both signals for this thread and those it starts, so that they come here only. Call before any thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let signals = vmm_sys_util::signal::create_sigset(&[libc::SIGTERM, libc::SIGINT])?;
        // SAFETY: `signals` is a valid set for the whole call, and no old set is asked for.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signals, null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: as above; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl AsRawFd for Termination {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
