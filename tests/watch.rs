//! A watch on many files: nothing that happens is lost in silence.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::Value;

use crate::harness::{Shared, full, parallel};

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![parallel(shared, "watch::quick_changes_in_a_large_tree_are_told_or_counted", quick_changes)]
}

/// Directories that one command fills.
const DIRECTORIES_AT_ONCE: usize = 50;

/// Directories with ten files each, and how many of the files are changed.
fn size() -> (usize, usize) {
    full((1000, 1000), (60, 200))
}

fn quick_changes(shared: &Shared) -> Result<()> {
    let (host, sandbox) = (shared.host()?, shared.sandbox()?);
    let api = host.api();
    let (directories, changes) = size();
    // Shells that start one other process each: starting one is slow where the guest's kernel is emulated. Making a file
    // takes it 20 ms there, so that one command for all would be a long one.
    for first in (0..directories).step_by(DIRECTORIES_AT_ONCE) {
        let last = (first + DIRECTORIES_AT_ONCE).min(directories) - 1;
        let made = sandbox.run(&format!(
            "mkdir -p /workspace/large/{{{first}..{last}}}; for ((d = {first}; d <= {last}; d++)); do \
             for ((f = 0; f < 10; f++)); do : > /workspace/large/$d/$f; done; done"
        ))?;
        ensure!(made.exit_code == 0, "{made:?}");
    }

    let path = sandbox.path("/files/watch");
    let request = api.request(Method::GET, &path).query(&[("path", "/workspace/large")]);
    let response = request.send()?.error_for_status()?;
    let mut lines = BufReader::new(response).lines();
    let opened = lines.next().context("The stream ended")??;
    ensure!(opened == format!(": {} directories", directories + 1), "{opened}");

    let changed = sandbox.run(&format!(
        "for ((n = 0; n < {changes}; n++)); do echo x >> /workspace/large/$((n % {directories}))/$((n / {directories} % 10)); \
         done; : > /workspace/large/end"
    ))?;
    ensure!(changed.exit_code == 0, "{changed:?}");
    let expected: BTreeSet<String> =
        (0..changes).map(|n| format!("/workspace/large/{}/{}", n % directories, n / directories % 10)).collect();
    let (mut told, mut lost, mut overflows) = (BTreeSet::new(), 0, 0);
    for line in lines {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let change: Value = serde_json::from_str(data)?;
        let path = change["path"].as_str().context("A change has no path")?.to_owned();
        match change["event"].as_str() {
            Some("modified") => drop(told.insert(path)),
            Some("overflow") => {
                overflows += 1;
                lost += change["dropped"].as_u64().unwrap_or(u64::MAX / 2);
            }
            Some("created") if path.ends_with("/end") => break,
            other => anyhow::bail!("unexpected {other:?}: {change}"),
        }
    }
    let missing = expected.difference(&told).count() as u64;
    eprintln!(
        "  {changes} changes in {directories} directories: {} told, {missing} missing, {overflows} overflows",
        told.len()
    );
    ensure!(told.is_subset(&expected), "{:?}", told.difference(&expected).collect::<Vec<_>>());
    ensure!(missing <= lost, "{missing} changes are missing, and {lost} were said to be lost");
    // In full they go with the sandbox: removing thousands takes minutes where the guest's kernel is emulated.
    if full(false, true) {
        sandbox.run("rm -r /workspace/large")?;
    }
    Ok(())
}
