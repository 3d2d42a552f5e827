//! Engine to vmm: what a machine is made of, and what may be asked of it.
//!
//! One `vmm` process is one machine. It listens on the unix socket given on its command line; the engine connects,
//! sends [`Request`] frames and gets one [`Reply`] frame for each, in order. Several connections may be open at once.
//! A connection that sent [`Request::Subscribe`] gets [`Event`] frames after its reply and sends nothing more.
//!
//! ```text
//!            Start            Pause
//!  (spawned) ─────► Running ◄────────► Paused ◄──── Restore (without `resume`)
//!                     │ ▲    Resume      │
//!             Restore ┘ │                │
//!                       └────► Ended ◄───┘   Stop, guest power-off, a fault: the process exits
//! ```
//!
//! **Snapshots.** [`Request::Snapshot`] captures a machine into a folder: `state` (vCPUs, devices), `memory` (a sparse file
//! as large as the guest's memory), and `manifest.json`, written last, which makes it whole. [`Request::Restore`] maps
//! `memory` privately: the folder is never written again and serves any number of machines; it must not change while one
//! of them runs, but may be unlinked. The disks are not in the folder: whoever keeps a snapshot keeps the layers that the
//! machine had then, frozen, and gives each restored machine a new writable layer on top of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Fewest and most virtual CPUs of a machine.
pub const VCPUS: std::ops::RangeInclusive<u8> = 1..=16;

/// Least and most memory of a machine, in MiB.
pub const MEMORY_MIB: std::ops::RangeInclusive<u32> = 512..=32768;

/// The vsock port on which the agent listens ([`crate::guest`]).
pub const AGENT_PORT: u32 = 1024;

/// The host's vsock port that the agent calls once, when it is ready. The vmm forwards a guest's connection to host
/// port P to the unix socket `<vsock socket>_<P>`.
pub const READY_PORT: u32 = 1025;

/// A machine as the engine asks for it. The vmm checks every field before it uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// The sandbox's id, for log lines.
    pub id: String,
    /// Virtual CPUs, within [`VCPUS`]. A host that emulates the guest kernel may be granted fewer: see [`Reply::Started`].
    pub vcpus: u8,
    /// Memory in MiB, within [`MEMORY_MIB`].
    pub memory_mib: u32,
    /// The guest kernel: an ELF vmlinux or a bzImage.
    pub kernel: PathBuf,
    /// Words added to the guest's command line, each without spaces or control characters.
    pub kernel_args: Vec<String>,
    /// Disks in order: the first is `/dev/vda`, the root.
    pub disks: Vec<DiskSpec>,
    /// The vsock device.
    pub vsock: VsockSpec,
    /// The serial console's log.
    pub console: ConsoleSpec,
}

/// One disk: a chain of layers, the base first, the writable top last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Base first, top last; never empty. A backing path inside an image is never followed: this list is the chain.
    pub layers: Vec<LayerSpec>,
    /// The guest may not write.
    pub read_only: bool,
}

/// One file of a disk's chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// Where it lies.
    pub path: PathBuf,
    /// How it is read. Said by the engine that made the file, never guessed from its bytes.
    pub format: LayerFormat,
}

/// The format of a [`LayerSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerFormat {
    /// Plain bytes; only as the base.
    Raw,
    /// qcow2, version 3.
    Qcow2,
}

/// The machine's vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSpec {
    /// The guest's context id, 3 or more (virtio 1.2, 5.10.4).
    pub guest_cid: u32,
    /// The host's end. The vmm listens here; a client writes `CONNECT <port>\n`, reads `OK <host port>\n` once the
    /// guest accepted, and then has a byte stream. While the guest's driver is not up, the answer waits; a port where
    /// nobody listens closes the connection.
    pub socket: PathBuf,
}

/// The serial console's log file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSpec {
    /// Where the guest's console output is kept.
    pub log: PathBuf,
    /// The newest bytes that are kept; older ones are dropped.
    pub bytes_max: u64,
}

/// See [`Request::Restore`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// The machine. Its vCPUs, memory and the number and sizes of its disks must be those of the snapshot; id, sockets and
    /// console are its own. The kernel and its words are not used.
    pub machine: MachineSpec,
    /// The snapshot's folder.
    pub snapshot: PathBuf,
    /// Let the vCPUs run at once; otherwise the machine is paused.
    pub resume: bool,
}

/// See [`Request::Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// An existing, empty folder. After a failure it may hold files, without `manifest.json`; the machine goes on as it was.
    pub folder: PathBuf,
    /// The chains on which the machine goes on: for each disk its present layers and one new, empty qcow2 on top, or its
    /// present layers alone. Empty: no disk changes. With a new top, the layers below are frozen as of the capture.
    pub disks: Vec<DiskSpec>,
    /// Go on afterwards; otherwise the machine stays paused.
    pub resume: bool,
    /// Wait until the folder's content survives a loss of power. Done after the machine goes on.
    pub durable: bool,
}

/// What a [`Request::Snapshot`] took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFigures {
    /// Microseconds that the vCPUs stood still for the capture.
    pub paused_us: u64,
    /// Microseconds from the request to its reply.
    pub total_us: u64,
    /// Bytes of guest memory that were written: what changed since the snapshot this machine came from.
    pub written_bytes: u64,
    /// Bytes of the memory file that are not holes.
    pub data_bytes: u64,
}

/// All that may be asked of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Build and boot the machine. Legal once, as the first request.
    Start(Box<MachineSpec>),
    /// Build the machine from a snapshot instead of booting it. Legal once, as the first request. Answered by
    /// [`Reply::Started`]. The guest's vsock streams of before are reset.
    Restore(Box<RestoreSpec>),
    /// Capture the machine. Legal while running and while paused. A running machine stands still for as long as its
    /// changed memory takes to write; its vsock streams survive. Answered by [`Reply::Snapshot`].
    Snapshot(Box<SnapshotSpec>),
    /// Stop the vCPUs and bring every device to rest. Legal while running; a no-op while paused.
    Pause,
    /// Let the vCPUs go on. Legal while paused; a no-op while running.
    Resume,
    /// End the machine at once, as pulling the plug would, after flushing the disks. Legal always; the process exits
    /// after its reply. (A clean power-off is asked of the agent.)
    Stop,
    /// Figures of the machine. Legal after `Start`.
    Stats,
    /// The newest `bytes_max` bytes of the console. Legal after `Start`.
    ConsoleTail {
        /// At most this many bytes, themselves at most 256 KiB.
        bytes_max: u32,
    },
    /// Turn this connection into a stream of [`Event`]s. Legal always.
    Subscribe,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The vCPUs run.
    Started {
        /// [`crate::VERSION`] of the vmm.
        version: u32,
        /// vCPUs really given: fewer than asked where the host cannot run more.
        vcpus: u8,
        /// The host needs the assist (it emulates the guest's kernel).
        assist: bool,
    },
    /// `Pause`, `Resume`, `Stop` or `Subscribe` is done.
    Done,
    /// Answer to [`Request::Snapshot`].
    Snapshot(SnapshotFigures),
    /// Answer to [`Request::Stats`].
    Stats(Box<Stats>),
    /// Answer to [`Request::ConsoleTail`].
    Console(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The request was refused or failed; the machine is as it was before, unless an [`Event::Exited`] follows.
    Error {
        /// What kind of failure.
        kind: ErrorKind,
        /// A sentence with the values, and the chain of causes.
        message: String,
    },
}

/// Why a [`Request`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The spec is wrong, or the request is not legal in this state.
    Invalid,
    /// The host lacks something: KVM, a permission, memory.
    Host,
    /// The machine failed.
    Machine,
    /// The snapshot is damaged, or was made on a host that this one is not. Its disks are not touched by that: the
    /// machine can be booted from them.
    Snapshot,
    /// The host's file system has no room; the machine goes on as it was.
    NoSpace,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The machine ended; the process exits after this event.
    Exited(ExitReason),
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// [`Request::Stop`].
    Stopped,
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset, which ends a machine.
    Reset,
    /// The guest did something that cannot be continued, such as a triple fault.
    GuestFault(String),
    /// The vmm or the host failed.
    HostFault(String),
}

/// Figures of a machine since its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Microseconds since the vCPUs first ran.
    pub uptime_us: u64,
    /// The vCPUs are stopped.
    pub paused: bool,
    /// Per vCPU, in order.
    pub vcpus: Vec<VcpuStats>,
    /// Bytes of memory that the host holds for this guest alone, or `None` where it cannot be told. What a restored
    /// machine has only read is shared with all that came from the same snapshot, and not in it.
    pub memory_resident_bytes: Option<u64>,
    /// Per device: its name (`block0`, `vsock`, `rng`, `serial`) and figures.
    pub devices: Vec<(String, DeviceStats)>,
    /// Per disk, its top layer: tells after a crash of the engine whether a [`Request::Snapshot`] changed the layers.
    pub tops: Vec<PathBuf>,
    /// Times the assist finished an instruction, by its name (`syscall`, `sysret`, `int3` ...).
    pub assist: Vec<(String, u64)>,
}

/// Figures of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Exits from the guest by reason (`io_in`, `mmio_write`, `debug` ...).
    pub exits: Vec<(String, u64)>,
    /// Microseconds inside `KVM_RUN`.
    pub run_us: u64,
    /// Microseconds between `KVM_RUN`s: the vmm's own work for this vCPU.
    pub exit_us: u64,
    /// Microseconds of processor time of the vCPU's thread, in and between `KVM_RUN`s; unlike them without the time in
    /// which the guest was idle or the host's scheduler ran something else.
    pub cpu_us: u64,
}

/// Figures of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStats {
    /// Bytes the guest got from the device.
    pub read_bytes: u64,
    /// Bytes the guest gave to the device.
    pub write_bytes: u64,
    /// Requests handled.
    pub requests: u64,
    /// Requests refused as malformed, and host failures.
    pub errors: u64,
    /// A write waits, with all that follow it, since the host's file system has no room for it.
    pub held: bool,
}

/// What `vmm probe` prints as JSON: what this host can do for a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProbe {
    /// The KVM device that was asked.
    pub kvm: PathBuf,
    /// Why there is no usable KVM, and what to do; `None` when there is.
    pub problem: Option<String>,
    /// The host emulates the guest's kernel and needs the assist.
    pub assist: bool,
    /// Most vCPUs a machine can be granted here.
    pub vcpus_max: u8,
    /// The host's CPU, as CPUID names it.
    pub cpu_model: String,
    /// The KVM module's kind: `kvm_intel`, `kvm_amd`, `kvm_pvm` or `unknown`.
    pub module: String,
    /// Names all of the host that a snapshot depends on (CPU, kernel, KVM, snapshot format), as hexadecimal digits: a
    /// snapshot is restored only where this is what it was. Empty with a problem.
    pub fingerprint: String,
}
