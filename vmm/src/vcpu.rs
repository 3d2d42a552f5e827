//! One vCPU: its thread, what it does at each exit, and the handshake by which it pauses.
//!
//! ```text
//!            Order::Pause + kick           Order::Run
//!   running ─────────────────────► paused ───────────► running
//!      └──────────────── Order::End + kick ───────────────► thread ends
//! ```
//!
//! The machine writes an order under the lock and kicks; the thread looks at its orders before every `KVM_RUN`, and a kick
//! in between makes `KVM_RUN` return at once ([`crate::signal`]). While paused the thread waits on a condition variable.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cove_protocol::vmm::{ExitReason, VcpuStats};
use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::Killable;

use crate::arch::x86_64::assist::cpu::KvmCpu;
use crate::arch::x86_64::assist::{Assist, AssistError, Finished};
use crate::devices::bus::Bus;
use crate::devices::virtio::Memory;
use crate::host::chain;
use crate::machine::Ending;
use crate::signal::{KickTarget, kick_signal};

/// Why `KVM_RUN` came back, as counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExitKind {
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Debug,
    EmulationFailure,
    MsrWrite,
    Kick,
    Again,
    Other,
}

impl ExitKind {
    const ALL: [(Self, &str); 10] = [
        (Self::IoIn, "io_in"),
        (Self::IoOut, "io_out"),
        (Self::MmioRead, "mmio_read"),
        (Self::MmioWrite, "mmio_write"),
        (Self::Debug, "debug"),
        (Self::EmulationFailure, "emulation_failure"),
        (Self::MsrWrite, "msr_write"),
        (Self::Kick, "kick"),
        (Self::Again, "again"),
        (Self::Other, "other"),
    ];
}

/// Counters of one vCPU, written by its thread and read by anyone.
#[derive(Default)]
struct Counters {
    exits: [AtomicU64; ExitKind::ALL.len()],
    assist: [AtomicU64; Finished::ALL.len()],
    run_ns: AtomicU64,
    exit_ns: AtomicU64,
}

/// What a vCPU's thread is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Pause,
    End,
}

/// The order, and whether the thread stands still because of it.
struct Orders {
    order: Order,
    resting: bool,
}

/// What the machine and the vCPU's thread share.
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// The thread's number, once it runs.
    thread_id: AtomicI32,
    counters: Counters,
    /// The next kick asks where the guest is.
    sample: AtomicBool,
    samples: Mutex<Vec<Sample>>,
}

/// Most samples that wait for [`VcpuHandle::take_samples`]; more are not taken.
const SAMPLES_MAX: usize = 1 << 16;

/// Where a vCPU was when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Address of the next instruction.
    pub rip: u64,
    /// Privilege level: 0 the guest's kernel, 3 a program.
    pub level: u8,
}

/// What a vCPU's thread needs besides its vCPU.
#[derive(Clone)]
pub struct Surroundings {
    /// Ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped devices.
    pub mmio: Arc<Bus>,
    /// Guest memory, for the assist.
    pub memory: Memory,
    /// How the machine is told that it ends.
    pub ending: Ending,
}

/// A vCPU, before its thread runs.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    /// On hosts that need it.
    assist: Option<Assist>,
    /// The host copies registers into the shared page.
    synced: bool,
    surroundings: Surroundings,
}

/// The machine's hold on a running vCPU. Dropping it ends the thread.
pub struct VcpuHandle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// vCPU `id` on `fd`, whose registers are set. With `synced`, the host offers `KVM_CAP_SYNC_REGS`.
    pub fn new(id: u8, fd: VcpuFd, assist: Option<Assist>, synced: bool, surroundings: Surroundings) -> Self {
        Self { id, fd, assist, synced, surroundings }
    }

    /// Starts the thread, at rest: [`VcpuHandle::resume`] lets it go.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub fn start(mut self) -> std::io::Result<VcpuHandle> {
        let shared = Arc::new(Shared {
            orders: Mutex::new(Orders { order: Order::Pause, resting: true }),
            changed: Condvar::new(),
            thread_id: AtomicI32::new(0),
            counters: Counters::default(),
            sample: AtomicBool::new(false),
            samples: Mutex::default(),
        });
        if self.assist.is_some() && self.synced {
            KvmCpu::enable_sync(&mut self.fd);
        }
        let ours = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("vcpu{}", self.id)).spawn(move || {
            let Self { id, fd, assist, synced, surroundings } = self;
            ours.thread_id.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
            Runner { id, target: KickTarget::new(fd), assist, synced, surroundings, shared: ours }.run();
        })?;
        Ok(VcpuHandle { shared, thread: Some(thread) })
    }
}

impl VcpuHandle {
    /// Orders a pause, without waiting for it.
    pub fn ask_pause(&self) {
        self.order(Order::Pause);
        self.kick();
    }

    /// Waits until the vCPU stands still after [`VcpuHandle::ask_pause`] or [`VcpuHandle::ask_end`]; false when it does
    /// not within `timeout`.
    #[must_use]
    pub fn wait_resting(&self, timeout: Duration) -> bool {
        let orders = self.shared.orders();
        let moving = |orders: &mut Orders| !orders.resting;
        let (orders, _) =
            self.shared.changed.wait_timeout_while(orders, timeout, moving).unwrap_or_else(PoisonError::into_inner);
        orders.resting
    }

    /// Lets the vCPU go on.
    pub fn resume(&self) {
        self.shared.orders().resting = false;
        self.order(Order::Run);
    }

    /// Orders the thread to end, without waiting for it.
    pub fn ask_end(&self) {
        self.order(Order::End);
        self.kick();
    }

    /// Figures since the start.
    pub fn stats(&self) -> VcpuStats {
        let counters = &self.shared.counters;
        let exits = ExitKind::ALL.iter().zip(&counters.exits);
        VcpuStats {
            exits: exits
                .map(|((_, name), count)| ((*name).to_owned(), count.load(Ordering::Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            run_us: counters.run_ns.load(Ordering::Relaxed) / 1000,
            exit_us: counters.exit_ns.load(Ordering::Relaxed) / 1000,
            cpu_us: thread_cpu_us(self.shared.thread_id.load(Ordering::Relaxed)),
        }
    }

    /// Times the assist finished something, in the order of [`Finished::ALL`].
    pub fn assist_counts(&self) -> [u64; Finished::ALL.len()] {
        std::array::from_fn(|index| self.shared.counters.assist[index].load(Ordering::Relaxed))
    }

    /// Asks where the guest is now; the answer is among the next [`VcpuHandle::take_samples`]. For profilers.
    pub fn sample(&self) {
        self.shared.sample.store(true, Ordering::Relaxed);
        self.kick();
    }

    /// The samples since the last call.
    pub fn take_samples(&self) -> Vec<Sample> {
        std::mem::take(&mut *self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the vCPU's thread leave `KVM_RUN` and look at its orders.
    fn kick(&self) {
        if let Some(thread) = &self.thread
            && let Err(error) = thread.kill(kick_signal())
        {
            tracing::error!(%error, "Cannot kick a vCPU's thread");
        }
    }

    fn order(&self, order: Order) {
        self.shared.orders().order = order;
        self.shared.changed.notify_all();
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.ask_end();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported through the ending.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Tells whoever waits that the thread stands still.
    fn say_resting(&self, orders: &mut Orders) {
        if !orders.resting {
            orders.resting = true;
            self.changed.notify_all();
        }
    }
}

impl Counters {
    fn count(&self, kind: ExitKind) {
        self.exits[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// What the thread owns.
struct Runner {
    id: u8,
    target: KickTarget,
    assist: Option<Assist>,
    synced: bool,
    surroundings: Surroundings,
    shared: Arc<Shared>,
}

/// Processor time of one of our threads, in microseconds; 0 when there is no such thread.
fn thread_cpu_us(thread_id: i32) -> u64 {
    if thread_id <= 0 {
        return 0;
    }
    // The clock of one thread, as pthread_getcpuclockid(3) makes it: CPUCLOCK_SCHED (2) and CPUCLOCK_PERTHREAD (4) below
    // the inverted number of the thread (linux/posix-timers.h).
    let clock: libc::clockid_t = (!thread_id << 3) | 2 | 4;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to the pointer, which is to a live, aligned local of that type; it keeps
    // nothing. A clock that does not exist is an error, in which case nothing is written.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return 0;
    }
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// What an exit leaves to do once KVM's page is no longer borrowed.
enum After {
    Nothing,
    Breakpoint,
    InternalError,
    SyscallMsr { index: u32, data: u64 },
    End(ExitReason),
}

impl Runner {
    /// The thread's body: runs until ordered to end. After an end that came from the guest it waits for that order.
    fn run(mut self) {
        let _panic_guard =
            PanicGuard { id: self.id, ending: self.surroundings.ending.clone(), shared: Arc::clone(&self.shared) };
        let mut left = Instant::now();
        loop {
            self.target.clear();
            let order = self.shared.orders().order;
            match order {
                Order::Run => self.take_sample(),
                Order::Pause => {
                    if !self.rest() {
                        return;
                    }
                    left = Instant::now();
                    continue;
                }
                Order::End => return self.shared.say_resting(&mut self.shared.orders()),
            }
            let entered = Instant::now();
            let after = self.enter();
            let returned = Instant::now();
            let counters = &self.shared.counters;
            counters.exit_ns.fetch_add((entered - left).as_nanos() as u64, Ordering::Relaxed);
            counters.run_ns.fetch_add((returned - entered).as_nanos() as u64, Ordering::Relaxed);
            left = returned;
            if let Err(reason) = self.finish(after) {
                self.surroundings.ending.set(reason);
                self.shared.orders().order = Order::Pause;
            }
        }
    }

    /// Stands still until the order changes; false when it is to end.
    fn rest(&mut self) -> bool {
        self.complete_pending_access();
        let mut orders = self.shared.orders();
        loop {
            match orders.order {
                Order::Run => break,
                Order::End => {
                    self.shared.say_resting(&mut orders);
                    return false;
                }
                // Said anew each time: a resume and a pause may both have come since the last look.
                Order::Pause => self.shared.say_resting(&mut orders),
            }
            orders = self.shared.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
        drop(orders);
        // Tells the guest's watchdogs that it was stopped. A guest without kvm-clock refuses, and has none to tell.
        let _ = self.target.vcpu().kvmclock_ctrl();
        true
    }

    /// Answers [`VcpuHandle::sample`].
    fn take_sample(&mut self) {
        if !self.shared.sample.load(Ordering::Relaxed) || !self.shared.sample.swap(false, Ordering::Relaxed) {
            return;
        }
        // Reads the registers past the shared page, which may hold values that wait for the next entry: those are the
        // same but for the instruction just finished.
        let (Ok(regs), Ok(sregs)) = (self.target.vcpu().get_regs(), self.target.vcpu().get_sregs()) else { return };
        let mut samples = self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() < SAMPLES_MAX {
            samples.push(Sample { rip: regs.rip, level: sregs.ss.dpl });
        }
    }

    /// A port or memory read is finished by KVM only when the vCPU is entered again; until then its registers are not
    /// what the guest has (Linux, Documentation/virt/kvm/api.rst, KVM_RUN).
    fn complete_pending_access(&mut self) {
        self.target.vcpu().set_kvm_immediate_exit(1);
        // EINTR is the only answer with immediate_exit.
        let _ = self.target.vcpu().run().map(|_| ());
        self.target.clear();
    }

    /// Runs the guest until its next exit, and serves port and memory accesses.
    fn enter(&mut self) -> After {
        let counters = &self.shared.counters;
        let Surroundings { ports, mmio, .. } = &self.surroundings;
        match self.target.vcpu().run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                counters.count(ExitKind::IoIn);
                ports.read(port.into(), data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                counters.count(ExitKind::IoOut);
                ports.write(port.into(), data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                counters.count(ExitKind::MmioRead);
                mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                counters.count(ExitKind::MmioWrite);
                mmio.write(address, data);
            }
            Ok(VcpuExit::Debug(_)) => {
                counters.count(ExitKind::Debug);
                return After::Breakpoint;
            }
            Ok(VcpuExit::InternalError) => {
                counters.count(ExitKind::EmulationFailure);
                return After::InternalError;
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                counters.count(ExitKind::MsrWrite);
                return After::SyscallMsr { index: exit.index, data: exit.data };
            }
            Ok(VcpuExit::Intr) => counters.count(ExitKind::Kick),
            Ok(exit) => {
                counters.count(ExitKind::Other);
                return After::End(unexpected(&exit));
            }
            Err(error) => match error.errno() {
                libc::EINTR => counters.count(ExitKind::Kick),
                // A vCPU that waits for its start-up message was woken.
                libc::EAGAIN => counters.count(ExitKind::Again),
                _ => return After::End(ExitReason::HostFault(format!("KVM cannot run vCPU {}: {error}", self.id))),
            },
        }
        After::Nothing
    }

    /// Does what the exit left to do; an error ends the machine.
    fn finish(&mut self, after: After) -> Result<(), ExitReason> {
        match (after, self.assist.as_mut()) {
            (After::Nothing, None) => Ok(()),
            (After::End(reason), _) => Err(reason),
            (After::Nothing, Some(assist)) => {
                // Without the shared page this would be a system call an exit, and Linux's table does not move later.
                if self.synced {
                    let mut cpu = KvmCpu::new(self.target.vcpu(), true);
                    assist.watch(&mut cpu, &self.surroundings.memory).map_err(guest_fault)?;
                }
                Ok(())
            }
            (after, Some(assist)) => {
                let failure = matches!(after, After::InternalError).then(|| internal_error(&mut self.target));
                if let Some(suberror) = failure
                    && suberror != KVM_INTERNAL_ERROR_EMULATION
                {
                    return Err(ExitReason::HostFault(format!("KVM failed inside (internal error {suberror})")));
                }
                let finished = finish_with(assist, &mut self.target, self.synced, &self.surroundings.memory, after)?;
                self.shared.counters.assist[finished as usize].fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            (After::InternalError, None) => {
                let suberror = internal_error(&mut self.target);
                Err(ExitReason::HostFault(format!("KVM failed inside (internal error {suberror})")))
            }
            (After::Breakpoint | After::SyscallMsr { .. }, None) => {
                Err(ExitReason::HostFault("KVM stopped the guest for a reason that was not asked for".into()))
            }
        }
    }
}

/// Lets the assist finish what the exit was about.
fn finish_with(
    assist: &mut Assist,
    target: &mut KickTarget,
    synced: bool,
    memory: &Memory,
    after: After,
) -> Result<Finished, ExitReason> {
    let mut cpu = KvmCpu::new(target.vcpu(), synced);
    match after {
        After::Breakpoint => assist.breakpoint_hit(&mut cpu, memory).map_err(guest_fault),
        After::SyscallMsr { index, data } => {
            let accepted = assist.msr_write(&mut cpu, memory, index, data).map_err(guest_fault)?;
            set_msr_error(target, !accepted);
            Ok(Finished::MsrWrite)
        }
        _ => assist.emulation_failed(&mut cpu, memory).map_err(guest_fault),
    }
}

fn guest_fault(error: AssistError) -> ExitReason {
    match error {
        AssistError::Cpu(error) => ExitReason::HostFault(chain(&error)),
        error => ExitReason::GuestFault(chain(&error)),
    }
}

/// Why the machine ends at an exit that has no handler.
fn unexpected(exit: &VcpuExit) -> ExitReason {
    match exit {
        VcpuExit::Shutdown => ExitReason::GuestFault("The guest's CPU shut down (triple fault)".into()),
        VcpuExit::Hlt => ExitReason::GuestFault("The guest's CPU halted".into()),
        VcpuExit::FailEntry(reason, _) => ExitReason::HostFault(format!("KVM cannot enter the guest ({reason:#x})")),
        exit => ExitReason::HostFault(format!("KVM ended with the unexpected exit {exit:?}")),
    }
}

/// The suberror of the KVM_EXIT_INTERNAL_ERROR that just happened.
fn internal_error(target: &mut KickTarget) -> u32 {
    let run = target.vcpu().get_kvm_run();
    // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the union; it is plain
    // integers, so any bytes would be a value.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

/// Says whether the MSR write that just exited fails, which gives the guest #GP.
fn set_msr_error(target: &mut KickTarget, failed: bool) {
    // Writing a member of a union is safe; the last exit was KVM_EXIT_X86_WRMSR, so KVM reads this one.
    target.vcpu().get_kvm_run().__bindgen_anon_1.msr.error = u8::from(failed);
}

/// Ends the machine when a vCPU's thread panics, instead of leaving the guest without a CPU and the machine waiting.
struct PanicGuard {
    id: u8,
    ending: Ending,
    shared: Arc<Shared>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ending.set(ExitReason::HostFault(format!("The thread of vCPU {} panicked", self.id)));
            self.shared.say_resting(&mut self.shared.orders());
        }
    }
}
