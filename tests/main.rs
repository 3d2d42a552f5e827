//! The promises that the whole product keeps, each a test against a real server on real KVM. See README.md.
//!
//! Most tests share one server and one sandbox, because a guest takes seconds to boot; those that kill something have
//! their own. The runner is ours, so that it can look for what is left behind when the last test is done.
#![forbid(unsafe_code)]

mod harness;

mod boot;
mod cli;
mod disks;
mod faults;
mod lives;
mod preview;
mod recovery;
mod rest;
mod sdk;
mod terminal;
mod traffic;
mod watch;
mod window;

use std::process::ExitCode;
use std::sync::Arc;

use harness::Shared;

/// Tests at a time unless the caller says: guests are slow, and more would only wait for the processor.
const THREADS_DEFAULT: usize = 2;

fn main() -> ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS_DEFAULT);
    harness::clean_up_on_signals();
    let shared = Arc::new(Shared::default());
    let tests = [
        boot::tests(&shared),
        rest::tests(&shared),
        cli::tests(&shared),
        sdk::tests(&shared),
        terminal::tests(&shared),
        watch::tests(&shared),
        traffic::tests(&shared),
        lives::tests(&shared),
        preview::tests(&shared),
        recovery::tests(&shared),
        faults::tests(&shared),
        window::tests(&shared),
    ];
    let conclusion = libtest_mimic::run(&arguments, tests.into_iter().flatten().collect());
    let failed = conclusion.has_failed();
    match shared.finish(failed) {
        Ok(()) if !failed => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(101),
        Err(error) => {
            eprintln!("\nAfter the tests: {error:#}");
            ExitCode::from(101)
        }
    }
}
