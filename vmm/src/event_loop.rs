//! The main thread: waits for a control request, a signal or the machine's end, and does one thing at a time.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cove_protocol::VERSION;
use cove_protocol::vmm::{
    ErrorKind, Event as MachineEvent, ExitReason, MachineSpec, Reply, Request, RestoreSpec, SnapshotSpec,
};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::builder::{self, BuildError};
use crate::config::MachineConfig;
use crate::control::{ConnectionId, Control, Interest};
use crate::devices::virtio::block::LayerError;
use crate::host::chain;
use crate::machine::{CaptureError, Machine};
use crate::memory::MemoryError;
use crate::signal::Termination;

/// Most bytes of one [`Request::ConsoleTail`].
const CONSOLE_TAIL_BYTES_MAX: u32 = 256 << 10;
/// How long the process waits for its [`Request::Start`]: nobody may be left to send one.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The event loop failed.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// No control socket.
    #[error("Cannot listen on the control socket {}", path.display())]
    Listen {
        /// Its path.
        path: std::path::PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No event loop.
    #[error("Cannot wait for events")]
    Events(#[from] event_manager::Error),
    /// Nobody asked for a machine.
    #[error("No machine was asked for within {} s", START_TIMEOUT.as_secs())]
    NoStart,
}

/// All that the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A new control connection.
    Listener,
    /// SIGTERM or SIGINT.
    Termination,
    /// The machine ended.
    Ended,
    /// A control connection has a request, or room for a reply.
    Connection(ConnectionId),
}

impl Event {
    const FIXED: u32 = 3;

    fn to_data(self) -> u32 {
        match self {
            Self::Listener => 0,
            Self::Termination => 1,
            Self::Ended => 2,
            Self::Connection(id) => id.saturating_add(Self::FIXED),
        }
    }

    fn from_data(data: u32) -> Self {
        match data {
            0 => Self::Listener,
            1 => Self::Termination,
            2 => Self::Ended,
            data => Self::Connection(data - Self::FIXED),
        }
    }
}

/// Listens on `control` and serves it until the machine ends; says why it did.
///
/// # Errors
/// See [`LoopError`].
pub fn run(control: &Path, termination: Termination) -> Result<ExitReason, LoopError> {
    let listen = |source| LoopError::Listen { path: control.into(), source };
    let control = Control::open(control).map_err(listen)?;
    let mut manager = EventManager::new()?;
    let id = manager.add_subscriber(Process { control, termination, machine: None, end: None });
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let process = manager.subscriber_mut(id)?;
        if process.end.is_some() {
            let mut process = manager.remove_subscriber(id)?;
            return Ok(process.finish());
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = match process.machine {
            Some(_) => -1,
            None if remaining.is_zero() => return Err(LoopError::NoStart),
            None => remaining.as_millis() as i32 + 1,
        };
        manager.run_with_timeout(timeout_ms)?;
    }
}

/// The process: its control socket and its machine.
struct Process {
    control: Control,
    termination: Termination,
    machine: Option<Machine>,
    /// Why the process ends, once it does.
    end: Option<ExitReason>,
}

impl MutEventSubscriber for Process {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.control.as_raw_fd(), Event::Listener, EventSet::IN);
        watch(ops, self.termination.as_raw_fd(), Event::Termination, EventSet::IN);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // Nothing more is served once the end has come; several events may arrive together.
        if self.end.is_some() {
            return;
        }
        match Event::from_data(events.data()) {
            Event::Listener => {
                for id in self.control.accept() {
                    if let Some(fd) = self.control.descriptor(id) {
                        watch(ops, fd, Event::Connection(id), EventSet::IN);
                    }
                }
            }
            Event::Termination => self.end = Some(ExitReason::Stopped),
            Event::Ended => self.end = self.machine.as_ref().and_then(|machine| machine.ending().reason()),
            Event::Connection(id) => self.serve(id, ops),
        }
    }
}

impl Process {
    fn serve(&mut self, id: ConnectionId, ops: &mut EventOps) {
        let Some(fd) = self.control.descriptor(id) else { return };
        let started = self.machine.is_some();
        let Self { control, machine, end, .. } = self;
        let interest = control.serve(id, |request| answer(machine, end, request));
        let event = Event::Connection(id);
        match interest {
            Some(Interest::Read) => rewatch(ops, fd, event, EventSet::IN),
            Some(Interest::Write) => rewatch(ops, fd, event, EventSet::OUT),
            None => {
                if let Err(error) = ops.remove(Events::empty_raw(fd)) {
                    tracing::warn!(%error, "Cannot stop watching a control connection");
                }
                self.control.remove(id);
            }
        }
        if let (false, Some(machine)) = (started, &self.machine) {
            watch(ops, machine.ending().as_raw_fd(), Event::Ended, EventSet::IN);
        }
    }

    /// Ends the machine, tells the subscribers why, and removes the sockets.
    fn finish(&mut self) -> ExitReason {
        if let Some(machine) = self.machine.take() {
            machine.end();
        }
        let reason = self.end.take().unwrap_or(ExitReason::Stopped);
        self.control.farewell(&MachineEvent::Exited(reason.clone()));
        reason
    }
}

fn watch(ops: &mut EventOps, fd: RawFd, event: Event, set: EventSet) {
    if let Err(error) = ops.add(Events::with_data_raw(fd, event.to_data(), set)) {
        tracing::error!(?event, %error, "Cannot wait for events");
    }
}

fn rewatch(ops: &mut EventOps, fd: RawFd, event: Event, set: EventSet) {
    if let Err(error) = ops.modify(Events::with_data_raw(fd, event.to_data(), set)) {
        tracing::error!(?event, %error, "Cannot wait for events");
    }
}

/// What a request means for the machine.
fn answer(machine: &mut Option<Machine>, end: &mut Option<ExitReason>, request: Request) -> Reply {
    if end.is_some() {
        return invalid("The machine has ended");
    }
    match (request, machine.as_mut()) {
        (Request::Subscribe, _) => Reply::Done,
        (Request::Stop, _) => {
            // The machine ends before the reply, so that a disk is whole once the engine hears of it.
            if let Some(machine) = machine.take() {
                machine.end();
            }
            *end = Some(ExitReason::Stopped);
            Reply::Done
        }
        (Request::Start(spec), None) => start(machine, *spec, true, builder::build),
        (Request::Restore(spec), None) => {
            let RestoreSpec { machine: spec, snapshot, resume } = *spec;
            start(machine, spec, resume, |config| builder::restore(config, &snapshot))
        }
        (Request::Start(_) | Request::Restore(_), Some(_)) => invalid("The machine has been started already"),
        (_, None) => invalid("The machine has not been started"),
        (Request::Snapshot(spec), Some(machine)) => snapshot(machine, &spec),
        (Request::Pause, Some(machine)) => match machine.pause() {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Error { kind: ErrorKind::Host, message: chain(&error) },
        },
        (Request::Resume, Some(machine)) => {
            machine.resume();
            Reply::Done
        }
        (Request::Stats, Some(machine)) => Reply::Stats(Box::new(machine.stats())),
        (Request::ConsoleTail { bytes_max }, _) if bytes_max > CONSOLE_TAIL_BYTES_MAX => {
            invalid(&format!("bytes_max must be {CONSOLE_TAIL_BYTES_MAX} or less, not {bytes_max}"))
        }
        (Request::ConsoleTail { bytes_max }, Some(machine)) => match machine.console_tail(bytes_max as usize) {
            Ok(tail) => Reply::Console(tail),
            Err(error) => {
                Reply::Error { kind: ErrorKind::Host, message: format!("Cannot read the console log: {error}") }
            }
        },
    }
}

fn snapshot(machine: &mut Machine, spec: &SnapshotSpec) -> Reply {
    match machine.snapshot(spec) {
        Ok(figures) => {
            tracing::info!(folder = %spec.folder.display(), ?figures, "The machine was captured");
            Reply::Snapshot(figures)
        }
        Err(error) => {
            let message = chain(&error);
            tracing::error!(message, "The machine cannot be captured");
            let kind = match &error {
                CaptureError::Disks { .. } => ErrorKind::Invalid,
                CaptureError::Layers { source, .. } if !error.is_fatal() => layers_kind(source),
                CaptureError::Write(error) if error.is_no_space() => ErrorKind::NoSpace,
                CaptureError::Write(_) | CaptureError::Kvm(_) | CaptureError::Stuck(_) => ErrorKind::Host,
                CaptureError::Layers { .. } | CaptureError::Silent(_) | CaptureError::Device(_) => ErrorKind::Machine,
            };
            if error.is_fatal() {
                machine.ending().set(ExitReason::HostFault(message.clone()));
            }
            Reply::Error { kind, message }
        }
    }
}

/// Builds a machine by `build` and lets it run if `run`.
fn start(
    slot: &mut Option<Machine>,
    spec: MachineSpec,
    run: bool,
    build: impl FnOnce(&MachineConfig) -> Result<Machine, BuildError>,
) -> Reply {
    let config = match MachineConfig::try_from(spec) {
        Ok(config) => config,
        Err(error) => return Reply::Error { kind: ErrorKind::Invalid, message: chain(&error) },
    };
    tracing::info!(id = config.id, vcpus = config.vcpus, memory_bytes = config.memory_bytes, "Starting a machine");
    match build(&config) {
        Ok(mut machine) => {
            if run {
                machine.start();
            }
            let reply = Reply::Started { version: VERSION, vcpus: machine.vcpus(), assist: machine.assist() };
            *slot = Some(machine);
            reply
        }
        Err(error) => {
            let message = chain(&error);
            tracing::error!(id = config.id, message, "The machine cannot be built");
            Reply::Error { kind: kind(&error), message }
        }
    }
}

/// What kind of failure a [`BuildError`] is: the host's, the spec's, or the machine's.
fn kind(error: &BuildError) -> ErrorKind {
    match error {
        BuildError::Host(_) | BuildError::Kvm { .. } | BuildError::System { .. } | BuildError::Console { .. } => {
            ErrorKind::Host
        }
        BuildError::Memory(MemoryError::Map { .. }) => ErrorKind::Host,
        BuildError::Disk { source, .. } => layers_kind(source),
        BuildError::Kernel(_) | BuildError::Vsock(_) => ErrorKind::Invalid,
        BuildError::Restore(_) => ErrorKind::Snapshot,
        _ => ErrorKind::Machine,
    }
}

/// What kind of failure a disk's layers are: the spec's, or the host's.
fn layers_kind(error: &LayerError) -> ErrorKind {
    match error {
        LayerError::Open { source, .. } if source.kind() != io::ErrorKind::NotFound => ErrorKind::Host,
        _ => ErrorKind::Invalid,
    }
}

fn invalid(message: &str) -> Reply {
    Reply::Error { kind: ErrorKind::Invalid, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_their_number() {
        for event in [Event::Listener, Event::Termination, Event::Ended, Event::Connection(0), Event::Connection(77)] {
            assert_eq!(Event::from_data(event.to_data()), event);
        }
    }

    #[test]
    fn nothing_but_start_stop_and_subscribe_is_legal_before_the_start() {
        let (mut machine, mut end) = (None, None);
        let tail = Request::ConsoleTail { bytes_max: 1 };
        for request in [Request::Pause, Request::Resume, Request::Stats, tail] {
            let reply = answer(&mut machine, &mut end, request);
            assert!(matches!(reply, Reply::Error { kind: ErrorKind::Invalid, .. }), "{reply:?}");
        }
        assert_eq!(answer(&mut machine, &mut end, Request::Subscribe), Reply::Done);
        assert_eq!(end, None);
        assert_eq!(answer(&mut machine, &mut end, Request::Stop), Reply::Done);
        assert_eq!(end, Some(ExitReason::Stopped));
    }
}
