//! Counters of one vCPU: exits by reason, what the assist finished, time in and out of the guest. Written by its thread
//! with relaxed atomics, read by whoever asks for figures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::arch::x86_64::assist::Finished;

/// Why `KVM_RUN` came back, as counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitKind {
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
pub(super) struct Counters {
    exits: [AtomicU64; ExitKind::ALL.len()],
    assist: [AtomicU64; Finished::ALL.len()],
    run_ns: AtomicU64,
    exit_ns: AtomicU64,
}

impl Counters {
    /// The guest was left because of `kind`.
    pub(super) fn count(&self, kind: ExitKind) {
        self.exits[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The assist finished something.
    pub(super) fn count_finished(&self, finished: Finished) {
        self.assist[finished as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The vmm worked for `outside`, and the guest then ran for `inside`.
    pub(super) fn spent(&self, outside: Duration, inside: Duration) {
        self.exit_ns.fetch_add(outside.as_nanos() as u64, Ordering::Relaxed);
        self.run_ns.fetch_add(inside.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Exits by name, those that happened.
    pub(super) fn exits(&self) -> Vec<(String, u64)> {
        let named = ExitKind::ALL.iter().zip(&self.exits);
        let counts = named.map(|((_, name), count)| ((*name).to_owned(), count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// What the assist finished, in the order of [`Finished::ALL`].
    pub(super) fn assist(&self) -> [u64; Finished::ALL.len()] {
        std::array::from_fn(|index| self.assist[index].load(Ordering::Relaxed))
    }

    /// Microseconds inside `KVM_RUN`.
    pub(super) fn run_us(&self) -> u64 {
        self.run_ns.load(Ordering::Relaxed) / 1000
    }

    /// Microseconds between `KVM_RUN`s.
    pub(super) fn exit_us(&self) -> u64 {
        self.exit_ns.load(Ordering::Relaxed) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_has_its_own_name() {
        let counters = Counters::default();
        for (index, (kind, _)) in ExitKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
        for (index, finished) in Finished::ALL.iter().enumerate() {
            assert_eq!(*finished as usize, index);
        }
        counters.count(ExitKind::MmioWrite);
        counters.count_finished(Finished::Fwait);
        assert_eq!(counters.exits(), [("mmio_write".to_owned(), 1)]);
        assert_eq!(counters.assist()[Finished::Fwait as usize], 1);
    }
}
