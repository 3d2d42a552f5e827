//! Threads for file operations, which may block for as long as a file system likes (a stuck FUSE mount, a slow disk).
//!
//! A worker owns a connection for the length of one operation and speaks to its peer itself, so back-pressure is simply a
//! blocking write. Then it gives the connection back to the server's loop. Threads are started when the first operation
//! needs one; a few stay for the next. There is one at most for each connection, so their number needs no other bound.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use cove_protocol::guest::Request;
use rustix::event::{EventfdFlags, eventfd};

use crate::{files, transport::Transport};

/// Threads that stay when there is nothing to do.
const IDLE_WORKERS_MAX: usize = 2;

/// Bytes of a worker's stack. File operations do not recurse.
const STACK_BYTES: usize = 128 << 10;

/// A connection and what it asked for.
#[derive(Debug)]
pub struct Job {
    /// Names the connection among the server's events.
    pub id: u64,
    /// The connection.
    pub transport: Transport,
    /// A file operation.
    pub request: Request,
}

/// A connection that came back. Without a transport its peer is gone.
pub type Returned = (u64, Option<Transport>);

/// The server's handle on all workers.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    done: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    returned: Vec<Returned>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The lists stay whole whatever happens to a thread that holds them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workers {
    /// No thread yet.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let done = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), done }) })
    }

    /// Has a worker do this. If no thread can be started the connection is dropped, which tells its peer.
    pub fn start(&self, job: Job) {
        let mut state = self.shared.lock();
        let id = job.id;
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        drop(state);
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || work(&shared));
        if let Err(error) = thread {
            eprintln!("cove-agent: cannot start a file worker: {error}");
            let mut state = self.shared.lock();
            if let Some(at) = state.jobs.iter().position(|job| job.id == id) {
                state.jobs.remove(at);
                state.returned.push((id, None));
                drop(state);
                self.shared.announce();
            }
        }
    }

    /// The connections whose operation is done. Call it when the descriptor is readable.
    pub fn take_returned(&self) -> Vec<Returned> {
        let _ = rustix::io::read(&self.shared.done, &mut [0u8; 8][..]);
        std::mem::take(&mut self.shared.lock().returned)
    }
}

impl AsFd for Workers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }
}

impl Shared {
    /// Makes the descriptor readable.
    fn announce(&self) {
        let _ = rustix::io::write(&self.done, &1u64.to_ne_bytes());
    }
}

fn work(shared: &Shared) {
    let mut buffer = Vec::new();
    let mut state = shared.lock();
    loop {
        while let Some(mut job) = state.jobs.pop_front() {
            drop(state);
            let alive = files::serve(&mut job.transport, &job.request, &mut buffer).is_ok();
            state = shared.lock();
            state.returned.push((job.id, alive.then_some(job.transport)));
            shared.announce();
        }
        if state.idle >= IDLE_WORKERS_MAX {
            return;
        }
        state.idle += 1;
        while state.jobs.is_empty() {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle -= 1;
    }
}
