//! A shell that waits for its line: the fast shell, started and stopped before its first own instruction ([`super::entry`]).
//!
//! Starting a process is most of what a short command costs on a host that emulates the guest's kernel, and all of it up to
//! the program's first instruction is the same for every line. So it is done before: by a thread of the lowest priority, so
//! that whatever else wants to run goes first. Each shell runs one line, as the process it would have been.
//!
//! ```text
//!  absent ──want──► wanted ──thread──► ready ──launch──► absent
//!                      └──── it failed ───► broken (lines start shells of their own)
//! ```

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FileType,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, setpriority_process},
    rand::{GetRandomFlags, getrandom},
    thread::{CapabilitySet, capabilities},
};

use super::{
    FastShell,
    entry::WAITING_NAME,
    image::{RANDOM_BYTES, Reader, auxiliary, image},
};
use crate::{
    launch::{Launched, Pipes},
    process::{Program, Spawner, Stdio, signal_group},
    watch::Watch,
};

/// How long a shell may take until it waits, on a machine that has much else to do.
const START_SECONDS: i64 = 60;

/// The nice value of the thread that starts them: the highest.
const PATIENCE: i32 = 19;

/// Bytes of its stack.
const STACK_BYTES: usize = 64 << 10;

/// The shell that waits, if there is one.
#[derive(Debug)]
pub struct WaitingShells {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    watch: Arc<Watch>,
    shell: Arc<FastShell>,
}

#[derive(Debug)]
enum State {
    /// Nobody wanted one, and there is no thread.
    Unused,
    Absent,
    Wanted,
    Ready(Box<Waiting>),
    Broken,
}

#[derive(Debug)]
struct Waiting {
    /// Names its pipes among the server's events.
    id: u64,
    pid: Pid,
    pipes: Pipes,
    /// Where it is told what to run.
    go: File,
    reader: Reader,
}

impl WaitingShells {
    /// None yet. `watch` is told of its pipes.
    pub fn new(watch: Arc<Watch>, shell: Arc<FastShell>) -> Self {
        let state = Mutex::new(State::Unused);
        Self { shared: Arc::new(Shared { state, changed: Condvar::new(), watch, shell }) }
    }

    /// Has one made, if there is none. Call it when nothing else is to be done.
    pub fn want(&self) {
        let mut state = self.shared.lock();
        match *state {
            State::Unused => {
                *state = State::Wanted;
                let shared = Arc::clone(&self.shared);
                let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || shared.make_all());
                if let Err(error) = thread {
                    eprintln!("cove-agent: no shell will wait, there is no thread for it: {error}");
                    *state = State::Broken;
                }
            }
            State::Absent => {
                *state = State::Wanted;
                self.shared.changed.notify_all();
            }
            State::Wanted | State::Ready(_) | State::Broken => {}
        }
    }

    /// True when one was used and no other is wanted yet.
    pub fn is_absent(&self) -> bool {
        matches!(*self.shared.lock(), State::Absent)
    }

    /// Wants one and waits for it. False when there will be none.
    pub fn wait_for_one(&self) -> bool {
        self.want();
        let mut state = self.shared.lock();
        while matches!(*state, State::Wanted) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        matches!(*state, State::Ready(_))
    }

    /// Runs `program`, a line for the fast shell as root, in the shell that waits. `None` when there is none, or when this
    /// program would not be what it is otherwise: start it then.
    pub fn launch(&self, program: &Program) -> Option<(u64, Launched)> {
        let mut state = self.shared.lock();
        let State::Ready(waiting) = &*state else { return None };
        // A directory that cannot be entered is for the other way to tell of.
        let cwd = rustix::fs::stat(&program.cwd).ok()?;
        if !FileType::from_raw_mode(cwd.st_mode).is_dir() {
            return None;
        }
        let mut random = [0; RANDOM_BYTES];
        getrandom(&mut random, GetRandomFlags::empty()).ok()?;
        let image = image(&waiting.reader, random, program)?;
        let State::Ready(mut waiting) = std::mem::replace(&mut *state, State::Absent) else { return None };
        drop(state);
        // Somebody may have killed it while it waited.
        if waiting.go.write(&image).ok() != Some(image.len()) {
            let _ = signal_group(waiting.pid, libc::SIGKILL);
            return None;
        }
        let Pipes { stdout, stderr } = waiting.pipes;
        let theirs = (stdout.1, stderr.1);
        Some((waiting.id, Launched { pid: waiting.pid, stdin: None, stdout: stdout.0, stderr: stderr.0, theirs }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's life.
    fn make_all(&self) {
        let _ = setpriority_process(None, PATIENCE);
        let mut spawner = Spawner::default();
        loop {
            let made = self.make(&mut spawner);
            let mut state = self.lock();
            match made {
                Ok(waiting) => *state = State::Ready(Box::new(waiting)),
                Err(error) => {
                    eprintln!("cove-agent: no shell will wait, none could be started: {error}");
                    *state = State::Broken;
                }
            }
            self.changed.notify_all();
            while !matches!(*state, State::Wanted) {
                if matches!(*state, State::Broken) {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn make(&self, spawner: &mut Spawner) -> io::Result<Waiting> {
        if !self.shell.is_good() {
            return Err(io::Error::other("there is no fast shell"));
        }
        let (id, pipes) = self.watch.pipes()?;
        let (theirs, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let null = File::open("/dev/null")?;
        let program = Program {
            candidates: vec![self.shell.path().to_owned()],
            argv: vec![CString::new(WAITING_NAME.as_slice())?],
            cwd: c"/".to_owned(),
            ..Program::default()
        };
        let stdio = Stdio {
            stdin: null.as_fd(),
            stdout: pipes.stdout.1.as_fd(),
            stderr: pipes.stderr.1.as_fd(),
            go: Some(theirs.as_fd()),
        };
        let pid = spawner.spawn(&program, stdio).map_err(io::Error::other)?;
        drop(theirs);
        let asked = ask(pid, &pipes.stdout.0);
        if asked.is_err() {
            let _ = signal_group(pid, libc::SIGKILL);
        }
        Ok(Waiting { id, pid, pipes, go: File::from(go), reader: asked? })
    }
}

/// Waits until the shell waits, and takes what an image for it must know.
fn ask(pid: Pid, stdout: &OwnedFd) -> io::Result<Reader> {
    let timeout = Timespec { tv_sec: START_SECONDS, tv_nsec: 0 };
    poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&timeout))?;
    let mut area = [0; 8];
    if rustix::io::read(stdout, &mut area)? != area.len() {
        return Err(io::Error::other("it ended at once"));
    }
    let auxiliary = auxiliary(&fs::read(format!("/proc/{}/auxv", pid.as_raw_nonzero()))?);
    // It was started with this thread's patience; its line is as urgent as any.
    setpriority_process(Some(pid), 0)?;
    Ok(Reader {
        area: u64::from_le_bytes(area),
        auxiliary: auxiliary.ok_or_else(|| io::Error::other("its auxiliary vector has no end"))?,
        places: capabilities(None)?.effective.contains(CapabilitySet::SYS_RESOURCE),
    })
}
