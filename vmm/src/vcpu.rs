//! One vCPU: the machine's hold on its thread, and the handshake by which it pauses. What the thread does at each exit is
//! `runner`'s part.
//!
//! ```text
//!            Order::Pause + kick           Order::Run
//!   running ─────────────────────► paused ───────────► running
//!      └──────────────── Order::End + kick ───────────────► thread ends
//! ```
//!
//! A paused vCPU can be asked for its state ([`VcpuHandle::save`]); only its own thread touches it.
//!
//! The machine writes an order under the lock and kicks; the thread looks at its orders before every `KVM_RUN`, and a kick
//! in between makes `KVM_RUN` return at once ([`crate::signal`]). While paused the thread waits on a condition variable.

mod counters;
mod runner;

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cove_protocol::vmm::VcpuStats;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::Killable;

use self::counters::Counters;
use self::runner::Runner;
use crate::arch::x86_64::assist::cpu::KvmCpu;
use crate::arch::x86_64::assist::{Assist, Finished};
use crate::arch::x86_64::state::{StateError, VcpuState};
use crate::devices::bus::Bus;
use crate::devices::virtio::Memory;
use crate::machine::Ending;
use crate::signal::{KickTarget, kick_signal};

/// What a vCPU's thread is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Pause,
    End,
}

/// The order, whether the thread stands still because of it, and what is asked of it meanwhile.
struct Orders {
    order: Order,
    resting: bool,
    /// The state is wanted of which these MSRs are part.
    wanted: Option<Arc<[u32]>>,
    saved: Option<Result<VcpuState, StateError>>,
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
            orders: Mutex::new(Orders { order: Order::Pause, resting: true, wanted: None, saved: None }),
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

    /// The state of a vCPU that stands still, with the values of `msrs`; `None` when its thread does not answer within
    /// `timeout`.
    ///
    /// # Errors
    /// When KVM does not tell a part of it.
    pub fn save(&self, msrs: &Arc<[u32]>, timeout: Duration) -> Result<Option<VcpuState>, StateError> {
        let mut orders = self.shared.orders();
        (orders.wanted, orders.saved) = (Some(Arc::clone(msrs)), None);
        self.shared.changed.notify_all();
        let waiting = |orders: &mut Orders| orders.saved.is_none();
        let waited = self.shared.changed.wait_timeout_while(orders, timeout, waiting);
        let (mut orders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        orders.wanted = None;
        orders.saved.take().transpose()
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
        VcpuStats {
            exits: counters.exits(),
            run_us: counters.run_us(),
            exit_us: counters.exit_us(),
            cpu_us: thread_cpu_us(self.shared.thread_id.load(Ordering::Relaxed)),
        }
    }

    /// Times the assist finished something, in the order of [`Finished::ALL`].
    pub fn assist_counts(&self) -> [u64; Finished::ALL.len()] {
        self.shared.counters.assist()
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

    /// Tells whoever waits that the thread stands still.
    fn say_resting(&self, orders: &mut Orders) {
        if !orders.resting {
            orders.resting = true;
            self.changed.notify_all();
        }
    }
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
