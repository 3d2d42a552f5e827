//! Generated files, committed: `api/openapi.json` from the routes, `ui/src/api/types.gen.ts` from that.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::step;
use crate::workspace;

const OPENAPI: &str = "api/openapi.json";
const TYPES: &str = "ui/src/api/types.gen.ts";

/// Arguments of `cargo xtask codegen`.
#[derive(ClapArgs)]
pub struct Args {
    /// Change nothing; fail when a generated file is not current.
    #[arg(long)]
    check: bool,
}

impl Args {
    /// As `--check` on the command line.
    pub fn check() -> Self {
        Self { check: true }
    }
}

/// Writes both files, or with `--check` compares them.
pub fn run(args: &Args) -> Result<()> {
    let root = workspace::root();
    let before = contents()?;
    let mut openapi = Command::new(workspace::cargo());
    openapi.current_dir(&root).args(["run", "--quiet", "--locked", "--package", "cove-api", "--example", "openapi"]);
    fs::write(root.join(OPENAPI), step::output(&mut openapi)? + "\n").context("cannot write api/openapi.json")?;
    step::output(Command::new("npm").current_dir(&root).args(["run", "--silent", "types"]))?;
    let after = contents()?;
    if !args.check || before == after {
        return Ok(());
    }
    for (path, text) in [OPENAPI, TYPES].into_iter().zip(&before) {
        fs::write(root.join(path), text)?;
    }
    bail!("{OPENAPI} or {TYPES} is not current: run `cargo xtask codegen` and commit what it writes")
}

fn contents() -> Result<Vec<String>> {
    let read = |path: &str| match fs::read_to_string(workspace::root().join(path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("cannot read {path}")),
    };
    [OPENAPI, TYPES].into_iter().map(read).collect()
}
