//! `cargo xtask test`: sets the machine up, then every test there is. The README's test command; CI runs it too.

use std::process::Command;

use anyhow::Result;

use crate::{build, check, setup, workspace};

/// Set-up, checks with the unit tests, build, then the product end to end on real machines.
pub fn run() -> Result<()> {
    setup::run(&setup::Args::default())?;
    check::run()?;
    let cove = build::ensure(true)?.cove;
    // The checks have built most of it; a release build of the desktop's crates would take minutes and show no more.
    check::cargo(&["build", "--locked", "--package", "cove-desktop"])?;
    eprintln!("  ... End-to-end tests");
    let mut tests = Command::new(workspace::cargo());
    tests.args(["test", "--locked", "--package", "cove-tests"]);
    tests.env("COVE_TEST_BIN_DIR", cove.with_file_name(""));
    tests.env("COVE_TEST_WINDOW", workspace::target_dir().join("debug/cove-desktop"));
    check::shown(&mut tests)
}
