//! Starts a process the way `posix_spawn` does: `clone(CLONE_VM | CLONE_VFORK)` on a stack of its own.
//!
//! Nothing of the agent's memory is copied, which on hosts that emulate the guest's kernel is most of what `fork` costs.
//! The price is that the child borrows our memory until its `execve`, so all it needs is prepared before (a
//! [`Program`]), and [`child`] makes system calls only. Why a start failed comes back through that shared memory, so a
//! missing program is told apart from one that exits with 127. Called by `launch`.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    sync::atomic::{AtomicI32, Ordering},
};

use rustix::process::Pid;

/// Bytes of the stack a child runs on until it is a program of its own.
const CHILD_STACK_BYTES: usize = 32 << 10;

/// A child that could not become its program leaves with this code; nobody sees it.
const CHILD_FAILED: c_int = 127;

/// Everything a new process is made of.
#[derive(Debug, Default)]
pub struct Program {
    /// Paths to try in order, as a search through PATH gives them.
    pub candidates: Vec<CString>,
    /// Its arguments, `argv[0]` first.
    pub argv: Vec<CString>,
    /// Its environment, `NAME=value`.
    pub env: Vec<CString>,
    /// Its working directory.
    pub cwd: CString,
    /// Who it runs as; the agent's own user when absent.
    pub identity: Option<Identity>,
    /// Its standard input is a terminal, which becomes the one that controls its session.
    pub controls_terminal: bool,
}

/// User and groups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id, real, effective and saved.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The descriptors of a new process: the three standard ones, and no other but for a shell that shall wait.
#[derive(Clone, Copy, Debug)]
pub struct Stdio<'a> {
    /// Descriptor 0.
    pub stdin: BorrowedFd<'a>,
    /// Descriptor 1.
    pub stdout: BorrowedFd<'a>,
    /// Descriptor 2.
    pub stderr: BorrowedFd<'a>,
    /// Descriptor 3, on which a waiting shell is told what to run.
    pub go: Option<BorrowedFd<'a>>,
}

/// What a child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The process could not be made at all.
    Clone,
    /// A session of its own, its descriptors or its signals.
    Prepare,
    /// User and groups.
    Identity,
    /// The working directory.
    Directory,
    /// `execve`, on the candidate that says most.
    Execute,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
#[error("A process failed to start at step {step:?}")]
pub struct SpawnError {
    /// Where it failed.
    pub step: Step,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Starts processes, one at a time.
#[derive(Debug)]
pub struct Spawner {
    stack: Box<[u8]>,
}

impl Default for Spawner {
    fn default() -> Self {
        Self { stack: vec![0; CHILD_STACK_BYTES].into_boxed_slice() }
    }
}

impl Spawner {
    /// Starts `program` as leader of a session and process group of its own, with no signal blocked or ignored.
    /// Returns once it runs as its program.
    ///
    /// # Errors
    /// The step that failed; no process is left then.
    pub fn spawn(&mut self, program: &Program, stdio: Stdio<'_>) -> Result<Pid, SpawnError> {
        let candidates = pointers(&program.candidates);
        let argv = pointers(&program.argv);
        let env = pointers(&program.env);
        let launch = Launch {
            candidates: &candidates,
            argv: &argv,
            env: &env,
            cwd: &program.cwd,
            identity: program.identity.as_ref(),
            controls_terminal: program.controls_terminal,
            stdio: [Some(stdio.stdin), Some(stdio.stdout), Some(stdio.stderr), stdio.go]
                .map(|fd| fd.map(|fd| fd.as_raw_fd())),
            step: AtomicI32::new(0),
            errno: AtomicI32::new(0),
        };
        let top = (self.stack.as_mut_ptr_range().end as usize & !15) as *mut c_void;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: `top` is the 16-aligned end of a stack of CHILD_STACK_BYTES that nobody else uses (`&mut self`), and
        // `child` needs far less. CLONE_VFORK suspends this thread until the child has left our memory by execve or
        // _exit, so `launch` and all that it points to outlive the child's use of them.
        let pid = unsafe { libc::clone(child, top, flags, (&raw const launch).cast_mut().cast()) };
        let failure =
            |step| SpawnError { step, source: io::Error::from_raw_os_error(launch.errno.load(Ordering::Relaxed)) };
        let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) else {
            return Err(SpawnError { step: Step::Clone, source: io::Error::last_os_error() });
        };
        let step = match launch.step.load(Ordering::Relaxed) {
            0 => return Ok(pid),
            1 => Step::Prepare,
            2 => Step::Identity,
            3 => Step::Directory,
            _ => Step::Execute,
        };
        // It has left with CHILD_FAILED already; this takes it away before anyone else waits for it.
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        Err(failure(step))
    }
}

/// Sends a signal to a process group.
///
/// # Errors
/// What `kill` says, `ESRCH` when nobody is left in it.
pub fn signal_group(leader: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes two numbers and touches no memory of ours. `leader` is above 1 in all our uses, so the
    // negative number names one group and never "every process".
    match unsafe { libc::kill(-leader.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to every process but this one. Only for PID 1: the kernel spares nobody else.
pub fn signal_all(signal: rustix::process::Signal) {
    // SAFETY: `kill` takes two numbers and touches no memory of ours.
    unsafe { libc::kill(-1, signal.as_raw()) };
}

/// What the child reads, and the two words it answers with.
struct Launch<'a> {
    candidates: &'a [*const c_char],
    argv: &'a [*const c_char],
    env: &'a [*const c_char],
    cwd: &'a CStr,
    identity: Option<&'a Identity>,
    controls_terminal: bool,
    stdio: [Option<c_int>; 4],
    step: AtomicI32,
    errno: AtomicI32,
}

/// Pointers to `strings` with the null that ends the list.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// The child's whole life in our memory. It may not allocate, lock or unwind.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a `Launch` that lives until this process leaves our memory, and only shares it.
    let launch = unsafe { &*argument.cast::<Launch<'_>>() };
    // SAFETY: we are the child of a vfork-like clone, as it demands.
    let (step, errno) = unsafe { become_program(launch) };
    launch.errno.store(errno, Ordering::Relaxed);
    launch.step.store(step, Ordering::Relaxed);
    // SAFETY: `_exit` ends this process alone and runs no handlers of the agent.
    unsafe { libc::_exit(CHILD_FAILED) }
}

/// Runs the steps; returns only on failure, with the number of the step and the error.
///
/// # Safety
/// Only in a child made by `clone(CLONE_VM | CLONE_VFORK)` without CLONE_SIGHAND, CLONE_FILES or CLONE_FS: everything
/// here changes the calling process.
unsafe fn become_program(launch: &Launch<'_>) -> (c_int, c_int) {
    // SAFETY: all pointers come from `Launch`, which holds null-terminated lists of C strings. Identity goes through raw
    // system calls, because glibc's wrappers would signal every thread of the agent, whose memory this is. `errno` is
    // the agent's own (shared thread pointer), but its thread is suspended and does not read it after a success.
    unsafe {
        if libc::setsid() < 0 {
            return (1, errno());
        }
        for (target, source) in launch.stdio.iter().enumerate() {
            let Some(source) = *source else { continue };
            // One that is in its place already still closes at execve.
            let placed = if source == target as c_int {
                libc::fcntl(source, libc::F_SETFD, 0)
            } else {
                libc::dup2(source, target as c_int)
            };
            if placed < 0 {
                return (1, errno());
            }
        }
        if launch.controls_terminal && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) < 0 {
            return (1, errno());
        }
        // The agent ignores SIGPIPE and blocks SIGCHLD; both would be inherited.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        if let Some(Identity { uid, gid, groups }) = launch.identity
            && (libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) < 0
                || libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) < 0)
        {
            return (2, errno());
        }
        if libc::chdir(launch.cwd.as_ptr()) < 0 {
            return (3, errno());
        }
        let mut worst = libc::ENOENT;
        for &candidate in launch.candidates.iter().take_while(|candidate| !candidate.is_null()) {
            libc::execve(candidate, launch.argv.as_ptr(), launch.env.as_ptr());
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                // As execvp does: a later directory may have one we may run, but if not, this is the better answer.
                libc::EACCES => worst = libc::EACCES,
                other => return (4, other),
            }
        }
        (4, worst)
    }
}

/// The calling thread's error number.
fn errno() -> c_int {
    // SAFETY: the pointer is always valid for the calling thread (here: the suspended parent's, see `become_program`).
    unsafe { *libc::__errno_location() }
}
