//! `cove`: the same API from a terminal.
//!
//! Every subcommand but `serve` and `doctor` is an HTTP client of a running server ([`client`]); `serve` is that server
//! without a window. A module is a subcommand: its `Args` and its `run`, which gives the exit code. Errors are printed
//! here, once, with their chain.
//!
//! Exit codes: what the command returned for `run` and `exec` (128 + N when signal N ended it, 124 when its time ran
//! out), [`EXIT_COVE_FAILED`] when Cove itself failed there; elsewhere 0 or 1, and 2 for a wrong command line.
#![forbid(unsafe_code)]

mod client;
mod sse;
mod text;

mod serve;

mod exec;
mod ps;
mod run;
mod shell;

mod cp;
mod env;
mod events;
mod expose;
mod logs;
mod ls;
mod rm;
mod top;

mod fork;
mod life;
mod restore;
mod snapshot;
mod tree;

mod bench;
mod demo;
mod doctor;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Cove failed before or beside the command that `run` or `exec` was to run; as with `env`, `nohup` and containers.
const EXIT_COVE_FAILED: u8 = 125;

/// Real isolated Linux machines on this computer.
#[derive(Parser)]
#[command(name = "cove", version)]
struct Cli {
    #[command(flatten)]
    connection: client::ConnectionArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the REST API on this computer's loopback address.
    Serve(serve::Args),
    /// Run a command in a fresh sandbox, and remove the sandbox afterwards.
    Run(run::Args),
    /// Run a command in a sandbox.
    Exec(exec::Args),
    /// A terminal in a sandbox; Ctrl-P Ctrl-Q leaves it, and --session comes back
    Shell(shell::Args),
    /// List the background processes of a sandbox
    Ps(ps::Args),
    /// End background processes of a sandbox
    Kill(ps::KillArgs),
    /// List sandboxes.
    Ls(ls::Args),
    /// Destroy sandboxes.
    Rm(rm::Args),
    /// Pause sandboxes: memory and disk are kept, the processor is free
    Pause(life::Args),
    /// Let paused sandboxes go on where they were
    Resume(life::ResumeArgs),
    /// End the session of sandboxes: persistent ones are paused, others destroyed
    Stop(life::Args),
    /// Start the session clock of sandboxes anew
    Extend(life::ExtendArgs),
    /// Take, list, delete and name snapshots
    Snapshot(snapshot::Args),
    /// Put a sandbox back to where a snapshot was
    Restore(restore::Args),
    /// Make new sandboxes that go on from a sandbox or a snapshot
    Fork(fork::Args),
    /// Draw which snapshots and sandboxes came from which
    Tree(tree::Args),
    /// Copy files into and out of a sandbox.
    Cp(cp::Args),
    /// Make a port of a sandbox a URL on this computer, and print it
    Expose(expose::Args),
    /// List the exposed ports of a sandbox
    Previews(expose::OneArgs),
    /// Take exposed ports of a sandbox back
    Unexpose(expose::UnexposeArgs),
    /// List who listens on TCP ports in a sandbox
    Ports(expose::OneArgs),
    /// Show a sandbox's console.
    Logs(logs::Args),
    /// Show what happens to sandboxes, as it happens
    Events(events::Args),
    /// Show what sandboxes take of this computer, again and again
    Top(top::Args),
    /// Show and change the environment of a sandbox
    Env(env::Args),
    /// Check what this computer needs for Cove, and say what to do.
    Doctor(doctor::Args),
    /// Write a Python program into a fresh sandbox and run it there.
    Demo(demo::Args),
    /// Measure a running server.
    Bench(bench::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { connection, command } = Cli::parse();
    let runs_a_command = matches!(command, Command::Run(_) | Command::Exec(_) | Command::Shell(_));
    let result = match command {
        Command::Serve(args) => serve::run(args, &connection).await,
        Command::Run(args) => run::run(args, &connection).await,
        Command::Exec(args) => exec::run(args, &connection).await,
        Command::Shell(args) => shell::run(args, &connection).await,
        Command::Ps(args) => ps::run(args, &connection).await,
        Command::Kill(args) => ps::kill(args, &connection).await,
        Command::Ls(args) => ls::run(args, &connection).await,
        Command::Rm(args) => rm::run(args, &connection).await,
        Command::Pause(args) => life::pause(args, &connection).await,
        Command::Resume(args) => life::resume(args, &connection).await,
        Command::Stop(args) => life::stop(args, &connection).await,
        Command::Extend(args) => life::extend(args, &connection).await,
        Command::Snapshot(args) => snapshot::run(args, &connection).await,
        Command::Restore(args) => restore::run(args, &connection).await,
        Command::Fork(args) => fork::run(args, &connection).await,
        Command::Tree(args) => tree::run(args, &connection).await,
        Command::Cp(args) => cp::run(args, &connection).await,
        Command::Expose(args) => expose::expose(args, &connection).await,
        Command::Previews(args) => expose::previews(args, &connection).await,
        Command::Unexpose(args) => expose::unexpose(args, &connection).await,
        Command::Ports(args) => expose::ports(args, &connection).await,
        Command::Logs(args) => logs::run(args, &connection).await,
        Command::Events(args) => events::run(args, &connection).await,
        Command::Top(args) => top::run(args, &connection).await,
        Command::Env(args) => env::run(args, &connection).await,
        Command::Doctor(args) => doctor::run(args, &connection).await,
        Command::Demo(args) => demo::run(args, &connection).await,
        Command::Bench(args) => bench::run(args, &connection).await,
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cove: {error:#}");
            ExitCode::from(if runs_a_command { EXIT_COVE_FAILED } else { 1 })
        }
    }
}
