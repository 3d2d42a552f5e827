//! The shell that runs command lines: a statically linked bash whose code lies in one huge page.
//!
//! What a short command costs is the start of its shell, and what that costs is page faults: on a host that emulates the
//! guest's kernel a fault on a file takes 10 ms with its later unmapping, and `bash -c true` has over a hundred. Debian's
//! `bash-static` is the same bash from the same source package, needs no loader and no libraries, and its code and
//! constants fill just over 2 MiB. So at boot it is copied to a small tmpfs with huge pages and its segments are arranged
//! for few faults ([`program`]). `bash -c true` takes a third of the time then.
//!
//! ```text
//!  /usr/bin/bash-static ──copy──► /run/cove/shell/bash    used for lines while /bin/bash is as it was at boot
//! ```
//!
//! A sandbox where bash was upgraded or replaced, or an image without `bash-static`, uses `/bin/bash` itself.

mod entry;

mod image;

mod program;

mod waiting;

use std::{
    ffi::{CStr, CString},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    },
    path::PathBuf,
    sync::{Condvar, Mutex, PoisonError},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mount::{MountFlags, mount, mount_remount},
    pipe::{PipeFlags, pipe_with},
};

pub use self::waiting::WaitingShells;

use crate::process::{Program, Spawner, Stdio};

/// What bash would be.
const BASH: &str = "/bin/bash";

/// The package's binary.
const STATIC_BASH: &str = "/usr/bin/bash-static";

/// Where the copy lies in a machine.
pub const DIRECTORY: &str = "/run/cove/shell";

/// Its name there.
const NAME: &str = "bash";

/// The tmpfs: two huge pages hold the file.
const MOUNT_OPTIONS: &CStr = c"size=4m,mode=755,huge=always";

/// Largest file that fits.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Bytes copied at once, past the page cache: a huge page is written in place, and the original is not needed again.
const COPY_BYTES: usize = 128 << 10;

/// How long the copy may take for its first command.
const TRIAL_SECONDS: i64 = 10;

/// Direct I/O wants its memory aligned to this.
const ALIGNMENT: usize = 4096;

/// What tells one file from its replacement.
type Identity = (u64, u64, i64, i64);

/// The shell while it is being prepared, and after.
#[derive(Debug)]
pub struct FastShell {
    directory: PathBuf,
    path: CString,
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    /// There is none.
    #[default]
    Absent,
    /// Being copied.
    Preparing,
    /// Good while `/bin/bash` has this identity.
    Ready(Identity),
}

impl FastShell {
    /// There is none yet; it will lie in `directory`.
    ///
    /// # Errors
    /// A directory's name that holds a zero byte.
    pub fn new(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = std::path::absolute(directory.into())?;
        let path = CString::new(directory.join(NAME).into_os_string().into_encoded_bytes())?;
        Ok(Self { directory, path, state: Mutex::default(), settled: Condvar::new() })
    }

    /// The program.
    pub fn path(&self) -> &CStr {
        &self.path
    }

    /// Says that [`FastShell::prepare`] will be called by another thread: lines wait for it from now on.
    pub fn expect(&self) {
        self.set(State::Preparing);
    }

    /// Makes the copy. Called once, on a thread of its own, after the agent said that it is ready. Only a machine has a
    /// file system made for it (`mounted`); elsewhere it is only tested there.
    ///
    /// # Errors
    /// Lines go to `/bin/bash` then.
    pub fn prepare(&self, mounted: bool) -> io::Result<()> {
        let made = self.make(mounted);
        self.set(made.as_ref().map_or(State::Absent, |identity| State::Ready(*identity)));
        made.map(|_| ())
    }

    /// Takes [`FastShell::expect`] back.
    pub fn give_up(&self) {
        self.set(State::Absent);
    }

    /// True when lines should run in the copy. Waits while it is being made: that takes less than a cold `/bin/bash`.
    pub fn is_good(&self) -> bool {
        matches!(self.wait(), State::Ready(then) if identity(BASH).is_ok_and(|now| now == then))
    }

    /// Waits while it is being made, which is after all else that a command needs of the machine.
    pub fn wait_until_settled(&self) {
        self.wait();
    }

    fn wait(&self) -> State {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while matches!(*state, State::Preparing) {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state
    }

    /// Mounts, copies, changes the headers, closes for writing.
    fn make(&self, mounted: bool) -> io::Result<Identity> {
        let source = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(STATIC_BASH)?;
        let bash = identity(BASH)?;
        if source.metadata()?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("{STATIC_BASH} is larger than {FILE_BYTES_MAX} bytes")));
        }
        DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)?;
        if mounted {
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount("cove-shell", &self.directory, "tmpfs", flags, Some(MOUNT_OPTIONS))?;
        }
        let path = self.directory.join(NAME);
        let mut copy = OpenOptions::new().read(true).write(true).create_new(true).mode(0o755).open(path)?;
        copy_arranged(source, &mut copy)?;
        drop(copy);
        if !self.works()? {
            return Err(io::Error::other(format!("the copy of {STATIC_BASH} does not run")));
        }
        if mounted {
            mount_remount(&self.directory, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "")?;
        }
        Ok(bash)
    }

    /// Runs the copy once: a later bash-static that does not bear the arrangement must not cost the sandbox its shell. It also
    /// brings into memory what every shell reads at its start. The loop takes the process away as it does orphans.
    fn works(&self) -> io::Result<bool> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let program = Program {
            candidates: vec![self.path.clone()],
            argv: [c"bash", c"-c", c"echo works"].map(CStr::to_owned).to_vec(),
            env: vec![c"PATH=/usr/bin:/bin".to_owned()],
            cwd: c"/".to_owned(),
            identity: None,
            controls_terminal: false,
        };
        let stdio = Stdio { stdin: null.as_fd(), stdout: theirs.as_fd(), stderr: null.as_fd(), go: None };
        Spawner::default().spawn(&program, stdio).map_err(io::Error::other)?;
        drop(theirs);
        let timeout = Timespec { tv_sec: TRIAL_SECONDS, tv_nsec: 0 };
        let mut said = [0; 16];
        if poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&timeout))? == 0 {
            return Ok(false);
        }
        let count = File::from(ours).read(&mut said)?;
        Ok(&said[..count] == b"works\n")
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.settled.notify_all();
    }
}

fn identity(path: &str) -> io::Result<Identity> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Copies the program, changes its headers on the way and adds its new first instructions.
fn copy_arranged(mut source: File, copy: &mut File) -> io::Result<()> {
    let unexpected = || io::Error::other(format!("{STATIC_BASH} has unexpected segments"));
    let mut memory = vec![0; COPY_BYTES + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = memory.get_mut(start..start + COPY_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
    let count = source.read(buffer)?;
    let entry = program::arrange(&mut buffer[..count]).ok_or_else(unexpected)?;
    copy.write_all(&buffer[..count])?;
    loop {
        match source.read(buffer)? {
            0 => break,
            count => copy.write_all(&buffer[..count])?,
        }
    }
    let mut room = vec![0; entry.code.len()];
    copy.read_exact_at(&mut room, entry.offset)?;
    if room.iter().any(|byte| *byte != 0) {
        return Err(unexpected());
    }
    copy.write_all_at(&entry.code, entry.offset)
}
