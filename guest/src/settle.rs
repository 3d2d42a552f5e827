//! What a snapshot wants of the machine before it is taken: dirty pages on the disks, and the work done now that every
//! restored machine would otherwise do for itself. Run by `workers`, since both may take long.

use std::{
    fs::File,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use crate::{
    failure::Failure,
    launch::Launched,
    shell::{FastShell, WaitingShells},
    warm,
};

/// The end of the boot: what may come after the agent is ready.
#[derive(Debug, Default)]
pub struct BootEnd {
    reached: Mutex<bool>,
    event: Condvar,
}

impl BootEnd {
    /// Everything is done, or has failed and told the console.
    pub fn reach(&self) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.event.notify_all();
    }

    /// Waits for it.
    pub fn wait(&self) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        while !*reached {
            reached = self.event.wait(reached).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What [`Request::Prepare`](cove_protocol::guest::Request::Prepare) asks for.
#[derive(Clone, Debug)]
pub struct Preparation {
    /// All memory is there.
    pub boot_end: Arc<BootEnd>,
    /// The shell of the lines that are run.
    pub shell: Arc<FastShell>,
    /// A shell waits.
    pub shells: Arc<WaitingShells>,
    /// The tools are brought into memory: in a machine.
    pub tools: bool,
}

impl Preparation {
    /// Does it all. What fails is told on the console, and done when it is asked for.
    pub fn run(&self) {
        self.boot_end.wait();
        if self.tools
            && let Err(error) = warm::run_tools(&self.shell).and_then(|()| self.run_waiting_shell())
        {
            eprintln!("cove-agent: the usual tools are not brought into memory: {error}");
        }
        self.shells.wait_for_one();
    }

    /// Runs a line as the first command of a restored machine will be run: the agent's own way to it is in memory then.
    fn run_waiting_shell(&self) -> io::Result<()> {
        self.shells.wait_for_one();
        let launched = self.shells.launch(&warm::program(&self.shell, "true")?);
        if let Some((_, Launched { stdout, theirs, .. })) = launched {
            drop(theirs);
            warm::read_to_end(&stdout)?;
        }
        Ok(())
    }
}

/// Writes dirty pages to the disks: of every file system, but where one waits for someone who may never answer only those
/// of the root.
///
/// # Errors
/// The disk's, as far as the kernel tells them.
pub fn sync(may_hang: bool) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        if !may_hang {
            rustix::fs::sync();
        }
        // Its errors are told, those of `sync` are not.
        Ok(rustix::fs::syncfs(File::open("/")?)?)
    };
    write().map_err(|error| Failure::io("Cannot write the root file system to its disk".into(), &error))
}
