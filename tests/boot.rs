//! A machine comes up, in time, with what was asked for, and costs the host little beside its memory.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Shared, parallel, resident_kib};

/// Most that a vmm may hold beside its guest's memory, in KiB.
const OVERHEAD_KIB_MAX: u64 = 10 * 1024;

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        parallel(shared, "boot::the_record_says_how_it_came_to_run", boot_is_told),
        parallel(shared, "boot::the_guest_is_what_the_template_promises", guest_layout),
        parallel(shared, "boot::a_vmm_holds_little_beside_the_guests_memory", little_overhead),
        parallel(shared, "boot::two_vcpus_are_granted_or_the_record_says_so", vcpus_are_honest),
    ]
}

fn boot_is_told(shared: &Shared) -> Result<()> {
    let record = shared.sandbox()?.record()?;
    ensure!(record["boot_path"] == "warm", "boot_path is {}", record["boot_path"]);
    ensure!(record["boot_ms"].as_u64().is_some_and(|ms| ms > 0), "boot_ms is {}", record["boot_ms"]);
    Ok(())
}

fn guest_layout(shared: &Shared) -> Result<()> {
    let sandbox = shared.sandbox()?;
    let line = "pwd; command -v python3; id -un; id -un sandbox; test -d /home/sandbox && echo home; test -w /tmp && echo tmp; \
                for tool in git curl node bash ps; do command -v $tool >/dev/null && echo $tool; done";
    let ran = sandbox.run(line)?;
    let expected = "/workspace\n/opt/venv/bin/python3\nroot\nsandbox\nhome\ntmp\ngit\ncurl\nnode\nbash\nps\n";
    ensure!(ran.stdout == expected, "{ran:?}");
    Ok(())
}

fn little_overhead(shared: &Shared) -> Result<()> {
    let pid = shared.host()?.vmm_pid(&shared.sandbox()?.id)?;
    let (all, largest) = resident_kib(pid)?;
    let overhead = all - largest;
    ensure!(overhead <= OVERHEAD_KIB_MAX, "The vmm holds {overhead} KiB beside the guest's {largest} KiB");
    Ok(())
}

fn vcpus_are_honest(shared: &Shared) -> Result<()> {
    let sandbox = shared.host()?.sandbox(&json!({ "cpu_count": 2, "memory_mb": 512, "disk_size_mb": 4096 }))?;
    let record = sandbox.record()?;
    let ran = sandbox.run("nproc")?;
    sandbox.destroy()?;
    let granted = record["cpu_granted"].as_u64().context("The record has no cpu_granted")?;
    // Nobody made the template warm for this shape.
    ensure!(record["boot_path"] == "cold", "boot_path is {}", record["boot_path"]);
    ensure!(record["cpu_count"] == 2 && (1..=2).contains(&granted), "{record}");
    ensure!(ran.stdout.trim() == granted.to_string(), "nproc says {ran:?}, the record {granted}");
    Ok(())
}
