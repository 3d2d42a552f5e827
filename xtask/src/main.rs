//! Build steps in Rust instead of shell: `cargo xtask <task>`.
//!
//! Each task is a module with an `Args` type and a `run` function. A task that needs another one's result calls its
//! `run`; nothing here is needed at run time.

#![forbid(unsafe_code)]

mod build;
mod bundle;
mod check;
mod codegen;
mod guest;
mod licences;
mod run;
mod setup;
mod soak;
mod step;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and checks Cove.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the system packages that building and testing need.
    Setup(setup::Args),
    /// Build the guest: kernels, root image, manifest.
    Guest(guest::Args),
    /// Build everything for use: cove, vmm, agent, UI, guest.
    Build(build::Args),
    /// The Debian package: window, command, vmm, guest.
    Bundle(bundle::Args),
    /// Build everything, run a program in a sandbox, open the window.
    Run(run::Args),
    /// Set up, check, build, and run every test.
    Test,
    /// The long tests with their full counts: cycles, forks, every fault at every step. Takes hours.
    Soak(soak::Args),
    /// Format, lints, types, unit tests, generated files, house rules, licences.
    Check,
    /// Write the generated files: OpenAPI document, UI types.
    Codegen(codegen::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::Guest(args) => guest::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Bundle(args) => bundle::run(&args),
        Task::Run(args) => run::run(&args),
        Task::Test => test::run(),
        Task::Soak(args) => soak::run(&args),
        Task::Check => check::run(),
        Task::Codegen(args) => codegen::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
