//! Cove's virtual machine monitor: one process, one machine.
//!
//! ```text
//!  main thread   event loop: control socket, SIGTERM, the machine's end ── Machine::{start, pause, snapshot, resume, end}
//!  vcpuN         KVM_RUN, port and memory accesses (devices::bus), the assist where the host needs it
//!  virtio-NAME   one worker a virtio device, while the guest's driver is up
//! ```
//!
//! What always holds:
//! - Guest input never panics the process and never allocates without a named bound; a guest can end its own machine only.
//! - Devices on the buses return at once; what waits is on a worker's thread.
//! - While paused no vCPU runs, no device works, and guest memory does not change.
//! - The process ends with its machine, after telling its subscribers why.
//!
//! [`builder`] names all that a machine is made of; [`control`] all that may be asked of it.

pub mod arch;
pub mod builder;
pub mod config;
pub mod control;
pub mod devices;
pub mod disk;
pub mod event_loop;
pub mod host;
pub mod jail;
pub mod machine;
pub mod memory;
pub mod signal;
pub mod snapshot;
pub mod vcpu;
