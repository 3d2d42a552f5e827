//! `cargo xtask soak`: the tests that `cargo xtask test` runs shortened, with their full counts.

use std::process::Command;

use anyhow::Result;

use crate::{build, check, setup, workspace};

/// The modules of `tests/` whose counts are shortened otherwise.
const MODULES: [&str; 6] = ["lives::", "faults::", "watch::", "traffic", "terminal::", "preview::"];

/// Arguments of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Runs the task. One test at a time, so that what a test reports is about it alone.
pub fn run(args: &Args) -> Result<()> {
    setup::run(&setup::Args::default())?;
    let cove = build::ensure(false)?.cove;
    let filters = args.filter.as_deref().map_or(MODULES.to_vec(), |filter| vec![filter]);
    for filter in filters {
        let mut tests = Command::new(workspace::cargo());
        tests.args(["test", "--locked", "--package", "cove-tests", "--", filter, "--test-threads", "1"]);
        tests.env("COVE_TEST_BIN_DIR", cove.with_file_name("")).env("COVE_SOAK", "1");
        check::shown(&mut tests)?;
    }
    Ok(())
}
