//! `cargo xtask build`: everything that `cove` needs, left in cargo's target folder.
//!
//! `target/release/` then holds `cove`, `vmm` and `guest`, a link to the guest directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::guest;
use crate::setup;
use crate::step::Step;
use crate::workspace;

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave the UI as it is.
    #[arg(long)]
    no_ui: bool,
}

/// What a build leaves.
pub struct Built {
    /// The `cove` command; `vmm` and the link `guest` are beside it.
    pub cove: PathBuf,
}

/// Run the task.
pub fn run(args: &Args) -> Result<()> {
    let built = ensure(!args.no_ui)?;
    println!("{}", built.cove.display());
    Ok(())
}

/// Build what is not up to date. The UI first, because the server carries it.
pub fn ensure(with_ui: bool) -> Result<Built> {
    if with_ui {
        build_ui()?;
    }
    build_host_programs()?;
    let guest_dir = guest::ensure(false)?;
    let release = workspace::target_dir().join("release");
    point(&release.join("guest"), &guest_dir)?;
    Ok(Built { cove: release.join("cove") })
}

fn build_ui() -> Result<()> {
    setup::install_npm_packages()?;
    let step = Step::begin("Build the UI", &workspace::target_dir().join("xtask/ui.log"))?;
    step.run(Command::new("npm").args(["run", "build"]).current_dir(workspace::root()))?;
    step.done("");
    Ok(())
}

fn build_host_programs() -> Result<()> {
    let step = Step::begin("Build cove and vmm", &workspace::target_dir().join("xtask/cargo.log"))?;
    let mut cargo = Command::new(workspace::cargo());
    cargo.args(["build", "--release", "--package", "cove-cli", "--package", "cove-vmm"]).current_dir(workspace::root());
    step.run(&mut cargo)?;
    step.done("");
    Ok(())
}

/// Build the window, for use. The page is built by then.
pub fn window() -> Result<()> {
    let step = Step::begin("Build the window", &workspace::target_dir().join("xtask/window.log"))?;
    let mut cargo = Command::new(workspace::cargo());
    cargo.args(["build", "--release", "--locked", "--package", "cove-desktop"]).current_dir(workspace::root());
    step.run(&mut cargo)?;
    step.done("");
    Ok(())
}

/// Make `link` lead to `target`, replacing an older link in one step.
fn point(link: &Path, target: &Path) -> Result<()> {
    let new = link.with_extension("new");
    let _ = fs::remove_file(&new);
    symlink(target, &new).with_context(|| format!("cannot link {}", new.display()))?;
    fs::rename(&new, link).with_context(|| format!("cannot put {} in place", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_the_guest_can_be_moved() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("guest");
        for target in ["/one", "/two"] {
            point(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
    }
}
