//! From an [`Exec`] request to a running process: what it runs, as whom, where, with which environment and pipes.
//!
//! Everything that may fail with a reason for the user is checked here. Pipes can be made ahead of their command
//! ([`Pipes::new`]), because on hosts that emulate the guest's kernel each system call before the start is felt.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io, iter,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use cove_protocol::guest::{Command, DEFAULT_CWD, ErrorKind, Exec, OpenTerminal};
use rustix::{
    fs::{OFlags, fcntl_setfl},
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};

use crate::{
    accounts::Account,
    environment::Environment,
    failure::{Failure, absolute},
    process::{Program, SpawnError, Spawner, Stdio, Step},
    shell::FastShell,
    terminal::pty,
};

/// Shells that run a line, the best first, after the fast one. Not as a login shell: that would read profile files on
/// each command, and all they would set is in the environment already.
const SHELLS: [&CStr; 2] = [c"/bin/bash", c"/bin/sh"];

/// What programs on a terminal find in their environment below the sandbox's own: what kind it is, and that characters
/// are UTF-8, which costs 0.07 s at their start (see `environment`) and is what makes line editing right.
const TERMINAL_ENVIRONMENT: [(&str, &str); 2] = [("TERM", "xterm-256color"), ("LC_CTYPE", "C.UTF-8")];

/// The output pipes of one command.
#[derive(Debug)]
pub struct Pipes {
    /// The agent's end, which never blocks, and the command's.
    pub stdout: (OwnedFd, OwnedFd),
    /// As `stdout`.
    pub stderr: (OwnedFd, OwnedFd),
}

impl Pipes {
    /// Makes both.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { stdout: output_pipe()?, stderr: output_pipe()? })
    }
}

fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    // Only our end: the flag belongs to the end, and programs do not expect it on theirs.
    fcntl_setfl(&ours, OFlags::NONBLOCK)?;
    Ok((ours, theirs))
}

/// A command that just started, and the agent's ends of its pipes.
#[derive(Debug)]
pub struct Launched {
    /// Its process id, session and process group.
    pub pid: Pid,
    /// Where its standard input is written to, if asked.
    pub stdin: Option<OwnedFd>,
    /// Where its standard output is read from.
    pub stdout: OwnedFd,
    /// Where its standard error is read from.
    pub stderr: OwnedFd,
    /// The command's ends of its output pipes. Kept open until it has ended: its end is told by SIGCHLD, and closing
    /// them is work that can wait until then.
    pub theirs: (OwnedFd, OwnedFd),
}

/// Starts commands.
#[derive(Debug)]
pub struct Launcher {
    spawner: Spawner,
    shell: Arc<FastShell>,
    null: File,
}

impl Launcher {
    /// Opens what every command shares.
    ///
    /// # Errors
    /// When there is no `/dev/null`.
    pub fn new(shell: Arc<FastShell>) -> io::Result<Self> {
        Ok(Self { spawner: Spawner::default(), shell, null: File::open("/dev/null")? })
    }

    /// Starts a request's program.
    ///
    /// # Errors
    /// Names the field that is wrong, or what could not be run.
    pub fn launch(&mut self, exec: &Exec, program: &Program, pipes: Pipes) -> Result<Launched, Failure> {
        let stdin = if exec.stdin { Some(input_pipe()?) } else { None };
        let stdio = Stdio {
            stdin: stdin.as_ref().map_or(self.null.as_fd(), |(_, theirs)| theirs.as_fd()),
            stdout: pipes.stdout.1.as_fd(),
            stderr: pipes.stderr.1.as_fd(),
            go: None,
        };
        let pid = self
            .spawner
            .spawn(program, stdio)
            .map_err(|error| explain(name(exec), exec.user.as_deref(), program, &error))?;
        let Pipes { stdout, stderr } = pipes;
        let theirs = (stdout.1, stderr.1);
        Ok(Launched { pid, stdin: stdin.map(|(ours, _)| ours), stdout: stdout.0, stderr: stderr.0, theirs })
    }

    /// What a request runs, with `sandbox`'s environment under its own.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn program(&self, exec: &Exec, sandbox: &[(String, String)]) -> Result<Program, Failure> {
        let account = Account::find(exec.user.as_deref())?;
        let environment = Environment::merge(&account, sandbox, &exec.env)?;
        let (candidates, argv) = match &exec.command {
            Command::Shell(line) => self.shell(line)?,
            Command::Argv(words) => {
                self.shell.wait_until_settled();
                argv(words, environment.path())?
            }
        };
        Ok(Program {
            candidates,
            argv,
            env: environment.strings(),
            cwd: absolute("cwd", exec.cwd.as_deref().unwrap_or(DEFAULT_CWD))?,
            identity: account.identity,
            controls_terminal: false,
        })
    }

    /// What a terminal session runs.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn terminal_program(&self, open: &OpenTerminal, sandbox: &[(String, String)]) -> Result<Program, Failure> {
        let account = Account::find(open.user.as_deref())?;
        let below: Vec<_> =
            TERMINAL_ENVIRONMENT.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let below = [&below, sandbox].concat();
        let environment = Environment::merge(&account, &below, &open.env)?;
        self.shell.wait_until_settled();
        let (candidates, argv) = if open.command.is_empty() {
            let name = account.shell.rsplit('/').next().unwrap_or("sh");
            let shells = SHELLS.into_iter().map(CStr::to_owned);
            (iter::once(word(&account.shell)?).chain(shells).collect(), vec![word(name)?])
        } else {
            argv(&open.command, environment.path())?
        };
        Ok(Program {
            candidates,
            argv,
            env: environment.strings(),
            cwd: absolute("cwd", open.cwd.as_deref().unwrap_or(DEFAULT_CWD))?,
            identity: account.identity,
            controls_terminal: true,
        })
    }

    /// Starts the program of a terminal session on a new pseudo-terminal. Gives the agent's end, which never blocks.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub fn launch_terminal(&mut self, open: &OpenTerminal, program: &Program) -> Result<(Pid, OwnedFd), Failure> {
        let uid = program.identity.as_ref().map(|identity| identity.uid);
        let (ours, theirs) =
            pty::open(open.size, uid).map_err(|error| Failure::io("Cannot make a pseudo-terminal".into(), &error))?;
        let theirs = theirs.as_fd();
        let stdio = Stdio { stdin: theirs, stdout: theirs, stderr: theirs, go: None };
        let name = open.command.first().map_or_else(
            || program.argv.first().map_or_else(String::new, |word| word.to_string_lossy().into_owned()),
            Clone::clone,
        );
        let started = self.spawner.spawn(program, stdio);
        Ok((started.map_err(|error| explain(&name, open.user.as_deref(), program, &error))?, ours))
    }

    /// True when a waiting shell can be what this request asks for: a line for the fast shell, as root, with nothing to read.
    pub fn fits_waiting_shell(&self, exec: &Exec, program: &Program) -> bool {
        matches!(exec.command, Command::Shell(_))
            && !exec.stdin
            && program.identity.is_none()
            && program.candidates.first().is_some_and(|first| first.as_c_str() == self.shell.path())
    }

    fn shell(&self, line: &str) -> Result<CandidatesAndArgv, Failure> {
        let fast = self.shell.is_good().then(|| self.shell.path());
        let candidates = fast.into_iter().chain(SHELLS).map(CStr::to_owned).collect();
        Ok((candidates, vec![word("bash")?, word("-c")?, word(line)?]))
    }
}

/// The agent's end first, which never blocks.
fn input_pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    let make = || {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&ours, OFlags::NONBLOCK)?;
        Ok((ours, theirs))
    };
    make().map_err(|error: rustix::io::Errno| Failure::io("Cannot make a pipe".into(), &error.into()))
}

type CandidatesAndArgv = (Vec<CString>, Vec<CString>);

fn argv(words: &[String], path: &str) -> Result<CandidatesAndArgv, Failure> {
    let Some(name) = words.first().filter(|name| !name.is_empty()) else {
        return Err(Failure::request("command: it names no program".into()));
    };
    let argv = words.iter().map(|argument| word(argument)).collect::<Result<_, _>>()?;
    if name.contains('/') {
        return Ok((vec![word(name)?], argv));
    }
    let directories = path.split(':').map(|directory| if directory.is_empty() { "." } else { directory });
    Ok((directories.map(|directory| word(&format!("{directory}/{name}"))).collect::<Result<_, _>>()?, argv))
}

fn word(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::request("command: it holds a zero byte".into()))
}

/// What a request runs, for people.
fn name(exec: &Exec) -> &str {
    match &exec.command {
        Command::Argv(words) => words.first().map_or("", String::as_str),
        Command::Shell(_) => "/bin/bash",
    }
}

/// The sentence for a command that did not start.
fn explain(name: &str, user: Option<&str>, program: &Program, error: &SpawnError) -> Failure {
    let errno = error.source.raw_os_error();
    match error.step {
        Step::Directory => Failure::io(format!("cwd: cannot enter {}", program.cwd.to_string_lossy()), &error.source),
        Step::Identity => Failure::io(format!("user: cannot become {}", user.unwrap_or("root")), &error.source),
        Step::Execute if errno == Some(libc::ENOENT) && !name.contains('/') => {
            Failure { kind: ErrorKind::NotFound, message: format!("command: there is no program {name:?} in PATH") }
        }
        Step::Execute => Failure::io(format!("command: cannot run {name:?}"), &error.source),
        Step::Clone | Step::Prepare => Failure::io("Cannot start a process".into(), &error.source),
    }
}
