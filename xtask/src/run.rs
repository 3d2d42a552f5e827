//! `cargo xtask run`: from a fresh checkout to a program that ran in a sandbox, then the window.
//!
//! Sets the machine up, builds, starts `cove serve`, lets `cove demo` do the main job (a sandbox, a program written into
//! it and run there, its output and the timings), then opens the window, or without a display prints the page's address
//! and serves until it is interrupted.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use rustix::process::{Pid, Signal, kill_process};

use crate::{build, check, setup};

/// Arguments of `cargo xtask run`.
#[derive(ClapArgs)]
pub struct Args {
    /// End after the main job instead of opening the window.
    #[arg(long)]
    once: bool,
}

/// Does the main job and, without `--once`, shows the product until it is closed.
pub fn run(args: &Args) -> Result<()> {
    setup::run(&setup::Args::default())?;
    let cove = build::ensure(true)?.cove;
    let mut server = Server::start(&cove)?;
    check::shown(Command::new(&cove).args(["demo", "--url", &server.base_url]))?;
    if args.once {
        return server.stop();
    }
    if ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty())) {
        build::window()?;
        check::shown(&mut Command::new(cove.with_file_name("cove-desktop")))?;
        server.stop()
    } else {
        eprintln!("No display: open the page above in a browser. Ctrl-C ends the server; sandboxes stay.");
        let status = server.child.wait()?;
        if status.success() { Ok(()) } else { bail!("cove serve ended with {status}") }
    }
}

/// A `cove serve` of ours; ended when this is dropped.
struct Server {
    child: Child,
    base_url: String,
}

impl Server {
    /// Starts the server and waits until it says where it listens. Everything it prints is shown.
    fn start(cove: &Path) -> Result<Server> {
        let mut command = Command::new(cove);
        command.args(["serve", "--port", "0"]).stdin(Stdio::null()).stdout(Stdio::piped());
        // The program's output should not drown between the server's lines.
        if env::var_os("COVE_LOG").is_none() {
            command.env("COVE_LOG", "warn");
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {}", cove.display()))?;
        let mut lines = BufReader::new(child.stdout.take().context("cove serve has no output")?).lines();
        let mut server = Server { child, base_url: String::new() };
        for line in lines.by_ref() {
            let line = line?;
            println!("{line}");
            if let Some(url) = line.strip_prefix("MIOSA_BASE_URL=") {
                server.base_url = url.to_owned();
            }
            if line.starts_with("Page: ") {
                // The rest of its output is shown as it comes, so that the pipe never fills.
                std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("{line}")));
                return Ok(server);
            }
        }
        let status = server.child.wait()?;
        bail!("cove serve ended with {status} before it was ready; its log is above")
    }

    /// Asks the server to end, as its service manager would, and waits.
    fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        if status.success() { Ok(()) } else { bail!("cove serve ended with {status}") }
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let (None, Some(pid)) = (self.child.try_wait()?, Pid::from_raw(self.child.id().cast_signed())) {
            kill_process(pid, Signal::TERM).context("cannot end cove serve")?;
        }
        self.child.wait().context("cannot wait for cove serve")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("error: {error:#}");
        }
    }
}
