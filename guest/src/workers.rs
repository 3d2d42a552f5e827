//! Threads for what may block as long as a file system likes (a stuck FUSE mount, a slow disk): file operations, and the
//! start of a command while there is such a mount.
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
    time::Instant,
};

use cove_protocol::guest::{Exec, OpenTerminal, Reply, Request, StartJob};
use rustix::{
    event::{EventfdFlags, eventfd},
    process::Pid,
};

use crate::{
    failure::Failure,
    files,
    launch::{Launched, Launcher, Pipes},
    ports::Owners,
    settle::{self, Preparation},
    shell::FastShell,
    transport::Transport,
};

/// Threads that stay when there is nothing to do.
const IDLE_WORKERS_MAX: usize = 2;

/// Bytes of a worker's stack. Nothing here recurses.
const STACK_BYTES: usize = 128 << 10;

/// A connection and what it asked for.
#[derive(Debug)]
pub struct Job {
    /// Names the connection among the server's events.
    pub id: u64,
    /// The connection.
    pub transport: Transport,
    /// What to do.
    pub task: Task,
}

/// What a worker does.
#[derive(Debug)]
pub enum Task {
    /// A file operation up to its final reply.
    File(Request),
    /// The start of a process, with the sandbox's environment. The loop goes on with it.
    Start(Wanted, Vec<(String, String)>),
    /// Dirty pages to the disks; a mount could hang what is asked of all of them.
    Sync {
        /// There is such a mount.
        may_hang: bool,
    },
    /// What would otherwise be done later.
    Prepare,
    /// Who listens on ports.
    Listeners,
}

/// What is to be started.
#[derive(Debug)]
pub enum Wanted {
    /// A command of this connection.
    Command(Box<Exec>),
    /// A job.
    Job(Box<StartJob>),
    /// A terminal session.
    Terminal(Box<OpenTerminal>),
}

/// What was started.
#[derive(Debug)]
pub enum Started {
    /// A process on pipes.
    Pipes(Launched),
    /// One on a terminal, and the agent's end of that.
    Terminal(Pid, OwnedFd),
}

impl Started {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        match self {
            Started::Pipes(launched) => launched.pid,
            Started::Terminal(pid, _) => *pid,
        }
    }
}

/// A connection that came back.
#[derive(Debug)]
pub struct Returned {
    /// Names the connection.
    pub id: u64,
    /// `None` when its peer is gone.
    pub transport: Option<Transport>,
    /// What came of [`Task::Start`].
    pub start: Option<Start>,
}

/// A process that a worker started, or failed to.
#[derive(Debug)]
pub struct Start {
    /// What was asked.
    pub wanted: Wanted,
    /// When it was begun.
    pub at: Instant,
    /// The process, or why there is none.
    pub result: Result<Started, Failure>,
}

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
    shell: Arc<FastShell>,
    preparation: Preparation,
    owners: Mutex<Owners>,
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
    pub fn new(shell: Arc<FastShell>, preparation: Preparation) -> io::Result<Self> {
        let done = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (state, owners) = Default::default();
        Ok(Self { shared: Arc::new(Shared { state, work: Condvar::new(), done, shell, preparation, owners }) })
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
            eprintln!("cove-agent: cannot start a worker: {error}");
            let mut state = self.shared.lock();
            if let Some(at) = state.jobs.iter().position(|job| job.id == id) {
                state.jobs.remove(at);
                state.returned.push(Returned { id, transport: None, start: None });
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
        while let Some(job) = state.jobs.pop_front() {
            drop(state);
            let returned = do_job(job, shared, &mut buffer);
            state = shared.lock();
            state.returned.push(returned);
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

fn do_job(Job { id, mut transport, task }: Job, shared: &Shared, buffer: &mut Vec<u8>) -> Returned {
    let answer = |mut transport: Transport, result: Result<(), Failure>| {
        let alive = transport.send_all(&result.map_or_else(Reply::from, |()| Reply::Done)).is_ok();
        Returned { id, transport: alive.then_some(transport), start: None }
    };
    match task {
        Task::File(request) => {
            let alive = files::serve(&mut transport, &request, buffer).is_ok();
            Returned { id, transport: alive.then_some(transport), start: None }
        }
        Task::Sync { may_hang } => answer(transport, settle::sync(may_hang)),
        Task::Prepare => {
            shared.preparation.run();
            answer(transport, Ok(()))
        }
        Task::Listeners => {
            let reply = shared.owners.lock().unwrap_or_else(PoisonError::into_inner).listeners();
            let alive = transport.send_all(&reply).is_ok();
            Returned { id, transport: alive.then_some(transport), start: None }
        }
        Task::Start(wanted, environment) => {
            let at = Instant::now();
            let result = launch(&wanted, &environment, &shared.shell);
            Returned { id, transport: Some(transport), start: Some(Start { wanted, at, result }) }
        }
    }
}

fn launch(wanted: &Wanted, environment: &[(String, String)], shell: &Arc<FastShell>) -> Result<Started, Failure> {
    let failed = |error: io::Error| Failure::io("Cannot start a process".into(), &error);
    let mut launcher = Launcher::new(Arc::clone(shell)).map_err(failed)?;
    let exec = match wanted {
        Wanted::Command(exec) => exec,
        Wanted::Job(start) => &start.exec,
        Wanted::Terminal(open) => {
            let program = launcher.terminal_program(open, environment)?;
            let (pid, terminal) = launcher.launch_terminal(open, &program)?;
            return Ok(Started::Terminal(pid, terminal));
        }
    };
    let program = launcher.program(exec, environment)?;
    Ok(Started::Pipes(launcher.launch(exec, &program, Pipes::new().map_err(failed)?)?))
}
