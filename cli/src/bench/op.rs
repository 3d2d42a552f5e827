//! What can be measured.

use super::Form;

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// From create to command-ready.
    Create,
    /// The fused run of `echo 2`.
    Run,
    /// `true` in a running sandbox: this one, or one of its own for each worker.
    Exec {
        /// How the command is sent.
        form: Form,
        /// The id of a sandbox that is there.
        sandbox: Option<String>,
    },
    /// Resume of a paused sandbox.
    Restore {
        /// Memory that is changed before each pause, in MiB.
        dirty_mib: u32,
    },
    /// Fork into a child.
    Fork {
        /// Of the running sandbox, and not of a snapshot of it.
        live: bool,
        /// Memory that is changed in the source before the first fork, in MiB.
        dirty_mib: u32,
    },
    /// Snapshot of a running sandbox.
    Snapshot {
        /// Memory that is changed before each, in MiB.
        dirty_mib: u32,
    },
    /// Pause of a running sandbox.
    Pause {
        /// Memory that is changed before each, in MiB.
        dirty_mib: u32,
    },
}

impl Op {
    /// The word of the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Create => "create",
            Op::Run => "run",
            Op::Exec { .. } => "exec",
            Op::Restore { .. } => "restore",
            Op::Fork { .. } => "fork",
            Op::Snapshot { .. } => "snapshot",
            Op::Pause { .. } => "pause",
        }
    }

    /// Only persistent sandboxes are kept when they are paused; the others go even if the bench is killed.
    pub fn needs_persistence(&self) -> bool {
        matches!(self, Op::Restore { .. } | Op::Pause { .. })
    }

    /// Every worker has a sandbox of its own.
    pub fn needs_sandbox(&self) -> bool {
        !matches!(self, Op::Create | Op::Run | Op::Exec { sandbox: Some(_), .. })
    }

    /// Rounds of each worker before the measured ones: caches fill, lazy pages come in.
    pub fn warm_up_rounds(&self) -> usize {
        if matches!(self, Op::Exec { .. }) { 3 } else { 1 }
    }

    /// Memory to change, in MiB.
    pub fn dirty_mib(&self) -> u32 {
        match self {
            Op::Restore { dirty_mib } | Op::Snapshot { dirty_mib } | Op::Pause { dirty_mib } => *dirty_mib,
            Op::Fork { dirty_mib, .. } => *dirty_mib,
            _ => 0,
        }
    }

    /// How the host's share was computed, for the report.
    pub fn how(&self) -> &'static str {
        match self {
            Op::Exec { .. } => {
                "host_outside_kvm_run_ms = wall - guest: guest is the busiest vCPU's processor time without its handling of \
                 exits, read before and after each call"
            }
            Op::Run => {
                "guest_ms is the processor time in which the machine's busiest vCPU ran the guest from its start to the \
                 command's end (without its handling of exits), read right after the answer; host_ms = wall - guest_ms, waiting for a processor included. \
                 boot_ms is the engine's time from the request to command-ready"
            }
            Op::Create | Op::Restore { .. } | Op::Fork { .. } => {
                "boot_ms is the engine's time from the request to command-ready; guest_ms the processor time in which the new \
                 machine's busiest vCPU ran the guest (without its handling of exits), read right after the answer; \
                 host_ms = boot_ms - guest_ms"
            }
            Op::Snapshot { .. } => {
                "pause_ms is how long the machine stood still, by the engine; guest_ms the processor time in which its \
                 busiest vCPU ran the guest meanwhile (without its handling of exits); host_ms = wall - guest_ms"
            }
            Op::Pause { .. } => "only wall is told: the machine is gone afterwards, and its counters with it",
        }
    }
}
