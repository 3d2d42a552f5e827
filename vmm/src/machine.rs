//! A machine: owns the VM, its memory, its vCPUs and devices; starts, pauses, resumes and ends them. `capture` makes
//! snapshots of it.
//!
//! Called by the event loop only, on the main thread. What happens on other threads reaches it through [`Ending`].

mod capture;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cove_protocol::vmm::{DiskSpec, ExitReason, Stats};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::assist::Finished;
use crate::devices::serial::Serial;
use crate::devices::virtio::Memory;
use crate::devices::virtio::mmio::Transport;
use crate::host::Host;
use crate::memory::own;
use crate::vcpu::VcpuHandle;

/// How a machine's end is made known: set once, by whoever sees it first; its descriptor becomes readable.
#[derive(Clone)]
pub struct Ending(Arc<EndingInner>);

struct EndingInner {
    reason: Mutex<Option<ExitReason>>,
    ended: Condvar,
    event: EventFd,
}

impl Ending {
    /// An end that has not come.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(EndingInner { reason: Mutex::new(None), ended: Condvar::new(), event })))
    }

    /// The machine ends because of `reason`. Only the first call counts.
    pub fn set(&self, reason: ExitReason) {
        let mut first = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            tracing::info!(?reason, "The machine ends");
            *first = Some(reason);
            self.0.ended.notify_all();
            if let Err(error) = self.0.event.write(1) {
                tracing::error!(%error, "Cannot signal the machine's end");
            }
        }
    }

    /// Waits for the end.
    pub fn wait(&self) {
        let reason = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.ended.wait_while(reason, |reason| reason.is_none()).unwrap_or_else(PoisonError::into_inner));
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<ExitReason> {
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AsRawFd for Ending {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

pub use self::capture::CaptureError;

/// How long a vCPU may take to stand still. It takes microseconds, on a crowded host milliseconds.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// A vCPU that does not stand still.
#[derive(Debug, thiserror::Error)]
#[error("vCPU {vcpu} did not come to rest within {} s", REST_TIMEOUT.as_secs())]
pub struct StuckError {
    vcpu: usize,
}

/// What [`crate::builder`] puts into a machine.
pub struct Parts {
    /// The vCPUs, at rest.
    pub vcpus: Vec<VcpuHandle>,
    /// The virtio devices.
    pub transports: Vec<Arc<Mutex<Transport>>>,
    /// The layers of each disk.
    pub disks: Vec<DiskSpec>,
    /// The console.
    pub serial: Arc<Mutex<Serial>>,
    /// The VM.
    pub vm: VmFd,
    /// Guest memory.
    pub memory: Memory,
    /// The file that guest memory was mapped from, of a restored machine.
    pub base: Option<Arc<File>>,
    /// The host.
    pub host: Host,
    /// The machine's end.
    pub ending: Ending,
}

/// A built machine. Fields are dropped in order: threads first, then the VM, then the memory it writes to.
pub struct Machine {
    parts: Parts,
    started: Instant,
    paused: bool,
}

impl Machine {
    /// A machine that stands still.
    pub fn new(parts: Parts) -> Self {
        Self { parts, started: Instant::now(), paused: true }
    }

    /// Lets the vCPUs run for the first time.
    pub fn start(&mut self) {
        self.started = Instant::now();
        self.resume();
    }

    /// Stops the vCPUs, then brings every device to rest. A no-op while paused.
    ///
    /// # Errors
    /// [`StuckError`] when KVM does not let go of a vCPU; the machine runs on.
    pub fn pause(&mut self) -> Result<(), StuckError> {
        if self.paused {
            return Ok(());
        }
        // All are told before any is waited for, so that they stop together.
        self.parts.vcpus.iter().for_each(VcpuHandle::ask_pause);
        if let Err(error) = self.wait_resting() {
            self.parts.vcpus.iter().for_each(VcpuHandle::resume);
            return Err(error);
        }
        for transport in &self.parts.transports {
            lock(transport).pause();
        }
        self.paused = true;
        Ok(())
    }

    /// Lets devices and vCPUs go on. A no-op while running.
    pub fn resume(&mut self) {
        if !self.paused {
            return;
        }
        for transport in &self.parts.transports {
            lock(transport).resume();
        }
        for vcpu in &self.parts.vcpus {
            vcpu.resume();
        }
        self.paused = false;
    }

    /// Ends the machine: vCPUs stop for good, devices make durable what they acknowledged.
    pub fn end(self) {
        self.parts.vcpus.iter().for_each(VcpuHandle::ask_end);
        let stuck = self.wait_resting();
        for transport in &self.parts.transports {
            lock(transport).pause();
        }
        if let Err(error) = stuck {
            tracing::error!(%error, "The machine is left to the process's end");
            // Guest memory must not go while a vCPU may still write to it.
            std::mem::forget(self);
        }
    }

    fn wait_resting(&self) -> Result<(), StuckError> {
        let deadline = Instant::now() + REST_TIMEOUT;
        let stuck = |vcpu: &VcpuHandle| !vcpu.wait_resting(deadline.saturating_duration_since(Instant::now()));
        match self.parts.vcpus.iter().position(stuck) {
            Some(vcpu) => Err(StuckError { vcpu }),
            None => Ok(()),
        }
    }

    /// vCPUs that were granted.
    pub fn vcpus(&self) -> u8 {
        self.parts.vcpus.len() as u8
    }

    /// Whether the host needs the assist.
    pub fn assist(&self) -> bool {
        self.parts.host.assist
    }

    /// The vCPUs, in order.
    pub fn vcpu_handles(&self) -> &[VcpuHandle] {
        &self.parts.vcpus
    }

    /// The machine's end.
    pub fn ending(&self) -> &Ending {
        &self.parts.ending
    }

    /// The newest `bytes_max` bytes of the console.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn console_tail(&self, bytes_max: usize) -> io::Result<Vec<u8>> {
        lock(&self.parts.serial).tail(bytes_max)
    }

    /// Figures since the start.
    pub fn stats(&self) -> Stats {
        let parts = &self.parts;
        let mut devices: Vec<_> = parts
            .transports
            .iter()
            .map(|transport| {
                let transport = lock(transport);
                (transport.name().to_owned(), transport.stats())
            })
            .collect();
        devices.push(("serial".to_owned(), lock(&parts.serial).stats()));
        Stats {
            uptime_us: self.started.elapsed().as_micros() as u64,
            paused: self.paused,
            vcpus: parts.vcpus.iter().map(VcpuHandle::stats).collect(),
            memory_resident_bytes: own::bytes(&parts.memory),
            devices,
            tops: parts.disks.iter().filter_map(|disk| Some(disk.layers.last()?.path.clone())).collect(),
            assist: self.assist_stats(),
        }
    }

    fn assist_stats(&self) -> Vec<(String, u64)> {
        let counts: Vec<_> = self.parts.vcpus.iter().map(VcpuHandle::assist_counts).collect();
        let total = |index: usize| counts.iter().map(|vcpu| vcpu[index]).sum();
        let named =
            Finished::ALL.iter().enumerate().map(|(index, finished)| (finished.name().to_owned(), total(index)));
        named.filter(|(_, count)| *count > 0).collect()
    }
}

/// A thread that panicked has ended the machine already; its device is still good enough to come to rest.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
