//! Where Cove's files lie on this computer: data, the vmm program, the guest image.
//!
//! The same rules as the engine's own, for the subcommands that run without one; nothing is made here.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `given`, or `$XDG_DATA_HOME/cove`, or `~/.local/share/cove`.
pub fn data_dir(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("Cannot make {} absolute", dir.display())),
        None => Ok(xdg("XDG_DATA_HOME", ".local/share")?.join("cove")),
    }
}

/// The vmm program: `$COVE_VMM`, or `vmm` beside this program, or in `../libexec/cove` as packages install it.
pub fn vmm_program() -> Result<PathBuf> {
    if let Some(path) = env_path("COVE_VMM") {
        return Ok(path);
    }
    let beside = program_dir()?;
    let candidates = [beside.join("vmm"), beside.join("../libexec/cove/vmm")];
    Ok(first_existing(candidates))
}

/// The guest image's directory: `given`, or `$COVE_GUEST_DIR`, or `guest` beside this program, or in
/// `../share/cove` as packages install it.
pub fn guest_dir(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given.map(Path::to_path_buf).or_else(|| env_path("COVE_GUEST_DIR")) {
        return std::path::absolute(&dir).with_context(|| format!("Cannot make {} absolute", dir.display()));
    }
    let beside = program_dir()?;
    Ok(first_existing([beside.join("guest"), beside.join("../guest"), beside.join("../share/cove/guest")]))
}

/// The first that exists, or the first of all, for the error message.
fn first_existing<const N: usize>(candidates: [PathBuf; N]) -> PathBuf {
    let found = candidates.iter().find(|path| path.exists());
    found.unwrap_or(&candidates[0]).clone()
}

fn program_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("Cannot find this program's own file")?;
    let dir = program.parent().context("This program's file lies in no directory")?;
    Ok(dir.to_path_buf())
}

/// An XDG base directory; a relative value is ignored, as the specification says.
fn xdg(variable: &str, under_home: &str) -> Result<PathBuf> {
    if let Some(dir) = env_path(variable).filter(|dir| dir.is_absolute()) {
        return Ok(dir);
    }
    let home = env_path("HOME").with_context(|| format!("Neither {variable} nor HOME is set"))?;
    Ok(home.join(under_home))
}

fn env_path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
