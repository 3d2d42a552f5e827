//! `cargo xtask check`: format, lints, types, unit tests, generated files, house rules, licences. Run it before a commit.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::step::elapsed;
use crate::{codegen, licences, setup, tidy, workspace};

/// Runs every check in turn; stops at the first that fails.
pub fn run() -> Result<()> {
    check("Format", || cargo(&["fmt", "--all", "--check"]))?;
    check("House rules", tidy::run)?;
    check("Licences", licences::run)?;
    // The page comes before the crates: the window's crate embeds what it builds to.
    setup::install_npm_packages()?;
    check("UI types", || npm(&["run", "check"]))?;
    check("UI tests", || npm(&["test"]))?;
    check("UI build", || npm(&["run", "build"]))?;
    let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    check("Lints", || cargo(&lints))?;
    check("Generated files", || codegen::run(&codegen::Args::check()))?;
    check("Unit tests", || cargo(&["test", "--locked", "--workspace", "--exclude", "cove-tests"]))
}

fn check(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("  ... {name}");
    let started = Instant::now();
    run().with_context(|| format!("the check '{name}' failed"))?;
    eprintln!("   ok {name} ({})", elapsed(started.elapsed()));
    Ok(())
}

/// Runs cargo in the checkout, its output shown as it comes.
pub fn cargo(args: &[&str]) -> Result<()> {
    shown(Command::new(workspace::cargo()).args(args))
}

fn npm(args: &[&str]) -> Result<()> {
    shown(Command::new("npm").args(args))
}

/// Runs a command in the checkout, its output shown as it comes; fails when it fails.
pub fn shown(command: &mut Command) -> Result<()> {
    let line = format!("{command:?}");
    let status = command.current_dir(workspace::root()).status().with_context(|| format!("cannot start {line}"))?;
    if status.success() { Ok(()) } else { bail!("{line} ended with {status}") }
}
