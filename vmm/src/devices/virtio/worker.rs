//! The thread of an active device: waits for kicks, for the device's own descriptors and for the word to stop.
//!
//! The transport starts a worker at DRIVER_OK and gets device and queues back from [`Worker::stop`] for a reset, a
//! pause or the machine's end. A worker that fails or panics says so through the [`FaultHandler`]: a device that is
//! silently gone would leave the guest waiting for ever.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use cove_protocol::vmm::DeviceStats;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Context, Readiness, Source, VirtioDevice};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 32;

/// Epoll data: stop. Kicks carry their queue's index, sources [`SOURCE_BIT`] and the descriptor.
const STOP: u64 = u64::MAX;
const SOURCE_BIT: u64 = 1 << 32;

/// Why a device stopped working for good; the machine cannot go on without it.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A system call for the thread's own descriptors failed.
    #[error("The worker of {device} cannot {action}")]
    System {
        /// The device's name.
        device: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The device's code panicked: a bug of ours.
    #[error("The worker of {device} panicked: {message}")]
    Panic {
        /// The device's name.
        device: String,
        /// The panic's message.
        message: String,
    },
}

/// Called, on the worker's thread or a vCPU's, when a device stopped working for good. Must not wait for the device.
pub type FaultHandler = Arc<dyn Fn(WorkerError) + Send + Sync>;

/// A device and what it works on, as they go into a worker and come back.
pub type Active = (Box<dyn VirtioDevice>, Context);

/// A running worker. Dropping it stops the thread and the device with it.
pub struct Worker {
    stop: Arc<EventFd>,
    stats: Arc<Mutex<DeviceStats>>,
    thread: Option<JoinHandle<Option<Active>>>,
}

impl Worker {
    /// Starts the device on a thread of its own. Every ready queue is handled once before the first wait, so a kick
    /// from before is never lost.
    ///
    /// # Errors
    /// [`WorkerError::System`] when the host has no thread or descriptor left; the device is then gone.
    pub fn start(
        device: Box<dyn VirtioDevice>,
        context: Context,
        kicks: Arc<[EventFd]>,
        on_fault: FaultHandler,
    ) -> Result<Self, WorkerError> {
        let name = device.name().to_owned();
        let system = |action, source| WorkerError::System { device: name.clone(), action, source };
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(|e| system("make its stop descriptor", e))?);
        let stats = Arc::new(Mutex::new(device.stats()));
        let run = Loop::new(name.clone(), device, context, kicks, &stop, Arc::clone(&stats))?;
        let thread = std::thread::Builder::new()
            .name(format!("virtio-{name}"))
            .spawn(move || run_to_rest(run, &on_fault))
            .map_err(|e| system("start its thread", e))?;
        Ok(Self { stop, stats, thread: Some(thread) })
    }

    /// Stops the thread, once the device came to rest. `None` when the worker had failed; the [`FaultHandler`] was
    /// told then.
    pub fn stop(mut self) -> Option<Active> {
        self.join()
    }

    /// The device's figures, as of the last event it handled.
    pub fn stats(&self) -> DeviceStats {
        *lock(&self.stats)
    }

    fn join(&mut self) -> Option<Active> {
        let thread = self.thread.take()?;
        if let Err(error) = self.stop.write(1) {
            // Only a counter near 2^64 refuses, and then the descriptor is readable anyway.
            tracing::warn!(%error, "Cannot signal a worker's stop descriptor");
        }
        thread.join().ok().flatten()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.join();
    }
}

/// The thread's body. A panic must not pass unseen, and must not take the process's other threads along.
fn run_to_rest(mut run: Loop, on_fault: &FaultHandler) -> Option<Active> {
    let name = run.name.clone();
    let outcome = catch_unwind(AssertUnwindSafe(move || {
        let result = run.run();
        result.map(|()| (run.device, run.context))
    }));
    let fault = match outcome {
        Ok(Ok(active)) => return Some(active),
        Ok(Err(error)) => error,
        Err(payload) => WorkerError::Panic { device: name, message: panic_message(&*payload) },
    };
    on_fault(fault);
    None
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// What the thread owns.
struct Loop {
    name: String,
    device: Box<dyn VirtioDevice>,
    context: Context,
    kicks: Arc<[EventFd]>,
    stats: Arc<Mutex<DeviceStats>>,
    epoll: Epoll,
    watched: HashMap<RawFd, Source>,
    // Keeps the descriptor open as long as the epoll set names it.
    _stop: Arc<EventFd>,
}

impl Loop {
    fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        context: Context,
        kicks: Arc<[EventFd]>,
        stop: &Arc<EventFd>,
        stats: Arc<Mutex<DeviceStats>>,
    ) -> Result<Self, WorkerError> {
        let system = |action, source| WorkerError::System { device: name.clone(), action, source };
        let epoll = Epoll::new().map_err(|e| system("make its epoll descriptor", e))?;
        let add = |fd, data| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data));
        add(stop.as_raw_fd(), STOP).map_err(|e| system("watch its stop descriptor", e))?;
        for (data, kick) in (0..).zip(kicks.iter()) {
            add(kick.as_raw_fd(), data).map_err(|e| system("watch a queue's kick", e))?;
        }
        let watched = HashMap::new();
        Ok(Self { name, device, context, kicks, stats, epoll, watched, _stop: Arc::clone(stop) })
    }

    /// Handles events until told to stop, then brings the device to rest.
    fn run(&mut self) -> Result<(), WorkerError> {
        for index in 0..self.context.queues.len() {
            self.handle_queue(index)?;
        }
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        loop {
            let timeout_ms = if self.context.has_more() { 0 } else { -1 };
            let count = match self.epoll.wait(timeout_ms, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|e| self.system("wait for events", e))?,
            };
            let ready = &events[..count];
            if ready.iter().any(|event| event.data() == STOP) {
                break;
            }
            for event in ready {
                self.handle_event(event)?;
            }
            for index in self.context.take_more() {
                self.handle_queue(index)?;
            }
        }
        self.device.come_to_rest(&mut self.context);
        *lock(&self.stats) = self.device.stats();
        Ok(())
    }

    fn handle_event(&mut self, event: &EpollEvent) -> Result<(), WorkerError> {
        let data = event.data();
        if data & SOURCE_BIT == 0 {
            let index = data as usize;
            match self.kicks[index].read() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => drop(result.map_err(|e| self.system("read a queue's kick", e))?),
            }
            return self.handle_queue(index);
        }
        // The device may have dropped the descriptor while it handled an earlier event of this round.
        let Some(source) = self.watched.get(&((data ^ SOURCE_BIT) as RawFd)) else { return Ok(()) };
        let token = source.token;
        self.device.handle_source(token, readiness(event.event_set()), &mut self.context);
        self.after_call()
    }

    fn handle_queue(&mut self, index: usize) -> Result<(), WorkerError> {
        if self.context.is_live(index) {
            self.device.handle_queue(index, &mut self.context);
        }
        self.after_call()
    }

    /// Makes the epoll set and the figures agree with the device.
    fn after_call(&mut self) -> Result<(), WorkerError> {
        *lock(&self.stats) = self.device.stats();
        let wanted = self.device.sources();
        if wanted.is_empty() && self.watched.is_empty() {
            return Ok(());
        }
        let wanted: HashMap<RawFd, Source> = wanted.into_iter().map(|source| (source.fd, source)).collect();
        for &fd in self.watched.keys().filter(|fd| !wanted.contains_key(fd)) {
            // A closed descriptor has left the set by itself.
            let _gone = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        for (fd, source) in &wanted {
            if self.watched.get(fd) != Some(source) {
                self.watch(source)?;
            }
        }
        self.watched = wanted;
        Ok(())
    }

    fn watch(&self, source: &Source) -> Result<(), WorkerError> {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN | EventSet::READ_HANG_UP, source.readable);
        interest.set(EventSet::OUT, source.writable);
        let event = EpollEvent::new(interest, SOURCE_BIT | source.fd as u64);
        // The number may be an old one for a new descriptor, so the set itself is asked if it is in there.
        let result = match self.epoll.ctl(ControlOperation::Modify, source.fd, event) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.epoll.ctl(ControlOperation::Add, source.fd, event)
            }
            result => result,
        };
        result.map_err(|e| self.system("watch a descriptor of the device", e))
    }

    fn system(&self, action: &'static str, source: io::Error) -> WorkerError {
        WorkerError::System { device: self.name.clone(), action, source }
    }
}

fn readiness(events: EventSet) -> Readiness {
    Readiness {
        readable: events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR),
        writable: events.intersects(EventSet::OUT | EventSet::ERROR),
        closed: events.intersects(EventSet::HANG_UP | EventSet::ERROR),
    }
}

/// Figures are plain data, so a panic elsewhere cannot have left them half-made.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
