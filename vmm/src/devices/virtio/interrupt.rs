//! A device's line to the driver: the interrupt status register and the irqfd behind it (virtio 1.2, 4.2.2).
//!
//! The worker raises, the transport reads and acknowledges; clones share one state. The request to be reset travels the
//! same way, since a worker that finds a queue broken has no other road to the status register.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Interrupt status: a used buffer was added.
pub const INTERRUPT_USED: u32 = 1;

/// Interrupt status: the configuration changed, or the device needs a reset.
pub const INTERRUPT_CONFIG: u32 = 2;

/// The device's line to the driver.
#[derive(Clone, Debug)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    status: AtomicU32,
    needs_reset: AtomicBool,
    resets_asked: AtomicU64,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line`, an eventfd that the VM holds as irqfd.
    pub fn new(line: EventFd) -> Self {
        let (status, needs_reset, resets_asked) = Default::default();
        Self { shared: Arc::new(Shared { status, needs_reset, resets_asked, line }) }
    }

    /// A buffer was used: the driver should look at its used rings.
    pub fn used_queue(&self) {
        self.raise(INTERRUPT_USED);
    }

    /// The configuration space changed.
    pub fn config_changed(&self) {
        self.raise(INTERRUPT_CONFIG);
    }

    /// The device cannot go on until the driver resets it (DEVICE_NEEDS_RESET; virtio 1.2, 2.1.2). Says how often that
    /// was asked since the machine's start.
    pub fn ask_for_reset(&self) -> u64 {
        self.shared.needs_reset.store(true, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG);
        self.shared.resets_asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The device waits for a reset and does nothing else.
    pub fn needs_reset(&self) -> bool {
        self.shared.needs_reset.load(Ordering::SeqCst)
    }

    /// The driver reset the device: nothing is pending.
    pub fn clear(&self) {
        self.shared.needs_reset.store(false, Ordering::SeqCst);
        self.shared.status.store(0, Ordering::SeqCst);
    }

    /// What was pending when the state was saved is pending again; the line is raised when the device goes on.
    pub fn restore(&self, status: u32, needs_reset: bool) {
        self.shared.needs_reset.store(needs_reset, Ordering::SeqCst);
        self.shared.status.store(status & (INTERRUPT_USED | INTERRUPT_CONFIG), Ordering::SeqCst);
    }

    /// Raises the line again for what is pending: an interrupt from before a snapshot may not have reached a vCPU.
    pub fn raise_pending(&self) {
        if self.status() != 0 {
            self.raise(0);
        }
    }

    /// The status register's value.
    pub fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }

    /// The driver acknowledges `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The irqfd to register with the VM.
    pub fn line(&self) -> &EventFd {
        &self.shared.line
    }

    fn raise(&self, bit: u32) {
        self.shared.status.fetch_or(bit, Ordering::SeqCst);
        if let Err(error) = self.shared.line.write(1) {
            tracing::error!(%error, "Cannot raise an interrupt line");
        }
    }
}
