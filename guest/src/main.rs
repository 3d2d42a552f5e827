//! PID 1 of every Cove machine: prepares it, then runs commands and moves files for the engine over vsock.
//!
//! Without arguments it is that. As `cove-agent --unix PATH` it serves the same protocol on a unix socket as a process
//! among others, without touching the machine: so the whole server is tested on an ordinary host.
//!
//! One thread, one loop (`server`); file operations have threads of their own (`workers`). It never panics on purpose:
//! the death of PID 1 is the death of the machine.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod init;

mod memory;

mod server;

mod token;

mod watch;

mod transport;

mod command;

mod relay;

mod ports;

mod orphans;

mod launch;

mod shell;

mod mounts;

mod environment;

mod accounts;

#[allow(unsafe_code)]
mod process;

#[allow(unsafe_code)]
mod reaper;

mod jobs;

mod terminal;

mod workers;

mod files;

mod failure;

mod machine;

mod generation;

#[allow(unsafe_code)]
mod entropy;

mod settle;

mod warm;

mod power;

#[allow(unsafe_code)]
mod vsock;

use std::{env, fs, io, os::fd::OwnedFd, os::unix::net::UnixListener, process::ExitCode, sync::Arc, thread};

use cove_protocol::{
    guest::Reply,
    vmm::{AGENT_PORT, READY_PORT},
};

use crate::{
    machine::{Machine, Process, uptime_us},
    server::{Host, Server},
    settle::Preparation,
    shell::{FastShell, WaitingShells},
    transport::Transport,
    watch::Watch,
};

/// Bytes of the stack of the thread that finishes the boot.
const BOOT_STACK_BYTES: usize = 64 << 10;

/// The agent as a process among others.
const USAGE: &str = "cove-agent --unix PATH [--shell DIRECTORY | --resets]";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [flag, path, options @ ..] if flag == "--unix" => serve_unix(path, options),
        _ if std::process::id() == 1 => serve_machine(),
        _ => Err(io::Error::other(format!("it is PID 1 of a machine, or is started as: {USAGE}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cove-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The agent's life in a machine.
fn serve_machine() -> io::Result<()> {
    init::prepare();
    let listener = vsock::listener(AGENT_PORT)?;
    let mut machine = Machine::new(uptime_us());
    let hello = machine.hello();
    let shell = Arc::new(FastShell::new(shell::DIRECTORY)?);
    let (watch, preparation) = preparation(&shell, true)?;
    let mut server = Server::new(listener, &mut machine, watch, Arc::clone(&shell), preparation.clone())?;
    shell.expect();
    if let Err(error) = announce(&hello) {
        eprintln!("cove-agent: the host does not listen for the ready call: {error}");
    }
    finish_boot(shell, preparation);
    let mut transport = server.run()?;
    drop(server);
    power::off(&mut transport);
    Err(io::Error::other("the machine would not end"))
}

/// What the server shares with those who work ahead of it.
fn preparation(shell: &Arc<FastShell>, tools: bool) -> io::Result<(Arc<Watch>, Preparation)> {
    let watch = Arc::new(Watch::new()?);
    let shells = Arc::new(WaitingShells::new(Arc::clone(&watch), Arc::clone(shell)));
    Ok((watch, Preparation { boot_end: Arc::default(), shell: Arc::clone(shell), shells, tools }))
}

/// Does what may come after the agent is ready, the most wanted first.
fn finish_boot(shell: Arc<FastShell>, preparation: Preparation) {
    let (preparing, end) = (Arc::clone(&shell), Arc::clone(&preparation.boot_end));
    let prepare = move || {
        init::prepare_for_commands();
        prepare_shell(&preparing, true);
        init::finish();
        preparation.shells.want();
        preparation.boot_end.reach();
    };
    if let Err(error) = thread::Builder::new().stack_size(BOOT_STACK_BYTES).spawn(prepare) {
        eprintln!("cove-agent: cannot start a thread: {error}");
        shell.give_up();
        end.reach();
    }
}

fn prepare_shell(shell: &FastShell, mounted: bool) {
    if let Err(error) = shell.prepare(mounted) {
        eprintln!("cove-agent: lines run in /bin/bash, the fast shell cannot be made: {error}");
    }
}

/// Tells the host that the agent serves.
fn announce(hello: &Reply) -> io::Result<()> {
    let mut transport = Transport::new(vsock::connect(vsock::HOST_CID, READY_PORT)?);
    transport.send_all(hello).map_err(io::Error::other)
}

/// The agent as a process among others. Says `ready` when it listens; a power-off request ends it. With a directory for the
/// fast shell it has one, and one that waits.
fn serve_unix(path: &str, options: &[String]) -> io::Result<()> {
    let (directory, resets) = match options {
        [] => (None, false),
        [flag] if flag == "--resets" => (None, true),
        [flag, directory] if flag == "--shell" => (Some(directory.as_str()), false),
        _ => return Err(io::Error::other(USAGE)),
    };
    // As PID 1 would: what commands leave behind becomes our child.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let mut process = Process { boot_us: uptime_us(), resets };
    let shell = Arc::new(FastShell::new(directory.unwrap_or(shell::DIRECTORY))?);
    let (watch, preparation) = preparation(&shell, false)?;
    preparation.boot_end.reach();
    let shells = Arc::clone(&preparation.shells);
    let mut server = Server::new(OwnedFd::from(listener), &mut process, watch, Arc::clone(&shell), preparation)?;
    if directory.is_some() {
        prepare_shell(&shell, false);
        shells.want();
    }
    println!("ready");
    let served = server.run();
    let removed = fs::remove_file(path);
    served?.send_all(&Reply::Done).map_err(io::Error::other)?;
    removed
}
